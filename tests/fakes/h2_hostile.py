"""Backends that speak HTTP/2 and mean no good, or are broken: what each sends to a proxy that asks it for something.

A plan is one of `tests.fakes.h2_attacker`, made for a request's stream. The backend carries it out for every request,
reads what the proxy says meanwhile, and closes when the proxy does, or when it is told to.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from tests.fakes.h2_attacker import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MOST,
    PADDED,
    PIECE,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    SETTINGS,
    Attacker,
    Reaction,
    Steps,
    frame,
    literal,
    reset,
    settings,
    window_update,
)
from tests.fakes.h2_plans import FLOOD, INITIAL_WINDOW, MAX_FRAME, MAX_STREAMS, TABLE_SIZE, blocks

REFUSED_STREAM: Final = 7
PATIENCE: Final = 10.0
_EARLY: Final = b"\x08\x03103"  # :status 103, from the static table and by its letters
_OK: Final = b"\x88"


@dataclass(frozen=True)
class Hostility:
    """`plan` for the number of a stream; `settings` come first, none at all if None."""

    name: str
    plan: Callable[[int], Steps]
    settings: tuple[tuple[int, int], ...] | None = ()


class HostileBackend:
    """Listens when entered, a thread for each connection.

    Mutable: `way` (what the next connections get), `reactions` (of the proxy, one for each connection).
    """

    def __init__(self) -> None:
        self.way: Hostility | None = None
        self.reactions: list[Reaction] = []
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"h2c://127.0.0.1:{self._sock.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._resting = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self.rest()

    @contextlib.contextmanager
    def being(self, way: Hostility) -> Iterator[list[Reaction]]:
        """What the proxy did on each connection is in the list; all of them are closed at the end."""
        self.way, self.reactions = way, []
        self._resting.clear()
        try:
            yield self.reactions
        finally:
            self.rest()

    def rest(self) -> None:
        """Close what is open."""
        self._resting.set()
        for thread in self._threads[1:]:
            thread.join(PATIENCE)
        del self._threads[1:]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                self._start(self._serve, sock, self.way)

    def _serve(self, sock: socket.socket, way: Hostility) -> None:
        peer = Attacker(sock, is_server=True)
        self.reactions.append(peer.reaction)
        with contextlib.closing(peer), contextlib.suppress(OSError):
            if way.settings is not None:
                peer.write(settings(*way.settings))
            served = 0
            while not peer.reaction.ended and not self._resting.is_set():
                peer.wait(lambda: len(peer.begun) > served or self._resting.is_set(), PATIENCE)  # noqa: B023
                for stream in peer.begun[served:]:
                    served += 1
                    peer.run(way.plan(stream), PATIENCE, to_the_end=False)


def flood(
    piece: Callable[[int], bytes], count: int = FLOOD, before: Callable[[int], bytes] | None = None
) -> Callable[[int], Steps]:
    def plan(stream: int) -> Steps:
        if before is not None:
            yield before(stream)
        one = piece(stream)
        at_once = max(1, min(count, 500, 65_536 // len(one)))
        for _ in range(count // at_once):
            yield one * at_once

    return plan


def once(make: Callable[[int], bytes]) -> Callable[[int], Steps]:
    def plan(stream: int) -> Steps:
        yield make(stream)

    return plan


def control(piece: bytes, count: int = FLOOD) -> Callable[[int], Steps]:
    return flood(lambda _: piece, count)


def head(stream: int, more: bytes = b"", flags: int = END_HEADERS) -> bytes:
    return blocks(stream, _OK + more, flags)


def early(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, _EARLY)


def bomb(stream: int) -> bytes:
    """64 MiB of fields in 16 KiB."""
    return blocks(stream, _OK + literal(b"a", b"b" * 4000, 0x40) + b"\xbe" * 12_000)


def dribble(stream: int) -> Steps:
    """A head that comes byte by byte, for ever."""
    yield frame(HEADERS, 0, stream, _OK)
    for _ in range(200):
        yield frame(CONTINUATION, 0, stream, b"")
        yield 0.05


def silence(stream: int) -> Steps:
    yield from ()


def goaway(stream: int, code: int = 0) -> bytes:
    return frame(GOAWAY, 0, 0, stream.to_bytes(4, "big") + code.to_bytes(4, "big"))


def promise(stream: int) -> bytes:
    return b"".join(
        frame(PUSH_PROMISE, END_HEADERS, stream, even.to_bytes(4, "big") + b"\x82\x86\x84\x01\x01a")
        for even in range(2, 2000, 2)
    )


def _answer(stream: int) -> bytes:
    return head(stream, flags=END_HEADERS | END_STREAM)


def _in_body(piece: Callable[[int], bytes], count: int = FLOOD) -> Callable[[int], Steps]:
    return flood(piece, count, head)


def _field(name: bytes, value: bytes) -> Callable[[int], Steps]:
    return once(lambda stream: head(stream, literal(name, value), END_HEADERS | END_STREAM))


def _with_body(length: bytes, body: bytes) -> Callable[[int], Steps]:
    return once(lambda stream: head(stream, literal(b"content-length", length)) + frame(DATA, END_STREAM, stream, body))


def _half_a_head(stream: int) -> bytes:
    return frame(HEADERS, 0, stream, _OK)


FIELDS: Final = literal(b"x", b"y")
_LONG: Final = literal(b"x", b"y" * 10_000)

HOSTILITIES = [
    # says nothing, or not enough, or something else
    Hostility("says nothing", silence, None),
    Hostility("SETTINGS and no more", silence),
    Hostility("HTTP/1.1", once(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), None),
    Hostility("garbage", once(lambda _: bytes(range(256)) * 64), None),
    Hostility("a frame of 16 MiB", once(lambda stream: frame(DATA, 0, stream, bytes(2**24 - 1)))),
    Hostility("half a head", once(_half_a_head)),
    Hostility("a head that never ends", dribble),
    # heads
    Hostility(
        "CONTINUATION, empty",
        flood(lambda stream: frame(CONTINUATION, 0, stream), FLOOD, lambda stream: frame(HEADERS, 0, stream, _OK)),
    ),
    Hostility(
        "CONTINUATION, 16 KiB",
        flood(
            lambda stream: frame(CONTINUATION, 0, stream, FIELDS * 3000),
            1000,
            lambda stream: frame(HEADERS, 0, stream, _OK),
        ),
    ),
    Hostility("HPACK bomb", once(bomb)),
    Hostility("a head of 100 KiB", once(lambda stream: head(stream, _LONG * 10))),
    Hostility("a head of 1 000 fields", once(lambda stream: head(stream, FIELDS * 1000))),
    Hostility("HPACK: index of nothing", once(lambda stream: frame(HEADERS, END_HEADERS, stream, b"\xff\x70"))),
    Hostility("an endless run of 103", flood(early)),
    Hostility("no status", once(lambda stream: frame(HEADERS, END_HEADERS, stream, FIELDS))),
    Hostility("status 1000", once(lambda stream: frame(HEADERS, END_HEADERS, stream, b"\x08\x041000"))),
    Hostility("status 101", once(lambda stream: frame(HEADERS, END_HEADERS, stream, b"\x08\x03101"))),
    Hostility("a name in capitals", _field(b"X-Bad", b"y")),
    Hostility("Connection", _field(b"connection", b"close")),
    Hostility("a line break", _field(b"x", b"y\r\nz: 1")),
    # bodies
    Hostility("body too short", _with_body(b"10", b"123")),
    Hostility("body too long", _with_body(b"2", b"123")),
    Hostility("DATA before a head", once(lambda stream: frame(DATA, END_STREAM, stream, b"ok"))),
    Hostility("DATA beyond the window", _in_body(lambda stream: frame(DATA, 0, stream, bytes(PIECE)), 4000)),
    Hostility("DATA, empty", _in_body(lambda stream: frame(DATA, 0, stream))),
    Hostility("DATA, padding only", _in_body(lambda stream: frame(DATA, PADDED, stream, b"\xff" + bytes(255)))),
    Hostility("DATA behind the end", flood(lambda stream: frame(DATA, 0, stream, b"x"), FLOOD, _answer)),
    Hostility("heads behind the end", flood(_answer, FLOOD, _answer)),
    Hostility(
        "trailers of 100 KiB", once(lambda stream: head(stream) + blocks(stream, literal(b"x", b"y" * 10_000) * 10))
    ),
    # resets and farewells
    Hostility("refuses everything", once(lambda stream: reset(stream, REFUSED_STREAM))),
    Hostility("resets everything", once(reset)),
    Hostility("leaves at once", once(lambda _: goaway(0))),
    Hostility("leaves, and is angry", once(lambda _: goaway(0, 11))),
    Hostility("GOAWAY again and again", control(goaway(MOST))),
    Hostility("RST_STREAM of idle streams", control(reset(99))),
    Hostility("RST_STREAM again and again", flood(reset)),
    Hostility("pushes", once(promise)),
    # settings and windows
    Hostility("no streams", silence, ((MAX_STREAMS, 0),)),
    Hostility("frames of 16 MiB allowed", once(_answer), ((MAX_FRAME, 2**24 - 1),)),
    Hostility("a table of 4 GiB", once(_answer), ((TABLE_SIZE, 2**32 - 1),)),
    Hostility("a window of 2^31", once(_answer), ((INITIAL_WINDOW, 2**31),)),
    Hostility(
        "a window that overflows", once(lambda stream: window_update(stream, MOST) + window_update(stream, MOST))
    ),
    Hostility("WINDOW_UPDATE by 0", once(lambda stream: window_update(stream, 0))),
    # noise
    Hostility("SETTINGS, empty", control(settings())),
    Hostility("SETTINGS, table size flaps", control(settings((TABLE_SIZE, 0)) + settings((TABLE_SIZE, 4096)))),
    Hostility("SETTINGS of 2 000 entries", control(settings(*((0x4000 + each, each) for each in range(2000))), 500)),
    Hostility("SETTINGS ACK for nothing", control(frame(SETTINGS, ACK))),
    Hostility("PING", control(frame(PING, 0, 0, bytes(8)))),
    Hostility("PING ACK for nothing", control(frame(PING, ACK, 0, bytes(8)))),
    Hostility("WINDOW_UPDATE by 1", control(window_update(0, 1))),
    Hostility("PRIORITY", control(frame(PRIORITY, 0, 1, bytes(5)))),
    Hostility("unknown frames", control(frame(0xEE))),
]
