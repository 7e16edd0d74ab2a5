"""The clients of a soak: each visits in its own way for as long as it is told, and counts what went wrong.

Knows HTTP (by h11) and WebSockets, nothing of what is done to the proxy meanwhile. A failure is every answer that is
not 200 with the right body, and every request that ends without one. A connection that ends between two requests is
none; a WebSocket that is closed with 1001 (the proxy leaves) or 1012 (the application restarts) is counted apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import h11
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 30.0
"""Seconds for one request; a restart of a backend takes a few."""

_ANNOUNCED = frozenset({1001, 1012})


@dataclass
class Tally:
    """What all clients of one kind have seen. Mutable; one event loop counts."""

    kind: str
    done: int = 0
    announced: int = 0
    slowest_ms: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    moments: list[str] = field(default_factory=list)

    def succeed(self, began: float) -> None:
        self.done += 1
        self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began) * 1000)

    def fail(self, why: str) -> None:
        self.failures[why] += 1
        if len(self.moments) < 50:
            self.moments.append(f"{time.strftime('%H:%M:%S', time.gmtime())} {self.kind}: {why}")


@dataclass(frozen=True)
class Place:
    """Where the proxy is reached."""

    host: str
    port: int
    context: ssl.SSLContext


class Failed(Exception):
    """A request that ended without the right answer."""


class Line:
    """One client connection over HTTP/1.1. Mutable: the h11 state, the streams."""

    def __init__(self, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._place = place
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, place: Place) -> Line:
        streams = await asyncio.open_connection("127.0.0.1", place.port, ssl=place.context, server_hostname=place.host)
        return cls(place, *streams)

    @property
    def is_over(self) -> bool:
        """Whether the proxy has ended the connection, or said that it will."""
        return self._h11.our_state is not h11.IDLE or self._reader.at_eof()

    async def request(self, path: str, body: bytes = b"", *, last: bool = False) -> bytes:
        """Return the body of a 200. Raises Failed."""
        headers = [("Host", self._place.host), ("Content-Length", str(len(body)))]
        headers += [("Content-Type", "application/json")] if body else []
        headers += [("Connection", "close")] if last else []
        head = h11.Request(method="POST" if body else "GET", target=path, headers=headers)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._h11.send(event) or b"")
        await self._writer.drain()
        return await self._answer()

    async def _answer(self) -> bytes:
        status, received = 0, bytearray()
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                received += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise Failed("the connection ended before the answer did")
        if status != 200:
            raise Failed(f"status {status}: {bytes(received[:120])!r}")
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return bytes(received)

    def close(self) -> None:
        self._writer.close()


Visit = Callable[[Place, Tally], Awaitable[None]]


async def stay(visit: Visit, place: Place, tally: Tally, until: asyncio.Event) -> None:
    """Visit again and again. Whatever goes wrong is counted: a visitor that is gone would see nothing any more."""
    while not until.is_set():
        try:
            await visit(place, tally)
        except Exception as error:  # noqa: BLE001
            tally.fail(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)


async def keep_alive(place: Place, tally: Tally) -> None:
    """Up to 600 requests over one connection, 20 a second."""
    line = await Line.open(place)
    try:
        for _ in range(600):
            if line.is_over:
                return
            await _once(line, tally)
            await asyncio.sleep(0.05)
    finally:
        line.close()


async def come_and_go(place: Place, tally: Tally) -> None:
    """A connection of its own for one request."""
    line = await Line.open(place)
    try:
        await _once(line, tally, last=True)
    finally:
        line.close()
    await asyncio.sleep(0.1)


async def upload(place: Place, tally: Tally) -> None:
    """A body of 64 KiB that comes back."""
    sent = json.dumps("x" * 65536).encode()
    line = await Line.open(place)
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            if await line.request("/echo", sent, last=True) != sent:
                raise Failed("another body came back")
        tally.succeed(began)
    finally:
        line.close()
    await asyncio.sleep(0.5)


async def listen(place: Place, tally: Tally) -> None:
    """Twenty server-sent events, one a second."""
    line = await Line.open(place)
    began = time.monotonic()
    try:
        async with asyncio.timeout(20 + PATIENCE):
            events = await line.request("/events?count=20&pause=1", last=True)
        if events.count(b"data:") != 20:
            raise Failed(f"{events.count(b'data:')} of 20 events")
        tally.succeed(began)
    finally:
        line.close()


async def talk(place: Place, tally: Tally) -> None:
    """A WebSocket for up to ten minutes, a message a second."""
    url = f"wss://{place.host}:{place.port}/ws"
    try:
        async with connect(url, ssl=place.context, host="127.0.0.1", open_timeout=PATIENCE) as socket:
            await socket.recv()
            for number in range(600):
                began = time.monotonic()
                await socket.send(str(number))
                async with asyncio.timeout(PATIENCE):
                    if await socket.recv() != str(number):
                        raise Failed("another message came back")
                tally.succeed(began)
                await asyncio.sleep(1)
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else 0
        if code not in _ANNOUNCED:
            raise Failed(f"WebSocket closed with {code or 'nothing'}") from None
        tally.announced += 1


async def _once(line: Line, tally: Tally, *, last: bool = False) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            if b"Hello from FastAPI" not in await line.request("/", last=last):
                raise Failed("another body came")
    except TimeoutError:
        raise Failed(f"no answer within {PATIENCE:.0f} s") from None
    tally.succeed(began)


KINDS: dict[str, tuple[Visit, int]] = {
    "keep-alive": (keep_alive, 8),
    "new connections": (come_and_go, 4),
    "uploads": (upload, 2),
    "server-sent events": (listen, 4),
    "WebSockets": (talk, 8),
}
"""Each kind of visitor, and how many there are of it."""


class Crowd:
    """All visitors. Mutable: tallies."""

    def __init__(self, place: Place) -> None:
        self.tallies = [Tally(kind) for kind in KINDS]
        self._place = place
        self._over = asyncio.Event()

    async def __aenter__(self) -> Crowd:
        self._tasks = [
            asyncio.create_task(stay(visit, self._place, tally, self._over))
            for tally, (visit, count) in zip(self.tallies, KINDS.values(), strict=True)
            for _ in range(count)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failures(self) -> int:
        return sum(tally.failures.total() for tally in self.tallies)

    @property
    def done(self) -> int:
        return sum(tally.done for tally in self.tallies)
