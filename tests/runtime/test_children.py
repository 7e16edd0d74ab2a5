"""The back-off as a table."""

from __future__ import annotations

import signal

import pytest

from tlsproxy.runtime.children import Replacement, describe_exit, plan_replacement


@pytest.mark.parametrize(
    ("failures", "healthy_for", "expected"),
    [
        (0, 0.0, Replacement(0.0, 1)),
        (0, 5.0, Replacement(0.0, 1)),
        (1, 0.0, Replacement(1.0, 2)),
        (2, 59.9, Replacement(2.0, 3)),
        (3, 0.0, Replacement(4.0, 4)),
        (5, 0.0, Replacement(16.0, 6)),
        (6, 0.0, Replacement(30.0, 7)),
        (10_000, 0.0, Replacement(30.0, 10_001)),
        (10_000, 60.0, Replacement(0.0, 1)),
    ],
)
def test_replacement(failures: int, healthy_for: float, expected: Replacement) -> None:
    assert plan_replacement(failures, healthy_for) == expected


@pytest.mark.parametrize(
    ("returncode", "text"),
    [(0, "exit status 0"), (3, "exit status 3"), (-signal.SIGKILL, "signal SIGKILL"), (-63, "signal 63")],
)
def test_an_exit_is_described(returncode: int, text: str) -> None:
    assert describe_exit(returncode) == text
