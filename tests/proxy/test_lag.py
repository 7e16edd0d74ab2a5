"""How late a loop is: judged by what its own clock says at each tick."""

from __future__ import annotations

import logging

import pytest

from tlsproxy.proxy.lag import LoopLag


def started(now: float) -> LoopLag:
    lag = LoopLag(every=0.5)
    lag.start(now)
    return lag


def test_the_first_tick_is_due_like_the_others() -> None:
    lag = started(1000.0)
    lag.tick(1002.0)
    assert lag.last_ms == 1500


@pytest.mark.parametrize(("now", "late"), [(1000.5, 0), (1000.4, 0), (1000.75, 250), (1003.0, 2500)])
def test_a_tick_tells_how_late_it_came(now: float, late: int) -> None:
    lag = started(999.5)
    lag.tick(1000.0)
    lag.tick(now)
    assert lag.last_ms == late


def test_a_stall_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    lag = started(9.5)
    with caplog.at_level(logging.WARNING):
        for now in (10.0, 10.5, 12.5, 13.0, 13.5):
            lag.tick(now)
    assert [(record.message, record.seconds) for record in caplog.records] == [("worker.stalled", 1.5)]  # type: ignore[attr-defined]
