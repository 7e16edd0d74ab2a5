"""What a client of HTTP/2 can make the codec do for nothing, and that it comes to an end. HPACK's share of it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fakes.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_UPDATE,
    SETTINGS,
    block,
    frame,
    plain_block,
)
from tests.fakes.h2_memory import (
    GET,
    LIMITS,
    POST,
    Wire,
    body,
    request,
    reset,
    settings_frame,
    window_update,
)
from tlsproxy.wire.http2 import Http2Error

NOISE = {
    "ping": frame(PING, b"12345678"),
    "settings": frame(SETTINGS),
    "acknowledged pings": frame(PING, b"12345678", flags=1),
    "windows": window_update(0, 1),
    "windows of a stream": window_update(1, 1),
    "empty data": body(1),
    "padding": frame(DATA, b"\5" + bytes(5), flags=PADDED, stream=1),
    "priorities": frame(PRIORITY, bytes(5), stream=1),
    "priority updates": frame(PRIORITY_UPDATE, b"\0\0\0\1u=1"),
    "unknown frames": frame(0x77, b"x"),
    "goodbyes": frame(GOAWAY, bytes(8)),
}


def rounds_until_ended(wire: Wire, data: Callable[[int], bytes], most: int = 5000) -> int:
    """How often the client could send `data`; the connection was ended for it."""
    for count in range(most):
        try:
            wire.feed(data(count))
        except Http2Error:
            return count
        if wire.codec.is_over:
            assert wire.codec.error
            return count
    raise AssertionError("this could go on for ever")


@pytest.mark.parametrize("what", NOISE)
def test_noise_comes_to_an_end(what: str) -> None:
    wire = Wire()
    wire.feed(request(1, POST, ended=False))
    assert 400 < rounds_until_ended(wire, lambda _: NOISE[what]) <= 1000


def test_noise_of_one_read_is_not_worked_off_first() -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.fails(frame(PING, b"12345678") * 2000 + request(3))
    assert list(wire.told.heads) == [1]


def test_rapid_resets_come_to_an_end() -> None:
    wire = Wire()
    count = rounds_until_ended(wire, lambda n: request(2 * n + 1) + reset(2 * n + 1, NO_ERROR))
    assert count < 200
    wire = Wire()
    for number in range(1000):
        stream = 2 * number + 1
        wire.feed(request(stream), reset(stream, NO_ERROR))
    assert 400 < len(wire.told.heads) < 600
    assert wire.goaways()


def test_refused_heads_come_to_an_end() -> None:
    wire = Wire()

    def refused(number: int) -> bytes:
        stream = 2 * number + 1
        if stream > 1:
            wire.codec.respond(stream - 2, 417, [], ended=True)
            wire.pump()
        return request(stream, [*GET, (b"expect", b"x")])

    assert rounds_until_ended(wire, refused) <= 101


def test_malformed_heads_come_to_an_end() -> None:
    assert rounds_until_ended(Wire(), lambda n: request(2 * n + 1, [*GET, (b"te", b"gzip")])) <= 101


def test_resets_that_are_provoked_come_to_an_end() -> None:
    """MadeYouReset (CVE-2025-8671): the server resets, but it is the client's doing."""
    wire = Wire()

    def provoke(number: int) -> bytes:
        stream = 2 * number + 1
        return request(stream, [*POST, (b"content-length", b"1")], ended=False) + body(stream, b"12")

    assert rounds_until_ended(wire, provoke) <= 101


def test_heads_beyond_the_streams_allowed_come_to_an_end() -> None:
    """Also while the client takes nothing, so that nothing can be refused."""
    wire = Wire()
    assert wire.fails(*map(request, range(1, 4001, 2))).code == ENHANCE_YOUR_CALM
    assert len(wire.told.heads) == LIMITS.streams


def test_a_flood_of_continuations_comes_to_an_end() -> None:
    """CVE-2024-27316 and its like."""
    wire = Wire()
    wire.feed(frame(HEADERS, block(GET), stream=1))
    assert rounds_until_ended(wire, lambda _: frame(CONTINUATION, b"", stream=1)) < 10


def test_requests_and_content_pay_for_frames_of_control() -> None:
    wire = Wire()
    for stream in range(1, 1001, 2):
        wire.feed(request(stream) + frame(PING, b"12345678") * 10)
        wire.codec.respond(stream, 200, [], ended=True)
        wire.pump()
    wire.feed(request(1001))
    wire.codec.respond(1001, 200, [], ended=False)
    for _ in range(1000):  # some clients open both windows after every piece
        wire.codec.send_data(1001, b"event")
        wire.pump()
        wire.feed(window_update(0, 5) + window_update(1001, 5))
    assert not wire.codec.is_over


def test_time_pays_too() -> None:
    wire = Wire()
    for _ in range(100):
        wire.feed(frame(PING, b"12345678") * 50)
        wire.codec.earn(50)
    wire.codec.earn(10**9)  # however long it was quiet, there is a most
    wire.fails(window_update(0, 1) * 1001)


# --- HPACK (RFC 7541)


def test_the_table_of_answers_does_not_grow_with_the_clients_wishes() -> None:
    """RFC 7541 4.2: the most it may have is not what it must have."""
    wire = Wire(begin=PREFACE + settings_frame((1, 2**32 - 1)))
    for stream in range(1, 1001, 2):
        wire.feed(request(stream))
        wire.codec.respond(stream, 200, [(b"x-%d" % stream, b"v" * 50)], ended=True)
        wire.pump()
        assert wire.table_size <= 4096
    assert wire.table_entries > 10


@pytest.mark.parametrize("name", [b"Set-Cookie", b"X-Auth-Token"])
def test_secrets_of_answers_are_never_indexed(name: bytes) -> None:
    """RFC 7541 6.2.3, 7.1.3."""
    wire = Wire()
    for stream in (1, 3):
        wire.feed(request(stream))
        wire.codec.respond(stream, 200, [(name, b"secret")], ended=True)
        wire.pump()
    assert wire.answers[3] == [[(b":status", b"200"), (name.lower(), b"secret")]]
    for head in wire.heads:
        assert head[1] & 0xF0 == 0x10  # behind the one byte of `:status: 200`
    assert wire.table_entries == 0


def test_a_head_that_is_small_only_on_the_wire() -> None:
    """An HPACK bomb (RFC 7541 6.1: one byte for each field): bounded by what it decodes to, and soon ended."""
    wire = Wire()
    entry = b"\x40\x01a\x7f" + bytes([(3900 - 127) & 0x7F | 0x80, (3900 - 127) >> 7]) + b"v" * 3900
    wire.feed(frame(HEADERS, plain_block(GET) + entry, flags=END_HEADERS | END_STREAM, stream=1))
    assert len(wire.told.heads[1].fields) == 1
    wire.feed(frame(HEADERS, plain_block(GET) + b"\xbe" * 5, flags=END_HEADERS | END_STREAM, stream=3))
    assert wire.told.refused[3].status == 431
    error = wire.fails(frame(HEADERS, plain_block(GET) + b"\xbe" * 10_000, flags=END_HEADERS | END_STREAM, stream=5))
    assert error.code == ENHANCE_YOUR_CALM
