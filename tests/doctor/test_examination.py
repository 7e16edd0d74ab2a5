"""One question that fails, hangs or meets silence says so, and hides no other; facts are found out once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from tlsproxy.doctor.asking import Unanswered
from tlsproxy.doctor.examination import Question, _ask
from tlsproxy.doctor.facts import Facts, in_thread
from tlsproxy.doctor.findings import Finding, Report, State


async def _hang() -> Report:
    await asyncio.Event().wait()
    raise AssertionError


async def _fail() -> Report:
    raise RuntimeError("oops")


async def _meet_silence() -> Report:
    raise Unanswered("timeout", "no answer within 5 s")


@pytest.mark.parametrize(
    ("answer", "words"), [(_hang, "no answer in the time"), (_fail, "this is a bug"), (_meet_silence, "not seen")]
)
def test_what_goes_wrong_is_unknown(answer: Callable[[], Awaitable[Report]], words: str) -> None:
    told: list[str] = []

    async def run() -> list[Finding]:
        ends = asyncio.get_running_loop().time() + 0.05
        return await _ask(Question("a.test", "DNS", answer), asyncio.Semaphore(1), ends, told.append)

    (finding,) = asyncio.run(run())
    assert (finding.state, finding.about, finding.check) == (State.UNKNOWN, "a.test", "DNS")
    assert words in finding.text
    assert told == ["a.test: DNS"]


def test_one_lane_that_is_full_holds_up_no_other() -> None:
    async def run() -> list[Finding]:
        ends = asyncio.get_running_loop().time() + 0.05
        full, free = asyncio.Semaphore(0), asyncio.Semaphore(1)

        async def answer() -> Report:
            report = Report("b.test")
            report.ok("scheme", "fine")
            return report

        held = _ask(Question("a.test", "DNS", _hang, "DNS"), full, ends, lambda _: None)
        other = _ask(Question("b.test", "scheme", answer, "backends"), free, ends, lambda _: None)
        return [finding for found in await asyncio.gather(held, other) for finding in found]

    assert [finding.state for finding in asyncio.run(run())] == [State.UNKNOWN, State.OK]


def test_a_fact_is_found_out_once_and_taken_from_nobody() -> None:
    async def run() -> tuple[int, str, str]:
        facts, asked, go = Facts(), [0], asyncio.Event()

        async def find() -> str:
            asked[0] += 1
            await go.wait()
            return "found"

        impatient = asyncio.create_task(facts.once("x", find))
        patient = asyncio.create_task(facts.once("x", find))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        go.set()
        return asked[0], await patient, await facts.once("x", find)

    assert asyncio.run(run()) == (1, "found", "found")


def test_blocking_work_keeps_nobody() -> None:
    """Who gives up on a thread is free at once; the thread does not keep the process."""
    release = threading.Event()

    async def run() -> bool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await in_thread(release.wait)
        return any(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())

    assert asyncio.run(run())
    release.set()


def test_an_error_in_a_thread_arrives() -> None:
    def work() -> None:
        raise ValueError("from there")

    with pytest.raises(ValueError, match="from there"):
        asyncio.run(in_thread(work))
