"""What is a state and not a count: how many tell of it, and what comes of it in a scrape."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.test_generation import _generation, _spec
from tlsproxy.runtime import families, scrape
from tlsproxy.runtime.exposition import Page, Sample, render
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.metrics import Collector, Told
from tlsproxy.runtime.procfs import cpu_seconds, open_descriptors, resident_memory
from tlsproxy.runtime.scrape import Configured, Scraper

NOBODY = 2**22 + 1  # above the highest pid that Linux gives

HERE = "http://127.0.0.1:1"
THERE = "http://127.0.0.1:2"


def row(name: str, not_after: str | None = "2026-03-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    before = "2026-01-01T00:00:00Z" if not_after else None
    told = {"name": name, "issuer": "CA", "not_before": before, "not_after": not_after, "status": "valid"}
    return {**told, "served": True, "next_attempt": None, **more}


def backend(url: str, state: str, *routes: str, active: int = 0, idle: int = 0) -> dict[str, Any]:
    return {"url": url, "state": state, "routes": list(routes), "active": active, "idle": idle}


def shown(samples: Iterator[Sample], family: families.Family) -> dict[tuple[str, ...], float]:
    """As the exposition takes them: of two with the same labels the last one counts."""
    return {sample.labels: sample.value for sample in samples if sample.family is family}


class TestCertificates:
    def test_times_are_unix_time(self) -> None:
        rows = [row("acme/a.test", next_attempt="2026-02-01T00:00:00Z")]
        samples = list(scrape._certificate_gauges(rows, frozenset({"acme/a.test"})))
        assert shown(iter(samples), families.NOT_AFTER) == {("acme/a.test", "CA"): 1772323200}
        assert shown(iter(samples), families.NOT_BEFORE) == {("acme/a.test", "CA"): 1767225600}
        assert shown(iter(samples), families.NEXT_ATTEMPT) == {("acme/a.test",): 1769904000}
        assert shown(iter(samples), families.SERVED) == {("acme/a.test",): 1}

    def test_those_on_demand_are_only_counted(self) -> None:
        rows = [row("acme/a.test"), row("acme/x.test"), row("acme/y.test", None, status="failed")]
        samples = list(scrape._certificate_gauges(rows, frozenset({"acme/a.test"})))
        assert shown(iter(samples), families.NOT_AFTER).keys() == {("acme/a.test", "CA")}
        assert shown(iter(samples), families.CERTIFICATES) == {
            ("valid",): 2,
            ("failed",): 1,
            ("pending",): 0,
            ("expired",): 0,
        }

    def test_of_two_the_first_to_end_tells(self) -> None:
        rows = [row("file/a", "2026-03-01T00:00:00Z"), row("file/a", "2026-02-01T00:00:00Z"), row("file/a")]
        samples = scrape._certificate_gauges(rows, frozenset({"file/a"}))
        assert shown(samples, families.NOT_AFTER) == {("file/a", "CA"): 1769904000}

    def test_one_that_is_not_there_yet_has_no_end(self) -> None:
        rows = [row("acme/a.test", None, status="pending", next_attempt="2026-02-01T00:00:00Z")]
        samples = list(scrape._certificate_gauges(rows, frozenset({"acme/a.test"})))
        assert shown(iter(samples), families.NOT_AFTER) == {}
        assert shown(iter(samples), families.NEXT_ATTEMPT) == {("acme/a.test",): 1769904000}


class TestBackends:
    @pytest.mark.parametrize(
        ("states", "up"),
        [
            (("up", "up"), 1),
            (("ejected", "up"), 1),
            (("recovering", "down"), 1),
            (("draining", "draining"), 1),
            (("down", "ejected"), 0),
        ],
    )
    def test_one_is_up_if_a_worker_sees_it_so(self, states: tuple[str, ...], up: int) -> None:
        told = [Told({}, [backend(HERE, state, "a.test /", "b.test /api")]) for state in states]
        assert shown(scrape._backend_gauges(told, told), families.BACKEND_UP) == {
            ("a.test", HERE): up,
            ("b.test", HERE): up,
        }

    def test_requests_and_connections_are_added(self) -> None:
        told = [Told({}, [backend(HERE, "up", active=1, idle=2), backend(THERE, "up", active=4)]) for _ in range(2)]
        samples = list(scrape._backend_gauges(told, told))
        assert shown(iter(samples), families.BACKEND_ACTIVE) == {(HERE,): 2, (THERE,): 8}
        assert shown(iter(samples), families.BACKEND_IDLE) == {(HERE,): 4, (THERE,): 0}

    def test_a_worker_that_drains_has_requests_too_and_no_say(self) -> None:
        serving = Told({}, [backend(HERE, "down", "a.test /", active=1)])
        drains = Told({}, [backend(HERE, "up", "a.test /", active=2), backend(THERE, "up", "old.test /", active=3)])
        samples = list(scrape._backend_gauges([serving], [serving, drains]))
        assert shown(iter(samples), families.BACKEND_ACTIVE) == {(HERE,): 3, (THERE,): 3}
        assert shown(iter(samples), families.BACKEND_UP) == {("a.test", HERE): 0}


def test_connections_are_added_by_state_and_others_are_not_known() -> None:
    told = [
        Told({"connections_idle": 2, "connections_active": 1, "connections_made_up": 7}),
        Told({"connections_idle": 3}),
    ]
    assert shown(scrape._connection_gauges(told), families.CONNECTIONS) == {
        ("handshake",): 0,
        ("active",): 1,
        ("idle",): 5,
        ("closing",): 0,
    }


async def pages(generation: Generation, count: int) -> list[str]:
    """One scrape after the other."""
    configured = Configured(("a.test",), frozenset({"acme/1.test", "acme/2.test"}), 1)
    scraper = Scraper(Collector(), lambda: [generation], lambda: configured, 0.0)
    made = [(await scraper.page()).body.decode() for _ in range(count)]
    scraper.close()
    return made


@pytest.mark.system
def test_certificates_are_asked_for_once_in_a_while() -> None:
    async def scene() -> list[str]:
        async with _generation("serve", certifier="list") as generation:
            await generation.start()
            return await pages(generation, 2)

    for page in asyncio.run(scene()):
        assert 'name="acme/1.test"' in page
        assert "acme/2.test" not in page


def test_without_children_the_rest_is_told() -> None:
    [page] = asyncio.run(pages(Generation(3, _spec("serve"), []), 1))
    assert "tlsproxy_generation 3.0" in page
    assert "tlsproxy_workers 0.0" in page
    assert "acme/1.test" not in page


def test_one_page_is_written_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many strangers ask: each takes seconds of CPU if there are many series."""
    begun, together, overlaps = threading.Lock(), threading.Event(), list[bool]()
    write = render

    def slow_render(*given: Any) -> Page:
        overlaps.append(not begun.acquire(blocking=False))
        together.wait(0.05)  # time for another one to begin, if it could
        begun.release()
        return write(*given)

    async def scene() -> None:
        scraper = Scraper(Collector(), lambda: [generation], lambda: Configured((), frozenset(), 1), 0.0)
        await asyncio.gather(*(scraper.page() for _ in range(3)))
        scraper.close()

    generation = Generation(3, _spec("serve"), [])
    monkeypatch.setattr(scrape, "render", slow_render)
    asyncio.run(scene())
    assert overlaps == [False] * 3


def test_what_the_kernel_knows_of_a_process() -> None:
    own = os.getpid()
    assert resident_memory(own) > 1 << 20
    before = open_descriptors(own)
    assert before >= 3
    with Path(os.devnull).open():
        assert open_descriptors(own) == before + 1
    assert cpu_seconds(own) > 0
    assert (resident_memory(NOBODY), open_descriptors(NOBODY), cpu_seconds(NOBODY)) == (0, 0, 0)
