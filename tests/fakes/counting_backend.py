"""A backend that counts what reaches it, for clients that send too much: a loop of its own in a thread.

Its paths: /ok is answered at once, /never not at all, /big with a GiB as fast as it is taken, /sink when its body is
whole; of /stuck no byte of the body is taken; /visit is /ok for those who are not counted among the rest. It speaks
just enough HTTP/1.1 for that.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass
from typing import Final, Self, cast

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG: Final = 2**30
PIECE: Final = bytes(65_536)


@dataclass
class Counts:
    """`open` are connections now, the others are since the start."""

    connections: int = 0
    open: int = 0
    requests: int = 0
    visits: int = 0
    sent: int = 0

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.connections - before.connections,
            self.open - before.open,
            self.requests - before.requests,
            self.visits - before.visits,
            self.sent - before.sent,
        )


class CountingBackend:
    """Listens when entered; everything is closed at the end. Its counts are those of its thread: read them only."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.url = ""
        self.transports: set[asyncio.Transport] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None
        assert self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def seen(self) -> Counts:
        return Counts(**vars(self.counts))

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(PIECE))  # not what the kernel holds is looked at
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, len(PIECE))
            server = await self._loop.create_server(lambda: _Connection(self), sock=sock.dup(), backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        for transport in self.transports:
            transport.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, backend: CountingBackend) -> None:
        self._backend = backend
        self._buffer = b""
        self._left = 0  # of the answer
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._backend.transports.add(self._transport)
        self._backend.counts.connections += 1
        self._backend.counts.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._left = 0
        self._backend.transports.discard(self._transport)
        self._backend.counts.open -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self._in_body and b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._begin(head + b"\r\n")
        if self._in_body:
            self._body()

    def resume_writing(self) -> None:
        asyncio.get_running_loop().call_soon(self._pour)  # a write that fails in here would be told of twice

    def pause_writing(self) -> None:
        pass

    def _begin(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        self._count(path)
        lower = head.lower()
        self._missing = int(lower.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or b"-1")
        if path == b"/stuck":
            self._transport.pause_reading()
        elif path == b"/sink" and (self._missing >= 0 or b"transfer-encoding" in lower):
            self._in_body = True
        elif path == b"/big":
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
            self._left = BIG
            self._pour()
        elif path != b"/never":
            self._transport.write(OK)

    def _count(self, path: bytes) -> None:
        if path == b"/visit":
            self._backend.counts.visits += 1
        else:
            self._backend.counts.requests += 1

    def _body(self) -> None:
        if self._missing >= 0:
            self._missing -= len(self._buffer)
            over, self._buffer = self._missing <= 0, b""
        else:
            over, self._buffer = self._buffer.endswith(b"0\r\n\r\n"), self._buffer[-5:]
        if over:
            self._in_body, self._buffer = False, b""
            self._transport.write(OK)

    def _pour(self) -> None:
        """Write until the transport says stop (its high-water mark), then when it says go."""
        while self._left > 0 and not self._transport.is_closing():
            self._transport.write(PIECE)
            self._left -= len(PIECE)
            self._backend.counts.sent += len(PIECE)
            if self._transport.get_write_buffer_size() > len(PIECE):
                return
