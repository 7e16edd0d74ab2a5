"""One HTTP/2 connection in memory: raw frames into the codec, what it told its driver, and frames of what it sent.

hyperframe reads the frames and hpack the header blocks, so that the codec is not judged by its own library.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fakes.frames import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    block,
    frame,
)
from tlsproxy.wire.http2 import Http2Error, Limits, ServerCodec
from tlsproxy.wire.messages import ProtocolError, RequestHead

LIMITS: Final = Limits(header_size=8192, header_count=50, target_size=1024, streams=100)
BEGIN: Final = PREFACE + frame(SETTINGS)
FULL: Final = 16_384  # bytes of the largest frame (RFC 9113 4.2)
GET: Final[Fields] = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")]
POST: Final[Fields] = [(b":method", b"POST"), *GET[1:]]
WEBSOCKET: Final[Fields] = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]


class Recorder:
    """Keeps what a driver would be told. `calls` without the heads' insides, for comparison; `heads` by stream."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.heads: dict[int, RequestHead] = {}
        self.refused: dict[int, ProtocolError] = {}
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, Fields] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.closed: list[int] = []
        self.has_left = False
        self.malformed = 0

    def request_received(self, stream: int, head: RequestHead, *, ended: bool) -> None:
        self.heads[stream] = head
        self._note(stream, ended=ended)
        self.calls.append(("request", stream, meaning(head), ended))

    def request_refused(self, stream: int, head: RequestHead, error: ProtocolError) -> None:
        self.refused[stream] = error
        self.calls.append(("refused", stream, error.status, error.reason, head.method, head.target, head.host))

    def request_malformed(self) -> None:
        self.malformed += 1

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        self.bodies[stream] = self.bodies.get(stream, b"") + data
        self._note(stream, ended=ended)
        self.calls.append(("body", stream, data, ended))

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        self.trailers[stream] = trailers
        self._note(stream, ended=True)
        self.calls.append(("trailers", stream, trailers))

    def stream_reset(self, stream: int, code: int) -> None:
        self.resets[stream] = code
        self.calls.append(("reset", stream, code))

    def stream_closed(self, stream: int) -> None:
        self.closed.append(stream)
        self.calls.append(("closed", stream))

    def window_opened(self, stream: int) -> None:
        self.calls.append(("window", stream))

    def client_leaves(self) -> None:
        self.has_left = True
        self.calls.append(("leaves",))

    def _note(self, stream: int, *, ended: bool) -> None:
        if ended:
            assert stream not in self.ended
            self.ended.add(stream)


def meaning(head: RequestHead) -> tuple[object, ...]:
    """Everything that was understood, to compare two readings."""
    return (
        head.method, head.target, head.version, head.host, head.port, head.authority, list(map(tuple, head.fields)),
        head.special, head.framing, head.length, head.keep_alive, head.expect_continue, head.upgrade,
        head.trailers_accepted, head.user_agent, head.referer,
    )  # fmt: skip


class Wire:
    """A client of raw frames and the codec it talks to. Everything the codec has to say is taken after each `feed`."""

    def __init__(self, limits: Limits = LIMITS, *, begin: bytes = BEGIN) -> None:
        self.told = Recorder()
        self.codec = ServerCodec(self.told, limits)
        self.sent = b""  # by the codec
        self.frames: list[Frame] = []
        self.answers: dict[int, list[Fields]] = {}
        self._decoder = hpack.Decoder(max_header_list_size=2**20)
        self._unread = b""
        self.pump()
        if begin:
            self.feed(begin)

    def feed(self, *pieces: bytes) -> None:
        """Let the codec read these, one after the other, and take what it sends after the last."""
        for piece in pieces:
            self.codec.receive(piece)
        self.pump()

    def pump(self, most: int = 0) -> bytes:
        data = self.codec.send(most)
        self.sent += data
        self._hear(data)
        return data

    def fails(self, *pieces: bytes) -> Http2Error:
        """The error that ends the connection within `pieces`, before anything is sent."""
        try:
            for piece in pieces:
                self.codec.receive(piece)
        except Http2Error as error:
            return error
        raise AssertionError("the connection goes on")

    def of(self, kind: type[Frame], stream: int | None = None) -> list[Frame]:
        return [each for each in self.frames if type(each) is kind and stream in (None, each.stream_id)]

    def content(self, stream: int) -> list[bytes]:
        """The pieces of its answer's body."""
        return [each.data for each in self.frames if isinstance(each, DataFrame) and each.stream_id == stream]

    @property
    def heads(self) -> list[bytes]:
        """All header blocks, as they came."""
        return [each.data for each in self.frames if isinstance(each, HeadersFrame)]

    def resets(self) -> dict[int, int]:
        return {each.stream_id: each.error_code for each in self.frames if isinstance(each, RstStreamFrame)}

    def goaways(self) -> list[tuple[int, int]]:
        """Last stream and code of each."""
        return [(each.last_stream_id, each.error_code) for each in self.frames if isinstance(each, GoAwayFrame)]

    def granted(self, stream: int) -> int:
        """What WINDOW_UPDATE gave so far."""
        updates = [each for each in self.frames if isinstance(each, WindowUpdateFrame) and each.stream_id == stream]
        return sum(each.window_increment for each in updates)

    @property
    def settings(self) -> dict[int, int]:
        first = self.frames[0]
        assert isinstance(first, SettingsFrame)
        return dict(first.settings)

    @property
    def table_size(self) -> int:
        """Bytes that the codec has the client's decoder keep (RFC 7541 4.1)."""
        return int(self._decoder.header_table_size)

    @property
    def table_entries(self) -> int:
        return len(self._decoder.header_table.dynamic_entries)

    def _hear(self, data: bytes) -> None:
        data = self._unread + data
        while len(data) >= 9:
            each, length = Frame.parse_frame_header(memoryview(data[:9]))
            if len(data) < 9 + length:
                break
            each.parse_body(memoryview(data[9 : 9 + length]))
            self.frames.append(each)
            data = data[9 + length :]
            if isinstance(each, HeadersFrame):
                assert "END_HEADERS" in each.flags
                fields = self._decoder.decode(each.data, raw=True)
                self.answers.setdefault(each.stream_id, []).append([(bytes(n), bytes(v)) for n, v in fields])
        self._unread = data


def request(stream: int, fields: Iterable[tuple[bytes, bytes]] = GET, *, ended: bool = True, pad: bytes = b"") -> bytes:
    """A whole request, or the head of one with a body. `pad` may be more of a header block."""
    flags = END_HEADERS | (END_STREAM if ended else 0)
    return frame(HEADERS, block(fields) + pad, flags=flags, stream=stream)


def body(stream: int, data: bytes = b"", *, ended: bool = False) -> bytes:
    return frame(DATA, data, flags=END_STREAM if ended else 0, stream=stream)


def trailers(stream: int, fields: Fields) -> bytes:
    return frame(HEADERS, block(fields), flags=END_HEADERS | END_STREAM, stream=stream)


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, code.to_bytes(4, "big"), stream=stream)


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, size.to_bytes(4, "big"), stream=stream)


def settings_frame(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs))


def frames_of(data: bytes) -> list[Frame]:
    """The frames that `data` is, and nothing beside them."""
    found = []
    while data:
        each, length = Frame.parse_frame_header(memoryview(data[:9]))
        each.parse_body(memoryview(data[9 : 9 + length]))
        found.append(each)
        data = data[9 + length :]
    return found
