"""Clients that come back: they obey what the proxy says about the end of a connection, and forgive nothing else.

    with returning(proxy) as tally: …        # HTTP/1.1, many requests on a connection, until it is said to be the last
    with multiplexing(proxy) as tally: …     # HTTP/2, a new connection after a GOAWAY
    with conversing(proxy) as tally: …       # a WebSocket, a new one after 1001
    with pressing(proxy, …) as counted: …    # wrk

Whatever else ends a request or a connection is a failure, and fails the block at its end.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.system.http2_client import Http2Client
from tests.system.running import PATIENCE, Proxy
from tests.system.visitors import Tally, repeating

_LONGEST = 600  # seconds that wrk goes on if nobody ends it


@contextlib.contextmanager
def returning(proxy: Proxy, *, pause: float = 0.01) -> Iterator[Tally]:
    """Ask on one connection until an answer says that it is the last, or it ends while nothing is asked."""
    tally = Tally()
    held: list[http.client.HTTPConnection] = []

    def ask() -> None:
        if held and _has_ended(held[0]):
            held.pop().close()
        client = held.pop() if held else proxy.connection()
        client.request("GET", "/hello")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b"hello")
        if answer.getheader("Connection") == "close":
            client.close()
            tally.renewed += 1
        else:
            held.append(client)

    with _until_closed(ask, tally, lambda: _close(held), pause):
        yield tally


@contextlib.contextmanager
def multiplexing(proxy: Proxy, *, at_once: int = 5) -> Iterator[Tally]:
    """Have some requests in flight at once; what a GOAWAY excludes is asked again, on another connection."""
    tally = Tally()
    held: list[Http2Client] = []

    def ask() -> None:
        client = held.pop() if held else Http2Client(proxy)
        try:
            while select.select([client.socket], [], [], 0)[0]:
                client.read()
        except ConnectionError:
            pass
        if client.goaways or client.closed:
            assert all(code == 0 for _, code in client.goaways), client.goaways
            assert client.goaways, "closed without a GOAWAY"
            client.close()
            tally.renewed += 1
            client = Http2Client(proxy)
        streams = [client.request("/hello") for _ in range(at_once)]
        for stream in streams:
            if stream.number <= client.last_stream:
                client.wait(stream)
        for stream in streams:
            if stream.number <= client.last_stream:
                assert (stream.status, stream.reset, bytes(stream.body)) == (200, None, b"hello"), stream
        held.append(client)

    with _until_closed(ask, tally, lambda: _close(held)):
        yield tally


@contextlib.contextmanager
def conversing(proxy: Proxy) -> Iterator[Tally]:
    """Say something and hear it again; after 1001 on another connection."""
    tally = Tally()
    held: list[tuple[ClientConnection, contextlib.ExitStack]] = []

    def say() -> None:
        socket, stack = held.pop() if held else _greet(proxy)
        try:
            socket.send(f"word {tally.good}")
            assert socket.recv(PATIENCE) == f"word {tally.good}"
        except ConnectionClosed as closed:
            stack.close()
            if closed.rcvd is None or closed.rcvd.code != 1001:
                raise
            tally.renewed += 1
        else:
            held.append((socket, stack))

    with _until_closed(say, tally, lambda: _close(stack for _, stack in held)):
        yield tally


@dataclass
class Counted:
    """What wrk said at its end: requests that were answered, and those that were not or not with 200."""

    good: int = 0
    bad: str = "wrk has said nothing"


@contextlib.contextmanager
def pressing(proxy: Proxy, *options: str) -> Iterator[Counted]:
    """Run wrk against /hello for as long as the block lasts."""
    counted = Counted()
    url = f"https://127.0.0.1:{proxy.port}/hello"
    command = ["wrk", "-t1", f"-d{_LONGEST}s", "--timeout", "20s", "-H", "Host: localhost", *options, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        try:
            yield counted
        finally:
            wrk.send_signal(2)  # it then says what it has counted
            said, _ = wrk.communicate(timeout=PATIENCE)
    counted.good = int((re.search(r"(\d+) requests in", said) or ["", "0"])[1])
    counted.bad = "; ".join(re.findall(r"Socket errors:.*|Non-2xx.*|unable.*", said))


@contextlib.contextmanager
def _until_closed(
    act: Callable[[], None], tally: Tally, close: Callable[[], None], pause: float = 0.01
) -> Iterator[None]:
    try:
        with repeating(act, tally, pause):
            yield
    finally:
        close()


def _close(held: Iterable[http.client.HTTPConnection | Http2Client | contextlib.ExitStack]) -> None:
    for each in held:
        each.close()


def _greet(proxy: Proxy) -> tuple[ClientConnection, contextlib.ExitStack]:
    stack = contextlib.ExitStack()
    url = f"ws://localhost:{proxy.port}/ws/echo"
    socket = stack.enter_context(connect(url, sock=proxy.open(), proxy=None, open_timeout=PATIENCE))
    socket.recv(PATIENCE)
    return socket, stack


def _has_ended(client: http.client.HTTPConnection) -> bool:
    """Whether the proxy has closed it while nothing was asked, which it may (RFC 9112 9.5)."""
    sock = client.sock
    if not select.select([sock], [], [], 0)[0]:
        return False
    sock.settimeout(0)
    try:
        return sock.recv(1) == b""
    except (BlockingIOError, ConnectionError) as error:
        return isinstance(error, ConnectionError)
    except OSError as error:  # ssl's own: wants to read more, a ticket came
        return "want" not in type(error).__name__.lower()
    finally:
        sock.settimeout(PATIENCE)
