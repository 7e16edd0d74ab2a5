"""What tests of waiting requests share: a line of the Front on stage, plans of operators, requests."""

from __future__ import annotations

import time

from tests.fakes.stage import Stage
from tlsproxy.proxy.waiting_line import Line
from tlsproxy.runtime.messages import BackendPlan

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"
ONE = {"workers": 1}
SITE = "a.test"


def line_of(stage: Stage) -> Line:
    return stage.front._sites[0].forwards[0].route.line


def wait_for(stage: Stage, waiting: int) -> None:
    """Until so many requests are in line."""
    stage.wait(lambda: len(line_of(stage)) == waiting)


def sweep(stage: Stage, after: float) -> None:
    """What the tick does to the line, as if `after` seconds had gone by."""
    stage.call(lambda: line_of(stage).sweep(stage.loop.time() + after))


def apply(stage: Stage, plan: BackendPlan) -> None:
    stage.call(lambda: stage.front.apply(plan))


def pause(stage: Stage, seconds: float = 60.0) -> None:
    apply(stage, BackendPlan(paused={SITE: time.time() + seconds}))


def resume(stage: Stage) -> None:
    apply(stage, BackendPlan())
