"""Generations of real processes that play parts, one after the other: who serves, who leaves, who hears whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tests.runtime.test_generation import _spec
from tlsproxy.runtime import generations as module
from tlsproxy.runtime.generation import Ears, Generation
from tlsproxy.runtime.generations import Generations, NothingServes
from tlsproxy.runtime.messages import Drain
from tlsproxy.runtime.process import ChildFailed

pytestmark = pytest.mark.system

ORDER = Drain(5.0)


class House:
    """Generations and what their certifiers and leaving workers say to all."""

    def __init__(self) -> None:
        self.all = Generations()
        self._ears = Ears(announced=self.all.send_to_workers, wished=self.all.pass_wish)

    def make(self, number: int, worker: str = "serve", certifier: str = "serve") -> Generation:
        return Generation(number, _spec(certifier), [_spec(worker, 0)], ears=self._ears)

    async def serve(self, number: int, worker: str = "serve", certifier: str = "serve") -> Generation:
        generation = self.make(number, worker, certifier)
        await self.all.prepare(generation)
        self.all.serve(generation, ORDER)
        return generation


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    it = House()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, it.all.poll)
    try:
        yield it
    finally:
        await it.all.kill()
        loop.remove_signal_handler(signal.SIGCHLD)


async def _until_alone(it: House) -> None:
    async with asyncio.timeout(20):
        while it.all.draining:
            await asyncio.sleep(0.01)


def test_one_follows_the_other() -> None:
    async def scene() -> None:
        async with house() as it:
            with pytest.raises(NothingServes):
                _ = it.all.serving
            first = await it.serve(1)
            second = await it.serve(2)
            assert (it.all.serving, it.all.draining) == (second, (first,))
            assert it.all.pids() == first.pids() | second.pids()
            await _until_alone(it)
            assert list(it.all) == [second]
            assert first.pids() == set()

    asyncio.run(scene())


def test_one_that_fails_leaves_the_other_serving_and_nothing_of_itself() -> None:
    async def scene() -> None:
        async with house() as it:
            first = await it.serve(1)
            second = it.make(2, "fail no luck")
            with pytest.raises(ChildFailed, match="no luck"):
                await it.all.prepare(second)
            assert (it.all.serving, list(it.all), second.pids()) == (first, [first], set())

    asyncio.run(scene())


def test_one_that_is_ready_and_not_wanted_is_ended() -> None:
    async def scene() -> None:
        async with house() as it:
            first, second = await it.serve(1), it.make(2)
            await it.all.prepare(second)
            await it.all.discard(second)
            assert (list(it.all), second.pids()) == ([first], set())

    asyncio.run(scene())


def test_the_oldest_has_to_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DRAINING", 1)

    async def scene() -> None:
        async with house() as it:
            order = Drain(0.2, unchanged=("a.test",), streams=60.0)
            for number in (1, 2, 3):
                generation = it.make(number, "cling")
                await it.all.prepare(generation)
                it.all.serve(generation, order)
            async with asyncio.timeout(20):
                while len(it.all.draining) > 1:
                    await asyncio.sleep(0.01)
            assert [row["generation"] for row in it.all.describe_draining()] == [2]
            assert it.all.describe_draining()[0]["seconds_left"] > 30

    asyncio.run(scene())


def test_the_end_of_all_is_the_end_of_those_that_drain_too() -> None:
    async def scene() -> None:
        async with house() as it:
            order = Drain(0.2, unchanged=("a.test",), streams=60.0)
            for number in (1, 2):
                generation = it.make(number, "cling" if number == 1 else "serve")
                await it.all.prepare(generation)
                it.all.serve(generation, order)
            async with asyncio.timeout(10):
                await it.all.end(0.3)
            assert it.all.pids() == set()

    asyncio.run(scene())


def test_what_one_certifier_announces_all_workers_hear(capfd: pytest.CaptureFixture[str]) -> None:
    async def scene() -> None:
        async with house() as it:
            await it.serve(1)
            await it.serve(2, certifier="announce b.test")
            await _until_alone(it)

    asyncio.run(scene())
    assert "heard b.test" in capfd.readouterr().out


def test_a_worker_that_leaves_asks_the_certifier_that_stays() -> None:
    heard: list[str] = []

    async def scene() -> None:
        async with house() as it:
            ears = Ears(announced=lambda message: None, wished=lambda wish: heard.append(wish.host))
            first = Generation(1, _spec("serve"), [_spec("wish a.test", 0)], ears=ears)
            first.retire()
            with contextlib.suppress(ChildFailed):
                await it.all.prepare(first)
            async with asyncio.timeout(20):
                while not heard:
                    await asyncio.sleep(0.01)

    asyncio.run(scene())
    assert heard == ["a.test"]


def test_a_death_among_those_that_drain_is_seen() -> None:
    async def scene() -> None:
        async with house() as it:
            first = await it.serve(1, "cling")
            await it.serve(2)
            (worker,) = first.worker_pids()
            os.kill(worker, signal.SIGKILL)
            await _until_alone(it)
            assert first.pids() == set()

    asyncio.run(scene())
