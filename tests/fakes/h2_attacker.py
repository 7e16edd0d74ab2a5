"""An HTTP/2 client that means no good: frames made by hand, and one connection that carries a plan of them out.

A plan is an iterator of pieces to write; `SYNC` in it means: wait until the server has dealt with all that was sent, a
number: wait until so many streams have ended, or so many seconds if it is a float. So the same plan runs against a
socket and against a codec in memory. A client library would refuse to send most of it, and an attacker is faster than
his victim.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from hpack import Decoder, HPACKError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SYNC: Final = b""
Steps = Iterator[bytes | int | float]
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
PRIORITY_UPDATE: Final = 16
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
MOST: Final = 2**31 - 1
PIECE: Final = 16_384
_MARK: Final = b"\xff\x00in sync"[:8]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"), payload)


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """A field that enters no table (RFC 7541 6.2.2); `first` 0x40: that enters it. No more than 16 KiB."""
    return b"%c%b%b%b%b" % (first, _length(name), name, _length(value), value)


def head(path: bytes = b"/ok", method: int = 0x82) -> bytes:
    """The header block of a request; 0x83 is POST."""
    return b"%c\x87\x04%b%b\x01\x09localhost" % (method, _length(path), path)


def get(stream: int, path: bytes = b"/ok", more: bytes = b"") -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, head(path) + more)


def post(stream: int, path: bytes = b"/sink", more: bytes = b"") -> bytes:
    """The body is still to come."""
    return frame(HEADERS, END_HEADERS, stream, head(path, 0x83) + more)


def reset(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def streams(count: int, first: int = 1) -> range:
    return range(first, first + 2 * count, 2)


def _length(text: bytes) -> bytes:
    """RFC 7541 5.1, 7 bits of prefix."""
    size = len(text)
    if size < 127:
        return b"%c" % size
    return b"\x7f%b" % _rest(size - 127)


def _rest(number: int) -> bytes:
    out = b""
    while number >= 128:
        out += b"%c" % (number % 128 | 128)
        number //= 128
    return out + b"%c" % number


@dataclass
class Reaction:
    """What the server sent, and how it ended: "" (it has not), "closed", "reset", "stuck" (took and gave no more)."""

    goaway: list[int] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)
    resets: Counter[int] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    frames: Counter[int] = field(default_factory=Counter)
    ended: str = ""
    sent: int = 0
    size: int = 0
    body: int = 0

    def __str__(self) -> str:
        parts = [f"GOAWAY({code})" for code in self.goaway]
        parts += [f"RST({code})×{count}" for code, count in self.resets.items()]
        parts += [f"{status}×{count}" for status, count in self.statuses.items()]
        acks = self.frames[SETTINGS] - 1, self.frames[PING]
        parts += [f"{count} {name}" for count, name in zip(acks, ("SETTINGS", "PING"), strict=True) if count > 3]
        return " ".join([*parts, self.ended or "goes on"])


class Ears:
    """Takes the other side's frames apart, whatever the pieces; the first `skip` bytes are none."""

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self.reaction = Reaction()
        self.marks = 0
        self.ends = 0
        self.begun: list[int] = []
        self.to_acknowledge = 0
        self._decoder = Decoder(max_header_list_size=2**20)
        self._buffer = b""

    def hear(self, data: bytes) -> None:
        buffer, at = self._buffer + data[self._skip :], 0
        self._skip = max(0, self._skip - len(data))
        while len(buffer) - at >= 9 and len(buffer) - at >= (size := int.from_bytes(buffer[at : at + 3], "big")) + 9:
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._frame(buffer[at + 3], buffer[at + 4], stream, buffer[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = buffer[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        reaction = self.reaction
        reaction.frames[kind] += 1
        self.ends += kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM)
        if kind == GOAWAY:
            reaction.goaway.append(int.from_bytes(payload[4:8], "big"))
            reaction.notes.append(payload[8:])
        elif kind == RST_STREAM:
            reaction.resets[int.from_bytes(payload, "big")] += 1
        elif kind == HEADERS:
            self.begun.append(stream)
            self._head(payload)
        elif kind == DATA:
            reaction.body += len(payload)
        elif kind == PING and payload == _MARK:
            self.marks += 1
        elif kind == SETTINGS and not flags & ACK:
            self.to_acknowledge += 1

    def _head(self, payload: bytes) -> None:
        try:
            fields = self._decoder.decode(payload, raw=True)
        except HPACKError:
            return
        for name, value in fields:
            if name == b":status":
                self.reaction.statuses[int(value)] += 1


class Attacker:
    """One connection to carry a plan out.

    `reads` False: it takes nothing of what the server says until the plan is over; `acknowledges` are the server's
    SETTINGS. `is_server`: the other one is a client, and has a preface.
    """

    def __init__(
        self, sock: socket.socket, *, reads: bool = True, acknowledges: bool = True, is_server: bool = False
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.reaction = Reaction()
        self._ears = Ears(len(PREFACE) if is_server else 0)
        self._ears.reaction = self.reaction
        self._reads = reads
        self._acknowledges = acknowledges
        self._marks = 0
        self._tail = 0  # bytes of the last frame still to be sent
        self.reads_now = reads

    def open(self, *pairs: tuple[int, int]) -> None:
        """The preface, with these settings."""
        self.write(PREFACE + settings(*pairs))
        if self._reads:
            self.sync()

    def run(self, plan: Steps, patience: float = 30.0, *, to_the_end: bool = True) -> Reaction:
        """Carry the plan out until the server ends it, or it is over and, if `to_the_end`, dealt with."""
        deadline = time.monotonic() + patience
        for piece in plan:
            if self.reaction.ended or time.monotonic() > deadline:
                break
            if isinstance(piece, float):
                self.wait(lambda: False, piece)
            elif isinstance(piece, int):
                self._wait_for_ends(piece)
            elif piece is SYNC:
                self.sync()
            else:
                self.reaction.sent += _frames(piece)
                self.write(piece)
        self.reads_now = True
        if self.reaction.ended == "stuck":
            self.reaction.ended = ""
        if to_the_end:
            self.sync()
        return self.reaction

    def sync(self, patience: float = 10.0) -> bool:
        """Wait until the server has answered a PING that follows everything; False: the connection is over instead."""
        if not self.reads_now:
            return True
        self._marks += 1
        self.write(frame(PING, 0, 0, _MARK))
        is_answered = self.wait(lambda: self._ears.marks >= self._marks, patience)
        if not is_answered and not self.reaction.ended:
            self.reaction.ended = "stuck"
        return is_answered

    def wait(self, condition: Callable[[], bool], patience: float = 10.0) -> bool:
        """Read until the condition holds; False: it does not, and the connection is over or `patience` is."""
        deadline = time.monotonic() + patience
        while not condition() and self.reaction.ended in ("", "stuck"):
            if time.monotonic() > deadline:
                return False
            if self._readable(0.05):
                self._read()
        return condition()

    def write(self, data: bytes, still: float = 1.0) -> None:
        """Send all, reading meanwhile if it reads at all; gives up when nothing is taken for `still` seconds."""
        if self._ears.to_acknowledge and self._acknowledges:
            data = frame(SETTINGS, ACK) * self._ears.to_acknowledge + data
            self._ears.to_acknowledge = 0
        view = memoryview(data)
        last = time.monotonic()
        while view and not self.reaction.ended:
            try:
                count = self.sock.send(view[:65_536])
                self.reaction.size += count
                view = view[count:]
                last = time.monotonic()
            except (BlockingIOError, ssl.SSLWantWriteError):
                if time.monotonic() - last > still:
                    self.reaction.ended = "stuck"
                _poll(self.sock, select.POLLOUT | (select.POLLIN if self.reads_now else 0), 0.05)
            except OSError:
                self._drain()
            if self.reads_now and self._readable(0):
                self._read()

    @property
    def ends(self) -> int:
        """How many streams the server has ended or reset."""
        return self._ears.ends

    @property
    def begun(self) -> list[int]:
        """The streams on which a head has come, in order."""
        return self._ears.begun

    def close(self) -> None:
        self.sock.close()

    def _wait_for_ends(self, streams: int) -> None:
        if self.reads_now:
            self.wait(lambda: self._ears.ends >= streams)

    def _readable(self, seconds: float) -> bool:
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        return _poll(self.sock, select.POLLIN, seconds)

    def _read(self) -> None:
        try:
            data = self.sock.recv(262_144)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ssl.SSLError:
            data = b""
        except OSError:
            self.reaction.ended = "reset"
            return
        self._ears.hear(data)
        if not data:
            self.reaction.ended = "closed"

    def _drain(self) -> None:
        """Hear what came before the end: the server has reset the connection."""
        while self.reaction.ended in ("", "stuck") and self._readable(0.1):
            self._read()
        if self.reaction.ended in ("", "stuck"):
            self.reaction.ended = "reset"


def _poll(sock: socket.socket, events: int, seconds: float) -> bool:
    """Not `select`, which knows no more than 1 024 descriptors."""
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(seconds * 1000))


def _frames(piece: bytes) -> int:
    """Count the frames of a piece; one that ends or begins in the middle counts once at most."""
    count, at = 0, 0
    while at < len(piece):
        count += 1
        at += 9 + int.from_bytes(piece[at : at + 3], "big")
    return count
