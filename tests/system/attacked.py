"""A proxy under attack: what one attack costs its worker and its backend, and how honest clients fare meanwhile.

CPU is the kernel's clock of the process, memory its peak since the attack began. Both are of one worker, who has the
attacker and the honest clients alike, so that nobody is served by another's leisure.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.fakes.counting_backend import CountingBackend, Counts
from tests.fakes.h2_attacker import Attacker, Reaction
from tests.fakes.h2_plans import Attack
from tests.system.pressure import descriptors, resident
from tests.system.running import PATIENCE, Proxy, offering, until

MIB = 1 << 20
PAUSE = 0.02  # honest clients are not in a hurry


def site_of(pair: str, backend: str) -> str:
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {pair}
        backends = ["{backend}"]
        """


class Visitors:
    """Two honest clients, of HTTP/1.1 and of HTTP/2, that ask all the time, now and then on a new connection."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._over = threading.Event()
        self.answered = {"1.1": 0, "2": 0}
        self.failed: list[str] = []
        self.slowest = 0.0
        self._threads = [threading.Thread(target=self._visit, args=each) for each in (("1.1", False), ("2", True))]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def more(self, count: int) -> None:
        """Wait until both have had so many more answers; fails if one of them has not had what it asked for."""
        goal = {version: before + count for version, before in self.answered.items()}
        until(lambda: self.failed or all(self.answered[each] >= goal[each] for each in goal), "visitors are served")
        assert not self.failed, self.failed

    def _visit(self, version: str, http2: bool) -> None:
        while not self._over.is_set():
            try:
                with self._proxy.client(http2=http2) as client:
                    self._ask(client, version)
            except httpx.HTTPError as error:
                self.failed.append(f"{version}: {error!r}")
                return

    def _ask(self, client: httpx.Client, version: str) -> None:
        for _ in range(20):
            began = time.monotonic()
            answer = client.get("/visit")
            self.slowest = max(self.slowest, time.monotonic() - began)
            if (answer.status_code, answer.http_version, answer.content) != (200, f"HTTP/{version}", b"ok"):
                self.failed.append(f"{answer.http_version} {answer.status_code}")
            self.answered[version] += 1
            if self._over.wait(PAUSE):
                return


@dataclass
class Cost:
    """What an attack has cost. `cpu` in seconds; `peak` and `left` in bytes above what the worker had before."""

    cpu: float = 0.0
    peak: int = 0
    left: int = 0
    lines: int = 0
    backend: Counts = field(default_factory=Counts)

    def said(self, frames: int) -> str:
        each = f"{self.cpu / max(1, frames) * 1e6:.1f} µs each of {frames} frames"
        asked = f"{self.backend.requests} requests on {self.backend.connections} connections"
        return (
            f"{self.cpu * 1000:.0f} ms of CPU, {each}; {self.peak / MIB:.1f} MiB at most, {self.left / MIB:.1f} "
            f"left; backend: {asked}; {self.lines} lines logged"
        )


class Victim:
    """A proxy of one worker, its backend, and its honest visitors."""

    def __init__(self, proxy: Proxy, backend: CountingBackend, visitors: Visitors) -> None:
        self.proxy, self.backend, self.visitors = proxy, backend, visitors
        (self.worker,) = proxy.workers()
        self.trust = offering(proxy.trust, "h2")

    def attacker(self, *settings: tuple[int, int], reads: bool = True, acknowledges: bool = True) -> Attacker:
        attacker = Attacker(self.proxy.open(context=self.trust), reads=reads, acknowledges=acknowledges)
        attacker.open(*settings)
        return attacker

    def suffer(self, attack: Attack) -> Reaction:
        attacker = self.attacker(*attack.settings, reads=attack.reads, acknowledges=attack.acknowledges)
        try:
            return attacker.run(attack.plan())
        finally:
            attacker.close()

    @contextlib.contextmanager
    def watched(self) -> Iterator[Cost]:
        """Its fields are there when the context is over, and all that belonged to the attack is gone."""
        self.visitors.more(1)
        cost, files = Cost(), descriptors(self.worker)
        before, seen, lines = resident(self.worker), self.backend.seen(), len(self.proxy.lines)
        Path(f"/proc/{self.worker}/clear_refs").write_text("5")  # the peak from here on: proc(5)
        began = cpu_clock(self.worker)
        yield cost
        self.visitors.more(2)
        cost.cpu = cpu_clock(self.worker) - began
        cost.peak = peak(self.worker) - before
        until(lambda: descriptors(self.worker) <= files + 40, "its connections are gone; the pool's may stay")
        cost.left = resident(self.worker) - before
        cost.lines = len(self.proxy.lines) - lines
        cost.backend = self.backend.seen().since(seen)


def cpu_clock(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, exactly (clock_getcpuclockid of POSIX)."""
    return time.clock_gettime(~pid << 3 | 2)


def peak(pid: int) -> int:
    rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return next(int(row[1]) * 1024 for row in rows if row[0] == "VmHWM:")
