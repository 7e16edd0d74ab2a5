"""A generation of real processes that play parts: start, replacement, drain, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tlsproxy.runtime import process
from tlsproxy.runtime.generation import DrainOutcome, Generation
from tlsproxy.runtime.messages import AdminProgress, AdminResult, CertificatesChanged, CertificateWanted, Start
from tlsproxy.runtime.process import ChildFailed, ChildProcess, ChildSpec

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def _spec(part: str, slot: int | None = None) -> ChildSpec:
    role: Literal["certifier", "worker"] = "certifier" if slot is None else "worker"
    return ChildSpec(role, "tests.runtime.obedient", Start(part, slot=slot or 0), {"PYTHONPATH": str(ROOT)})


@contextlib.asynccontextmanager
async def _generation(*workers: str, certifier: str = "serve") -> AsyncIterator[Generation]:
    generation = Generation(1, _spec(certifier), [_spec(part, slot) for slot, part in enumerate(workers)])
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, generation.poll)
    try:
        yield generation
    finally:
        await generation.kill()
        loop.remove_signal_handler(signal.SIGCHLD)


class Log(logging.Handler):
    """Remembers records and wakes whoever waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._woken = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._woken.set()

    async def wait_for(self, event: str) -> dict[str, Any]:
        """Return the fields of the first such record, which is then forgotten."""
        async with asyncio.timeout(20):
            while True:
                for record in self.records:
                    if record.getMessage() == event:
                        self.records.remove(record)
                        return vars(record)
                self._woken.clear()
                await self._woken.wait()


@pytest.fixture
def log() -> Iterator[Log]:
    log, logger = Log(), logging.getLogger("tlsproxy.runtime")
    level = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    yield log
    logger.removeHandler(log)
    logger.setLevel(level)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _read_environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_a_generation_starts_and_drains() -> None:
    async def scene() -> None:
        async with _generation("serve", "serve") as generation:
            await generation.start()
            assert repr(generation) == "<Generation 1 certifier, worker 0, worker 1>"
            pids = generation.pids()
            assert await generation.drain(10) == DrainOutcome(cut=6, killed=())
            assert all(map(_is_gone, pids))
            assert generation.names() == []

    asyncio.run(scene())


def test_two_generations_live_side_by_side() -> None:
    async def scene() -> None:
        async with _generation("serve") as old:
            await old.start()
            new = Generation(2, _spec("serve"), [_spec("serve", 0)])

            def poll() -> None:
                old.poll()
                new.poll()

            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, poll)
            await new.start()
            await old.drain(10)
            assert len(new.pids()) == 2
            assert not any(map(_is_gone, new.pids()))
            await new.drain(10)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("workers", "certifier", "reason"),
    [
        (["fail the key does not match"], "serve", "the key does not match"),
        (["serve", "exit 3"], "serve", "worker 1 ended with exit status 3 before it was ready"),
        (["serve"], "fail no store", "no store"),
        (["serve"], "exit 0", "certifier ended with exit status 0 before it was ready"),
    ],
)
def test_one_that_does_not_start_fails_the_generation(workers: list[str], certifier: str, reason: str) -> None:
    async def scene() -> None:
        async with _generation(*workers, certifier=certifier) as generation:
            with pytest.raises(ChildFailed, match=reason):
                await generation.start()
            pids = generation.pids()
            await generation.kill()
            assert all(map(_is_gone, pids))

    asyncio.run(scene())


def test_one_that_is_not_ready_in_time_fails_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_TIMEOUT", 0.01)

    async def scene() -> None:
        async with _generation("serve") as generation:
            with pytest.raises(ChildFailed, match="certifier was not ready after 0 s"):
                await generation.start()

    asyncio.run(scene())


def test_a_program_that_cannot_be_executed_fails_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")

    async def scene() -> None:
        async with _generation("serve") as generation:
            with pytest.raises(ChildFailed, match="certifier cannot be started: No such file"):
                await generation.start()

    asyncio.run(scene())


def test_a_worker_that_dies_is_replaced_at_once_then_later(log: Log) -> None:
    async def scene() -> None:
        async with _generation("serve") as generation:
            await generation.start()
            (worker,) = generation.worker_pids()
            os.kill(worker, signal.SIGKILL)
            died = await log.wait_for("worker.died")
            assert (died["child"], died["status"], died["retry_in"]) == (worker, "signal SIGKILL", 0.0)
            replaced = await log.wait_for("worker.replaced")
            assert generation.worker_pids() == [replaced["child"]]
            os.kill(replaced["child"], signal.SIGTERM)
            again = await log.wait_for("worker.died")
            assert (again["status"], again["retry_in"]) == ("signal SIGTERM", 1.0)

    asyncio.run(scene())


def test_another_listens_in_place_of_one_that_died_until_it_is_replaced(
    log: Log, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with _generation("serve", "serve") as generation:
            await generation.start()
            os.kill(generation.worker_pids()[0], signal.SIGKILL)
            slot = (await log.wait_for("worker.died"))["slot"]
            await log.wait_for("worker.replaced")
            await generation.drain(10)
            assert capfd.readouterr().out.splitlines() == [f"adopts {slot}", f"releases {slot}"]

    asyncio.run(scene())


def test_what_one_had_adopted_moves_on_when_it_dies_too(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    async def scene() -> None:
        async with _generation("leave", "serve", "serve") as generation:
            await generation.start()
            workers = {child.spec.start.slot: child for child in generation._children if child.spec.is_worker}
            async with asyncio.timeout(20):
                while workers[0].is_listening:  # its word is on the way; before, it would adopt slot 1
                    await asyncio.sleep(0.01)
            os.kill(workers[1].pid, signal.SIGKILL)
            await log.wait_for("worker.replaced")
            await generation.drain(10)
            # Worker 1 had adopted slot 0, and may have died before it could say so.
            assert capfd.readouterr().out.splitlines()[-2:] == ["adopts 0 1", "releases 1"]

    asyncio.run(scene())


def test_a_flaw_of_ours_is_a_failed_try(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ChildProcess.start

    async def fail(self: ChildProcess) -> None:
        monkeypatch.setattr(ChildProcess, "start", start)
        raise RuntimeError("not foreseen")

    async def scene() -> None:
        async with _generation("serve") as generation:
            await generation.start()
            monkeypatch.setattr(ChildProcess, "start", fail)
            os.kill(generation.worker_pids()[0], signal.SIGKILL)
            failed = await log.wait_for("worker.failed")
            assert (failed["error"], bool(failed["exc_info"])) == ("not foreseen", True)
            replaced = await log.wait_for("worker.replaced")
            assert generation.worker_pids() == [replaced["child"]]

    asyncio.run(scene())


def test_the_certifier_is_replaced_and_the_workers_stay(log: Log) -> None:
    async def scene() -> None:
        async with _generation("serve") as generation:
            await generation.start()
            workers = generation.worker_pids()
            (certifier,) = generation.pids() - set(workers)
            os.kill(certifier, signal.SIGKILL)
            await log.wait_for("certifier.died")
            await log.wait_for("certifier.replaced")
            assert generation.worker_pids() == workers

    asyncio.run(scene())


def test_a_child_that_talks_nonsense_is_ended(log: Log) -> None:
    async def scene() -> None:
        async with _generation("babble") as generation:
            await generation.start()
            said = await log.wait_for("child.unintelligible")
            assert said["role"] == "worker 0"
            assert (await log.wait_for("worker.died"))["status"] == "signal SIGKILL"

    asyncio.run(scene())


def test_one_that_clings_is_killed_when_the_time_is_up() -> None:
    async def scene() -> None:
        async with _generation("cling", "serve") as generation:
            await generation.start()
            pids = generation.pids()
            assert await generation.drain(0.5) == DrainOutcome(cut=4, killed=("worker 0",))
            assert all(map(_is_gone, pids))

    asyncio.run(scene())


def test_names_go_from_the_certifier_to_every_worker(capfd: pytest.CaptureFixture[str]) -> None:
    async def scene() -> None:
        async with _generation("serve", "serve", certifier="announce a.test") as generation:
            await generation.start()
            generation.send_to_workers(CertificatesChanged(("b.test",)))
            await generation.drain(10)

    asyncio.run(scene())
    assert sorted(capfd.readouterr().out.splitlines()) == ["heard b.test", "heard b.test"]


def test_everybody_is_told_when_all_are_ready(capfd: pytest.CaptureFixture[str], log: Log) -> None:
    async def scene() -> None:
        async with _generation("tell", "tell", certifier="tell") as generation:
            await generation.start()
            (certifier,) = generation.pids() - set(generation.worker_pids())
            await generation.call_certifier("show", limit=20).wait()
            os.kill(certifier, signal.SIGKILL)
            await log.wait_for("certifier.replaced")
            await generation.drain(10)

    asyncio.run(scene())
    assert capfd.readouterr().out.split() == ["ready"] * 3 + ["serve"] * 3 + ["ready", "serve"]


def test_names_reach_workers_that_are_there(capfd: pytest.CaptureFixture[str], log: Log) -> None:
    async def scene() -> None:
        async with _generation("serve", certifier="announce a.test") as generation:
            await generation.start()
            (certifier,) = generation.pids() - set(generation.worker_pids())
            os.kill(certifier, signal.SIGKILL)
            await log.wait_for("certifier.replaced")
            await generation.drain(10)

    asyncio.run(scene())
    assert capfd.readouterr().out == "heard a.test\n"


def test_a_call_goes_to_the_certifier_and_its_answer_back() -> None:
    async def scene() -> None:
        async with _generation() as generation:
            assert (await generation.call_certifier("list", limit=20).wait()).status == 503
            await generation.start()
            call = generation.call_certifier("renew", "a.test", {"force": "true"}, limit=20)
            seen = [event async for event in call.follow(20)]
            body = {"verb": "renew", "name": "a.test", "force": "true"}
            assert seen == [AdminProgress(2, "order", "a.test", "asked"), AdminResult(2, 200, body)]

    asyncio.run(scene())


def test_a_certifier_that_dies_answers_its_calls_with_an_error(log: Log) -> None:
    async def scene() -> None:
        async with _generation() as generation:
            await generation.start()
            before = generation.certifier_pid()
            working = generation.call_certifier("renew", "long", limit=20)
            generation.call_certifier("renew", "die", limit=20)
            result = await working.wait()
            assert (result.status, "ended before" in result.body["error"]) == (503, True)
            await log.wait_for("certifier.replaced")
            assert generation.certifier_pid() not in (None, before)
            assert (await generation.call_certifier("list", limit=20).wait()).status == 200

    asyncio.run(scene())


def test_a_wish_goes_from_a_worker_to_the_certifier_and_the_refusal_to_all(capfd: pytest.CaptureFixture[str]) -> None:
    async def scene() -> None:
        async with _generation("wish shop.test", "serve") as generation:
            await generation.start()
            # Answered after the wish was, on the same channels.
            await generation.worker_stats(20)
            await generation.call_certifier("list", limit=20).wait()
            await generation.drain(10)

    asyncio.run(scene())
    assert capfd.readouterr().out.splitlines() == ["refused shop.test not for 192.0.2.1"] * 2


def test_a_wish_that_nobody_can_fulfil_is_refused_at_once(log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    async def scene() -> None:
        async with _generation("serve") as generation:
            await generation.start()
            generation.call_certifier("renew", "die", limit=20)
            await log.wait_for("certifier.died")
            (worker,) = (child for child in generation._children if child.spec.is_worker)
            generation._handle(worker, CertificateWanted("shop.test", "192.0.2.1"))
            await generation.drain(10)

    asyncio.run(scene())
    assert capfd.readouterr().out.startswith("refused shop.test the certifier is not running")


def test_a_worker_is_not_believed_when_it_speaks_as_the_certifier(log: Log) -> None:
    async def scene() -> None:
        async with _generation("impostor") as generation:
            await generation.start()
            assert (await log.wait_for("child.unintelligible"))["error"] == "AdminResult is not for the supervisor"
            await log.wait_for("worker.died")

    asyncio.run(scene())


def test_workers_tell_their_counters_and_the_silent_one_is_not_waited_for() -> None:
    async def scene() -> None:
        async with _generation("serve", "mute") as generation:
            assert await generation.worker_stats(20) == {}
            await generation.start()
            slots = {child.pid: child.spec.start.slot for child in generation._children if child.spec.is_worker}
            both = await asyncio.gather(generation.worker_stats(0.5), generation.worker_stats(0.5))
            assert both[0] == both[1]
            assert list(both[0]) == generation.worker_pids()
            counters = {slots[pid]: values for pid, values in both[0].items()}
            assert counters == {0: {"connections": 1, "requests": 7}, 1: None}

    asyncio.run(scene())


def test_children_leave_when_the_supervisor_is_gone() -> None:
    """Its end of the socket closes, whatever ended it."""

    async def scene() -> None:
        async with _generation() as generation:
            child = await ChildProcess.spawn(_spec("serve", 0))
            life = asyncio.create_task(child.live(lambda *_: None))
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, child.poll)
            await child.start()
            child.channel.close()
            assert await asyncio.wait_for(child.exited, 20) == 0
            await life
            assert generation.names() == []

    asyncio.run(scene())


def test_a_stop_during_the_start_leaves_nothing() -> None:
    async def scene() -> None:
        async with _generation("serve", "serve") as generation:
            starting = asyncio.create_task(generation.start())
            while not generation.pids():
                await asyncio.sleep(0)
            pids = generation.pids()
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await generation.kill()
            assert all(map(_is_gone, pids))

    asyncio.run(scene())


def test_a_child_sees_no_configuration_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLSPROXY_STORE__URL", "memory:")

    async def scene() -> None:
        async with _generation("serve") as generation:
            await generation.start()
            (worker,) = generation.worker_pids()
            environ = _read_environment(worker)
            assert b"PYTHONPATH=" in environ
            assert b"TLSPROXY_" not in environ

    asyncio.run(scene())
