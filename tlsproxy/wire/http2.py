"""The HTTP/2 codec towards clients: bytes in, requests and pieces of bodies out, and back. Pure; libnghttp2 works.

Strategy: libnghttp2 (through `ngh2`) keeps frames, HPACK, flow control, priorities and the states of streams. What it
leaves to its user is here: heads are judged by `http2_heads`, noise is counted and paid for, limits become answers
where an answer is possible and a GOAWAY where it is not. Drivers know this interface and nothing of libnghttp2.

Rules kept: what was reset before it was read begins nothing; a head over the limits is answered on its stream; behind
an Http2Error the codec is dead.

Mutable state: `_open` (streams announced, not closed), `_resets` (those of them that earn nothing: reset, or refused),
`_last_stream`, `_credit`, `_heads_read` (of those that the walk has seen), `_lost` (bytes of the window), `_is_cut`
(what was sent last may end inside a frame), `_is_leaving` (we), `_is_left` (the client), `is_over`, `error`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    ConnectionProtocolError,
    DataReceived,
    DenialOfServiceError,
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
from tlsproxy.wire.http2_base import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    Http2Error,
    ServerEvents,
    StreamGone,
    goaway_frame,
)
from tlsproxy.wire.http2_frames import FrameWalk
from tlsproxy.wire.http2_heads import HeadReader, Limits, answer_fields, lower_fields
from tlsproxy.wire.messages import ProtocolError

__all__ = ["Http2Error", "Limits", "ServerCodec", "ServerEvents", "StreamGone"]

_WINDOW: Final = 65_536  # bytes of a request that may come before its backend takes any
_GROWTH: Final = 4 * 1024 * 1024  # what the connection's window has for streams that were given a larger one
_CREDIT: Final = 1000
_FOR_REQUEST: Final = 10  # credit that a request earns when it has been answered
_FOR_REFUSED: Final = 10  # and that it costs if it was malformed or over a limit
_FOR_PIECE: Final = 2  # a client may answer each DATA frame with two WINDOW_UPDATE
_SAID: Final = {  # where libnghttp2 ends the connection without a word
    INTERNAL_ERROR: "the client reset too many streams",
    COMPRESSION_ERROR: "a header block is not HPACK",
    ENHANCE_YOUR_CALM: "the client sent too many frames that ask for nothing",
}
_UNSAID: Final = "the client broke a rule of the protocol"


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


class ServerCodec:
    """See the module's text."""

    __slots__ = (
        "_connection", "_credit", "_events", "_heads", "_heads_read", "_is_cut", "_is_leaving", "_is_left",
        "_last_stream", "_lost", "_open", "_resets", "_walk", "_window", "error", "is_over",
    )  # fmt: skip

    def __init__(self, events: ServerEvents, limits: Limits) -> None:
        self._events = events
        self._heads = HeadReader(limits)
        self._walk = FrameWalk()
        self._open: set[int] = set()
        self._resets: set[int] = set()
        self._last_stream = 0
        self._credit = _CREDIT
        self._heads_read = 0
        self._lost = 0
        self._is_cut = False
        self._is_leaving = False
        self._is_left = False
        self.is_over = False
        self.error = ""
        self._connection = Connection(Role.SERVER, _configuration(limits.header_size))
        self._connection.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: limits.streams,
                Setting.INITIAL_WINDOW_SIZE: _WINDOW,
                Setting.MAX_HEADER_LIST_SIZE: limits.header_size,
                Setting.ENABLE_CONNECT_PROTOCOL: 1,
                Setting.NO_RFC7540_PRIORITIES: 1,
            }
        )
        self._window = limits.streams * _WINDOW + _GROWTH
        self._connection.set_local_window_size(self._window)

    def __repr__(self) -> str:
        return f"<ServerCodec {len(self._open)} streams, credit {self._credit}>"

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
        walk.feed(data)
        if walk.noise:  # paid before it is worked off
            self._pay(walk.noise)
            walk.noise = 0
        if walk.fault:
            raise self._end(walk.fault, "the client sent a frame that RFC 9113 does not allow there, or of that size")
        try:
            self._connection.receive_data(data)
        except NGH2Error as error:
            raise self._broken(error) from error
        resets, walk.resets = walk.resets, 0
        self._tell(self._connection.events(), with_resets=resets > 0)
        ignored = walk.heads - self._heads_read - 1  # one may be under way
        if ignored > 0:
            self._heads_read += ignored
            self._credit -= ignored * (1 if self._is_leaving else _FOR_REFUSED)
        if self._credit < 0:
            self._pay(0)

    def _tell(self, events: list[Event], *, with_resets: bool) -> None:
        if with_resets:
            events = _without_reset_requests(events)
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
            if event.stream_id in self._open:
                self._resets.add(event.stream_id)
                self._events.stream_reset(event.stream_id, event.error_code)
        elif isinstance(event, GoAwayReceived):
            self._is_left = True  # whatever it says about why is its own affair
            self._events.client_leaves()
        elif isinstance(event, PriorityUpdateReceived) and not event.prioritized_stream_id:
            # RFC 9218 7.1; libnghttp2 does not mind.
            raise self._end(PROTOCOL_ERROR, "the client gave a priority to stream 0")
        elif isinstance(event, ConnectionClosed):
            self.is_over = True
            if event.error_code and not self._is_left:
                self.error = event.debug_data.decode("latin-1") or _SAID.get(event.error_code, _UNSAID)

    def _request(self, event: RequestReceived) -> None:
        stream = event.stream_id
        self._heads_read += 1
        self._last_stream = stream
        self._open.add(stream)
        try:
            head = self._heads.read(event.headers, ended=event.end_stream)
        except ProtocolError as error:
            self._credit -= _FOR_REFUSED
            self._resets.add(stream)  # to be answered, but it earns nothing by that
            self._events.request_refused(stream, self._heads.refused_head(event.headers), error)
        else:
            self._events.request_received(stream, head, ended=event.end_stream)

    def _data(self, event: DataReceived) -> None:
        data = event.data
        self._earn(len(data) >> 10)
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
            self._connection.reset_stream(stream, PROTOCOL_ERROR)

    def _closed(self, event: StreamClosed) -> None:
        stream = event.stream_id
        if stream == self._walk.data_stream:
            self._regain(self._walk.data_seen)
        if stream not in self._open:  # never announced, or reset before it was
            return
        self._open.discard(stream)
        if stream in self._resets:
            self._resets.discard(stream)
        elif not event.error_code:
            self._earn(_FOR_REQUEST)
        else:  # libnghttp2 found it malformed, or against the rules, and resets it
            self._credit -= _FOR_REFUSED
            self._events.stream_reset(stream, event.error_code)
        self._events.stream_closed(stream)

    # --- what the client gets -----------------------------------------------------------------------------------------

    def send(self, most: int) -> bytes:
        """The bytes to write now, at most `most` of them; 0: all that the windows allow. Raises Http2Error."""
        connection = self._connection
        try:
            data = connection.data_to_send(most if most > 0 else None)
        except NGH2Error as error:
            raise self._broken(error) from error
        self._is_cut = 0 < most <= len(data)
        events = connection.events()
        if events:
            self._tell(events, with_resets=False)
        return data

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

    def send_data(self, stream: int, data: bytes, *, ended: bool = False) -> None:
        try:
            self._connection.send_data(stream, data, end_stream=ended)
        except NGH2Error as error:
            raise StreamGone from error
        self._earn(_FOR_PIECE + (len(data) >> 10))

    def send_trailers(self, stream: int, trailers: Fields) -> None:
        """End the answer with these."""
        try:
            self._connection.send_trailers(stream, lower_fields(trailers))
        except NGH2Error as error:
            raise StreamGone from error

    def end(self, stream: int) -> None:
        try:
            self._connection.end_stream(stream)
        except NGH2Error as error:
            raise StreamGone from error

    def reset(self, stream: int, code: int) -> None:
        if stream not in self._open:
            raise StreamGone
        try:
            self._connection.reset_stream(stream, code)
        except NGH2Error as error:
            raise StreamGone from error
        self._resets.add(stream)

    # --- the client's windows -----------------------------------------------------------------------------------------

    def acknowledge(self, stream: int, size: int) -> None:
        """`size` bytes of what was received have gone on: the client may send as many again."""
        try:
            self._connection.acknowledge_received_data(size, stream)
        except NGH2Error:
            return

    def grow_window(self, stream: int, size: int) -> None:
        try:
            self._connection.set_local_window_size(size, stream_id=stream)
        except NGH2Error:
            return

    def _regain(self, size: int) -> None:
        """Give the connection's window what it lost: a stream was closed, and the first part of a DATA frame with it.

        libnghttp2 can't be told that these bytes are consumed, so its window is made larger. That must not go on for
        ever: it asks for as much before it lets the client send on.
        """
        self._lost += size
        if self._lost > self._window // 2:
            self.shut_down()
            return
        self._connection.set_local_window_size(self._window + self._lost)

    def queued(self, stream: int = 0) -> int:
        """Bytes of bodies that `send` has not taken; 0 = of all streams."""
        return self._connection.queued_body_size(stream or None)

    def has_window(self, stream: int) -> bool:
        """Whether the client would take a byte on this stream."""
        connection = self._connection
        try:
            return connection.remote_window_size > 0 and connection.stream_remote_window_size(stream) > 0
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

    def close(self) -> None:
        """The connection is gone: let go of the driver, or both would wait, with what is queued, to be collected."""
        del self._events

    def earn(self, credit: int) -> None:
        """Credit for time gone by."""
        self._earn(credit)

    def _earn(self, credit: int) -> None:
        credit += self._credit
        self._credit = credit if credit < _CREDIT else _CREDIT

    def _pay(self, credit: int) -> None:
        self._credit -= credit
        if self._credit < 0:
            raise self._end(ENHANCE_YOUR_CALM, _SAID[ENHANCE_YOUR_CALM])

    def _broken(self, error: NGH2Error) -> Http2Error:
        note = str(error).removeprefix("HTTP/2 engine error: ")
        if isinstance(error, DenialOfServiceError):
            return self._end(ENHANCE_YOUR_CALM, note)
        if isinstance(error, ConnectionProtocolError):
            return self._end(PROTOCOL_ERROR, note)
        return self._end(INTERNAL_ERROR, note)

    def _end(self, code: int, note: str) -> Http2Error:
        """The error that ends the connection. Nothing can be said behind a frame that was cut."""
        self.is_over = True
        farewell = b"" if self._is_cut else goaway_frame(self._last_stream, code)
        return Http2Error(code, note, farewell)


def _without_reset_requests(events: list[Event]) -> list[Event]:
    """`events` less the requests that the client itself has taken back (CVE-2023-44487)."""
    gone = {event.stream_id for event in events if isinstance(event, StreamClosed)}
    return [event for event in events if not (isinstance(event, RequestReceived) and event.stream_id in gone)]
