"""Children that answer, and children that do not: who is set aside, who is ended, who is only late."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy.runtime import heartbeat
from tlsproxy.runtime.heartbeat import ASIDE, CERTIFIER_HUNG, HUNG, Heartbeat
from tlsproxy.runtime.metrics import Collector


class Child:
    """Stands in for a process: silent for as long as the test says."""

    def __init__(self, pid: int, role: str = "worker") -> None:
        self.pid = pid
        self.spec: Any = SimpleNamespace(role=role, is_worker=role == "worker", start=SimpleNamespace(slot=pid))
        self.silence = 0.0
        self.is_aside = False
        self.kills = 0

    def silent_for(self) -> float:
        return self.silence

    def kill(self) -> None:
        self.kills += 1


class Family:
    """Stands in for a generation of such children."""

    def __init__(self, *children: Child) -> None:
        self._children = children
        self.spreads = 0

    def children(self) -> tuple[Child, ...]:
        return self._children

    async def refresh_stats(self, timeout: float) -> None:
        """Those who answer have done so, those who don't have cost the time."""

    def spread(self) -> None:
        self.spreads += 1


def beat(family: Family, collector: Collector, times: int) -> None:
    """Have so many beats pass."""
    heart = Heartbeat(lambda: [family], collector)  # type: ignore[list-item]

    async def run() -> None:
        task = asyncio.create_task(heart.run(0))
        for _ in range(times * 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_who_answers_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    child, collector = Child(1), Collector()
    family = Family(child)
    beat(family, collector, 10)
    assert (child.kills, child.is_aside, family.spreads, caplog.records) == (0, False, 0, [])


def test_a_silent_worker_is_set_aside_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    child, collector = Child(1), Collector()
    family = Family(child)
    child.silence = ASIDE + 1
    with caplog.at_level(logging.INFO):
        beat(family, collector, 10)
        assert (child.is_aside, family.spreads, child.kills) == (True, 1, 0)
        child.silence = 0.0
        beat(family, collector, 10)
    assert (child.is_aside, family.spreads) == (False, 2)
    assert [record.message for record in caplog.records] == ["worker.silent", "worker.back"]


def test_a_worker_that_hangs_is_ended_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    child, other, collector = Child(1), Child(2), Collector()
    child.silence = HUNG + 1
    beat(Family(child, other), collector, 6)
    assert (child.kills > 0, other.kills) == (True, 0)
    assert collector.totals['tlsproxy_process_hangs_total{role="worker"}'] == child.kills
    assert "worker.hung" in [record.message for record in caplog.records]


def test_one_question_in_vain_condemns_nobody() -> None:
    """After a suspended machine wakes, everybody has been silent for hours, and has been asked once."""
    child = Child(1)
    child.silence = 9000.0
    beat(Family(child), Collector(), 1)
    assert (child.kills, child.is_aside) == (0, False)


def test_the_certifier_has_longer_and_is_never_set_aside() -> None:
    certifier = Child(1, "certifier")
    certifier.silence = HUNG + 1
    beat(Family(certifier), Collector(), 6)
    assert (certifier.kills, certifier.is_aside) == (0, False)
    certifier.silence = CERTIFIER_HUNG + 1
    beat(Family(certifier), Collector(), 6)
    assert certifier.kills > 0


def test_patience_is_longer_than_a_few_beats() -> None:
    assert heartbeat.BEAT * heartbeat.LEAST_BEATS < HUNG < CERTIFIER_HUNG
