"""The HTTP/2 codec towards clients: bytes in, requests and pieces of bodies out, and back. Pure; libnghttp2 works.

Strategy: libnghttp2 (through `ngh2`) keeps frames, HPACK, flow control, priorities and the states of streams. What it
leaves to its user is here and in `http2_codec`: heads are judged by `http2_heads`, noise is counted and paid for,
limits become answers where an answer is possible and a GOAWAY where it is not. Drivers know this interface alone.

Rules kept: what was reset before it was read begins nothing; a head over the limits is answered on its stream; behind
an Http2Error the codec is dead.

Mutable state: `_open` (streams announced, not closed), `_resets` (those of them that earn nothing: reset, or refused),
`_heads_read` (of those that the walk has seen), `_is_leaving`, and what every codec has.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    NGH2Error,
    PriorityUpdateReceived,
    RequestReceived,
    Role,
    Setting,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

from tlsproxy.wire.fields import Fields
from tlsproxy.wire.http2_base import NO_ERROR, PROTOCOL_ERROR, Http2Error, ServerEvents, StreamGone
from tlsproxy.wire.http2_codec import FOR_REQUEST, Codec
from tlsproxy.wire.http2_frames import FrameWalk
from tlsproxy.wire.http2_heads import HeadReader, Limits, answer_fields
from tlsproxy.wire.messages import ProtocolError

__all__ = ["Http2Error", "Limits", "ServerCodec", "ServerEvents", "StreamGone"]

_WINDOW: Final = 65_536  # bytes of a request that may come before its backend takes any
_GROWTH: Final = 4 * 1024 * 1024  # what the connection's window has for streams that were given a larger one
_FOR_REFUSED: Final = 10  # credit that a request costs if it was malformed or over a limit


@lru_cache(maxsize=16)
def _configuration(header_size: int) -> Configuration:
    most = 4 * header_size  # libnghttp2's user can't answer above this: the connection ends
    return Configuration(
        auto_window_update=False,
        max_send_header_block_length=256 * 1024,  # more than a backend's head may have
        max_inbound_header_list_size=most,
        max_continuations=max(8, most // 16_384),  # of full frames (RFC 9113 4.2)
        max_inbound_header_count=max(512, header_size // 32),  # no field is smaller (RFC 9113 6.5.2); it costs one byte
        stream_reset_rate_limit=(500, 50),
        glitch_rate_limit=(500, 50),
    )


class ServerCodec(Codec):
    """See the module's text. Its SETTINGS are in the first `send`."""

    __slots__ = ("_events", "_heads", "_heads_read", "_is_leaving", "_open", "_resets", "_taken_back")

    def __init__(self, events: ServerEvents, limits: Limits) -> None:
        self._events = events
        self._heads = HeadReader(limits)
        self._open: dict[int, None] = {}  # for their keys: an empty set has 216 bytes, this has 64
        self._resets: dict[int, None] = {}
        self._taken_back = 0  # the last stream that was reset before it was announced
        self._heads_read = 0
        self._is_leaving = False
        settings: dict[int, int] = {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams,
            Setting.INITIAL_WINDOW_SIZE: _WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_size,
            Setting.ENABLE_CONNECT_PROTOCOL: 1,
            Setting.NO_RFC7540_PRIORITIES: 1,
        }
        connection = Connection(Role.SERVER, _configuration(limits.header_size))
        super().__init__(connection, settings, FrameWalk(), limits.streams * _WINDOW + _GROWTH)

    @property
    def header_block(self) -> int:
        """0, or the number of the header block that has begun and is not complete: another one has another number."""
        return self._walk.block

    @property
    def in_header_block(self) -> bool:
        return self._walk.block != 0

    # --- what the client sends ----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the client and tell the driver what they mean. Raises Http2Error."""
        if self.is_over:
            return
        walk = self._walk
        events = self._take(data)
        if walk.resets:
            walk.resets = 0
            events = _without_reset_requests(events)
        self._tell(events)
        ignored = walk.heads - self._heads_read - 1  # one may be under way
        if ignored > 0:
            self._heads_read += ignored
            self._credit -= ignored * (1 if self._is_leaving else _FOR_REFUSED)
        if self._credit < 0:
            self._pay(0)

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RequestReceived):
                self._request(event)
            elif isinstance(event, StreamClosed):
                self._closed(event)
            elif isinstance(event, DataReceived):
                self._data(event)
            elif isinstance(event, WindowUpdated):
                self._events.window_opened(event.stream_id)
            else:
                self._tell_rare(event)

    def _tell_rare(self, event: Event) -> None:
        if isinstance(event, TrailersReceived):
            self._trailers(event)
        elif isinstance(event, StreamReset):
            if event.stream_id not in self._open:
                self._taken_back = event.stream_id
                return
            self._resets[event.stream_id] = None
            self._events.stream_reset(event.stream_id, event.error_code)
        elif isinstance(event, GoAwayReceived):
            self._is_left = True
            self._events.client_leaves()
        elif isinstance(event, PriorityUpdateReceived) and not event.prioritized_stream_id:
            # RFC 9218 7.1; libnghttp2 does not mind.
            raise self._end(PROTOCOL_ERROR, "the client gave a priority to stream 0")
        elif isinstance(event, ConnectionClosed):
            self._closed_by_library(event)

    def _request(self, event: RequestReceived) -> None:
        stream = event.stream_id
        self._heads_read += 1
        self._last_stream = stream
        self._open[stream] = None
        try:
            head = self._heads.read(event.headers, ended=event.end_stream)
        except ProtocolError as error:
            self._credit -= _FOR_REFUSED
            self._resets[stream] = None  # to be answered, but it earns nothing by that
            self._events.request_refused(stream, self._heads.refused_head(event.headers), error)
        else:
            self._events.request_received(stream, head, ended=event.end_stream)

    def _data(self, event: DataReceived) -> None:
        data = event.data
        self.earn(len(data) >> 10)
        if event.stream_id in self._open:
            self._events.body_received(event.stream_id, data, ended=event.end_stream)
        else:
            self.acknowledge(event.stream_id, len(data))

    def _trailers(self, event: TrailersReceived) -> None:
        stream = event.stream_id
        self._heads_read += 1
        if stream not in self._open:
            return
        if self._heads.are_good_trailers(event.headers):
            self._events.trailers_received(stream, list(event.headers))
        else:
            self._refuse_rest(stream)

    def _refuse_rest(self, stream: int) -> None:
        """The rest of a request that has begun is against the rules. `_closed` tells the driver."""
        try:
            self._connection.reset_stream(stream, PROTOCOL_ERROR)
        except NGH2Error:
            return

    def _closed(self, event: StreamClosed) -> None:
        stream = event.stream_id
        self._regain(stream)
        if stream not in self._open:  # never announced: malformed, or taken back by the client at once
            if event.error_code == PROTOCOL_ERROR and stream != self._taken_back:
                self._events.request_malformed()
            return
        del self._open[stream]
        if stream in self._resets:
            del self._resets[stream]
        elif not event.error_code:
            self.earn(FOR_REQUEST)  # only when it has been answered
        else:  # libnghttp2 found it malformed, or against the rules, and resets it
            self._credit -= _FOR_REFUSED
            self._events.stream_reset(stream, event.error_code)
        self._events.stream_closed(stream)

    # --- what the client gets -----------------------------------------------------------------------------------------

    def respond(self, stream: int, status: int, fields: Fields, *, ended: bool) -> None:
        """Queue the head of the answer. Raises StreamGone, as all of the following do."""
        try:
            self._connection.send_response(stream, answer_fields(status, fields), end_stream=ended)
        except NGH2Error as error:
            raise StreamGone from error

    def inform(self, stream: int, status: int, fields: Fields) -> None:
        """Queue an interim answer. There is no 101 in HTTP/2 (RFC 9113 8.6)."""
        try:
            self._connection.send_informational_response(stream, answer_fields(status, fields))
        except NGH2Error as error:
            raise StreamGone from error

    def reset(self, stream: int, code: int) -> None:
        if stream not in self._open:
            raise StreamGone
        try:
            self._connection.reset_stream(stream, code)
        except NGH2Error as error:
            raise StreamGone from error
        self._resets[stream] = None

    def rest(self) -> None:
        """Nothing is under way: let go of what only makes the next request quicker (3 KiB)."""
        self._heads.forget()
        self._open.clear()
        self._resets.clear()

    def has_window(self, stream: int) -> bool:
        """Whether the client would take a byte on this stream."""
        return self.has_own_window(stream) and self._connection.remote_window_size > 0

    def has_own_window(self, stream: int) -> bool:
        """The same, but for the connection's window, which is all streams'."""
        try:
            return self._connection.stream_remote_window_size(stream) > 0
        except NGH2Error:
            return False

    # --- endings ------------------------------------------------------------------------------------------------------

    def announce_shutdown(self) -> None:
        """Ask the client to begin no more streams, without naming the last one (RFC 9113 6.8)."""
        try:
            self._connection.send_shutdown_notice()
        except NGH2Error:
            return

    def shut_down(self, code: int = NO_ERROR) -> None:
        """Name the last stream that is processed; those in flight end normally, later ones are ignored."""
        self._is_leaving = True
        try:
            self._connection.send_goaway(code)
        except NGH2Error:
            return

    def _wear_out(self) -> None:
        self.shut_down()

    def close(self) -> None:
        """The connection is gone: let go of the driver, or both would wait, with what is queued, to be collected."""
        del self._events


def _without_reset_requests(events: list[Event]) -> list[Event]:
    """`events` less the requests that the client itself has taken back (CVE-2023-44487)."""
    gone = {event.stream_id for event in events if isinstance(event, StreamClosed)}
    return [event for event in events if not (isinstance(event, RequestReceived) and event.stream_id in gone)]
