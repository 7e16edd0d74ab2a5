"""A call has one result whatever happens, and everyone who follows it sees every step."""

from __future__ import annotations

import asyncio

from tlsproxy.runtime import calls
from tlsproxy.runtime.calls import Call, OpenCalls
from tlsproxy.runtime.messages import AdminProgress, AdminResult

Seen = list[AdminProgress | AdminResult | None]


def step(number: int, text: str) -> AdminProgress:
    return AdminProgress(number, "order", "a.test", text)


async def follow(call: Call, patience: float = 20) -> Seen:
    return [event async for event in call.follow(patience)]


def test_who_comes_late_sees_the_same() -> None:
    async def scene() -> tuple[Seen, Seen]:
        open_calls = OpenCalls()
        call = open_calls.open("renew", "a.test", {"force": "true"}, limit=20)
        early = asyncio.create_task(follow(call))
        await asyncio.sleep(0)
        open_calls.take(step(1, "one"))
        await asyncio.sleep(0)
        late = asyncio.create_task(follow(call))
        await asyncio.sleep(0)
        open_calls.take(step(1, "two"))
        open_calls.take(AdminResult(1, 200, {}))
        assert (len(open_calls), await call.wait()) == (0, AdminResult(1, 200, {}))
        return await early, await late

    early, late = asyncio.run(scene())
    assert early == late == [step(1, "one"), step(1, "two"), AdminResult(1, 200, {})]


def test_one_who_stops_listening_ends_nothing() -> None:
    async def scene() -> AdminResult:
        open_calls = OpenCalls()
        call = open_calls.open("renew", "a.test", {}, limit=20)
        gone = asyncio.create_task(follow(call))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert repr(call) == "<Call 1 renew a.test open>"
        open_calls.take(AdminResult(1, 200, {}))
        return await call.wait()

    assert asyncio.run(scene()).status == 200


def test_silence_is_told_of() -> None:
    async def scene() -> Seen:
        open_calls = OpenCalls()
        call = open_calls.open("obtain", "a.test", {}, limit=20)
        seen: Seen = []
        async for event in call.follow(0.001):
            seen.append(event)
            open_calls.take(AdminResult(1, 200, {}))
        return seen

    assert asyncio.run(scene()) == [None, AdminResult(1, 200, {})]


def test_a_call_has_a_limit_and_what_comes_later_is_not_heard() -> None:
    async def scene() -> AdminResult:
        open_calls = OpenCalls()
        call = open_calls.open("list", "", {}, limit=0.001)
        result = await call.wait()
        open_calls.take(step(1, "still here"))
        open_calls.take(AdminResult(1, 200, []))
        assert await follow(call) == [result]
        return result

    result = asyncio.run(scene())
    assert result.status == 504
    assert "has not answered" in result.body["error"]


def test_without_a_certifier_all_of_them_fail() -> None:
    async def scene() -> list[int]:
        open_calls = OpenCalls()
        both = [open_calls.open("renew", name, {}, limit=20) for name in ("a.test", "b.test")]
        open_calls.take(AdminResult(1, 200, {}))
        open_calls.fail("it ended")
        assert len(open_calls) == 0
        return [(await call.wait()).status for call in both]

    assert asyncio.run(scene()) == [200, 503]


def test_history_has_a_limit() -> None:
    async def scene() -> Seen:
        open_calls = OpenCalls()
        call = open_calls.open("obtain", "a.test", {}, limit=20)
        for number in range(calls.LONGEST_HISTORY + 5):
            open_calls.take(step(1, str(number)))
        open_calls.take(AdminResult(1, 200, {}))
        return await follow(call)

    seen = asyncio.run(scene())
    assert len(seen) == calls.LONGEST_HISTORY + 1
    assert seen[-1] == AdminResult(1, 200, {})
