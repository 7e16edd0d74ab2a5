"""How the proxy says it is, asked over its admin socket, answered by processes that play the proxy's."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.runtime.test_admin import _run
from tests.runtime.test_generation import _generation
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.messages import Stats
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.overview import MOST_EXPIRING, Identity, Overview, Sources, _first_to_expire

pytestmark = pytest.mark.system

IDENTITY = Identity(3, ("https 127.0.0.1:8443",), datetime(2026, 1, 2, tzinfo=UTC))
ROWS = [
    {"url": "http://127.0.0.1:1", "state": "up"},
    {"url": "http://127.0.0.1:2", "state": "up"},
    {"url": "http://127.0.0.1:3", "state": "down"},
]
DRAINING = [{"generation": 1, "workers": [7], "seconds_left": 5.0}]


def row(name: str, status: str, not_after: str | None) -> dict[str, Any]:
    return {"name": name, "status": status, "not_after": not_after, "renew_at": None, "last_error": None, "issuer": "x"}


async def _rows() -> list[Mapping[str, Any]]:
    return list(ROWS)


async def _certificates() -> list[Mapping[str, Any]]:
    return [row("a", "valid", "2026-05-01T00:00:00Z"), row("b", "failed", None)]


@contextlib.asynccontextmanager
async def _served(*workers: str, sources: Sources | None = None) -> AsyncIterator[tuple[Generation, Overview]]:
    async with _generation(*workers) as generation:
        await generation.start()
        yield generation, Overview(lambda: generation, sources)


def test_status_counts_backends_and_names_who_leaves() -> None:
    async def scene() -> None:
        async with _served("serve", sources=Sources(lambda: DRAINING, _rows)) as (_, overview):
            status = await overview.status(IDENTITY)
            assert status["backends"] == {"up": 2, "down": 1}
            assert status["draining"] == DRAINING
            assert (status["serving"], status["ready"], status["not_ready"]) == (True, True, [])

    _run(scene())


def test_ready_while_a_worker_listens_and_not_without() -> None:
    async def scene() -> None:
        async with _served("serve", "serve") as (generation, overview):
            code, said = await overview.readiness(IDENTITY)
            assert (code, said["status"], said["workers"]) == (200, "ready", 2)
            assert said["certificates"] == {"valid": 2, "pending": 1, "failed": 0}
            assert overview.health() == (200, {"status": "ok", "workers": 2})
            await generation.kill()
            code, said = await overview.readiness(IDENTITY)
            assert (code, said["status"]) == (503, "not ready")
            assert said["reasons"] == ["no worker is ready at the moment, they are being started again"]
            assert overview.health()[0] == 503

    _run(scene())


@pytest.mark.parametrize(
    ("counts", "is_ready"),
    [
        ({"valid": 0, "pending": 1, "failed": 1}, False),
        ({"valid": 1, "pending": 0, "failed": 5}, True),  # those that have a certificate are served
        ({"valid": 0, "pending": 0, "failed": 0}, True),  # nothing but sites on demand
        (None, True),  # the certifier says nothing: workers serve what is in the store
    ],
)
def test_certificates_and_readiness(counts: dict[str, int] | None, is_ready: bool) -> None:
    async def scene() -> None:
        async with _served("serve") as (generation, overview):
            overview._counts = counts
            reasons = overview._find_reasons(IDENTITY, generation)
            assert (not reasons) is is_ready
            assert is_ready or "none of 2 certificates is there yet" in reasons[0]

    _run(scene())


def test_a_sample_for_top_has_totals_and_states() -> None:
    collector = Collector()
    labels = 'site="a.test",route="/",method="GET",status="200"'
    collector.take(1, Stats({}, {f"tlsproxy_requests_total{{{labels}}}": 5}))

    async def scene() -> None:
        sources = Sources(lambda: DRAINING, _rows, _certificates, collector)
        async with _served("serve", "mute", sources=sources) as (generation, overview):
            sample = await overview.top(IDENTITY)
            assert (sample["requests"], sample["draining"], sample["sites"]) == (5, 1, 3)
            assert sample["certificates"] == {"valid": 1, "failed": 1}
            assert [each["name"] for each in sample["expiring"]] == ["b", "a"]
            assert [each["pid"] for each in sample["workers"]] == generation.worker_pids()
            assert {each["connections"] for each in sample["workers"]} == {1, None}
            assert all(each["memory"] > 2**20 for each in sample["workers"])

    _run(scene())


def test_what_is_not_in_order_comes_first_then_what_ends_first() -> None:
    many = [row(f"{number}", "valid", f"2026-05-{number:02}T00:00:00Z") for number in range(30, 0, -1)]
    found = _first_to_expire([*many, row("x", "expired", "2027-01-01T00:00:00Z")])
    assert [each["name"] for each in found][:3] == ["x", "1", "2"]
    assert len(found) == MOST_EXPIRING
    assert set(found[0]) == {"name", "status", "not_after", "renew_at", "last_error"}
