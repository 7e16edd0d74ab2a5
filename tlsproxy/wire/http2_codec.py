"""What the HTTP/2 codecs of both directions do alike: sending, windows, and what a peer's noise costs it. Pure.

Rules kept: noise is paid for before it is worked off; every way to send on a stream that is gone is StreamGone; nothing
is said behind a frame that was cut.

Mutable state: `_credit`, `_last_stream` (of the peer's; 0 where it begins none), `_lost` (bytes of the window),
`_has_begun` (our SETTINGS are out), `_is_cut` (what was sent last may end inside a frame), `_is_left` (the peer said
that it goes), `is_over`, `error`.
"""

from __future__ import annotations

from typing import Final

from ngh2 import Connection, ConnectionClosed, ConnectionProtocolError, DenialOfServiceError, Event, NGH2Error

from tlsproxy.wire.fields import Fields
from tlsproxy.wire.http2_base import (
    COMPRESSION_ERROR,
    EMPTY_SETTINGS,
    ENHANCE_YOUR_CALM,
    INTERNAL_ERROR,
    PROTOCOL_ERROR,
    Http2Error,
    StreamGone,
    goaway_frame,
)
from tlsproxy.wire.http2_frames import FrameWalk
from tlsproxy.wire.http2_heads import lower_fields

FOR_REQUEST: Final = 10  # credit that a request is worth
_CREDIT: Final = 1000
FOR_CONTENT: Final = (
    4 * _CREDIT
)  # most that content earns: a peer that reads megabytes at once acknowledges all of them
_FOR_PIECE: Final = 2  # a peer may answer each DATA frame with two WINDOW_UPDATE
_LONGEST_NOTE: Final = 200
_SAID: Final = {  # where libnghttp2 ends the connection without a word
    INTERNAL_ERROR: "the peer reset too many streams",
    COMPRESSION_ERROR: "a header block is not HPACK, or one of its fields is longer than 64 KiB",
    ENHANCE_YOUR_CALM: "the peer sent too many frames that ask for nothing",
}
_UNSAID: Final = "the peer broke a rule of HTTP/2"


class Codec:
    """One connection of libnghttp2. `window`: bytes that all of the peer's streams together may have unacknowledged.

    The connection's own window is twice that: libnghttp2 lets the peer send on when half of it is acknowledged, and
    until then what has flowed on one stream must not be missing for the others.
    """

    __slots__ = (
        "_connection", "_credit", "_has_begun", "_is_cut", "_is_left", "_last_stream", "_lost", "_walk", "_window",
        "error", "is_over",
    )  # fmt: skip

    def __init__(self, connection: Connection, settings: dict[int, int], walk: FrameWalk, window: int) -> None:
        self._connection = connection
        self._walk = walk
        self._window = 2 * window
        self._credit = _CREDIT
        self._last_stream = 0
        self._lost = 0
        self._has_begun = False
        self._is_cut = False
        self._is_left = False
        self.is_over = False
        self.error = ""
        connection.initiate_connection(settings)
        connection.set_local_window_size(self._window)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queued()} bytes queued, credit {self._credit}>"

    # --- what the peer sends ------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> list[Event]:
        """What `data` means to libnghttp2. Raises Http2Error."""
        walk = self._walk
        walk.feed(data)
        if walk.noise:
            self._pay(walk.noise)
            walk.noise = 0
        if walk.fault:
            raise self._end(walk.fault, "the peer sent a frame that RFC 9113 does not allow there, or of that size")
        try:
            self._connection.receive_data(data)
        except NGH2Error as error:
            raise self._broken(error) from error
        return self._connection.events()

    def _tell(self, events: list[Event]) -> None:
        """Tell the driver."""
        raise NotImplementedError

    def _closed_by_library(self, event: ConnectionClosed) -> None:
        self.is_over = True
        if event.error_code and not self._is_left:  # what the peer says about why is its own affair
            self.error = text(event.debug_data) or _SAID.get(event.error_code, _UNSAID)

    # --- what the peer gets -------------------------------------------------------------------------------------------

    def send(self, most: int) -> bytes:
        """The bytes to write now, at most `most` of them; 0: all that the windows allow. Raises Http2Error."""
        connection = self._connection
        try:
            data = connection.data_to_send(most if most > 0 else None)
        except NGH2Error as error:
            raise self._broken(error) from error
        self._has_begun = True
        self._is_cut = 0 < most <= len(data)
        events = connection.events()
        if events:
            self._tell(events)
        return data

    def send_data(self, stream: int, data: bytes, *, ended: bool = False) -> None:
        """Queue a piece of a body. Raises StreamGone, as the following do."""
        try:
            self._connection.send_data(stream, data, end_stream=ended)
        except NGH2Error as error:
            raise StreamGone from error
        self.earn(_FOR_PIECE + (len(data) >> 10), FOR_CONTENT)

    def send_trailers(self, stream: int, trailers: Fields) -> None:
        """End the body with these."""
        try:
            self._connection.send_trailers(stream, lower_fields(trailers))
        except NGH2Error as error:
            raise StreamGone from error

    def end(self, stream: int) -> None:
        try:
            self._connection.end_stream(stream)
        except NGH2Error as error:
            raise StreamGone from error

    def queued(self, stream: int = 0) -> int:
        """Bytes of bodies that `send` has not taken; 0 = of all streams."""
        return self._connection.queued_body_size(stream or None)

    # --- the peer's windows -------------------------------------------------------------------------------------------

    def acknowledge(self, stream: int, size: int) -> None:
        """`size` bytes of what was received have gone on: the peer may send as many again."""
        try:
            self._connection.acknowledge_received_data(size, stream)
        except NGH2Error:
            return

    def grow_window(self, stream: int, size: int) -> None:
        try:
            self._connection.set_local_window_size(size, stream_id=stream)
        except NGH2Error:
            return

    def _regain(self, stream: int) -> None:
        """Give the connection's window what it lost if `stream` was closed, and the first part of a DATA frame with it.

        libnghttp2 can't be told that these bytes are consumed, so its window is made larger. That must not go on for
        ever: it asks for as much before it lets the peer send on.
        """
        if stream != self._walk.data_stream:
            return
        self._lost += self._walk.data_seen
        if self._lost > self._window // 2:
            self._wear_out()
        else:
            self.grow_window(0, self._window + self._lost)

    def _wear_out(self) -> None:
        """See to it that nothing new begins on this connection."""
        raise NotImplementedError

    # --- noise and endings --------------------------------------------------------------------------------------------

    def earn(self, credit: int, most: int = _CREDIT) -> None:
        """Credit for what is worth it, and for time gone by; what goes beyond `most` is lost."""
        if self._credit < most:
            self._credit = min(self._credit + credit, most)

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
        """The error that ends the connection."""
        self.is_over = True
        farewell = b"" if self._is_cut else goaway_frame(self._last_stream, code)
        if not self._has_begun:
            farewell = EMPTY_SETTINGS + farewell
        return Http2Error(code, note, farewell)


def text(debug_data: bytes) -> str:
    """What came with a GOAWAY, as far as it is worth a log line."""
    return debug_data[:_LONGEST_NOTE].decode("latin-1")
