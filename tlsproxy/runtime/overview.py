"""How the proxy is: for `admin status`, for probes of orchestrators, and for `admin top`.

Puts together what the supervisor knows and what its children say in a second; changes nothing. Rules: a child that does
not answer is shown as silent, and holds nobody up; what was not told is None and not 0; ready means that a client who
comes now is served.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from tlsproxy import __version__
from tlsproxy.runtime.busyness import summarize
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.messages import AdminResult
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.procfs import cpu_seconds, resident_memory

Rows: TypeAlias = Sequence[Mapping[str, Any]]

STATS_LIMIT: Final = 1.0
"""Seconds for children to answer."""

MOST_EXPIRING: Final = 20

_STATES: Final = ("handshake", "active", "idle", "closing")
_NO_WORKER: Final = "no worker is ready at the moment, they are being started again"
_NOBODY_LISTENS: Final = "no worker accepts connections at the moment"


@dataclass(frozen=True)
class Identity:
    """What stays the same about a running proxy."""

    sites: int
    listeners: tuple[str, ...]
    started: datetime


async def _nothing() -> Rows:
    return ()


@dataclass(frozen=True)
class Sources:
    """Where what is shown comes from, besides the generation that serves.

    `draining` are those that come to their end (Generations.describe_draining), `backends` the rows of all workers
    together, `certificates` those of `admin certs list` (they may be some seconds old), `paused` sites by first host.
    """

    draining: Callable[[], Rows] = tuple
    backends: Callable[[], Awaitable[Rows]] = _nothing
    certificates: Callable[[], Awaitable[Rows]] = _nothing
    collector: Collector | None = None
    paused: Callable[[], Sequence[str]] = tuple


class Overview:
    """See the module's text. Mutable: `_counts` (of certificates, as the certifier last said)."""

    def __init__(self, generation: Callable[[], Generation], sources: Sources | None = None) -> None:
        self._generation = generation
        self._sources = sources or Sources()
        self._counts: dict[str, int] | None = None

    def __repr__(self) -> str:
        return f"<Overview of {self._generation()!r}>"

    async def status(self, identity: Identity) -> dict[str, Any]:
        """Return what `admin status` shows."""
        generation = self._generation()
        stats, certifier, backends = await asyncio.gather(
            generation.worker_stats(STATS_LIMIT), self._ask_certifier(generation), self._sources.backends()
        )
        reasons = self._find_reasons(identity, generation)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "generation": generation.number,
            "started": instant(identity.started),
            "serving": self._find_outage(identity, generation) == "",
            "ready": not reasons,
            "not_ready": reasons,
            "workers": [_worker_row(pid, values) for pid, values in stats.items()],
            "draining": list(self._sources.draining()),
            "certifier": _certifier_row(generation.certifier_pid(), certifier),
            "sites": identity.sites,
            "paused": list(self._sources.paused()),
            "certificates": _counts(certifier),
            "backends": dict(Counter(str(row["state"]) for row in backends)),
            "listeners": list(identity.listeners),
        }

    def health(self) -> tuple[int, dict[str, Any]]:
        """Alive: some worker is there. Return an HTTP status and what to say."""
        ready = self._generation().count_ready_workers()
        return (200, {"status": "ok", "workers": ready}) if ready else (503, {"error": _NO_WORKER})

    async def readiness(self, identity: Identity) -> tuple[int, dict[str, Any]]:
        """Whether a client who comes now is served: as `health`."""
        generation = self._generation()
        await self._ask_certifier(generation)
        reasons = self._find_reasons(identity, generation)
        if reasons:
            return 503, {"status": "not ready", "error": "; ".join(reasons), "reasons": reasons}
        return 200, {
            "status": "ready",
            "workers": generation.count_ready_workers(),
            "listeners": list(identity.listeners),
            "certificates": self._counts,
        }

    async def top(self, identity: Identity) -> dict[str, Any]:
        """Return one sample for `admin top`: totals (two samples make a rate) and states."""
        generation, sources = self._generation(), self._sources
        stats, backends, certificates = await asyncio.gather(
            generation.worker_stats(STATS_LIMIT), sources.backends(), sources.certificates()
        )
        totals = dict(sources.collector.totals) if sources.collector is not None else {}
        return {
            "time": time.time(),
            "clock": time.monotonic(),
            "version": __version__,
            "pid": os.getpid(),
            "generation": generation.number,
            "started": instant(identity.started),
            "draining": len(sources.draining()),
            "sites": identity.sites,
            "workers": [_busy_row(pid, values) for pid, values in stats.items()],
            "connections": {
                state: sum((values or {}).get(f"connections_{state}", 0) for values in stats.values())
                for state in _STATES
            },
            **await asyncio.to_thread(summarize, totals),
            "backends": list(backends),
            "certificates": dict(Counter(str(row["status"]) for row in certificates)),
            "expiring": _first_to_expire(certificates),
        }

    async def _ask_certifier(self, generation: Generation) -> AdminResult:
        result = await generation.call_certifier("status", limit=STATS_LIMIT).wait()
        self._counts = _counts(result) or self._counts
        return result

    def _find_outage(self, identity: Identity, generation: Generation) -> str:
        """Why nobody is served; "" if clients are."""
        if not generation.count_ready_workers():
            return _NO_WORKER
        return "" if identity.listeners and generation.count_listening_workers() else _NOBODY_LISTENS

    def _find_reasons(self, identity: Identity, generation: Generation) -> list[str]:
        """Why the proxy is not ready. A certificate that is missing beside others is a matter of its site alone."""
        if outage := self._find_outage(identity, generation):
            return [outage]
        counts = self._counts
        if counts and not counts["valid"] and any(counts.values()):
            missing = counts["pending"] + counts["failed"]
            return [f"none of {missing} certificates is there yet; tlsproxy admin certs list shows why"]
        return []


def _worker_row(pid: int, values: Mapping[str, int] | None) -> dict[str, int | None]:
    counters = values or {}
    return {"pid": pid, "connections": counters.get("connections"), "requests": counters.get("requests")}


def _busy_row(pid: int, values: Mapping[str, int] | None) -> dict[str, Any]:
    lag = (values or {}).get("loop_lag_ms")
    return {**_worker_row(pid, values), "lag_ms": lag, "memory": resident_memory(pid), "cpu": cpu_seconds(pid)}


def _certifier_row(pid: int | None, result: AdminResult) -> dict[str, Any]:
    """Its own word for its state, if it has one."""
    silent = "restarting" if pid is None else "silent"
    said = result.body if result.status == 200 and isinstance(result.body, dict) else {"state": silent}
    return {"pid": pid, "state": said.get("state", "running")}


def _counts(result: AdminResult) -> dict[str, int] | None:
    """How many certificates are in which state; unknown (None) while the certifier does not answer."""
    if result.status != 200 or not isinstance(result.body, dict):
        return None
    return {key: result.body.get(key, 0) for key in ("valid", "pending", "failed")}


def _first_to_expire(rows: Rows) -> list[dict[str, Any]]:
    """Those that are not in order first, then the others by their end."""
    keys = ("name", "status", "not_after", "renew_at", "last_error")
    ordered = sorted(rows, key=lambda row: (row["status"] == "valid", row["not_after"] or ""))
    return [{key: row.get(key) for key in keys} for row in ordered[:MOST_EXPIRING]]


def instant(when: datetime) -> str:
    """RFC 3339, in UTC."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
