"""The port of admin.metrics: what it answers, what it does not, how a reload moves it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import AsyncIterator

import pytest

from tlsproxy.runtime.adminhttp import READ_TIME, Answer, Request
from tlsproxy.runtime.generations import NothingServes
from tlsproxy.runtime.metricsport import _MOST_CONNECTIONS, MAX_CLIENTS, MetricsPort
from tlsproxy.runtime.sockets import ListenError
from tlsproxy.settings import Settings

HERE = "127.0.0.1:0"


def settings(address: str) -> Settings:
    site = {"hosts": ["a.test"], "certificate": "internal", "backends": ["http://127.0.0.1:1"]}
    return Settings.model_validate({"sites": [site], "admin": {"metrics": address}})


async def answer(request: Request) -> Answer:
    if request.path == ("readyz",):
        raise NothingServes("the proxy is starting")
    if request.path == ("metrics",):
        return Answer(200, f"accept {request.accept}".encode(), kind="text/plain; version=0.0.4")
    return Answer(200, {"path": request.path, "options": request.options})


@contextlib.asynccontextmanager
async def opened(address: str = HERE) -> AsyncIterator[MetricsPort]:
    port = MetricsPort(answer)
    try:
        await move(port, address)
        yield port
    finally:
        await port.kill()


async def move(port: MetricsPort, address: str) -> None:
    prepared = await port.prepare(settings(address))
    assert prepared is not None
    await prepared.commit()


async def ask(where: tuple[str, int], request: str = "GET /metrics HTTP/1.1") -> tuple[int, str, str]:
    """Return status, head and body of one request by a stranger's name."""
    reader, writer = await asyncio.open_connection(*where)
    writer.write(f"{request}\r\nHost: metrics.example:80\r\nAccept: text/plain\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    finally:
        writer.close()
    return int(head.split()[1]), head, body


def refuses(where: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(where) != 0


def test_metrics_are_told_to_anybody_by_any_name() -> None:
    async def scene() -> None:
        async with opened() as port:
            status, head, body = await ask(port.bound[0])
            assert (status, body) == (200, "accept text/plain")
            assert "Content-Type: text/plain; version=0.0.4" in head

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /healthz HTTP/1.1", 200),
        ("GET /readyz HTTP/1.1", 503),
        ("GET /status HTTP/1.1", 404),
        ("GET /certs HTTP/1.1", 404),
        ("GET /metrics/ HTTP/1.1", 404),
        ("GET /%6detrics HTTP/1.1", 200),
        ("POST /reload HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("DELETE /healthz HTTP/1.1", 405),
        ("HEAD /status HTTP/1.1", 404),
        ("GET metrics HTTP/1.1", 400),
    ],
)
def test_nothing_else_is_there(request_line: str, status: int) -> None:
    async def scene() -> None:
        async with opened() as port:
            assert (await ask(port.bound[0], request_line))[0] == status

    asyncio.run(scene())


@pytest.mark.parametrize("path", ["metrics", "healthz", "readyz"])
def test_head_is_get_without_a_body(path: str) -> None:
    """RFC 9110 9.3.2: what `wget --spider` and load balancers ask."""

    async def scene() -> None:
        async with opened() as port:
            status, _, body = await ask(port.bound[0], f"GET /{path} HTTP/1.1")
            asked = await ask(port.bound[0], f"HEAD /{path} HTTP/1.1")
            assert (asked[0], asked[2]) == (status, "")
            assert f"Content-Length: {len(body.encode())}" in asked[1]

    asyncio.run(scene())


def test_after_a_head_the_connection_goes_on() -> None:
    """To the byte: what is announced and not sent must not be taken out of the next answer."""

    async def scene() -> bytes:
        async with opened() as port:
            reader, writer = await asyncio.open_connection(*port.bound[0])
            one = "{} /{} HTTP/1.1\r\nHost: a\r\n{}\r\n"
            asked = [("HEAD", "metrics"), ("HEAD", "readyz"), ("HEAD", "none"), ("GET", "metrics")]
            last = one.format("HEAD", "healthz", "Connection: close\r\n")
            writer.write("".join([*(one.format(*each, "") for each in asked), last]).encode())
            try:
                async with asyncio.timeout(10):
                    return await reader.read()
            finally:
                writer.close()

    said = re.sub(rb"HTTP/1\.1 (\d+) .*?\r\n\r\n", rb"<\1>", asyncio.run(scene()), flags=re.DOTALL)
    assert said == b"<200><503><404><200>accept <200>"


def test_options_are_not_passed_on() -> None:
    async def scene() -> None:
        async with opened() as port:
            _, _, body = await ask(port.bound[0], "GET /healthz?force=true HTTP/1.1")
            assert json.loads(body) == {"path": ["healthz"], "options": {}}

    asyncio.run(scene())


def test_too_many_clients_are_told_so() -> None:
    async def scene() -> None:
        async with opened() as port:
            idle = [await asyncio.open_connection(*port.bound[0]) for _ in range(MAX_CLIENTS)]
            status, _, body = await ask(port.bound[0])
            assert (status, f"{MAX_CLIENTS} clients" in body) == (503, True)
            for _, writer in idle:
                writer.close()

    asyncio.run(scene())


def test_a_flood_is_cut_off_without_a_word() -> None:
    async def scene() -> None:
        async with opened() as port:
            with contextlib.ExitStack() as stack:
                for _ in range(_MOST_CONNECTIONS):
                    stack.enter_context(socket.create_connection(port.bound[0]))
                with pytest.raises((IndexError, ConnectionResetError)):  # nothing, or less
                    await ask(port.bound[0])

    asyncio.run(scene())


def test_a_port_that_is_taken_is_said_and_changes_nothing() -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            async with opened() as port:
                with pytest.raises(
                    ListenError,
                    match=rf"^admin\.metrics: cannot listen on 127\.0\.0\.1:{number}: .*taken.*another port\.$",
                ):
                    await port.prepare(settings(f"127.0.0.1:{number}"))
                assert (await ask(port.bound[0]))[0] == 200

    asyncio.run(scene())


def test_a_reload_moves_it_closes_it_or_leaves_it() -> None:
    async def scene() -> None:
        async with opened() as port:
            [first] = port.bound
            assert await port.prepare(settings(HERE)) is None
            await move(port, "127.0.0.2:0")
            [second] = port.bound
            assert (await ask(second))[0] == 200
            assert refuses(first)
            await move(port, "")
            assert (port.bound, port.address, refuses(second)) == ((), "", True)

    asyncio.run(scene())


def test_a_move_that_is_undone_was_not_noticed() -> None:
    async def scene() -> None:
        async with opened() as port:
            before = port.bound
            prepared = await port.prepare(settings("127.0.0.2:0"))
            assert prepared is not None
            prepared.undo()
            assert port.bound == before
            assert (await ask(before[0]))[0] == 200

    asyncio.run(scene())


def test_the_next_supervisor_goes_on_with_the_same_socket() -> None:
    async def scene() -> None:
        async with opened() as old:
            where = old.bound
            new = MetricsPort(answer)
            new.inherit(old.address, [os.dup(descriptor) for descriptor in old.descriptors])
            old.close()
            await move(new, HERE)
            assert new.bound == where
            assert (await ask(where[0]))[0] == 200
            await new.kill()

    asyncio.run(scene())


def test_who_leaves_ends_the_connections_that_are_kept() -> None:
    async def scene() -> None:
        async with opened() as port:
            reader, writer = await asyncio.open_connection(*port.bound[0])
            for _ in range(2):
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: a.test\r\n\r\n")
                await reader.readuntil(b"accept ")
            port.leave()
            async with asyncio.timeout(READ_TIME / 2):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(scene())


def test_an_inherited_socket_that_is_not_wanted_is_closed() -> None:
    async def scene() -> None:
        async with opened() as old:
            [where] = old.bound
            new = MetricsPort(answer)
            new.inherit(old.address, [os.dup(descriptor) for descriptor in old.descriptors])
            old.close()
            await move(new, "127.0.0.2:0")
            assert refuses(where)
            await new.kill()

    asyncio.run(scene())
