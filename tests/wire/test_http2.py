"""The codec towards HTTP/2 clients, by raw frames: what its driver is told, what is sent, and how a connection ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hyperframe.frame import GoAwayFrame, HeadersFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.frames import (
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PING,
    PRIORITY,
    PRIORITY_UPDATE,
    PROTOCOL_ERROR,
    Fields,
    block,
    frame,
    plain_block,
)
from tests.fakes.h2_memory import (
    BEGIN,
    FULL,
    GET,
    LIMITS,
    POST,
    WEBSOCKET,
    Recorder,
    Wire,
    body,
    frames_of,
    request,
    reset,
    trailers,
    window_update,
)
from tlsproxy.wire.http2 import Http2Error, ServerCodec, StreamGone

TRAILERS = [(b"x-sum", b"1")]


# --- the beginning


def test_begins_with_its_settings() -> None:
    """RFC 9113 3.4, 6.5.2; RFC 8441 3; RFC 9218 2.1."""
    wire = Wire(begin=b"")
    assert isinstance(wire.frames[0], SettingsFrame)
    assert wire.settings == {3: 100, 4: 65_536, 6: LIMITS.header_size, 8: 1, 9: 1}


def test_the_connection_has_a_window_for_all_its_streams() -> None:
    """So that uploads nobody takes can't hold the others."""
    assert 65_535 + Wire().granted(0) >= LIMITS.streams * 65_536


def test_something_else_than_the_preface_is_told_so() -> None:
    """RFC 9113 3.4."""
    error = Wire(begin=b"").fails(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert error.code == PROTOCOL_ERROR
    assert [type(each) for each in frames_of(error.farewell)] == [GoAwayFrame]


def test_settings_come_first_even_where_nothing_but_a_farewell_follows() -> None:
    """RFC 9113 3.4: whatever the client's first bytes are, they may have come before ours were sent."""
    codec = ServerCodec(Recorder(), LIMITS)
    with pytest.raises(Http2Error) as caught:
        codec.receive(BEGIN + frame(PING, b"12345678") * 2000)
    assert [type(each) for each in frames_of(caught.value.farewell)] == [SettingsFrame, GoAwayFrame]


# --- requests


def test_a_request_and_its_answer() -> None:
    wire = Wire()
    wire.feed(request(1))
    assert wire.told.calls == [("request", 1, wire.told.calls[0][2], True)]
    wire.codec.respond(1, 200, [(b"Content-Type", b"text/plain")], ended=False)
    wire.codec.send_data(1, b"hello")
    wire.codec.end(1)
    assert wire.told.closed == []
    wire.pump()
    assert wire.answers == {1: [[(b":status", b"200"), (b"content-type", b"text/plain")]]}
    assert b"".join(wire.content(1)) == b"hello"
    assert wire.told.closed == [1]


def test_a_body_comes_in_pieces_and_ends_with_trailers() -> None:
    wire = Wire()
    wire.feed(request(1, POST, ended=False), body(1, b"a"), body(1, b"b"), trailers(1, TRAILERS))
    assert [call[0] for call in wire.told.calls] == ["request", "body", "body", "trailers"]
    assert (wire.told.bodies[1], wire.told.trailers[1], wire.told.ended) == (b"ab", TRAILERS, {1})


def test_a_body_ends_with_its_last_piece() -> None:
    wire = Wire()
    wire.feed(request(1, POST, ended=False), body(1, b"a"), body(1, ended=True))
    assert wire.told.calls[1:] == [("body", 1, b"a", False), ("body", 1, b"", True)]


def test_interim_answers_and_trailers() -> None:
    """RFC 9113 8.1."""
    wire = Wire()
    wire.feed(request(1))
    wire.codec.inform(1, 103, [(b"Link", b"</a>")])
    wire.codec.respond(1, 200, [], ended=False)
    wire.codec.send_data(1, b"x")
    wire.codec.send_trailers(1, [(b"Grpc-Status", b"0")])
    wire.pump()
    assert wire.answers[1] == [
        [(b":status", b"103"), (b"link", b"</a>")],
        [(b":status", b"200")],
        [(b"grpc-status", b"0")],
    ]
    assert "END_STREAM" in wire.of(HeadersFrame)[-1].flags
    assert wire.told.closed == [1]


@pytest.mark.parametrize(
    "fields",
    [
        [*GET, (b"connection", b"close")],  # RFC 9113 8.2.2
        [*GET, (b"keep-alive", b"timeout=5")],
        [*GET, (b"proxy-connection", b"keep-alive")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"upgrade", b"h2c")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b"te", b"trailers, gzip")],
        [*GET, (b"X-Upper", b"1")],  # 8.2.1
        [*GET, (b"x a", b"1")],
        [*GET, (b"x:a", b"1")],
        [*GET, (b"", b"1")],
        [*GET, (b"x-a", b"a\r\nb: c")],
        [*GET, (b"x-a", b"a\0")],
        [*GET, (b"x-a", b" a")],
        [*GET, (b"content-length", b"5")],  # 8.1.1
        [*GET, (b"content-length", b"0"), (b"content-length", b"0")],
        [*GET, (b"host", b"a.test"), (b"host", b"a.test")],
        GET[1:],  # 8.3.1
        GET[:1] + GET[2:],
        GET[:3],
        [*GET, (b":path", b"/other")],
        [*GET, (b":status", b"200")],
        [*GET[:2], (b"x-a", b"1"), *GET[2:]],  # 8.3
        [*GET[:3], (b":path", b"")],
        [*GET[:3], (b":path", b"x")],
        [*GET[:2], (b":authority", b"me@a.test"), GET[3]],
        [(b":method", b"CONNECT"), *GET[1:]],  # 8.5
        [(b":protocol", b"websocket"), *GET],  # RFC 8441 4
        WEBSOCKET[:-1],
    ],
)
def test_a_malformed_request_is_reset_and_never_announced(fields: Fields) -> None:
    wire = Wire()
    wire.feed(frame(HEADERS, plain_block(fields), flags=END_HEADERS | END_STREAM, stream=1))
    assert wire.told.calls == []
    assert wire.resets() == {1: PROTOCOL_ERROR}
    wire.feed(request(3))  # and the connection goes on
    assert list(wire.told.heads) == [3]


@pytest.mark.parametrize(
    "rest",
    [
        body(1, b"1234"),  # RFC 9113 8.1.1
        body(1, b"12", ended=True),
        trailers(1, TRAILERS),
        trailers(1, [(b":path", b"/")]),  # 8.1
        frame(HEADERS, block(TRAILERS), flags=END_HEADERS, stream=1),
    ],
)
def test_a_body_against_the_rules_is_reset(rest: bytes) -> None:
    wire = Wire()
    wire.feed(request(1, [*POST, (b"content-length", b"3")], ended=False))
    wire.feed(rest)
    assert wire.told.calls[1:] == [("reset", 1, PROTOCOL_ERROR), ("closed", 1)]
    assert wire.resets() == {1: PROTOCOL_ERROR}


def test_trailers_over_the_limits_are_reset() -> None:
    wire = Wire()
    wire.feed(request(1, POST, ended=False), trailers(1, [(b"x-sum", b"1" * LIMITS.header_size)]))
    assert wire.told.calls[1:] == [("reset", 1, PROTOCOL_ERROR), ("closed", 1)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([*GET, (b"x-a", b"a" * LIMITS.header_size)], 431),
        ([*GET, *((b"x-a", b"") for _ in range(LIMITS.header_count + 1))], 431),
        ([*GET[:3], (b":path", b"/" * (LIMITS.target_size + 1))], 414),
        ([*GET, (b"host", b"b.test")], 400),
        ([*GET, (b"expect", b"cookies")], 417),
        ([(b":method", b"FOO"), *GET[1:]], 501),
        ([(b":method", b"CONNECT"), (b":authority", b"a.test:443")], 405),
        ([(b":protocol", b"connect-udp"), (b":method", b"CONNECT"), *GET[1:]], 501),
    ],
)
def test_a_head_that_is_refused_is_answered_on_its_stream(fields: Fields, status: int) -> None:
    """RFC 9113 10.5.1: 431, and the connection goes on. The other statuses are those of HTTP/1.1."""
    wire = Wire()
    wire.feed(request(1, fields), request(3))
    assert wire.told.refused[1].status == status
    assert list(wire.told.heads) == [3]
    wire.codec.respond(1, status, [], ended=True)
    wire.pump()
    assert wire.answers[1] == [[(b":status", b"%d" % status)]]
    assert wire.told.closed == [1]


def test_a_websocket() -> None:
    """RFC 8441 5."""
    wire = Wire()
    wire.feed(request(1, WEBSOCKET, ended=False))
    assert wire.told.heads[1].upgrade
    wire.codec.respond(1, 200, [], ended=False)
    wire.codec.send_data(1, b"pong")
    wire.feed(body(1, b"ping"))
    assert wire.told.bodies[1] == b"ping"
    wire.codec.end(1)
    wire.feed(body(1, ended=True))
    assert wire.told.closed == [1]


# --- streams that end early


def test_a_reset_by_the_client() -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.feed(reset(1))
    assert wire.told.calls[1:] == [("reset", 1, CANCEL), ("closed", 1)]
    assert not wire.codec._open
    assert not wire.codec._resets  # a connection lives for long


@pytest.mark.parametrize(
    "act",
    [
        lambda codec: codec.respond(1, 200, [], ended=True),
        lambda codec: codec.inform(1, 103, []),
        lambda codec: codec.send_data(1, b"x"),
        lambda codec: codec.send_data(1, b"", ended=True),
        lambda codec: codec.send_trailers(1, TRAILERS),
        lambda codec: codec.end(1),
        lambda codec: codec.reset(1, CANCEL),
    ],
)
def test_what_is_sent_on_a_stream_that_is_gone(act: Callable[[ServerCodec], None]) -> None:
    wire = Wire()
    wire.feed(request(1, POST, ended=False))
    wire.feed(reset(1))
    with pytest.raises(StreamGone):
        act(wire.codec)
    wire.codec.acknowledge(1, 0)
    wire.codec.grow_window(1, 1_000_000)
    assert not wire.codec.has_window(1)
    assert wire.pump() == b""


def test_a_reset_of_ours_drops_what_is_queued() -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.codec.respond(1, 200, [], ended=False)
    wire.codec.send_data(1, b"x" * 100)
    assert wire.codec.queued() == wire.codec.queued(1) == 100
    wire.codec.reset(1, CANCEL)
    wire.pump()
    assert wire.resets() == {1: CANCEL}
    assert wire.told.calls[1:] == [("closed", 1)]
    assert wire.codec.queued() == 0


def test_requests_that_are_taken_back_at_once_begin_nothing() -> None:
    """Rapid reset (CVE-2023-44487): within one read there is no request at all."""
    wire = Wire()
    wire.feed(b"".join(request(stream) + reset(stream) for stream in range(1, 21, 2)) + request(21))
    assert [call[:2] for call in wire.told.calls] == [("request", 21)]


def test_content_of_a_request_that_was_taken_back_opens_the_window_again() -> None:
    wire = Wire()
    start = wire.granted(0)
    content = body(1, bytes(FULL)) + body(1, bytes(FULL))
    sent = 0
    for stream in range(1, 801, 2):
        wire.feed(
            request(stream, POST, ended=False) + content.replace(b"\0\0\0\1", stream.to_bytes(4, "big")) + reset(stream)
        )
        sent += 2 * FULL
    assert wire.told.calls == []
    assert wire.granted(0) - start > sent // 2


# --- endings


def test_announces_that_it_will_leave() -> None:
    """RFC 9113 6.8."""
    wire = Wire()
    wire.codec.announce_shutdown()
    wire.feed(request(1))
    assert wire.goaways() == [(2**31 - 1, NO_ERROR)]
    assert list(wire.told.heads) == [1]


def test_leaves_when_what_is_in_flight_has_ended() -> None:
    wire = Wire()
    wire.feed(request(1), request(3, POST, ended=False))
    wire.codec.announce_shutdown()
    wire.codec.shut_down()
    wire.pump()
    wire.feed(request(5), body(3, b"x", ended=True))  # crossed our GOAWAY: will be sent again elsewhere
    assert wire.goaways()[-1] == (3, NO_ERROR)
    assert list(wire.told.heads) == [1, 3]
    for stream in (1, 3):
        assert not wire.codec.is_over
        wire.codec.respond(stream, 200, [], ended=True)
        wire.pump()
    assert wire.codec.is_over
    assert wire.codec.error == ""
    wire.codec.receive(b"whatever comes now")


def test_streams_that_cross_a_goaway_are_no_offence() -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.codec.shut_down()
    for stream in range(3, 603, 2):
        wire.feed(request(stream))
    wire.codec.respond(1, 200, [], ended=True)
    wire.pump()
    assert wire.answers[1] == [[(b":status", b"200")]]


def test_a_client_that_leaves() -> None:
    wire = Wire()
    wire.feed(request(1), frame(GOAWAY, bytes(7) + b"\2" + b"its own reasons"))
    assert wire.told.has_left
    assert not wire.codec.is_over
    wire.codec.respond(1, 200, [], ended=True)
    wire.pump()
    assert wire.codec.is_over
    assert wire.codec.error == ""


@pytest.mark.parametrize(
    ("data", "code", "why"),
    [
        (request(2), PROTOCOL_ERROR, "HEADERS"),  # RFC 9113 5.1.1
        (frame(HEADERS, b"\xff" * 6, flags=END_HEADERS, stream=3), COMPRESSION_ERROR, "HPACK"),  # 4.3
        (frame(DATA, b"x"), PROTOCOL_ERROR, "DATA"),  # 6.1
        (frame(PING, b"1"), 6, ""),  # 6.7
        (window_update(0, 2**31 - 1), 3, ""),  # 6.9.1
    ],
)
def test_a_broken_connection_is_told_why_and_over(data: bytes, code: int, why: str) -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.feed(data)
    assert [got for _, got in wire.goaways()] == [code]
    assert wire.goaways()[0][0] in (1, 3)  # as libnghttp2 sees it, also one whose head was not read to its end
    assert wire.codec.is_over
    assert why in wire.codec.error
    assert wire.codec.error


@pytest.mark.parametrize(
    "data",
    [frame(PRIORITY, bytes(5)), frame(PRIORITY_UPDATE, bytes(4) + b"u=1")],  # RFC 9113 6.3, RFC 9218 7.1
)
def test_what_libnghttp2_takes_and_the_rfc_does_not(data: bytes) -> None:
    wire = Wire()
    wire.feed(request(1))
    error = wire.fails(data)
    assert error.code == PROTOCOL_ERROR
    assert [type(each) for each in frames_of(error.farewell)] == [GoAwayFrame]


def test_a_head_far_over_the_limit_ends_the_connection() -> None:
    """libnghttp2 gives it up without a GOAWAY; the client gets one all the same, with the last stream that counts."""
    wire = Wire()
    wire.feed(request(1), request(3))
    head = plain_block([*GET, *[(b"x-a", b"a" * 8000)] * 5])
    pieces = [head[at : at + FULL] for at in range(0, len(head), FULL)]
    frames = [frame(HEADERS, pieces[0], stream=5), *(frame(CONTINUATION, piece, stream=5) for piece in pieces[1:])]
    error = wire.fails(*frames, frame(CONTINUATION, flags=END_HEADERS, stream=5))
    assert error.code == ENHANCE_YOUR_CALM
    (goaway,) = frames_of(error.farewell)
    assert isinstance(goaway, GoAwayFrame)
    assert (goaway.last_stream_id, goaway.error_code) == (3, ENHANCE_YOUR_CALM)
    assert wire.codec.is_over
    with pytest.raises(StreamGone):
        wire.codec.respond(1, 200, [], ended=True)


def test_no_farewell_is_put_inside_a_frame() -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.codec.respond(1, 200, [], ended=False)
    wire.codec.send_data(1, bytes(50_000))
    wire.pump(20_000)
    error = wire.fails(frame(PING, b"12345678") * 2000)
    assert error.farewell == b""


def test_a_header_block_under_way_is_known() -> None:
    wire = Wire()
    head = block(GET)
    assert not wire.codec.in_header_block
    wire.codec.receive(frame(HEADERS, head[:3], flags=END_STREAM, stream=1))
    assert wire.codec.in_header_block
    number = wire.codec.header_block
    wire.codec.receive(frame(CONTINUATION, head[3:], stream=1))
    assert wire.codec.header_block == number
    wire.codec.receive(frame(CONTINUATION, b"", flags=END_HEADERS, stream=1))
    assert not wire.codec.in_header_block
    assert list(wire.told.heads) == [1]


# --- any bytes, any cut

RECORDING = b"".join(
    [
        BEGIN, request(1), request(3, POST, ended=False), body(3, b"content"), frame(PING, b"12345678"),
        trailers(3, TRAILERS), request(5, [*GET, (b"expect", b"x")]), request(7, [*GET, (b"cookie", b"a")]),
        window_update(0, 100), request(9, WEBSOCKET, ended=False)[:-9],
    ]
)  # fmt: skip


def calls_of(pieces: list[bytes]) -> tuple[list[tuple[object, ...]], bool]:
    told = Recorder()
    codec = ServerCodec(told, LIMITS)
    try:
        for piece in pieces:
            codec.receive(piece)
            codec.send(0)
    except Http2Error:
        return told.calls, True
    return told.calls, codec.is_over


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise([0, *sorted(min(at, len(data)) for at in cuts), len(data)])]


def test_byte_for_byte() -> None:
    assert calls_of([bytes([byte]) for byte in RECORDING]) == calls_of([RECORDING])


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(0, len(RECORDING)), max_size=6))
def test_no_cut_changes_what_a_driver_is_told(cuts: list[int]) -> None:
    assert calls_of(cut(RECORDING, cuts)) == calls_of([RECORDING])


ANY_FRAME = st.one_of(
    st.builds(
        frame, st.sampled_from([*range(10), 16, 0xFA]), st.binary(max_size=12),
        flags=st.sampled_from([0, 1, 4, 5, 8, 32]), stream=st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
    ),
    st.builds(request, st.sampled_from([1, 3, 5, 7]), st.sampled_from([GET, POST, WEBSOCKET]), ended=st.booleans()),
    st.builds(body, st.sampled_from([1, 3, 5]), st.binary(max_size=5), ended=st.booleans()),
)  # fmt: skip


@settings(max_examples=80)
@given(
    frames=st.lists(ANY_FRAME, max_size=12),
    noise=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
def test_whatever_comes_there_is_an_answer_or_an_end(frames: list[bytes], noise: bytes, cuts: list[int]) -> None:
    check_conversation(cut(b"".join(frames) + noise, cuts))


def check_conversation(pieces: list[bytes]) -> None:
    """No other exception than Http2Error; each stream announced and closed at most once, and then no word of it."""
    wire = Wire()
    for piece in pieces:
        try:
            wire.feed(piece)
        except Http2Error:
            break
    announced = [call[1] for call in wire.told.calls if call[0] in ("request", "refused")]
    assert len(set(announced)) == len(announced)
    assert len(set(wire.told.closed)) == len(wire.told.closed)
    assert set(wire.told.closed) <= set(announced)
    over: set[object] = set()
    for call in wire.told.calls:
        if call[0] == "closed":
            over.add(call[1])
        elif call[0] != "window":
            assert len(call) == 1 or call[1] not in over
    for stream in announced:
        try:
            wire.codec.respond(int(str(stream)), 200, [], ended=True)
        except StreamGone:
            continue
    if not wire.codec.is_over:
        wire.pump()


def test_a_request_that_is_none_is_told_of_and_one_that_is_taken_back_is_not() -> None:
    """RFC 9113 8.1.1: there is nothing to answer, but somebody may look for it."""
    wire = Wire()
    wire.feed(request(1, [*GET, (b"Upper", b"case")]))
    wire.pump()
    assert (wire.told.malformed, wire.resets()) == (1, {1: PROTOCOL_ERROR})
    wire.feed(request(3) + reset(3, PROTOCOL_ERROR))
    wire.pump()
    assert wire.told.malformed == 1
