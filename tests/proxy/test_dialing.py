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
from tlsproxy.proxy.failures import ConnectFailed, OutOfResources

LIMIT = 5.0


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a name server of its own. Addresses are asked for as the real one does."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """A literal address needs no server."""
        if host.startswith("127."):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.names[host]]


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


def connect(loop: Loop, place: Place) -> None:
    transports: list[asyncio.BaseTransport] = []

    class Caller(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)

    async def run() -> None:
        await place.connect(Caller, LIMIT)
        transports[0].close()
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
