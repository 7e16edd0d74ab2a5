"""The routes of the admin API, asked by its own client, answered by processes that play the proxy's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.runtime.test_generation import _generation
from tlsproxy import __version__
from tlsproxy.runtime import admin
from tlsproxy.runtime.admin import AdminServer
from tlsproxy.runtime.adminclient import AdminClient, AdminError, Done, Progress
from tlsproxy.runtime.adminhttp import Answer, Request
from tlsproxy.runtime.adminroutes import ROUTES
from tlsproxy.runtime.adminsocket import connect_admin_socket
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.overview import Identity

pytestmark = pytest.mark.system

IDENTITY = Identity(sites=3, listeners=("https 127.0.0.1:8443",), started=datetime(2026, 1, 2, 3, 4, 5, 6, UTC))


class Stage:
    """A served generation and a client for it. Blocking calls of the client run in a thread."""

    def __init__(self, generation: Generation, server: AdminServer, client: AdminClient) -> None:
        self.generation = generation
        self.server = server
        self.client = client

    async def get(self, *path: str) -> Any:
        return await asyncio.to_thread(self.client.get, *path)

    async def post(self, *path: str, **options: str) -> list[Progress | Done]:
        return await asyncio.to_thread(lambda: list(self.client.work(*path, options=options)))

    def listen(self, *path: str, **options: str) -> Listener:
        return Listener(self.client, path, options)


class Listener:
    """Somebody who reads the lines of some work one by one, and may leave before the end."""

    def __init__(self, client: AdminClient, path: tuple[str, ...], options: dict[str, str]) -> None:
        self._lines = client.work(*path, options=options)

    async def next(self) -> Progress | Done | None:
        return await asyncio.to_thread(next, self._lines, None)

    async def leave(self) -> None:
        await asyncio.to_thread(self._lines.close)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def _stage(
    folder: Path, *workers: str, start: bool = True, canonical: Callable[[str], str] = str
) -> AsyncIterator[Stage]:
    async with _generation(*workers) as generation:
        if start:
            await generation.start()
        server = AdminServer(IDENTITY, lambda: generation, canonical)
        path = folder / "admin.sock"
        await server.open(str(path))
        try:
            yield Stage(generation, server, AdminClient(path, patience=20))
        finally:
            await server.kill()
    assert not path.exists()


def _run(scene: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await scene

    asyncio.run(limited())


def test_status(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, "serve", "mute") as stage:
            status = await stage.get("status")
            pids = stage.generation.worker_pids()
            keys = (
                "version, pid, generation, started, serving, ready, not_ready, workers, draining, certifier, "
                "sites, paused, certificates, backends, listeners"
            )
            assert ", ".join(status) == keys
            assert (status["version"], status["generation"], status["sites"]) == (__version__, 1, 3)
            assert status["started"] == "2026-01-02T03:04:05Z"
            assert [worker["pid"] for worker in status["workers"]] == pids
            counters = {(worker["connections"], worker["requests"]) for worker in status["workers"]}
            assert counters == {(1, 7), (None, None)}
            assert status["certifier"] == {"pid": stage.generation.certifier_pid(), "state": "idle"}
            assert status["certificates"] == {"valid": 2, "pending": 1, "failed": 0}
            assert status["listeners"] == ["https 127.0.0.1:8443"]

    _run(scene())


def test_status_and_health_while_nobody_is_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, "serve", start=False) as stage:
            status = await stage.get("status")
            assert (status["workers"], status["certificates"]) == ([], None)
            assert status["certifier"] == {"pid": None, "state": "restarting"}
            with pytest.raises(AdminError, match="no worker is ready") as caught:
                await stage.get("healthz")
            assert caught.value.status == 503

    _run(scene())


def test_health(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, "serve", "serve") as stage:
            assert await stage.get("healthz") == {"status": "ok", "workers": 2}

    _run(scene())


def test_every_question_is_the_certifiers_to_answer(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            assert await stage.get("certs") == {"verb": "list", "name": ""}
            assert await stage.get("quota") == {"verb": "quota", "name": ""}
            assert await stage.get("certs", "acme/*.a.test") == {"verb": "show", "name": "acme/*.a.test"}
            assert await stage.get("certs", "a.test", "why") == {"verb": "why", "name": "a.test"}
            removed = await asyncio.to_thread(stage.client.delete, "certs", "a.test", options={"force": "true"})
            assert removed == {"verb": "remove", "name": "a.test", "force": "true"}
            told = await asyncio.to_thread(stage.client.post, "certs", "a.test", "announce")
            assert told == {"verb": "announce", "name": "a.test"}

    _run(scene())


@pytest.mark.parametrize("verb", ["obtain", "renew", "revoke"])
def test_work_is_told_step_by_step(tmp_path: Path, verb: str) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            seen = await stage.post("certs", "a.test", verb, reason="superseded")
            done = Done({"verb": verb, "name": "a.test", "reason": "superseded"})
            assert seen == [Progress("order", "a.test", "asked"), done]
            assert (await stage.post("accounts", "rollover"))[-1] == Done({"verb": "rollover", "name": ""})

    _run(scene())


def test_work_that_fails_at_once_fails_as_an_answer(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            with pytest.raises(AdminError, match="no such certificate") as caught:
                await stage.post("certs", "gone", "renew")
            assert caught.value.status == 404

    _run(scene())


def test_two_who_want_the_same_share_the_work(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            first, second = stage.listen("certs", "long", "renew"), stage.listen("certs", "long", "renew")
            assert await first.next() == await second.next() == Progress("order", "long", "working")
            await stage.post("certs", "finish", "renew")
            for listener in (first, second):
                assert await listener.next() == Progress("order", "finish", "asked")
                # The first call is the only one that was made for both.
                assert await listener.next() == Done({"verb": "renew", "name": "finish"})
            assert stage.generation.call_certifier("list", limit=20).message.id == 3

    _run(scene())


@pytest.mark.parametrize("other", ["long", "the same by another name"])
def test_other_work_on_the_same_certificate_has_to_wait(tmp_path: Path, other: str) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, canonical=lambda name: "long" if name == other else name) as stage:
            working = stage.listen("certs", "long", "renew")
            assert isinstance(await working.next(), Progress)
            for ask in (
                lambda: stage.post("certs", other, "revoke"),
                lambda: stage.post("certs", other, "renew", force="true"),
                lambda: asyncio.to_thread(stage.client.delete, "certs", other),
            ):
                with pytest.raises(AdminError, match="under way: renew of long") as caught:
                    await ask()
                assert caught.value.status == 409
            await stage.post("certs", "finish", "renew")
            assert isinstance(await working.next(), Progress)
            assert isinstance(await working.next(), Done)
            assert (await stage.post("certs", "finish", "revoke"))[-1] is not None

    _run(scene())


def test_one_who_leaves_does_not_end_the_work(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            leaver = stage.listen("certs", "long", "renew")
            assert isinstance(await leaver.next(), Progress)
            await leaver.leave()
            stayer = stage.listen("certs", "long", "renew")
            assert await stayer.next() == Progress("order", "long", "working")
            await stage.post("certs", "finish", "renew")
            assert [await stayer.next(), await stayer.next()][-1] == Done({"verb": "renew", "name": "finish"})

    _run(scene())


def test_silence_does_not_end_the_listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "HEARTBEAT", 0.01)

    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            stage.client = AdminClient(stage.client.path, patience=0.5)
            listener = stage.listen("certs", "long", "renew")
            assert isinstance(await listener.next(), Progress)
            following = asyncio.create_task(listener.next())
            await asyncio.wait({following}, timeout=1)
            assert not following.done()
            await stage.post("certs", "finish", "renew")
            assert isinstance(await following, Progress)

    _run(scene())


def test_a_certifier_that_dies_ends_the_work_with_a_reason(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            listener = stage.listen("certs", "long", "renew")
            assert isinstance(await listener.next(), Progress)
            stage.generation.call_certifier("renew", "die", limit=20)
            with pytest.raises(AdminError, match="the certifier ended before") as caught:
                await listener.next()
            assert caught.value.status == 503

    _run(scene())


def test_a_proxy_that_ends_is_told_from_work_that_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            listener = stage.listen("certs", "long", "renew")
            assert isinstance(await listener.next(), Progress)
            await stage.server.kill()
            with pytest.raises(AdminError, match="the proxy ended"):
                await listener.next()

    _run(scene())


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", ("nope",), 404, "GET /status, GET /healthz, GET /readyz, GET /top, GET /metrics, GET /certs"),
        ("GET", ("certs", "acme", "a.test"), 404, "written %2F"),
        ("GET", ("certs", ""), 404, "there is no /certs/"),
        ("GET", (), 404, "there is no /"),
        ("PUT", ("certs", "a.test"), 405, "use GET, HEAD, DELETE"),
        ("GET", ("certs", "a.test", "renew"), 405, "use POST"),
        ("GET", ("certs", "a\nb"), 400, "no control characters"),
        ("GET", ("certs", "a" * 513), 400, "at most 512 characters"),
    ],
)
def test_what_there_is_not_is_told(
    tmp_path: Path, method: Literal["GET", "PUT"], path: tuple[str, ...], status: int, said: str
) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, start=False) as stage:
            with pytest.raises(AdminError) as caught:
                await asyncio.to_thread(stage.client._whole, method, path, {})
            assert caught.value.status == status
            assert said in str(caught.value)

    _run(scene())


def test_head_asks_what_get_asks_and_nothing_else(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, "serve") as stage:
            for path in ("healthz", "readyz", "certs"):
                answers = [await stage.server.answer(Request(method, (path,))) for method in ("HEAD", "GET")]
                assert answers[0] == answers[1]
            refused = await stage.server.answer(Request("HEAD", ("certs", "a.test", "renew")))
            assert isinstance(refused, Answer)
            assert (refused.status, refused.headers) == (405, (("Allow", "POST"),))

    _run(scene())


def test_there_are_only_so_many_clients(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, "serve") as stage:
            with contextlib.ExitStack() as stack:
                for _ in range(admin.MAX_CLIENTS):
                    stack.enter_context(connect_admin_socket(stage.client.path, 20))
                with pytest.raises(AdminError, match="16 clients of the admin API already"):
                    await stage.get("healthz")
            async with asyncio.timeout(20):
                while stage.server._clients:
                    await asyncio.sleep(0.01)
            assert await stage.get("healthz")

    _run(scene())


def test_a_proxy_without_its_socket_says_so_and_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with _stage(tmp_path, start=False) as stage:
            second = AdminServer(IDENTITY, lambda: stage.generation)
            await second.open(str(stage.client.path))
            await second.kill()
            assert (await stage.get("status"))["sites"] == 3

    with caplog.at_level(logging.WARNING):
        _run(scene())
    (record,) = caplog.records
    assert record.getMessage() == "admin.unavailable"
    assert "in use by another running proxy" in vars(record)["error"]


def test_once_closed_the_name_is_free_and_who_is_there_may_finish(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _stage(tmp_path) as stage:
            listener = stage.listen("certs", "long", "renew")
            assert isinstance(await listener.next(), Progress)
            stage.server.close()
            assert not stage.client.path.exists()
            stage.generation.call_certifier("renew", "finish", limit=20)
            assert isinstance(await listener.next(), Progress)
            assert isinstance(await listener.next(), Done)

    _run(scene())


def test_who_is_no_longer_the_proxy_changes_nothing_for_anybody(tmp_path: Path) -> None:
    """One that has connected before is told; what only asks is answered, and both are the last of their connection."""

    async def scene() -> None:
        async with _stage(tmp_path, "serve") as stage:
            async with asyncio.timeout(20):
                asking = [connect_admin_socket(stage.client.path, 20) for _ in range(2)]
                while len(stage.server._clients) < 2:
                    await asyncio.sleep(0.01)
            stage.server.leave()
            answers = []
            for client, line in zip(asking, ("GET /healthz", "POST /certs/long/renew"), strict=True):
                with client:
                    client.sendall(f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    answers.append(await asyncio.to_thread(_read_all, client))
            assert [answer.split()[1] for answer in answers] == ["200", "503"]
            assert "another process is the proxy now, ask again" in answers[1]
            assert all("\r\nConnection: close\r\n" in answer for answer in answers)
            stage.client.path.unlink()  # else it stays, for somebody else listens there

    _run(scene())


def _read_all(client: socket.socket) -> str:
    return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def test_the_routes_are_those_of_the_contract() -> None:
    assert [str(route) for route in ROUTES] == [
        "GET /status",
        "GET /healthz",
        "GET /readyz",
        "GET /top",
        "GET /metrics",
        "GET /certs",
        "GET /certs/NAME",
        "DELETE /certs/NAME",
        "GET /certs/NAME/why",
        "POST /certs/NAME/obtain",
        "POST /certs/NAME/renew",
        "POST /certs/NAME/revoke",
        "POST /certs/NAME/announce",
        "GET /backends",
        "POST /backends/swap",
        "POST /backends/NAME/drain",
        "POST /backends/NAME/resume",
        "GET /sites",
        "POST /sites/NAME/pause",
        "POST /sites/NAME/resume",
        "POST /reload",
        "POST /stop",
        "POST /upgrade",
        "GET /quota",
        "POST /accounts/rollover",
    ]
