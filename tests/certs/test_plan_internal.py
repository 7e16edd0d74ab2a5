"""What is due when: tables over a fake clock."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.store.pki import issue
from tlsproxy.certs.plan_internal import plan_leaf, plan_root
from tlsproxy.certs.wanted import Obtain, Wait
from tlsproxy.store.bundle import Bundle

BORN = datetime(2026, 1, 1, tzinfo=UTC)


def held(life: timedelta) -> Bundle:
    return replace(issue("a.test", "b.test").bundle(), not_before=BORN, not_after=BORN + life)


ROOT = held(timedelta(days=3650))
LEAF = replace(held(timedelta(days=45)), issuer=ROOT.issuer)


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (-1, "the root is not valid before"),
        (0, 3285),
        (3284.99, 3285),
        (3285, "less than a year"),
        (3650, "the root expired"),
    ],
)
def test_root(day: float, expected: str | int) -> None:
    action = plan_root(ROOT, BORN + timedelta(days=day))
    _check(action, expected)


@pytest.mark.parametrize(
    ("day", "expected"),
    [(-1, "it is not valid before"), (0, 30), (29.99, 30), (30, "a third of its life is left"), (46, "it expired")],
)
def test_leaf(day: float, expected: str | int) -> None:
    action = plan_leaf(["a.test"], LEAF, ROOT, BORN + timedelta(days=day))
    _check(action, expected)


@pytest.mark.parametrize(
    ("hosts", "leaf", "expected"),
    [
        (["a.test"], None, "there is no certificate yet"),
        (["a.test", "b.test"], LEAF, 30),
        (["a.test", "c.test", "d.test"], LEAF, "it does not cover c.test, d.test"),
        (["a.test"], replace(LEAF, issuer="CN=old"), "the root of the internal CA is new"),
    ],
)
def test_leaf_and_its_hosts(hosts: list[str], leaf: Bundle | None, expected: str | int) -> None:
    _check(plan_leaf(hosts, leaf, ROOT, BORN), expected)


def test_no_root_yet() -> None:
    assert plan_root(None, BORN) == Obtain("there is no root yet")


def _check(action: object, expected: str | int) -> None:
    if isinstance(expected, int):
        assert action == Wait(BORN + timedelta(days=expected))
    else:
        assert isinstance(action, Obtain)
        assert action.reason.startswith(expected)
