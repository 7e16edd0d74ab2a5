"""Who is asked while another supervisor comes: what operators change is in the plan that it gets, or is refused."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.herd import BLUE, GREEN, Herd, made_store, settings
from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.blueprint import Heirloom
from tlsproxy.runtime.estate import Estate
from tlsproxy.runtime.frontdesk import FrontDesk, identify
from tlsproxy.runtime.generations import Generations
from tlsproxy.runtime.inheritance import Inheritance
from tlsproxy.runtime.messages import Drain, Probe, Probed
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.relisten import Relisten
from tlsproxy.runtime.succession import UpgradeFailed
from tlsproxy.runtime.upgrade import Upgrades

system = pytest.mark.system

# Takes over, and waits for a file before it fails: the old one can't know meanwhile whose the plan is.
_FAILS_LATE = """
import asyncio, os, pathlib, sys
from tlsproxy.runtime.messages import Prepared
from tlsproxy.runtime.predecessor import find_predecessor
predecessor = find_predecessor(os.environ)
predecessor.receive()
async def main():
    await predecessor.open()
    await predecessor.hand_over(Prepared())
    folder = pathlib.Path(sys.argv[1])
    (folder / "taken").touch()
    while not (folder / "fail").exists():
        await asyncio.sleep(0.01)
    await predecessor.refuse("no luck")
asyncio.run(main())
"""


class Flock(Herd):
    """A generation that serves; who asks its worker gets no answer but from the test."""

    number = 1

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Probe] = []

    def serve(self) -> None:
        pass

    def ask_one_worker(self, probe: Probe) -> bool:
        self.asked.append(probe)
        return True


class Proxy:
    """What a supervisor has, without processes."""

    def __init__(self, store: Path) -> None:
        configuration = settings(store)
        self.generations = Generations()
        self.flock = Flock()
        self.generations.serve(self.flock, Drain())  # type: ignore[arg-type]
        self.backends = Backends(configuration, lambda: (self.generations.serving,))
        self.desk = FrontDesk(
            configuration,
            identify(configuration, (), datetime.now(UTC)),
            generations=self.generations,
            living=lambda: (self.generations.serving,),
            backends=self.backends,
            collector=Collector(),
            deeds={},
        )
        self.inheritance = Inheritance(Relisten((), (), ()))
        self.estate = Estate(
            settings=lambda: configuration,
            listeners=tuple,
            generations=self.generations,
            heirloom=Heirloom(),
            backends=self.backends,
            desk=self.desk,
            inheritance=self.inheritance,
        )

    async def drain(self) -> Any:
        return await self.desk.operate("drain", BLUE, {})


def with_proxy(folder: Path, act: Callable[[Proxy], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await act(Proxy(made_store(folder / "store")))

    asyncio.run(run())


async def refused(proxy: Proxy) -> Refusal:
    with pytest.raises(Refusal, match=r"an upgrade is under way.*Ask again") as caught:
        await proxy.drain()
    return caught.value


def test_what_is_said_before_is_in_the_last_word_and_what_comes_after_is_refused(tmp_path: Path) -> None:
    async def act(proxy: Proxy) -> None:
        await proxy.drain()
        plan, _ = proxy.estate.last_word()
        assert plan.drained == (BLUE,)
        with pytest.raises(Refusal) as caught:
            await proxy.desk.operate("resume", BLUE, {})
        assert caught.value.status == 503
        assert proxy.backends.plan == plan

    with_proxy(tmp_path, act)


def test_questions_are_answered_all_the_same(tmp_path: Path) -> None:
    async def act(proxy: Proxy) -> None:
        proxy.estate.last_word()
        (row,) = await proxy.desk.operate("sites", "", {})
        assert row["site"] == "a.test"

    with_proxy(tmp_path, act)


@pytest.mark.parametrize("is_given", [False, True])
def test_a_swap_whose_answer_comes_too_late_is_none(tmp_path: Path, is_given: bool) -> None:
    async def act(proxy: Proxy) -> None:
        call = await proxy.desk.operate("swap", "", {"site": "a.test", "to": GREEN})
        while not proxy.flock.asked:
            await asyncio.sleep(0)
        if is_given:
            proxy.estate.last_word()
        proxy.desk.probed(Probed(proxy.flock.asked[0].id, {GREEN: ""}))
        for _ in range(10):
            await asyncio.sleep(0)
        assert bool(proxy.backends.plan.swapped) is not is_given
        await proxy.desk.end_swaps()
        assert (await call.wait()).status == 503

    with_proxy(tmp_path, act)


def test_no_worker_is_asked_for_a_swap_that_would_come_too_late(tmp_path: Path) -> None:
    async def act(proxy: Proxy) -> None:
        call = await proxy.desk.operate("swap", "", {"site": "a.test", "to": GREEN, "timeout": "1ms"})
        proxy.estate.last_word()
        assert (await call.wait()).status == 502
        assert not proxy.flock.asked

    with_proxy(tmp_path, act)


@system
def test_an_upgrade_that_fails_late_gives_the_plan_back(tmp_path: Path) -> None:
    async def act(proxy: Proxy) -> None:
        upgrades = Upgrades(proxy.inheritance, [sys.executable, "-c", _FAILS_LATE, str(tmp_path)])
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, upgrades.poll)
        upgrade = asyncio.create_task(upgrades.perform(lambda step, text: None, {}, proxy.estate))
        while not (tmp_path / "taken").exists():
            await asyncio.sleep(0.01)
        assert (await refused(proxy)).status == 503
        (tmp_path / "fail").touch()
        with pytest.raises(UpgradeFailed, match="no luck"):
            await upgrade
        assert (await proxy.drain())["state"] == "draining"

    with_proxy(tmp_path, act)
