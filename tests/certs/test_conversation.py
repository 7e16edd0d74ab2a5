"""Waits that follow a CA, and end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tlsproxy.certs import conversation
from tlsproxy.certs.conversation import Conversation, Patience, finish_first
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Step
from tlsproxy.certs.tools import Tools, utc_now
from tlsproxy.store.base import open_store


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tools]:
    monkeypatch.setattr(conversation, "FIRST_PAUSE", 0.01)
    tools = Tools.make(open_store("memory:"))
    yield tools
    tools.close()


def patience(seconds: float) -> Patience:
    return Patience(seconds, step="order", directory="https://ca.test/dir")


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "FIRST_PAUSE", 0.05)

    async def story() -> AcmeFailure:
        waiting = patience(0.1)
        await waiting.pause()
        await waiting.pause()  # 0.05 s, then what is left
        with pytest.raises(AcmeFailure) as caught:
            await waiting.pause()
        return caught.value

    failure = asyncio.run(story())
    assert (failure.kind, failure.step) == (FailureKind.BUSY, "order")


def test_retry_after_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "FIRST_PAUSE", 0.01)

    async def story() -> float:
        loop, waiting = asyncio.get_running_loop(), patience(10)
        begun = loop.time()
        await waiting.pause(0.2)
        return loop.time() - begun

    assert 0.15 < asyncio.run(story()) < 2


def test_what_passes_is_waited_out(tools: Tools) -> None:
    left = [AcmeFailure(FailureKind.UNREACHABLE), AcmeFailure(FailureKind.BUSY)]

    def ask(word: str) -> str:
        if left:
            raise left.pop()
        return word

    assert asyncio.run(insist(tools, ask, "done")) == "done"


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.RATE_LIMITED, FailureKind.ACCOUNT_GONE])
def test_what_does_not_pass_is_raised_at_once(tools: Tools, kind: FailureKind) -> None:
    calls: list[str] = []

    def ask(word: str) -> str:
        calls.append(word)
        raise AcmeFailure(kind)

    with pytest.raises(AcmeFailure):
        asyncio.run(insist(tools, ask, "x"))
    assert calls == ["x"]


def test_a_ca_that_wants_an_hour_gets_it_outside_of_the_order(tools: Tools) -> None:
    later = utc_now() + timedelta(hours=1)

    def ask(_: str) -> str:
        raise AcmeFailure(FailureKind.BUSY, retry_at=later)

    with pytest.raises(AcmeFailure) as caught:
        asyncio.run(insist(tools, ask, "x"))
    assert caught.value.retry_at == later


def test_the_last_failure_is_told_when_patience_ends(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "FIRST_PAUSE", 0.01)

    def ask(_: str) -> str:
        raise AcmeFailure(FailureKind.UNREACHABLE, detail="no route to host")

    with pytest.raises(AcmeFailure, match="no route to host"):
        asyncio.run(insist(tools, ask, "x", seconds=0.2))


def test_cancelling_waits_for_what_must_be_finished() -> None:
    ended: list[bool] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        ended.append(True)

    async def story() -> None:
        task = asyncio.create_task(finish_first(work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert ended == [True]


def test_why_it_waits_is_told_once(tools: Tools) -> None:
    away = AcmeFailure(FailureKind.UNREACHABLE, type="caTimeout", directory="https://ca.test/dir")
    left = [AcmeFailure(FailureKind.BUSY, detail="maintenance", directory="https://ca.test/dir"), away, away]
    steps: list[Step] = []

    def ask() -> str:
        if left:
            raise left.pop()
        return "done"

    async def story() -> str:
        return await Conversation(tools, steps.append).insist(patience(5), ask)

    assert asyncio.run(story()) == "done"
    assert [step.kind for step in steps] == ["wait", "wait"]
    assert steps[0].text.startswith("CA ca.test: the CA does not answer in time.")
    assert "maintenance" in steps[1].text


async def insist(tools: Tools, ask: object, word: str, *, seconds: float = 5.0) -> str:
    talk = Conversation(tools)
    return await talk.insist(patience(seconds), ask, word)  # type: ignore[arg-type]
