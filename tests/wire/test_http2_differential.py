"""The codec against another implementation: requests of the `h2` library are read right, and our answers by it."""

from __future__ import annotations

from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.frames import Fields
from tests.fakes.h2_memory import GET, LIMITS, POST, Recorder
from tlsproxy.wire.http2 import ServerCodec

CONFIG = h2.config.H2Configuration(client_side=True, header_encoding=None)
NAME = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(lambda text: b"x-" + text.encode())
VALUE = st.binary(max_size=30).map(lambda raw: bytes(byte if byte > 0x20 and byte != 0x7F else 0x41 for byte in raw))
FIELDS = st.lists(st.tuples(NAME, VALUE), max_size=6)


@dataclass
class Heard:
    """One stream as the `h2` client saw it."""

    status: bytes = b""
    interim: list[Fields] = field(default_factory=list)
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False


class Pair:
    """An `h2` client and our codec, joined."""

    def __init__(self) -> None:
        self.client = h2.connection.H2Connection(CONFIG)
        self.client.initiate_connection()
        self.told = Recorder()
        self.codec = ServerCodec(self.told, LIMITS)
        self.heard: dict[int, Heard] = {}
        self.left: list[object] = []
        self.run()

    def run(self) -> None:
        """Carry bytes both ways until there are none."""
        while True:
            there = self.client.data_to_send()
            if there:
                self.codec.receive(there)
            back = self.codec.send(0)
            if back:
                for event in self.client.receive_data(back):
                    self._hear(event)
            if not there and not back:
                return

    def request(self, fields: Fields, pieces: list[bytes] | None = None, trailers: Fields | None = None) -> int:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, fields, end_stream=pieces is None and not trailers)
        for piece in pieces or []:
            self.client.send_data(stream, piece)
        if trailers:
            self.client.send_headers(stream, trailers, end_stream=True)
        elif pieces is not None:
            self.client.end_stream(stream)
        self.run()
        return stream

    def _hear(self, event: h2.events.Event) -> None:
        heard = self.heard.setdefault(getattr(event, "stream_id", None) or 0, Heard())
        if isinstance(event, h2.events.InformationalResponseReceived):
            heard.interim.append(plain(event.headers))
        elif isinstance(event, h2.events.ResponseReceived):
            fields = plain(event.headers)
            heard.status, heard.fields = fields[0][1], fields[1:]
        elif isinstance(event, h2.events.DataReceived):
            heard.body += event.data
            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            heard.trailers = plain(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            heard.ended = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.left.append(event.error_code)


def plain(fields: object) -> Fields:
    assert isinstance(fields, list)
    return [(bytes(name), bytes(value)) for name, value in fields]


@settings(max_examples=40)
@given(
    requests=st.lists(st.tuples(FIELDS, st.none() | st.lists(st.binary(max_size=40), max_size=3), FIELDS), max_size=4)
)
def test_requests_of_h2_are_read_as_they_were_meant(
    requests: list[tuple[Fields, list[bytes] | None, Fields]],
) -> None:
    pair = Pair()
    for number, (fields, pieces, trailers) in enumerate(requests):
        path = b"/%d" % number
        base = POST if pieces is not None or trailers else GET
        stream = pair.request([*base[:3], (b":path", path), *fields], pieces, trailers)
        head = pair.told.heads[stream]
        assert (head.method, head.target, head.host) == (base[0][1], path, "a.test")
        assert plain(head.fields) == fields
        assert pair.told.bodies.get(stream, b"") == b"".join(pieces or [])
        assert plain(pair.told.trailers.get(stream, [])) == trailers
        assert stream in pair.told.ended


@settings(max_examples=40)
@given(
    answers=st.lists(
        st.tuples(st.integers(200, 599), FIELDS, st.lists(st.binary(max_size=40), max_size=3), FIELDS, st.booleans()),
        max_size=4,
    )
)
def test_h2_reads_answers_as_they_were_meant(
    answers: list[tuple[int, Fields, list[bytes], Fields, bool]],
) -> None:
    pair = Pair()
    for status, fields, pieces, trailers, is_hinted in answers:
        stream = pair.request(GET)
        if is_hinted:
            pair.codec.inform(stream, 103, [(b"Link", b"</a>")])
        upper = [(name.title(), value) for name, value in fields]
        pair.codec.respond(stream, status, upper, ended=not (pieces or trailers))
        for piece in pieces:
            pair.codec.send_data(stream, piece)
        if trailers:
            pair.codec.send_trailers(stream, trailers)
        elif pieces:
            pair.codec.end(stream)
        pair.run()
        heard = pair.heard[stream]
        assert (heard.status, heard.fields) == (b"%d" % status, fields)
        assert heard.interim == ([[(b":status", b"103"), (b"link", b"</a>")]] if is_hinted else [])
        assert (heard.body, heard.trailers, heard.ended) == (b"".join(pieces), trailers, True)
        assert pair.told.closed[-1] == stream


def test_large_bodies_go_through_both_ways() -> None:
    """Past every window that either side begins with."""
    pair = Pair()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, POST)
    sent = acknowledged = 0
    while sent < 1_000_000:
        room = min(pair.client.local_flow_control_window(stream), pair.client.max_outbound_frame_size)
        if room:
            pair.client.send_data(stream, b"u" * room)
            sent += room
        pair.run()
        pair.codec.acknowledge(stream, len(pair.told.bodies[stream]) - acknowledged)
        acknowledged = len(pair.told.bodies[stream])
        pair.run()
    pair.client.end_stream(stream)
    pair.run()
    assert len(pair.told.bodies[stream]) == sent
    pair.codec.respond(stream, 200, [], ended=False)
    pair.codec.send_data(stream, b"d" * 1_000_000, ended=True)
    pair.run()
    assert len(pair.heard[stream].body) == 1_000_000
    assert pair.heard[stream].ended


def test_h2_takes_our_settings_and_farewells() -> None:
    """RFC 9113 6.5, 6.8; h2 refuses what is wrong in them."""
    pair = Pair()
    assert pair.client.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] == LIMITS.streams
    assert pair.client.remote_settings[h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE] == LIMITS.header_size
    assert pair.client.remote_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
    stream = pair.request(GET)
    pair.codec.respond(stream, 200, [], ended=True)
    pair.run()
    pair.codec.shut_down()
    pair.run()
    assert pair.left == [h2.errors.ErrorCodes.NO_ERROR]
    assert pair.codec.is_over
