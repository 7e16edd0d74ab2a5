"""One end of a connection, as a test sees it: bytes out, bytes in, and HTTP/1.1 messages read by the book.

Knows nothing of the proxy, and parses by itself what it needs, so that the proxy's codec is not judged by itself. Every
wait ends after `PATIENCE` seconds with an error.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import Final

PATIENCE: Final = 15.0
CUT: Final = (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How reading ends when the other side broke the connection off instead of closing it."""


@dataclass
class Message:
    """A request or an answer. `cut_short` cannot be seen here: a message that is not whole raises EOFError."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]

    def get(self, name: str) -> bytes | None:
        """The value of a field that must not come twice."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None


class Peer:
    """A blocking socket, plain or TLS, with a buffer for reading up to a mark."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def until(self, mark: bytes) -> bytes:
        """The bytes up to and with `mark`."""
        while mark not in self._buffer:
            self._more()
        end = self._buffer.index(mark) + len(mark)
        return self._take(end)

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        return self._take(size)

    def rest(self) -> bytes:
        """Everything up to the clean end; a broken connection raises one of CUT."""
        while more := self.sock.recv(262_144):
            self._buffer += more
        return self._take(len(self._buffer))

    def some(self) -> bytes:
        """Whatever comes next."""
        if not self._buffer:
            self._more()
        return self._take(len(self._buffer))

    def message(self, *, bodiless: bool = False) -> Message:
        """The next message with its body; an interim answer counts as one. `bodiless`: the answer to HEAD."""
        start, *lines = self.until(b"\r\n\r\n")[:-4].split(b"\r\n")
        message = Message(start, [_field(line) for line in lines])
        status = message.status if start.startswith(b"HTTP/") else 0
        if bodiless or 100 <= status < 200 or status in {204, 304}:
            return message
        if message.get("transfer-encoding") == b"chunked":
            self._read_chunks(message)
        elif (length := message.get("content-length")) is not None:
            message.body = self.exactly(int(length))
        elif status:
            message.body = self.rest()
        return message

    def has_ended(self) -> bool:
        """Wait for the other side to close or to reset; False when bytes come instead."""
        try:
            return not self._buffer and not self.sock.recv(1)
        except CUT:
            return True

    def is_quiet(self, seconds: float = 0.1) -> bool:
        """True if nothing comes for a while: for what must not happen, where there is nothing else to wait for."""
        if self._buffer:
            return False
        self.sock.settimeout(seconds)
        try:  # not select: below TLS there are bytes, tickets for instance, that mean nothing here
            self._more()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE)
        return False

    def push(self, piece: bytes, most: int, still: float = 0.25) -> int:
        """Send `piece` over and over until nothing is taken for `still` seconds, or `most` bytes are sent."""
        self.sock.setblocking(False)
        sent = 0
        try:
            while sent < most and select.select([], [self.sock], [], still)[1]:
                try:
                    sent += self.sock.send(piece[sent % len(piece) :])
                except (BlockingIOError, ssl.SSLWantWriteError):
                    continue
        finally:
            self.sock.settimeout(PATIENCE)
        return sent

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _more(self) -> None:
        more = self.sock.recv(262_144)
        if not more:
            raise EOFError(f"the connection ended after {self._buffer!r}")
        self._buffer += more

    def _take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _read_chunks(self, message: Message) -> None:
        pieces = []
        while size := int(self.until(b"\r\n"), 16):
            pieces.append(self.exactly(size))
            assert self.exactly(2) == b"\r\n"
        message.body = b"".join(pieces)
        while (line := self.until(b"\r\n")[:-2]) != b"":
            message.trailers.append(_field(line))


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b": ")
    assert colon, line
    return name, value
