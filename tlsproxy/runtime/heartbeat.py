"""Asks every child every two seconds how it is: what it has counted is added up, and one that hangs is found.

A worker that answers nothing for `ASIDE` seconds gets no new connections (others listen on its slot); after `HUNG` it
is killed, and replaced like any that dies. The certifier, which may be at work that blocks it, has longer. Rule: time
alone condemns nobody: if the supervisor itself was asleep (a suspended machine), it asks again first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from tlsproxy.runtime.families import HANGS
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.process import ChildProcess

logger = logging.getLogger(__name__)

BEAT: Final = 2.0
"""Seconds between two questions."""
ASIDE: Final = 5.0
HUNG: Final = 20.0
CERTIFIER_HUNG: Final = 60.0
LEAST_BEATS: Final = 3
"""Questions in vain before anything is done: a supervisor that was asleep has only asked one."""


class Heartbeat:
    """See the module's text. `run` is a task of the supervisor's."""

    # Mutable: _missed (questions in vain by pid).

    def __init__(self, generations: Callable[[], Iterable[Generation]], collector: Collector) -> None:
        """`generations` are those that live."""
        self._generations = generations
        self._collector = collector
        self._missed: dict[int, int] = {}

    async def run(self, beat: float = BEAT) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.gather(*(generation.refresh_stats(beat / 2) for generation in self._generations()))
            for generation in self._generations():
                self._judge(generation)
            await asyncio.sleep(beat)

    def _judge(self, generation: Generation) -> None:
        changed = False
        for child in generation.children():
            missed = self._missed.pop(child.pid, 0) + 1 if child.silent_for() else 0
            if missed:
                self._missed[child.pid] = missed
            aside = child.spec.is_worker and missed >= LEAST_BEATS and child.silent_for() >= ASIDE
            if aside != child.is_aside:
                child.is_aside = aside
                _log_aside(child, aside=aside)
                changed = True
            if missed >= LEAST_BEATS and child.silent_for() >= _patience(child):
                self._end(child)
        if changed:
            generation.spread()

    def _end(self, child: ChildProcess) -> None:
        extra = {"slot": child.spec.start.slot, "child": child.pid, "silent_for": round(child.silent_for(), 1)}
        logger.error("%s.hung", child.spec.role, extra=extra)
        self._collector.count(HANGS.name, role=child.spec.role)
        self._missed.pop(child.pid, None)
        child.kill()


def _patience(child: ChildProcess) -> float:
    return HUNG if child.spec.is_worker else CERTIFIER_HUNG


def _log_aside(child: ChildProcess, *, aside: bool) -> None:
    extra = {"slot": child.spec.start.slot, "child": child.pid}
    if aside:
        logger.warning("worker.silent", extra={**extra, "silent_for": round(child.silent_for(), 1)})
    else:
        logger.info("worker.back", extra=extra)
