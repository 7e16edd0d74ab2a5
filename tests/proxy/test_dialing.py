"""Reaching a backend: names that move, that have several addresses, that stop resolving; limits of our own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tlsproxy.proxy.dialing import Place, split_url
from tlsproxy.proxy.failures import ConnectFailed, ConnectTimedOut, OutOfResources
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.upstream import Upstream

LIMIT = 5.0


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a network of its own: what names mean, who says nothing, which addresses can't be used."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: set[str] = set()  # names and addresses
        self.unusable: set[str] = set()
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """A literal address needs no server."""
        if host.startswith("127."):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        self.asked.append(host)
        if host in self.silent:
            await asyncio.Event().wait()
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.names[host]]

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """What the kernel would say."""
        if address[0] in self.unusable:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        if address[0] in self.silent:
            await asyncio.Event().wait()
        await super().sock_connect(sock, address)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Server:
    """Listens on one address of several with the same port."""

    def __init__(self, address: str, port: int = 0) -> None:
        self.sock = socket.create_server((address, port))
        self.port = self.sock.getsockname()[1]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def was_called(self) -> bool:
        self.sock.settimeout(0.05)
        try:
            self.sock.accept()[0].close()
        except TimeoutError:
            return False
        return True


class Caller(asyncio.Protocol):
    transport: asyncio.BaseTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


def connect(loop: Loop, place: Place, limit: float = LIMIT) -> None:
    async def run() -> None:
        caller = await place.connect(Caller, limit)
        caller.transport.close()
        await asyncio.sleep(0)  # lets the transport close

    loop.run_until_complete(run())


class TestNames:
    def test_one_that_moves_is_followed(self, loop: Loop) -> None:
        with Server("127.0.0.3") as old, Server("127.0.0.4", old.port) as new:
            place = Place(f"http://app.internal:{old.port}")
            loop.names["app.internal"] = ["127.0.0.3"]
            connect(loop, place)
            assert old.was_called()
            loop.names["app.internal"] = ["127.0.0.4"]
            connect(loop, place)
            assert new.was_called()
            assert not old.was_called()

    def test_every_address_is_tried(self, loop: Loop) -> None:
        with Server("127.0.0.4") as server:
            loop.names["app.internal"] = ["127.0.0.3", "127.0.0.4"]
            connect(loop, Place(f"http://app.internal:{server.port}"))
            assert server.was_called()

    def test_the_last_good_addresses_serve_while_it_does_not_resolve(
        self, loop: Loop, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Server("127.0.0.3") as server:
            place = Place(f"http://app.internal:{server.port}")
            loop.names["app.internal"] = ["127.0.0.3"]
            connect(loop, place)
            assert server.was_called()
            loop.names.clear()
            for _ in range(3):
                connect(loop, place)
                assert server.was_called()
            assert caplog.messages == ["backend.name_unresolved"]
            assert loop.asked == ["app.internal"] * 4

    def test_nor_does_a_name_server_that_says_nothing(self, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
        with Server("127.0.0.3") as server:
            place = Place(f"http://app.internal:{server.port}")
            loop.names["app.internal"] = ["127.0.0.3"]
            connect(loop, place)
            assert server.was_called()
            loop.silent.add("app.internal")
            connect(loop, place, 0.3)
            assert server.was_called()
        [record] = caplog.records
        assert vars(record)["error"] == "no answer from the name server within 0.1 s"

    def test_one_that_never_resolved_for_want_of_an_answer(self, loop: Loop) -> None:
        loop.silent.add("app.internal")
        with pytest.raises(ConnectTimedOut, match=r"does not resolve \(no answer from the name server within 0\.05 s"):
            connect(loop, Place("http://app.internal:1"), 0.05)

    def test_an_address_that_swallows_packets_hides_no_other(self, loop: Loop) -> None:
        with Server("127.0.0.5") as server:
            loop.names["app.internal"] = ["127.0.0.3", "127.0.0.4", "127.0.0.5"]
            loop.silent |= {"127.0.0.3", "127.0.0.4"}
            connect(loop, Place(f"http://app.internal:{server.port}"), 0.3)
            assert server.was_called()

    def test_an_address_that_this_machine_cannot_use_hides_no_other(self, loop: Loop) -> None:
        """As ::1 while IPv6 is off."""
        with Server("127.0.0.4") as server:
            loop.names["app.internal"] = ["127.0.0.3", "127.0.0.4"]
            loop.unusable.add("127.0.0.3")
            connect(loop, Place(f"http://app.internal:{server.port}"))
            assert server.was_called()

    def test_one_that_never_resolved_is_said(self, loop: Loop) -> None:
        with pytest.raises(ConnectFailed, match=r"http://app\.internal:1: the name does not resolve \(Name or"):
            connect(loop, Place("http://app.internal:1"))

    def test_an_address_asks_nobody(self, loop: Loop) -> None:
        with Server("127.0.0.3") as server:
            connect(loop, Place(f"http://127.0.0.3:{server.port}"))
        assert loop.asked == []


class TestFailures:
    def test_a_closed_port(self, loop: Loop) -> None:
        with Server("127.0.0.3") as server:
            port = server.port
        with pytest.raises(ConnectFailed, match="cannot connect") as caught:
            connect(loop, Place(f"http://127.0.0.3:{port}"))
        assert caught.value.counts

    def test_an_address_that_nobody_answers(self, loop: Loop) -> None:
        loop.silent.add("127.0.0.3")
        with pytest.raises(ConnectTimedOut, match=r"no connection within 0\.05 s"):
            connect(loop, Place("http://127.0.0.3:80"), 0.05)

    def test_a_unix_socket_that_is_not_there(self, loop: Loop) -> None:
        with pytest.raises(ConnectFailed, match=os.strerror(errno.ENOENT)):
            connect(loop, Place("unix:/nowhere/app.sock"))

    def test_another_backend_is_asked_when_one_is_on_an_address_that_cannot_be_used(self, loop: Loop) -> None:
        """Backends [::1] and 127.0.0.1 while IPv6 is off."""
        loop.unusable.add("127.0.0.3")
        with Server("127.0.0.4") as server:
            first, second = (Backend(f"http://127.0.0.{n}:{server.port}", most_idle=1) for n in (3, 4))
            moves: list[Backend] = []

            async def run() -> None:
                upstream = Upstream([first, second], "round_robin")
                connection = await upstream.connect(first, "c", timeout=LIMIT, move_to=moves.append, reuse=False)
                connection.abort()
                await asyncio.sleep(0)

            loop.run_until_complete(run())
            assert server.was_called()
        assert moves == [second]

    def test_no_descriptor_left_speaks_against_nobody(self, loop: Loop) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(OutOfResources, match=os.strerror(errno.EMFILE)) as caught:
                connect(loop, Place("http://127.0.0.3:80"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (caught.value.status, caught.value.counts) == (503, False)

    def test_says_at_which_level_a_name_is_lost(self, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
        with Server("127.0.0.3") as server:
            place = Place(f"http://app.internal:{server.port}")
            loop.names["app.internal"] = ["127.0.0.3"]
            connect(loop, place)
            loop.names.clear()
            connect(loop, place)
        [record] = caplog.records
        assert (record.levelno, vars(record)["used"]) == (logging.WARNING, ["127.0.0.3"])


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [("http://app.internal:8000", "app.internal", 8000), ("http://[::1]:8000", "::1", 8000)],
)
def test_parts_of_a_url(url: str, host: str, port: int) -> None:
    assert split_url(url) == (host, port)
