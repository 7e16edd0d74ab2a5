"""One scrape: ask the children what they have counted, look at what is a state and not a count, have it written.

Knows whom to ask and how long to wait. Rules: a child that does not answer costs a second and is missing with what it
has not told, no more; the certificates, whose list takes the certifier a while, are asked for once in ten seconds at
most and never take more than a twentieth of its time; what takes long is done in a thread, for the supervisor has more
to do than to be looked at.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tlsproxy import __version__
from tlsproxy.runtime import families
from tlsproxy.runtime.exposition import Page, Sample, render
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.metrics import Collector, Told
from tlsproxy.runtime.procfs import cpu_seconds, open_descriptors, resident_memory
from tlsproxy.settings import Settings
from tlsproxy.store.sources import certificate_name

STATS_LIMIT: Final = 1.0
"""Seconds for children to answer."""

ROWS_LIMIT: Final = 1.5
"""Seconds that a scrape waits for the list of certificates; then it has the one before."""
ROWS_FRESH: Final = 10.0
ROWS_SHARE: Final = 20
"""The list is not asked for again before `ROWS_FRESH` seconds and so many times of what it took have passed."""
ROWS_CALL: Final = 30.0

_STATES: Final = ("handshake", "active", "idle", "closing")
_STATUSES: Final = ("valid", "pending", "failed", "expired")
_DOWN: Final = frozenset({"down", "ejected"})


@dataclass(frozen=True)
class Configured:
    """What the configuration says that metrics need: sites by name, certificates by name (without those on demand)."""

    sites: tuple[str, ...]
    certificates: frozenset[str]
    workers: int

    @classmethod
    def of(cls, settings: Settings) -> Configured:
        return cls(
            tuple(site.hosts[0] for site in settings.sites),
            frozenset(certificate_name(site) for site in settings.sites if site.certificate != "on_demand"),
            settings.resolve_workers(),
        )


class Scraper:
    """See the module's text. `generations` are those that live, the one that serves first; `started` is Unix time.

    Mutable: `_rows` (of certificates, as last told), `_asking` and `_ask_at`; `_cpu` (seconds counted, by pid);
    `_writing` (who may).
    """

    def __init__(
        self,
        collector: Collector,
        generations: Callable[[], Sequence[Generation]],
        configured: Callable[[], Configured],
        started: float,
    ) -> None:
        self._collector = collector
        self._generations = generations
        self._configured = configured
        self._started = started
        self._rows: Sequence[Mapping[str, Any]] = ()
        self._asking: asyncio.Task[None] | None = None
        self._ask_at = 0.0
        self._cpu: dict[int, float] = {}
        self._writing = asyncio.Lock()  # one page at a time: with 200 000 series it is four seconds, and 200 MB

    async def page(self, accept: str = "") -> Page:
        """Return what a scraper gets; `accept` is its header."""
        generations, configured = self._generations(), self._configured()
        asked = [generation.refresh_stats(STATS_LIMIT) for generation in generations]
        await asyncio.gather(*asked, self._refresh_rows(generations[0]))
        gauges = [
            *self._process_gauges(generations),
            *_connection_gauges(self._collector.told.values()),
            *_backend_gauges(self._told_by(generations[0].worker_pids()), self._collector.told.values()),
            *_certificate_gauges(self._rows, configured.certificates),
            *self._own_gauges(generations, configured),
        ]
        async with self._writing:
            totals = dict(self._collector.totals)
            return await asyncio.to_thread(render, totals, gauges, configured.sites, accept)

    async def certificates(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of `admin certs list`, some seconds old at most."""
        await self._refresh_rows(self._generations()[0])
        return self._rows

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    # --- certificates

    async def _refresh_rows(self, generation: Generation) -> None:
        if self._asking is None and time.monotonic() >= self._ask_at:
            self._asking = asyncio.create_task(self._ask_rows(generation))
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=ROWS_LIMIT)

    async def _ask_rows(self, generation: Generation) -> None:
        begun = time.monotonic()
        try:
            result = await generation.call_certifier("list", limit=ROWS_CALL).wait()
        finally:
            self._asking = None
        if result.status == 200 and isinstance(result.body, list):
            self._rows = result.body
            took = time.monotonic() - begun
            self._ask_at = begun + max(ROWS_FRESH, ROWS_SHARE * took)

    # --- processes

    def _told_by(self, pids: Sequence[int]) -> list[Told]:
        return [told for pid in pids if (told := self._collector.told.get(pid)) is not None]

    def _own_gauges(self, generations: Sequence[Generation], configured: Configured) -> Iterator[Sample]:
        lags = [told.values.get("loop_lag_ms", 0) for told in self._told_by(generations[0].worker_pids())]
        yield Sample(families.GENERATION, (), generations[0].number)
        yield Sample(families.DRAINING, (), len(generations) - 1)
        yield Sample(families.WORKERS, (), generations[0].count_ready_workers())
        yield Sample(families.WORKERS_WANTED, (), configured.workers)
        yield Sample(families.LOOP_LAG, (), max(lags, default=0) / 1000)
        yield Sample(families.STARTED, (), self._started)
        yield Sample(families.BUILD, (__version__,), 1)

    def _process_gauges(self, generations: Sequence[Generation]) -> Iterator[Sample]:
        memory: Counter[str] = Counter()
        descriptors: Counter[str] = Counter()
        roles = _roles(generations)
        for pid, role in roles.items():
            memory[role] += resident_memory(pid)
            descriptors[role] += open_descriptors(pid)
            self._count_cpu(pid, role)
        self._cpu = {pid: seconds for pid, seconds in self._cpu.items() if pid in roles}
        yield from (Sample(families.MEMORY, (role,), total) for role, total in memory.items() if total)
        yield from (Sample(families.DESCRIPTORS, (role,), total) for role, total in descriptors.items() if total)

    def _count_cpu(self, pid: int, role: str) -> None:
        used, before = cpu_seconds(pid), self._cpu.get(pid, 0.0)
        if used > before:
            self._collector.count(families.CPU.name, used - before, role=role)
            self._cpu[pid] = used


def _roles(generations: Sequence[Generation]) -> dict[int, str]:
    roles = {os.getpid(): "supervisor"}
    for generation in generations:
        workers = generation.worker_pids()
        roles |= {pid: "worker" if pid in workers else "certifier" for pid in generation.pids()}
    return roles


def _connection_gauges(told: Iterable[Told]) -> Iterator[Sample]:
    states = Counter(dict.fromkeys(_STATES, 0))
    seen = tuple(told)
    for each in seen:
        states.update({state: each.values.get(f"connections_{state}", 0) for state in _STATES})
    yield from (Sample(families.CONNECTIONS, (state,), states[state]) for state in _STATES)
    yield Sample(families.WAITING, (), sum(each.values.get("requests_waiting", 0) for each in seen))


def _backend_gauges(serving: Iterable[Told], everybody: Iterable[Told]) -> Iterator[Sample]:
    """A backend is up if a worker that serves sees it so: what one alone has met with may be its own.

    Those that drain have requests under way too.
    """
    up: dict[tuple[str, str], bool] = {}
    for backend in (backend for each in serving for backend in each.backends):
        for route in backend.get("routes", ()):
            place = str(route).partition(" ")[0], str(backend.get("url", ""))
            up[place] = up.get(place, False) or backend.get("state") not in _DOWN
    active: Counter[str] = Counter()
    idle: Counter[str] = Counter()
    for backend in (backend for each in everybody for backend in each.backends):
        url = str(backend.get("url", ""))
        active[url] += int(backend.get("active", 0))
        idle[url] += int(backend.get("idle", 0))
    yield from (Sample(families.BACKEND_UP, place, is_up) for place, is_up in up.items())
    yield from (Sample(families.BACKEND_ACTIVE, (url,), count) for url, count in active.items())
    yield from (Sample(families.BACKEND_IDLE, (url,), count) for url, count in idle.items())


def _certificate_gauges(rows: Sequence[Mapping[str, Any]], configured: frozenset[str]) -> Iterator[Sample]:
    """Those on demand, whose names clients choose, are only counted; of two of a site the first to end tells."""
    statuses = Counter(dict.fromkeys(_STATUSES, 0))
    for row in sorted(rows, key=lambda row: row["not_after"] or "", reverse=True):
        statuses[row["status"]] += 1
        if row["name"] in configured:
            yield from _row_gauges(row)
    yield from (Sample(families.CERTIFICATES, (status,), statuses[status]) for status in _STATUSES)


def _row_gauges(row: Mapping[str, Any]) -> Iterator[Sample]:
    name = row["name"]
    if row["not_after"]:
        labels = (name, row["issuer"] or "")
        yield Sample(families.NOT_AFTER, labels, _seconds(row["not_after"]))
        yield Sample(families.NOT_BEFORE, labels, _seconds(row["not_before"]))
        yield Sample(families.SERVED, (name,), bool(row["served"]))
    if row["next_attempt"]:
        yield Sample(families.NEXT_ATTEMPT, (name,), _seconds(row["next_attempt"]))


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()
