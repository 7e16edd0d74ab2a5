"""dns-01 from the challenge to the record that all servers show, and back: real BIND servers, updates and hooks."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest

from tests.named import KEY, LOOPBACK, SECOND, Named, Primary, Secondary, TsigKey
from tests.system.running import PATIENCE, free_port, until
from tlsproxy.certs.challenges import Dns01
from tlsproxy.certs.dns.base import DnsProvider, txt_value
from tlsproxy.certs.dns.exec import ExecProvider
from tlsproxy.certs.dns.lookup import Lookup
from tlsproxy.certs.dns.propagation import Timeouts
from tlsproxy.certs.dns.rfc2136 import Rfc2136Provider
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step, unwatched

pytestmark = pytest.mark.system

SOON = datetime.now(UTC) + timedelta(minutes=15)
FAST = Timeouts(provider=10, propagation=10, period=0.02, silence=0.1)
NAME = "_acme-challenge.example.test"
ZONES = [
    Primary(
        "example.test",
        [
            "_acme-challenge.api CNAME api.challenges.test.",
            "_acme-challenge.locked CNAME locked.locked.test.",
            "_acme-challenge.circle CNAME _acme-challenge.circle",
        ],
    ),
    Primary("challenges.test"),
    Primary("locked.test", key=None),
    Primary("two.test", servers=2),
    Primary("half.test", ["ns1 AAAA 2001:db8::1"]),
]


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Named]:
    with Named(tmp_path / "primary", port=free_port(), zones=ZONES) as named:
        yield named


@pytest.fixture
def second(tmp_path: Path, server: Named) -> Iterator[Named]:
    folder, zones = tmp_path / "secondary", [Secondary("two.test")]
    with Named(folder, port=server.port, address=SECOND, zones=zones) as named:
        yield named


def answer(token: str) -> str:
    return f"{token}.thumbprint"


def value(token: str) -> str:
    return txt_value(answer(token))


def updates(server: Named, key: TsigKey = KEY) -> Rfc2136Provider:
    return Rfc2136Provider(LOOPBACK, port=server.port, key_name=key.name, key_secret=key.secret)


def solver(server: Named, executor: Executor, provider: DnsProvider | None = None, timeouts: Timeouts = FAST) -> Dns01:
    lookup = Lookup([server.resolver], port=server.port, timeout=0.5)
    return Dns01(provider or updates(server), lookup, executor, timeouts)


async def present(dns01: Dns01, host: str, token: str = "one", progress: Progress = unwatched) -> None:
    await dns01.present(host, token, answer(token), SOON, progress)


async def clean_up(dns01: Dns01, host: str, token: str = "one") -> None:
    await dns01.clean_up(host, token, answer(token))


# --- records come and go


def test_a_name_and_its_wildcard_have_two_values_under_one_name(server: Named, executor: Executor) -> None:
    async def run() -> None:
        dns01 = solver(server, executor)
        await asyncio.gather(present(dns01, "example.test", "one"), present(dns01, "example.test", "two"))
        assert server.txt(NAME) == {value("one"), value("two")}
        await clean_up(dns01, "example.test", "two")
        assert server.txt(NAME) == {value("one")}
        await clean_up(dns01, "example.test", "one")
        assert server.txt(NAME) == set()

    asyncio.run(run())


def test_clean_up_of_what_was_never_there_or_is_gone(server: Named, executor: Executor) -> None:
    server.update("example.test", f"_acme-challenge 60 TXT {value('one')}")

    async def run() -> None:
        dns01 = solver(server, executor)
        await clean_up(dns01, "example.test", "one")
        assert server.txt(NAME) == {value("one")}, "it was not ours"
        await present(dns01, "example.test", "two")
        await clean_up(dns01, "example.test", "two")
        await clean_up(dns01, "example.test", "two")

    asyncio.run(run())


def test_the_record_is_made_where_the_cname_leads(server: Named, executor: Executor) -> None:
    steps: list[Step] = []

    async def run() -> None:
        dns01 = solver(server, executor)
        await present(dns01, "api.example.test", progress=steps.append)
        assert server.txt("api.challenges.test") == {value("one")}
        await clean_up(dns01, "api.example.test")

    asyncio.run(run())
    assert server.txt("api.challenges.test") == set()
    assert str(steps[0]) == (
        "api.example.test: making the TXT record api.challenges.test, where _acme-challenge.api.example.test leads"
    )
    assert value("one") not in str(steps)


def test_a_name_that_leads_in_a_circle_is_told_before_anything_is_made(server: Named, executor: Executor) -> None:
    with pytest.raises(AcmeFailure, match="in a circle") as caught:
        asyncio.run(present(solver(server, executor), "circle.example.test"))
    assert (caught.value.kind, caught.value.identifier) == (FailureKind.VALIDATION, "circle.example.test")


# --- all servers must show it


def test_waits_for_the_server_that_lags(server: Named, second: Named, executor: Executor) -> None:
    steps: list[Step] = []

    async def run() -> None:
        dns01 = solver(server, executor)
        task = asyncio.create_task(present(dns01, "two.test", progress=steps.append))
        await eventually(lambda: any(step.kind == "wait" for step in steps), "it waits")
        assert not task.done()
        second.notify("two.test")
        await task
        assert second.txt("_acme-challenge.two.test") == {value("one")}
        await clean_up(dns01, "two.test")

    asyncio.run(run())
    waits = [step.text for step in steps if step.kind == "wait"]
    assert waits == ["waiting for ns2.two.test (::1: NXDOMAIN)"]


def test_a_server_that_never_shows_it_is_named_with_its_answer(
    server: Named, second: Named, executor: Executor
) -> None:
    server.update("two.test", "_acme-challenge 60 TXT stale")
    second.notify("two.test")
    until(lambda: second.txt("_acme-challenge.two.test"), "the secondary has the old record")
    impatient = Timeouts(propagation=0.2, period=0.02, silence=0.1)
    with pytest.raises(AcmeFailure) as caught:
        asyncio.run(present(solver(server, executor, timeouts=impatient), "two.test"))
    assert caught.value.kind is FailureKind.VALIDATION
    assert "after 0.2 s: ns2.two.test (::1: 'stale')" in str(caught.value)
    assert server.txt("_acme-challenge.two.test") == {"stale"}, "ours is gone, the other is not"


def test_a_server_that_answers_nobody_holds_up_for_a_moment(
    server: Named, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no server on the second address."""
    with caplog.at_level(logging.WARNING):
        asyncio.run(present(solver(server, executor), "two.test"))
    (record,) = [each for each in caplog.records if each.getMessage() == "dns.servers_silent"]
    assert vars(record)["servers"].startswith("ns2.two.test (::1: ")


def test_an_address_that_is_out_of_reach_counts_not_beside_one_that_answers(
    server: Named, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    never = Timeouts(propagation=10, period=0.02, silence=10)
    with caplog.at_level(logging.WARNING):
        asyncio.run(present(solver(server, executor, timeouts=never), "half.test"))
    assert "dns.servers_silent" not in caplog.text


def test_without_any_server_in_reach_the_wait_is_a_fixed_delay(
    server: Named, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    blind = Lookup([server.resolver], port=1, timeout=0.1)
    dns01 = Dns01(updates(server), blind, executor, Timeouts(propagation=0.3, period=0.02, silence=0.1))

    async def run() -> float:
        begin = asyncio.get_running_loop().time()
        await present(dns01, "example.test")
        return asyncio.get_running_loop().time() - begin

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(run()) >= 0.3
    assert "dns.servers_silent" in [record.getMessage() for record in caplog.records]
    assert server.txt(NAME) == {value("one")}


# --- whatever happens, the record goes


def test_cancelled_while_waiting(server: Named, second: Named, executor: Executor) -> None:
    steps: list[Step] = []

    async def run() -> None:
        task = asyncio.create_task(present(solver(server, executor), "two.test", progress=steps.append))
        await eventually(lambda: any(step.kind == "wait" for step in steps), "it waits")
        assert server.txt("_acme-challenge.two.test") == {value("one")}
        await cancel(task)

    asyncio.run(run())
    assert server.txt("_acme-challenge.two.test") == set()


class Hook:
    """A script that notes its calls, and whose `present` waits until it may go on."""

    def __init__(self, folder: Path, *, code: int = 0, waits: bool = False) -> None:
        self._log, self._go = folder / "calls", folder / "go"
        script = folder / "hook"
        wait = f"while [ $1 = present ] && ! [ -e {self._go} ]; do sleep 0.01; done" if waits else ""
        script.write_text(f"#!/bin/sh\necho begin $1 $2 >>{self._log}\n{wait}\necho $1 $2 >>{self._log}\nexit {code}\n")
        script.chmod(0o755)
        self.provider = ExecProvider([str(script)])

    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def go_on(self) -> None:
        self._go.touch()


BEGUN = f"begin present {NAME}"
MADE_AND_REMOVED = [BEGUN, f"present {NAME}", f"begin cleanup {NAME}", f"cleanup {NAME}"]


@pytest.mark.parametrize("cancels", [1, 2])
def test_cancelled_while_the_provider_makes_it(server: Named, executor: Executor, tmp_path: Path, cancels: int) -> None:
    """A thread can't be stopped: it removes what it has made. Who is cancelled twice does not even wait for that."""
    hook = Hook(tmp_path, waits=True)

    async def run() -> None:
        task = asyncio.create_task(present(solver(server, executor, hook.provider), "example.test"))
        await eventually(lambda: hook.calls() == [BEGUN], "the provider is at work")
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)  # it begins to clean up
        if cancels == 2:
            task.cancel()
        else:
            hook.go_on()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (hook.calls() == MADE_AND_REMOVED) is (cancels == 1)
        hook.go_on()

    asyncio.run(run())
    until(lambda: hook.calls() == MADE_AND_REMOVED, "the record is removed")


def test_cancelled_while_the_provider_fails(
    server: Named, executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for that failure any more, and asyncio must not complain that nobody has seen it."""
    hook = Hook(tmp_path, code=1, waits=True)

    async def run() -> None:
        task = asyncio.create_task(present(solver(server, executor, hook.provider), "example.test"))
        await eventually(lambda: hook.calls() == [BEGUN], "the provider is at work")
        task.cancel()
        await asyncio.sleep(0)
        hook.go_on()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert hook.calls() == MADE_AND_REMOVED
    assert "never retrieved" not in caplog.text


def test_cancelled_before_the_provider_begins(server: Named, tmp_path: Path) -> None:
    hook, busy = Hook(tmp_path), Event()

    async def run(executor: ThreadPoolExecutor) -> None:
        executor.submit(busy.wait, 20)
        task = asyncio.create_task(present(solver(server, executor, hook.provider), "example.test"))
        await eventually(lambda: pending(executor) == 1, "the job is in the queue")
        await cancel(task)
        busy.set()

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(run(executor))
    assert hook.calls() == []


def test_a_provider_that_takes_too_long(server: Named, executor: Executor, tmp_path: Path) -> None:
    hook = Hook(tmp_path, waits=True)
    impatient = Timeouts(provider=0.1)
    with pytest.raises(AcmeFailure, match=r"hook> has not made _acme-challenge\.example\.test within 0\.1 s"):
        asyncio.run(present(solver(server, executor, hook.provider, impatient), "example.test"))
    hook.go_on()
    until(lambda: hook.calls() == MADE_AND_REMOVED, "the record is removed as soon as it is made")


def test_a_provider_that_fails_half_way_is_asked_to_clean_up(
    server: Named, executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Hook(tmp_path, code=1)
    dns01 = solver(server, executor, hook.provider)
    with caplog.at_level(logging.WARNING), pytest.raises(AcmeFailure, match=r"hook present .* exit code 1") as caught:
        asyncio.run(present(dns01, "example.test"))
    assert caught.value.kind is FailureKind.VALIDATION
    assert hook.calls() == MADE_AND_REMOVED
    (record,) = [each for each in caplog.records if each.getMessage() == "dns.cleanup_failed"]
    assert vars(record)["record"] == NAME
    assert "remove it by hand" in vars(record)["advice"]


def test_a_clean_up_that_fails_is_no_failure(
    server: Named, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        dns01 = solver(server, executor)
        await present(dns01, "example.test")
        server.stop()
        await clean_up(dns01, "example.test")

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    (record,) = [each for each in caplog.records if each.getMessage() == "dns.cleanup_failed"]
    assert vars(record)["value"] == value("one")
    assert "Connection refused" in vars(record)["error"]


def test_a_zone_that_may_not_be_changed(server: Named, executor: Executor) -> None:
    with pytest.raises(AcmeFailure, match=r"refuses locked\.locked\.test \(REFUSED\)"):
        asyncio.run(present(solver(server, executor), "locked.example.test"))


def test_a_wrong_key(server: Named, executor: Executor) -> None:
    wrong = TsigKey(secret="d3Jvbmcgc2VjcmV0IG9mIHRoZSBrZXk=")
    with pytest.raises(AcmeFailure, match="the signature is wrong") as caught:
        asyncio.run(present(solver(server, executor, updates(server, wrong)), "example.test"))
    assert wrong.secret not in str(caught.value)


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Be `until` for a test that is a coroutine."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def pending(executor: ThreadPoolExecutor) -> int:
    return executor._work_queue.qsize()
