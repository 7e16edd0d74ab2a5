"""Workers for tests of what the supervisor does with backends: they take plans, answer probes and tell what they see.

A stand-in for `Generation` where nothing of processes matters. What each worker sees is what the test says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.messages import AdminProgress, AdminResult, BackendPlan, Probe, Probed
from tlsproxy.runtime.operators import Operators
from tlsproxy.settings import Settings
from tlsproxy.store.base import open_store

BLUE, GREEN, RED = "http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80"


def settings(store: Path | str, *sites: Mapping[str, Any]) -> Settings:
    url = f"file://{store}" if isinstance(store, Path) else store
    return Settings.model_validate({"store": {"url": url}, "sites": list(sites) or [site()]})


def site(*backends: str, **more: Any) -> dict[str, Any]:
    return {"hosts": ["a.test", "b.test"], "backends": list(backends) or [BLUE], **more}


class Herd:
    """`plans` are all that came; `active` requests under way by URL; `silent` makes it say nothing of its backends."""

    def __init__(self, *, silent: bool = False) -> None:
        self.plans: list[BackendPlan] = []
        self.active: dict[str, int] = {}
        self.looks = 0
        self.silent = silent

    @property
    def plan(self) -> BackendPlan:
        return self.plans[-1]

    def change_plan(self, plan: BackendPlan) -> None:
        self.plans.append(plan)

    async def backend_reports(self, timeout: float) -> dict[int, list[dict[str, Any]] | None]:
        self.looks += 1
        await asyncio.sleep(0)
        rows = [
            {"url": url, "state": "up", "why": "", "active": n, "idle": 0, "requests": 1, "failures": 0, "since": 0.0}
            for url, n in self.active.items()
        ]
        return {1: None if self.silent else rows}


class House:
    """Operators with their herds; `faults` answer each probe in turn, the last one for ever. None: no answer at all."""

    def __init__(self, configuration: Settings, *herds: Herd) -> None:
        self.configuration = configuration
        self.herds = herds or (Herd(),)
        self.backends = Backends(configuration, lambda: self.herds)  # type: ignore[arg-type,return-value]
        self.operators = Operators(self.backends, self._ask)
        self.faults: list[Mapping[str, str] | None] = [{}]
        self.probes: list[Probe] = []
        self.on_probe: Callable[[], None] = lambda: None

    def _ask(self, probe: Probe) -> bool:
        self.probes.append(probe)
        self.on_probe()
        faults = self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]
        if faults is not None:
            answer = Probed(probe.id, {url: faults.get(url, "") for url in probe.backends})
            asyncio.get_running_loop().call_soon(self.operators.probed, answer)
        return True

    async def swap(self, *to: str, **options: str) -> Call:
        given = {"site": "b.test", "to": ",".join(to), "timeout": "50ms", "drain": "50ms", **options}
        call: Call = await self.operators.act("swap", "", given)
        return call


async def told(call: Call) -> tuple[list[str], AdminResult]:
    """Follow to the end: the steps, and the result."""
    steps = [f"{event.step}: {event.text}" async for event in call.follow(5.0) if isinstance(event, AdminProgress)]
    assert call.result is not None
    return steps, call.result


def made_store(path: Path) -> Path:
    open_store(f"file://{path}", []).close()
    return path


def warnings(answer: Mapping[str, Any]) -> Sequence[str]:
    found: Sequence[str] = answer["warnings"]
    return found
