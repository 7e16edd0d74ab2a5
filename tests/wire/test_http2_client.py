"""The codec towards backends, against the `h2` library as the server and against frames of any kind."""

from __future__ import annotations

import contextlib
import gc
import weakref
from dataclasses import dataclass, field
from itertools import pairwise

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.frames import (
    CANCEL,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PREFACE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    block,
    frame,
    plain_block,
)
from tests.wire.test_http2_differential import FIELDS, plain
from tlsproxy.wire.http2_client import WINDOW, ClientCodec, Http2Error, StreamGone
from tlsproxy.wire.messages import Framing, ResponseHead

HEAD = b"%b %b HTTP/1.1\r\nHost: a.test\r\n%bX-Request-ID: id\r\nX-Request-Start: t=1\r\n\r\n"
GET = HEAD % (b"GET", b"/", b"")
POST = HEAD % (b"POST", b"/", b"")
CONFIG = h2.config.H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=True)


@dataclass
class Told:
    """What a driver would be told; `calls` in order, without the insides of heads."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    heads: dict[int, ResponseHead] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    trailers: dict[int, Fields] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    closed: dict[int, tuple[int, bool]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    left: list[tuple[int, str]] = field(default_factory=list)
    pongs: int = 0

    def settings_received(self) -> None:
        self.calls.append(("settings",))

    def interim_received(self, stream: int, head: ResponseHead) -> None:
        self.calls.append(("interim", stream))
        self.interim.append(head.status)

    def head_received(self, stream: int, head: ResponseHead, *, ended: bool) -> None:
        self.calls.append(("head", stream, ended))
        self.heads[stream] = head
        self._note_end(stream, ended=ended)

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        self.calls.append(("body", stream, len(data), ended))
        self.bodies[stream] = self.bodies.get(stream, b"") + data
        self._note_end(stream, ended=ended)

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        self.calls.append(("trailers", stream))
        self.trailers[stream] = trailers
        self._note_end(stream, ended=True)

    def answer_refused(self, stream: int, note: str) -> None:
        self.calls.append(("refused", stream))
        self.refused[stream] = note

    def stream_closed(self, stream: int, code: int, *, by_backend: bool) -> None:
        self.calls.append(("closed", stream))
        assert stream not in self.closed
        self.closed[stream] = code, by_backend

    def backend_leaves(self, code: int, note: str) -> None:
        self.calls.append(("leaves", code))
        self.left.append((code, note))

    def pong_received(self) -> None:
        self.pongs += 1

    def _note_end(self, stream: int, *, ended: bool) -> None:
        if ended:
            assert stream not in self.ended
            self.ended.add(stream)


class Wire:
    """Our codec, and what it sent; the other side is bytes."""

    def __init__(self) -> None:
        self.told = Told()
        self.codec = ClientCodec(self.told)
        self.sent = b""

    def feed(self, *frames: bytes) -> None:
        for piece in frames:
            self.codec.receive(piece)
            self.pump()

    def pump(self) -> bytes:
        data = self.codec.send(0)
        self.sent += data
        return data

    def request(self, head: bytes = GET, *, ended: bool = True) -> int:
        stream = self.codec.request(head, ended=ended)
        self.pump()
        return stream


class Pair:
    """Our codec and an `h2` server, joined."""

    def __init__(self, **own: int) -> None:
        self.server = h2.connection.H2Connection(CONFIG)
        self.server.local_settings = h2.settings.Settings(
            client=False, initial_values={getattr(h2.settings.SettingCodes, key): value for key, value in own.items()}
        )
        self.server.initiate_connection()
        self.told = Told()
        self.codec = ClientCodec(self.told)
        self.requests: dict[int, Fields] = {}
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, Fields] = {}
        self.ended: set[int] = set()
        self.events: list[h2.events.Event] = []
        self.run()

    def run(self) -> None:
        """Carry bytes both ways until there are none."""
        while True:
            there = self.codec.send(0)
            for event in self.server.receive_data(there) if there else []:
                self._hear(event)
            back = self.server.data_to_send()
            if back:
                self.codec.receive(back)
            if not there and not back:
                return

    def _hear(self, event: h2.events.Event) -> None:
        self.events.append(event)
        if isinstance(event, h2.events.RequestReceived):
            self.requests[event.stream_id] = plain(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            if event.flow_controlled_length:
                self.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = plain(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)


# --- against h2 -------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    requests=st.lists(st.tuples(FIELDS, st.none() | st.lists(st.binary(max_size=40), max_size=3), FIELDS), max_size=4)
)
def test_h2_reads_requests_as_they_were_meant(requests: list[tuple[Fields, list[bytes] | None, Fields]]) -> None:
    pair = Pair()
    for number, (fields, pieces, trailers) in enumerate(requests):
        lines = b"".join(b"%b: %b\r\n" % (name.title(), value) for name, value in fields)
        head = HEAD % (b"PUT", b"/%d" % number, lines + b"Connection: TE\r\nTE: trailers\r\n")
        has_body = pieces is not None or bool(trailers)
        stream = pair.codec.request(head, ended=not has_body)
        for piece in pieces or []:
            pair.codec.send_data(stream, piece)
        if trailers:
            pair.codec.send_trailers(stream, trailers)
        elif has_body:
            pair.codec.end(stream)
        pair.run()
        assert pair.requests[stream] == [
            (b":method", b"PUT"), (b":path", b"/%d" % number), (b":scheme", b"http"), (b":authority", b"a.test"),
            *fields, (b"te", b"trailers"), (b"x-request-id", b"id"), (b"x-request-start", b"t=1"),
        ]  # fmt: skip
        assert pair.bodies.get(stream, b"") == b"".join(pieces or [])
        assert pair.trailers.get(stream, []) == trailers
        assert stream in pair.ended


@settings(max_examples=40)
@given(
    answers=st.lists(
        st.tuples(st.integers(200, 599), FIELDS, st.lists(st.binary(max_size=40), max_size=3), FIELDS, st.booleans()),
        max_size=4,
    )
)
def test_answers_of_h2_are_read_as_they_were_meant(
    answers: list[tuple[int, Fields, list[bytes], Fields, bool]],
) -> None:
    pair = Pair()
    for status, fields, given_pieces, trailers, is_hinted in answers:
        pieces = [] if status in (204, 304) else given_pieces
        stream = pair.codec.request(GET, ended=True)
        pair.run()
        if is_hinted:
            pair.server.send_headers(stream, [(b":status", b"103"), (b"link", b"</a>")])
        pair.server.send_headers(stream, [(b":status", b"%d" % status), *fields], end_stream=not (pieces or trailers))
        for piece in pieces:
            pair.server.send_data(stream, piece)
        if trailers:
            pair.server.send_headers(stream, trailers, end_stream=True)
        elif pieces:
            pair.server.end_stream(stream)
        pair.run()
        head = pair.told.heads[stream]
        assert (head.status, head.fields) == (status, fields)
        assert pair.told.bodies.get(stream, b"") == b"".join(pieces)
        assert pair.told.trailers.get(stream, []) == trailers
        assert stream in pair.told.ended
        assert pair.told.closed[stream] == (0, False)
    assert pair.told.interim == [103] * sum(hinted for *_, hinted in answers)


def test_large_bodies_go_through_both_ways() -> None:
    """Past every window that either side begins with."""
    pair = Pair()
    stream = pair.codec.request(POST, ended=False)
    pair.codec.send_data(stream, b"u" * 1_000_000, ended=True)
    pair.run()
    assert pair.bodies[stream] == b"u" * 1_000_000
    pair.server.send_headers(stream, [(b":status", b"200")])
    sent = acknowledged = 0
    while sent < 1_000_000:
        room = min(pair.server.local_flow_control_window(stream), pair.server.max_outbound_frame_size)
        if room:
            pair.server.send_data(stream, b"d" * room)
            sent += room
        pair.run()
        pair.codec.acknowledge(stream, len(pair.told.bodies[stream]) - acknowledged)
        acknowledged = len(pair.told.bodies[stream])
        pair.run()
    assert len(pair.told.bodies[stream]) == sent


def test_what_is_not_acknowledged_stops_its_stream_alone() -> None:
    pair = Pair()
    streams = [pair.codec.request(GET, ended=True) for _ in range(100)]
    pair.run()
    for stream in streams:
        pair.server.send_headers(stream, [(b":status", b"200")])
        while room := min(pair.server.local_flow_control_window(stream), pair.server.max_outbound_frame_size):
            pair.server.send_data(stream, bytes(room))
        pair.run()
    assert {len(pair.told.bodies[stream]) for stream in streams} == {WINDOW}
    pair.codec.acknowledge(streams[7], WINDOW)
    pair.run()
    assert pair.server.local_flow_control_window(streams[7]) == WINDOW
    assert pair.server.local_flow_control_window(streams[8]) == 0


def _update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, size.to_bytes(4), stream=stream)


def test_a_backend_may_acknowledge_megabytes_at_once() -> None:
    """It was busy, then reads all that has arrived; each of 1000 pieces of 16 KiB is worth two WINDOW_UPDATE to it."""
    wire = Wire()
    wire.feed(frame(SETTINGS, b"\0\4\x7f\xff\xff\xff"), _update(0, 1 << 30))
    stream = wire.request(POST, ended=False)
    for _ in range(1000):
        wire.codec.send_data(stream, bytes(16_384))
        wire.codec.send(0)
    wire.feed(_update(0, 1) + b"".join(_update(number, 16_384) for _ in range(1000) for number in (0, stream)))
    assert wire.told.left == []


def test_content_buys_no_flood() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS, b"\0\4\x7f\xff\xff\xff"), _update(0, 1 << 30))
    stream = wire.request(POST, ended=False)
    for _ in range(5000):
        wire.codec.send_data(stream, bytes(16_384))
        wire.codec.send(0)
    with pytest.raises(Http2Error):
        wire.feed(*[_update(0, 1)] * 5000)


def test_settings_of_the_backend_are_obeyed() -> None:
    pair = Pair(MAX_CONCURRENT_STREAMS=7, ENABLE_CONNECT_PROTOCOL=1)

    assert (pair.codec.is_settled, pair.codec.most_streams, pair.codec.offers_connect) == (True, 7, True)
    assert pair.server.remote_settings[h2.settings.SettingCodes.ENABLE_PUSH] == 0
    pair.server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1000})
    pair.run()
    assert pair.codec.most_streams == 100


def test_a_websocket_is_an_extended_connect() -> None:
    pair = Pair(ENABLE_CONNECT_PROTOCOL=1)
    lines = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"

    stream = pair.codec.request(HEAD % (b"GET", b"/ws?a", lines), ended=False, websocket=True)
    pair.codec.send_data(stream, b"frame")
    pair.run()
    pair.server.send_headers(stream, [(b":status", b"200")])
    pair.server.send_data(stream, b"other")
    pair.run()

    assert pair.requests[stream][:2] == [(b":method", b"CONNECT"), (b":protocol", b"websocket")]
    names = [name for name, _ in pair.requests[stream]]
    assert b"sec-websocket-key" not in names
    assert (pair.bodies[stream], pair.told.bodies[stream]) == (b"frame", b"other")


def test_h2_takes_our_farewell() -> None:
    pair = Pair()

    pair.codec.shut_down()
    pair.run()

    assert any(isinstance(event, h2.events.ConnectionTerminated) for event in pair.events)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "fields", "ended", "framing", "length"),
    [
        (b"GET", 200, [], False, Framing.CHUNKED, -1),
        (b"GET", 200, [], True, Framing.LENGTH, 0),
        (b"GET", 200, [(b"content-length", b"5")], False, Framing.LENGTH, 5),
        (b"GET", 204, [], False, Framing.NONE, -1),
        (b"GET", 304, [(b"content-length", b"5")], True, Framing.NONE, 5),
        (b"HEAD", 200, [(b"content-length", b"5")], True, Framing.NONE, 5),
        (b"HEAD", 200, [], False, Framing.NONE, -1),
    ],
)
def test_what_an_http1_client_is_told_of_the_body(
    method: bytes, status: int, fields: Fields, ended: bool, framing: Framing, length: int
) -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS))
    stream = wire.request(HEAD % (method, b"/", b""))

    flags = END_HEADERS | (1 if ended else 0)
    wire.feed(frame(HEADERS, block([(b":status", b"%d" % status), *fields]), flags=flags, stream=stream))

    head = wire.told.heads[stream]
    assert (head.framing, head.length) == (framing, length)


def test_fields_that_mean_something_are_noted() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS))
    stream = wire.request()
    fields = [(b"server", b"x/1"), (b"date", b"now"), (b"trailer", b"x-sum"), (b"x-accel-buffering", b"no")]

    wire.feed(frame(HEADERS, block([(b":status", b"200"), *fields]), flags=END_HEADERS, stream=stream))

    head = wire.told.heads[stream]
    assert (head.server, head.is_dated, head.trailer) == (b"x/1", True, b"x-sum")
    assert head.fields == fields[:2]


def test_an_answer_that_is_repeated_is_judged_once() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS))
    heads = []
    for method, fields in [(b"GET", []), (b"GET", []), (b"HEAD", []), (b"GET", [(b"x", b"1")]), (b"GET", [])]:
        stream = wire.request(HEAD % (method, b"/", b""))
        head = plain_block([(b":status", b"200"), (b"content-length", b"0"), *fields])
        wire.feed(frame(HEADERS, head, flags=END_HEADERS | 1, stream=stream))
        heads.append(wire.told.heads[stream])

    assert heads[0] is heads[1]
    assert [head.framing for head in heads] == [Framing.LENGTH] * 2 + [Framing.NONE] + [Framing.LENGTH] * 2
    assert [head.fields for head in heads[3:]] == [[(b"x", b"1")], []]


def test_many_clients_on_one_connection_are_told_apart() -> None:
    """More blocks of lines than are remembered, in turns."""
    pair = Pair()
    for number in [*range(100), *range(100)]:
        stream = pair.codec.request(HEAD % (b"GET", b"/", b"X-Number: %d\r\n" % number), ended=True)
        pair.run()
        assert (b"x-number", b"%d" % number) in pair.requests[stream]
        pair.server.send_headers(stream, [(b":status", b"200")], end_stream=True)
        pair.run()


def test_secrets_do_not_enter_a_table() -> None:
    """RFC 7541 7.1.3: an authorization is sent as a literal that is never indexed, each time."""
    wire = Wire()
    wire.feed(frame(SETTINGS))

    first, second = (len(wire.pump()) for _ in range(2) if wire.codec.request(GET, ended=True))
    secret = HEAD % (b"GET", b"/", b"Authorization: Bearer abcdefghijklmnop\r\n")
    third, fourth = (len(wire.pump()) for _ in range(2) if wire.codec.request(secret, ended=True))

    assert second < first
    assert fourth > second + 10
    assert fourth == third


# --- ends -------------------------------------------------------------------------------------------------------------


def test_how_a_stream_was_closed_is_told() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS))
    reset, refused, ours, malformed, done, beyond = (wire.request(POST, ended=False) for _ in range(6))
    wire.codec.end(done)
    wire.feed(
        frame(RST_STREAM, b"\0\0\0\2", stream=reset),
        frame(RST_STREAM, b"\0\0\0\7", stream=refused),
        frame(HEADERS, block([(b":status", b"200"), (b"connection", b"x")]), flags=END_HEADERS, stream=malformed),
        frame(HEADERS, block([(b":status", b"200")]), flags=END_HEADERS | 1, stream=done),
        frame(GOAWAY, done.to_bytes(4, "big") + b"\0\0\0\0bye"),
    )
    wire.codec.reset(ours, CANCEL)
    wire.pump()

    assert wire.told.closed == {
        reset: (2, True),
        refused: (REFUSED_STREAM, True),
        ours: (CANCEL, False),
        malformed: (1, False),
        done: (0, False),
        beyond: (REFUSED_STREAM, False),
    }
    assert wire.told.left == [(0, "bye")]
    with pytest.raises(StreamGone):
        wire.codec.request(GET, ended=True)


def test_nothing_can_be_sent_on_a_stream_that_is_gone() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS))
    stream = wire.request(POST, ended=False)
    wire.feed(frame(RST_STREAM, b"\0\0\0\2", stream=stream))

    with pytest.raises(StreamGone):
        wire.codec.send_data(stream, b"x")
    with pytest.raises(StreamGone):
        wire.codec.send_trailers(stream, [(b"x", b"y")])
    with pytest.raises(StreamGone):
        wire.codec.end(stream)
    wire.codec.reset(stream, CANCEL)
    assert wire.pump() == b""


def test_a_connection_that_lost_too_many_cut_frames_is_worn_out() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS))
    for _ in range(2000):
        stream = wire.request()
        data = frame(DATA, bytes(16_384), stream=stream)
        wire.feed(frame(HEADERS, block([(b":status", b"200")]), flags=END_HEADERS, stream=stream), data[:16_000])
        wire.codec.reset(stream, CANCEL)
        wire.pump()
        wire.feed(data[16_000:])
        if wire.told.left:
            break

    assert wire.told.left == [(0, "the connection is worn out")]
    assert len(wire.told.closed) > 500


def test_a_codec_that_is_closed_lets_its_driver_go() -> None:
    wire = Wire()
    told = weakref.ref(wire.told)
    codec = wire.codec
    gc.disable()
    try:
        codec.close()
        del wire
        assert told() is None
    finally:
        gc.enable()


# --- whatever comes ---------------------------------------------------------------------------------------------------

ANY_FRAME = st.one_of(
    st.builds(
        frame, st.sampled_from([*range(10), 16, 0xFA]), st.binary(max_size=12),
        flags=st.sampled_from([0, 1, 4, 5, 8, 32]), stream=st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1]),
    ),
    st.builds(
        lambda stream, status, flags: frame(HEADERS, plain_block([(b":status", status)]), flags=flags, stream=stream),
        st.sampled_from([1, 3, 5]), st.sampled_from([b"100", b"200", b"204"]), st.sampled_from([4, 5]),
    ),
    st.builds(lambda stream, flags: frame(DATA, b"data", flags=flags, stream=stream), st.sampled_from([1, 3, 5]),
              st.sampled_from([0, 1])),
    st.builds(lambda stream: frame(WINDOW_UPDATE, b"\0\0\0\1", stream=stream), st.sampled_from([0, 1, 3])),
)  # fmt: skip


@settings(max_examples=120)
@given(
    frames=st.lists(ANY_FRAME, max_size=12),
    noise=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
def test_whatever_comes_there_is_an_answer_or_an_end(frames: list[bytes], noise: bytes, cuts: list[int]) -> None:
    """No other exception than Http2Error; a stream is closed once, and then there is no word of it."""
    data = frame(SETTINGS) + b"".join(frames) + noise
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    wire = Wire()
    streams = [wire.request(), wire.request(POST, ended=False), wire.request(HEAD % (b"HEAD", b"/", b""))]
    with contextlib.suppress(Http2Error):
        for start, end in pairwise(places):
            wire.feed(data[start:end])
    over = set()
    for call in wire.told.calls:
        assert len(call) == 1 or call[0] == "leaves" or call[1] not in over, wire.told.calls
        if call[0] == "closed":
            over.add(call[1])
    assert over <= set(streams)
    for stream in streams:
        assert len([call for call in wire.told.calls if call[:2] == ("head", stream)]) <= 1


def test_the_preface_goes_first() -> None:
    wire = Wire()
    wire.request()
    assert wire.sent.startswith(PREFACE + b"\0\0")
