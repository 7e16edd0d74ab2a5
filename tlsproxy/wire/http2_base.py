"""What the HTTP/2 codecs and their drivers agree on: error codes, exceptions, what a driver is told. Pure."""

from __future__ import annotations

from struct import Struct
from typing import Final, Protocol

from tlsproxy.wire.fields import Fields
from tlsproxy.wire.messages import ProtocolError, RequestHead

# RFC 9113 7
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

EMPTY_SETTINGS: Final = b"\0\0\0\4\0\0\0\0\0"  # the first frame that either side sends (RFC 9113 3.4), at the least
_NAMES: Final = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip
_GOAWAY: Final = 7
_write_goaway: Final = Struct(">xHBBIII").pack  # RFC 9113 4.1: length, type, flags, stream; then the payload of 6.8


class Http2Error(Exception):
    """The connection is over: write `farewell`, then close. `code` is one of RFC 9113 7, `note` is for the operator."""

    def __init__(self, code: int, note: str, farewell: bytes) -> None:
        super().__init__(note)
        self.code = code
        self.note = note
        self.farewell = farewell


class StreamGone(Exception):
    """The stream takes no more: it has been reset meanwhile. Nothing was sent."""


class ServerEvents(Protocol):
    """What the driver of a client's connection is told, from inside `receive` and `send`."""

    def request_received(self, stream: int, head: RequestHead, *, ended: bool) -> None:
        """A new stream. `ended`: no body follows."""

    def request_refused(self, stream: int, head: RequestHead, error: ProtocolError) -> None:
        """A new stream, to be answered with `error.status`. `head` is what can be told of it, for the log."""

    def request_malformed(self) -> None:
        """A request that has no meaning (RFC 9113 8.1.1) was reset. There is nothing to be answered, or to be told."""

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        """Content. It counts against the client's windows until it is acknowledged."""

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        """The end of the request's body."""

    def stream_reset(self, stream: int, code: int) -> None:
        """By the client, or because it broke a rule on this stream. `stream_closed` follows, maybe not at once."""

    def stream_closed(self, stream: int) -> None:
        """Both directions are over: forget it."""

    def window_opened(self, stream: int) -> None:
        """More can be sent on a stream, or (0) on the connection."""

    def client_leaves(self) -> None:
        """The client begins no more streams (GOAWAY)."""


def code_name(code: int) -> str:
    """What RFC 9113 7 calls an error code."""
    return _NAMES[code] if code < len(_NAMES) else f"code {code}"


def goaway_frame(last_stream: int, code: int) -> bytes:
    """A GOAWAY frame: libnghttp2 makes none when it gives a session up."""
    return _write_goaway(8, _GOAWAY, 0, 0, last_stream, code)
