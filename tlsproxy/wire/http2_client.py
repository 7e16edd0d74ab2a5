"""The HTTP/2 codec towards backends: requests out, answers and pieces of their bodies in. Pure; libnghttp2 works.

The strategy of `http2`, seen from the other end. What a request says was decided by `forwarding`, which writes HTTP/1.1
heads; `http2_answers` makes fields of them, and heads of the fields that come back. A backend is trusted with content,
not with framing, and what it may cost is bounded: header lists, pushes (none), frames that mean nothing.

Rule kept: behind an Http2Error the codec is dead.

Mutable state: `_bodiless` (streams whose answer has no body), `_reset_stream` (the last one that the backend has
reset), `is_settled`, `most_streams`, `offers_connect`, and what every codec has.
"""

from __future__ import annotations

from typing import Final, Protocol

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    InformationalResponseReceived,
    NGH2Error,
    PingAcknowledged,
    PushedStreamReceived,
    ResponseReceived,
    Role,
    Setting,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from tlsproxy.wire.fields import Fields
from tlsproxy.wire.http2_answers import ANSWER_HEADER_SIZE, AnswerReader, RequestFields
from tlsproxy.wire.http2_base import CANCEL, NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, Http2Error, StreamGone
from tlsproxy.wire.http2_codec import FOR_CONTENT, FOR_REQUEST, Codec, text
from tlsproxy.wire.http2_frames import FrameWalk
from tlsproxy.wire.messages import ProtocolError, ResponseHead

__all__ = ["CANCEL", "NO_ERROR", "REFUSED_STREAM", "ClientCodec", "ClientEvents", "Http2Error", "StreamGone"]

WINDOW: Final = 128 * 1024  # bytes of an answer that may come before its client takes any
MOST_STREAMS: Final = 100  # at once on one connection, if the backend allows more
_ALL_WINDOWS: Final = MOST_STREAMS * WINDOW  # of the connection: a stream that is not taken can't hold back another
_CONFIGURATION: Final = Configuration(
    auto_window_update=False,
    max_reserved_remote_streams=0,
    max_send_header_block_length=1024 * 1024,  # a client's head was judged already
    max_inbound_header_list_size=4 * ANSWER_HEADER_SIZE,  # above it the connection ends, below it the stream
    max_inbound_header_count=4 * ANSWER_HEADER_SIZE // 32,  # no field is smaller (RFC 9113 6.5.2)
    stream_reset_rate_limit=(1000, 1000),
    glitch_rate_limit=(500, 50),
)


class ClientEvents(Protocol):
    """What a driver is told, from inside `receive` and `send`."""

    def settings_received(self) -> None:
        """The backend has spoken (the first time), or has changed what it allows."""
        ...

    def interim_received(self, stream: int, head: ResponseHead) -> None: ...
    def head_received(self, stream: int, head: ResponseHead, *, ended: bool) -> None: ...
    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None: ...
    def trailers_received(self, stream: int, trailers: Fields) -> None:
        """They end the answer."""
        ...

    def answer_refused(self, stream: int, note: str) -> None:
        """Its head can't be taken; `stream_closed` follows."""
        ...

    def stream_closed(self, stream: int, code: int, *, by_backend: bool) -> None:
        """Both directions are over: in order (`code` 0), reset by the backend or by our side, which includes libnghttp2
        for what is malformed. REFUSED_STREAM: nothing of the request was processed (RFC 9113 8.7).
        """
        ...

    def backend_leaves(self, code: int, note: str) -> None:
        """GOAWAY: it takes no more streams."""
        ...

    def pong_received(self) -> None: ...


class ClientCodec(Codec):
    """See the module's text. Sends its preface and SETTINGS with the first `send`."""

    __slots__ = (
        "_answers", "_bodiless", "_events", "_requests", "_reset_stream", "is_settled", "most_streams",
        "offers_connect",
    )  # fmt: skip

    def __init__(self, events: ClientEvents) -> None:
        self._events = events
        self._requests = RequestFields()
        self._answers = AnswerReader()
        self._bodiless: set[int] = set()
        self._reset_stream = 0
        self.is_settled = False  # its SETTINGS have come
        self.most_streams = MOST_STREAMS  # until they say otherwise (RFC 9113 6.5.2)
        self.offers_connect = False  # RFC 8441 3
        settings: dict[int, int] = {
            Setting.ENABLE_PUSH: 0,
            Setting.INITIAL_WINDOW_SIZE: WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: ANSWER_HEADER_SIZE,
        }
        super().__init__(Connection(Role.CLIENT, _CONFIGURATION), settings, FrameWalk(skip=0), _ALL_WINDOWS)

    @property
    def header_block(self) -> int:
        """0, or the number of the header block that has begun and is not complete: another one has another number."""
        return self._walk.block

    # --- what the backend sends ---------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the backend and tell the driver what they mean. Raises Http2Error."""
        self._tell(self._take(data))

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, DataReceived):
                self.earn(len(event.data) >> 10)
                self._events.body_received(event.stream_id, event.data, ended=event.end_stream)
            elif isinstance(event, ResponseReceived):
                self._head(event)
            elif isinstance(event, StreamClosed):
                self._closed(event)
            elif isinstance(event, TrailersReceived):
                self._trailers(event)
            else:
                self._tell_rare(event)

    def _tell_rare(self, event: Event) -> None:
        if isinstance(event, InformationalResponseReceived):
            self._head(event)
        elif isinstance(event, StreamReset):
            self._reset_stream = event.stream_id  # its StreamClosed is the next event
        elif isinstance(event, SettingsReceived):
            settings = self._connection.remote_settings
            self.is_settled = True
            self.most_streams = min(settings[Setting.MAX_CONCURRENT_STREAMS], MOST_STREAMS)
            self.offers_connect = settings[Setting.ENABLE_CONNECT_PROTOCOL] == 1
            self._events.settings_received()
        elif isinstance(event, GoAwayReceived):
            self._is_left = True
            self._events.backend_leaves(event.error_code, text(event.debug_data))
        elif isinstance(event, PingAcknowledged):
            self._events.pong_received()
        elif isinstance(event, PushedStreamReceived):
            self.reset(event.promised_stream_id, CANCEL)  # it came before our SETTINGS were known
        elif isinstance(event, ConnectionClosed):
            self._closed_by_library(event)

    def _head(self, event: ResponseReceived | InformationalResponseReceived) -> None:
        stream = event.stream_id
        ended = isinstance(event, ResponseReceived) and event.end_stream
        try:
            head = self._answers.read(event.headers, bodiless=stream in self._bodiless, ended=ended)
        except ProtocolError as error:
            self._refuse(stream, error)
            return
        if head.status < 200:
            self._events.interim_received(stream, head)
        else:
            self._events.head_received(stream, head, ended=ended)

    def _trailers(self, event: TrailersReceived) -> None:
        try:
            trailers = self._answers.trailers(event.headers)
        except ProtocolError as error:
            self._refuse(event.stream_id, error)
        else:
            self._events.trailers_received(event.stream_id, trailers)

    def _closed(self, event: StreamClosed) -> None:
        stream = event.stream_id
        self._regain(stream)
        self._bodiless.discard(stream)
        by_backend = self._reset_stream == stream
        self._reset_stream = 0
        self._events.stream_closed(stream, event.error_code, by_backend=by_backend)

    def _refuse(self, stream: int, error: ProtocolError) -> None:
        self.reset(stream, PROTOCOL_ERROR)
        self._events.answer_refused(stream, error.note)

    # --- what the backend gets ----------------------------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        return self._connection.want_write

    def request(self, head: bytes, *, ended: bool, websocket: bool = False) -> int:
        """Queue a request; `head` is as `forwarding` writes it for HTTP/1.1. Returns its stream. Raises StreamGone.

        `ended`: it has no body. `websocket`: it is sent as an extended CONNECT (RFC 8441 4).
        """
        fields = self._requests.websocket(head) if websocket else self._requests.read(head)
        try:
            stream = self._connection.send_request(fields, end_stream=ended)
        except NGH2Error as error:
            raise StreamGone from error
        if head.startswith(b"HEAD "):
            self._bodiless.add(stream)
        self.earn(FOR_REQUEST)
        return stream

    def send_data(self, stream: int, data: bytes, *, ended: bool = False) -> None:
        super().send_data(stream, data, ended=ended)
        # A backend with a small window answers every bit with two WINDOW_UPDATE.
        self.earn(len(data) >> 8, FOR_CONTENT)

    def has_left(self, stream: int) -> bool:
        """Whether the head of a request has been sent: libnghttp2 keeps it while there are as many as may be."""
        try:
            self._connection.stream_remote_window_size(stream)
        except NGH2Error:
            return False
        return True

    def reset(self, stream: int, code: int) -> None:
        """End both directions of a stream. Nothing happens if it is gone."""
        try:
            self._connection.reset_stream(stream, code)
        except NGH2Error:
            return

    def ping(self) -> None:
        """Ask for a sign of life: `pong_received`. Raises StreamGone if the connection is over."""
        try:
            self._connection.ping()
        except NGH2Error as error:
            raise StreamGone from error

    # --- endings ------------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Say that no more requests come (RFC 9113 6.8)."""
        try:
            self._connection.send_goaway(NO_ERROR)
        except NGH2Error:
            return

    def close(self) -> None:
        """The connection is gone: let go of the driver, or both would wait to be collected."""
        del self._events

    def _wear_out(self) -> None:
        self._events.backend_leaves(NO_ERROR, "the connection is worn out")
