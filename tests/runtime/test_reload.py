"""Reloads one after the other: who may ask, what is told, what a stop breaks off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from tlsproxy.errors import ConfigError, Problem, TlsproxyError
from tlsproxy.runtime.messages import AdminProgress
from tlsproxy.runtime.reload import ReloadRefused, Reloads, Tell


class Work:
    """What a reload does: it waits until it is let go on, and ends as it is told to."""

    def __init__(self, ending: Exception | None = None) -> None:
        self.ending = ending
        self.begun = 0
        self.is_undone = False
        self._go_on = asyncio.Semaphore(0)

    def let_go(self) -> None:
        self._go_on.release()

    async def __call__(self, tell: Tell, _: Mapping[str, str]) -> dict[str, Any]:
        self.begun += 1
        tell("read", "the configuration")
        try:
            await self._go_on.acquire()
        except asyncio.CancelledError:
            self.is_undone = True
            raise
        if self.ending is not None:
            raise self.ending
        return {"generation": self.begun + 1}


def opened(work: Work) -> Reloads:
    reloads = Reloads(work, work)
    reloads.open()
    return reloads


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_steps_and_result_reach_who_asked() -> None:
    async def scene() -> None:
        work = Work()
        call = opened(work).ask({})
        work.let_go()
        result = await call.wait()
        assert (result.status, result.body) == (200, {"generation": 2})
        steps = [event async for event in call.follow(1) if isinstance(event, AdminProgress)]
        assert [(step.step, step.text) for step in steps] == [("read", "the configuration")]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("ending", "status", "sentence"),
    [
        (ConfigError([Problem("a.toml:3", "sites", "is empty")]), 422, "a.toml:3: sites: is empty"),
        (ReloadRefused("restart"), 422, "restart"),
        (TlsproxyError("worker 0 ended"), 500, "worker 0 ended"),
        (KeyError("x"), 500, "unexpected KeyError: 'x'; the log of the proxy shows where"),
    ],
)
def test_a_failure_is_one_sentence_for_both(
    ending: Exception, status: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        work = Work(ending)
        reloads = opened(work)
        call = reloads.ask({})
        work.let_go()
        result = await call.wait()
        assert (result.status, result.body) == (status, {"error": sentence})
        await _turns()
        assert not reloads.is_under_way

    asyncio.run(scene())
    failed = [record for record in caplog.records if record.message == "proxy.reload_failed"]
    assert [vars(record)["error"] for record in failed] == [sentence]


def test_one_at_a_time() -> None:
    async def scene() -> None:
        work = Work()
        reloads = opened(work)
        call = reloads.ask({})
        with pytest.raises(ReloadRefused, match="a reload is under way already"):
            reloads.ask({})
        with pytest.raises(ReloadRefused, match="a reload is under way already"):
            reloads.ask_upgrade({})
        work.let_go()
        await call.wait()
        await _turns()
        assert reloads.ask({}) is not call
        await reloads.stop()

    asyncio.run(scene())


def test_hangups_during_a_reload_are_one_more() -> None:
    async def scene() -> None:
        work = Work()
        reloads = opened(work)
        for _ in range(4):
            reloads.hang_up()
            await _turns()
        assert work.begun == 1
        work.let_go()
        await _turns()
        assert work.begun == 2
        work.let_go()
        await _turns()
        assert (work.begun, reloads.is_under_way) == (2, False)

    asyncio.run(scene())


def test_before_anything_serves_a_hangup_is_remembered_and_an_upgrade_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        work = Work()
        reloads = Reloads(work, work)
        reloads.hang_up()
        reloads.signal_upgrade()
        await _turns()
        assert work.begun == 0
        reloads.open()
        await _turns()
        assert work.begun == 1
        await reloads.stop()

    asyncio.run(scene())
    refused = [vars(record)["error"] for record in caplog.records if record.message == "proxy.upgrade_refused"]
    assert refused == ["the proxy is starting. Ask again when it is ready."]


def test_a_stop_breaks_off_and_nothing_follows(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        work = Work()
        reloads = opened(work)
        call = reloads.ask({})
        await _turns()
        reloads.hang_up()
        await reloads.stop()
        assert work.is_undone
        assert (await call.wait()).body == {"error": "the proxy was stopped meanwhile"}
        reloads.hang_up()
        with pytest.raises(ReloadRefused, match="stopping"):
            reloads.ask({})
        await _turns()
        assert work.begun == 1

    with caplog.at_level(logging.INFO):
        asyncio.run(scene())
    assert [record.message for record in caplog.records if record.name.startswith("tlsproxy")] == [
        "proxy.reloading",
        "proxy.reload_failed",
    ]
