"""One end of an HTTP/2 connection, as a test sees it: frames out, frames in, streams collected. RFC 9113, client side.

hyperframe makes and reads the frames, hpack the header blocks, so that the proxy's codec is not judged by itself.
Nothing is repaired and little is done by itself: SETTINGS and PING are acknowledged, windows are opened only by `grant`
(or by `generous`), and what the server does is checked: whole header blocks, frame sizes, and the windows it was given.
Every wait ends after `PATIENCE` seconds with an error.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fakes.peer import CUT, PATIENCE

Fields = list[tuple[bytes, bytes]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR = range(
    7
)
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(7, 12)  # RFC 9113 7
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
PRIORITY_UPDATE: Final = 16  # RFC 9218 7.1
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
WITH_PRIORITY: Final = 32
LARGEST_WINDOW: Final = 2**31 - 1
_WINDOW: Final = 65_535
_FRAME: Final = 16_384
_SETTINGS: Final = SettingsFrame


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Any frame at all (RFC 9113 4.1); hyperframe refuses to make wrong ones."""
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"), payload)


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block that is right whatever came before it: it refers to the static table and to itself alone."""
    return hpack.Encoder().encode(list(fields))


def plain_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The same without indexing and Huffman code (RFC 7541 6.2.2): nothing of it enters a table."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def headers_frames(
    block: bytes, stream: int, *, end_stream: bool = True, cuts: Sequence[int] = ()
) -> list[HeadersFrame | ContinuationFrame]:
    """HEADERS and, for each of the `cuts`, one CONTINUATION that begins there."""
    pieces = [block[start:end] for start, end in pairwise([0, *cuts, len(block)])]
    frames: list[HeadersFrame | ContinuationFrame] = [HeadersFrame(stream, pieces[0])]
    frames += [ContinuationFrame(stream, piece) for piece in pieces[1:]]
    if end_stream:
        frames[0].flags.add("END_STREAM")
    frames[-1].flags.add("END_HEADERS")
    return frames


@dataclass
class Stream:
    """What the server has sent on one stream. `reset` is the code of its RST_STREAM; `ended` by END_STREAM."""

    interim: list[Fields] = field(default_factory=list)
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None
    pieces: list[int] = field(default_factory=list)
    """The sizes of its DATA frames."""

    @property
    def status(self) -> int:
        return status_of(self.fields)

    @property
    def is_over(self) -> bool:
        return self.ended or self.reset is not None

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key == name.encode()]

    def get(self, name: str) -> bytes | None:
        """The value of a field that must not come twice."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None


def status_of(fields: Fields) -> int:
    """The `:status`, 0 if there is none (yet)."""
    return next((int(value) for name, value in fields if name == b":status"), 0)


class FramePeer:
    """A blocking client over a connected socket: TLS that has agreed on h2 (`over_tls`), or in the clear.

    `settings` are ours, by number; `begin=False` sends nothing at first. `frames` holds every frame of the server, in
    order; `streams` what became of each stream; `goaways` its GOAWAY frames; `ended` how the connection ended.
    """

    def __init__(
        self,
        sock: socket.socket,
        settings: Mapping[int, int] | None = None,
        *,
        begin: bool = True,
        host: str = "a.test",
    ) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.host = host.encode()
        self.frames: list[Frame] = []
        self.streams: dict[int, Stream] = {}
        self.goaways: list[GoAwayFrame] = []
        self.server_settings: dict[int, int] = {}
        self.ended = ""
        """"" (it has not), "closed" (in order), "reset"."""
        self.acknowledges = True
        self.generous = False
        """Whether what DATA takes of the windows is given back at once."""
        self._ours = dict(settings or {})
        self._decoder = hpack.Decoder(max_header_list_size=2**20)
        self._buffer = bytearray()
        self._open_block: tuple[HeadersFrame, bytearray] | None = None
        self._acknowledged = 0  # SETTINGS and PING frames of ours
        self.pongs: list[bytes] = []
        self._given: dict[int, int] = {0: _WINDOW}  # what the server may still send
        self._room: dict[int, int] = {0: _WINDOW}  # what we may still send
        self._next_stream = 1
        self._marks = 0
        if begin:
            self.begin()

    @classmethod
    def over_tls(
        cls,
        raw: socket.socket,
        trust: ssl.SSLContext,
        host: str = "a.test",
        settings: Mapping[int, int] | None = None,
        *,
        begin: bool = True,
    ) -> FramePeer:
        """`trust` is a context of a client that offers h2 (`set_alpn_protocols(["h2"])`)."""
        sock = trust.wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False)
        assert sock.selected_alpn_protocol() == "h2", sock.selected_alpn_protocol()
        return cls(sock, settings, begin=begin, host=host)

    # --- sending ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Preface and SETTINGS, and wait until both sides have acknowledged (RFC 9113 3.4)."""
        self.send(PREFACE, SettingsFrame(0, self._ours))
        self.until(lambda: self._acknowledged > 0 and bool(self.server_settings), "SETTINGS and their ACK")

    def send(self, *frames: Frame | bytes) -> None:
        """In one piece. A server that has closed already is no error here: reading tells."""
        for each in frames:
            if isinstance(each, WindowUpdateFrame):
                self._given[each.stream_id] = self.given(each.stream_id) + each.window_increment
        data = b"".join(each if isinstance(each, bytes) else each.serialize() for each in frames)
        with contextlib.suppress(*CUT, BrokenPipeError):
            self.sock.sendall(data)

    def new_stream(self) -> int:
        number, self._next_stream = self._next_stream, self._next_stream + 2
        return number

    def head(
        self, path: str | bytes = b"/", headers: Iterable[tuple[bytes, bytes]] = (), *, method: bytes = b"GET"
    ) -> Fields:
        """The fields of an ordinary request."""
        path = path.encode() if isinstance(path, str) else path
        pseudo = [(b":method", method), (b":scheme", b"https"), (b":authority", self.host), (b":path", path)]
        return [*pseudo, *headers]

    def request(
        self,
        path: str | bytes = b"/",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        method: bytes = b"",
        end: bool = True,
    ) -> int:
        """Send a request; a body (or `end=False`) makes it a POST. Windows are not looked at: see `upload`."""
        stream = self.new_stream()
        method = method or (b"GET" if end and not body else b"POST")
        only_head = end and not body
        frames: list[Frame] = [
            *headers_frames(block(self.head(path, headers, method=method)), stream, end_stream=only_head)
        ]
        if body:
            frames += data_frames(stream, body, end=end)
            self._take_room(stream, len(body))
        self.send(*frames)
        return stream

    def data(self, stream: int, body: bytes = b"", *, end: bool = False) -> None:
        """DATA, whatever the windows."""
        self._take_room(stream, len(body))
        self.send(*data_frames(stream, body, end=end))

    def upload(self, stream: int, body: bytes, *, end: bool = True) -> None:
        """DATA as the windows permit, reading meanwhile. Stops when the stream is reset."""
        view = memoryview(body)
        while view and not self.stream(stream).is_over:
            self.until(lambda: self.room(stream) > 0 or self.stream(stream).is_over, f"room for {len(view)} bytes")
            piece = view[: min(self.room(stream), _FRAME)]
            view = view[len(piece) :]
            self.data(stream, bytes(piece), end=end and not view)
        if end and not body:
            self.data(stream, end=True)

    def trailers(self, stream: int, fields: Fields) -> None:
        """End the request with a trailer section."""
        self.send(*headers_frames(block(fields), stream))

    def grant(self, size: int, stream: int = 0) -> None:
        """Let the server send so much more (WINDOW_UPDATE)."""
        self.send(WindowUpdateFrame(stream, size))

    def change_settings(self, settings: Mapping[int, int]) -> None:
        """Send SETTINGS and wait for the ACK."""
        if SettingsFrame.INITIAL_WINDOW_SIZE in settings:
            change = settings[SettingsFrame.INITIAL_WINDOW_SIZE] - self._initial_window()
            self._given.update({stream: size + change for stream, size in self._given.items() if stream})
        self._ours.update(settings)
        before = self._acknowledged
        self.send(SettingsFrame(0, dict(settings)))
        self.until(lambda: self._acknowledged > before, "the ACK of SETTINGS")

    def send_ping(self) -> bytes:
        """Send a PING; the server's ACK will be in `pongs`."""
        self._marks += 1
        mark = b"%08d" % self._marks
        self.send(PingFrame(0, mark))
        return mark

    def reset(self, stream: int, code: int = CANCEL) -> None:
        self.send(RstStreamFrame(stream, code))

    def goaway(self, code: int = NO_ERROR, last: int = 0) -> None:
        self.send(GoAwayFrame(0, last, code))

    def close(self) -> None:
        self.sock.close()

    # --- what came ----------------------------------------------------------------------------------------------------

    def stream(self, number: int) -> Stream:
        return self.streams.setdefault(number, Stream())

    def room(self, stream: int) -> int:
        """How many bytes of DATA we may send on `stream` now."""
        mine = self._room.setdefault(stream, self.server_settings.get(_SETTINGS.INITIAL_WINDOW_SIZE, _WINDOW))
        return min(mine, self._room[0])

    def given(self, stream: int) -> int:
        """How much the server may still send on `stream`; 0: on the connection."""
        return self._given.setdefault(stream, self._initial_window())

    def kinds(self, stream: int = 0) -> list[str]:
        """The names of the server's frames on `stream`, such as "HEADERS", in order."""
        return [
            each.__class__.__name__.removesuffix("Frame").upper() for each in self.frames if each.stream_id == stream
        ]

    # --- waiting ------------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Read until the condition holds; an error when the connection ends or nothing comes for too long."""
        self.until_ended(condition, what)
        assert condition(), f"{self.ended} while waiting for {what}; {self._story()}"

    def until_ended(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Read until the condition holds or the connection has ended."""
        limit = time.monotonic() + PATIENCE
        while not self.ended and not condition():
            assert self._more(limit - time.monotonic()), f"waited in vain for {what}; {self._story()}"

    def head_of(self, stream: int) -> Stream:
        """The stream, once its final head has come."""
        self.until(lambda: bool(self.stream(stream).fields) or self.stream(stream).is_over, f"the head of {stream}")
        return self.stream(stream)

    def answer(self, stream: int) -> Stream:
        """The whole answer; an error if the stream was reset before its end."""
        answer = self.over(stream)
        assert answer.ended, self._story()
        return answer

    def over(self, stream: int) -> Stream:
        """The stream, once it has ended in whatever way."""
        self.until(lambda: self.stream(stream).is_over, f"the end of stream {stream}")
        return self.stream(stream)

    def get(self, path: str | bytes = b"/", headers: Iterable[tuple[bytes, bytes]] = ()) -> Stream:
        """An ordinary request and its answer."""
        return self.answer(self.request(path, headers))

    def ping(self) -> None:
        """Wait until the server has dealt with everything that was sent (RFC 9113 6.7)."""
        mark = self.send_ping()
        self.until(lambda: mark in self.pongs, "the ACK of a PING")

    def is_quiet(self, stream: int, seconds: float = 0.1) -> bool:
        """True if nothing comes on `stream` for a while: for what must not happen, if a `ping` can't tell."""
        before = len(self.kinds(stream))
        limit = time.monotonic() + seconds
        while not self.ended and self._more(limit - time.monotonic()):
            pass
        return len(self.kinds(stream)) == before

    def expect_reset(self, stream: int, *codes: int) -> Stream:
        """The server resets the stream with one of these codes (none given: with any)."""
        self.until(lambda: self.stream(stream).reset is not None, f"RST_STREAM of {stream}")
        reset = self.stream(stream).reset
        assert not codes or reset in codes, f"RST_STREAM with {reset}; {self._story()}"
        return self.stream(stream)

    def expect_goaway(self, *codes: int) -> GoAwayFrame:
        """The server says GOAWAY with one of these codes and closes."""
        self.expect_closed()
        assert self.goaways, f"no GOAWAY; {self._story()}"
        assert not codes or self.goaways[-1].error_code in codes, self._story()
        return self.goaways[-1]

    def expect_closed(self) -> None:
        """The server closes the connection."""
        self.until_ended(lambda: False, "the end of the connection")

    # --- reading ------------------------------------------------------------------------------------------------------

    def _more(self, seconds: float) -> bool:
        """Take in what comes within so many seconds, the end of the connection as well; False when nothing came."""
        self.sock.settimeout(max(seconds, 0.001))
        try:
            data = self.sock.recv(262_144)
        except (ConnectionResetError, BrokenPipeError):
            self.ended = "reset"
            return True
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            self.ended = "closed" if isinstance(error, ssl.SSLZeroReturnError) else "reset"
            return True
        except TimeoutError:
            return False
        finally:
            self.sock.settimeout(PATIENCE)
        if data:
            self._hear(data)
        else:
            assert not self._buffer, f"it ended within a frame; {self._story()}"
            self.ended = "closed"
        return True

    def _hear(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9:
            heard, size = Frame.parse_frame_header(memoryview(bytes(self._buffer[:9])))
            assert size <= self._ours.get(_SETTINGS.MAX_FRAME_SIZE, _FRAME), f"a frame of {size} bytes"  # RFC 9113 4.2
            if len(self._buffer) < 9 + size:
                return
            heard.parse_body(memoryview(bytes(self._buffer[9 : 9 + size])))
            heard.body_len = size
            del self._buffer[: 9 + size]
            self._take(heard)

    def _take(self, heard: Frame) -> None:
        self.frames.append(heard)
        if self._open_block is not None:
            head, _ = self._open_block
            assert isinstance(heard, ContinuationFrame), heard  # RFC 9113 4.3
            assert heard.stream_id == head.stream_id, heard
        match heard:
            case HeadersFrame():
                self._open_block = heard, bytearray(heard.data)
                self._end_block("END_HEADERS" in heard.flags)
            case ContinuationFrame():
                assert self._open_block is not None, heard
                self._open_block[1].extend(heard.data)
                self._end_block("END_HEADERS" in heard.flags)
            case DataFrame():
                self._take_data(heard)
            case RstStreamFrame():
                self.stream(heard.stream_id).reset = heard.error_code
            case SettingsFrame() | PingFrame() | WindowUpdateFrame() | GoAwayFrame():
                self._take_control(heard)

    def _take_control(self, heard: SettingsFrame | PingFrame | WindowUpdateFrame | GoAwayFrame) -> None:
        match heard:
            case SettingsFrame():
                self._take_settings(heard)
            case PingFrame() if "ACK" in heard.flags:
                self.pongs.append(heard.opaque_data)
            case PingFrame():
                self.send(PingFrame(0, heard.opaque_data, flags=["ACK"]))
            case WindowUpdateFrame():
                self.room(heard.stream_id)
                self._room[heard.stream_id] += heard.window_increment
                assert self._room[heard.stream_id] <= LARGEST_WINDOW, heard  # RFC 9113 6.9.1
            case GoAwayFrame():
                self.goaways.append(heard)

    def _take_settings(self, heard: SettingsFrame) -> None:
        if "ACK" in heard.flags:
            self._acknowledged += 1
            table = self._ours.get(_SETTINGS.HEADER_TABLE_SIZE, 4096)
            self._decoder.max_allowed_table_size = table  # hpack insists that the next block obeys (RFC 7541 4.2)
            return
        before = self.server_settings.get(_SETTINGS.INITIAL_WINDOW_SIZE, _WINDOW)
        change = heard.settings.get(_SETTINGS.INITIAL_WINDOW_SIZE, before) - before
        self._room.update({stream: size + change for stream, size in self._room.items() if stream})
        self.server_settings.update(heard.settings)
        if self.acknowledges:
            self.send(SettingsFrame(0, flags=["ACK"]))

    def _take_data(self, heard: DataFrame) -> None:
        number, size = heard.stream_id, heard.body_len  # padding counts (RFC 9113 6.9.1)
        stream = self.stream(number)
        assert stream.fields, f"DATA before HEADERS: {heard}"
        assert not stream.is_over, f"DATA on a stream that is over: {heard}"
        assert size <= min(self.given(number), self.given(0)) or size == 0, f"{size} bytes exceed the window"
        self._given[number] -= size
        self._given[0] -= size
        stream.body += heard.data
        stream.pieces.append(len(heard.data))
        stream.ended = "END_STREAM" in heard.flags
        if self.generous and size:
            self.grant(size)
            if not stream.ended:
                self.grant(size, number)

    def _end_block(self, is_whole: bool) -> None:
        if not is_whole or self._open_block is None:
            return
        (head, data), self._open_block = self._open_block, None
        fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(bytes(data), raw=True)]
        stream = self.stream(head.stream_id)
        assert not stream.is_over, f"HEADERS on a stream that is over: {fields}"
        if stream.fields:
            assert "END_STREAM" in head.flags, "trailers without END_STREAM"  # RFC 9113 8.1
            stream.trailers = fields
        elif status_of(fields) < 200:
            stream.interim.append(fields)
        else:
            stream.fields = fields
        stream.ended = "END_STREAM" in head.flags

    def _take_room(self, stream: int, size: int) -> None:
        self.room(stream)
        self._room[stream] -= size
        self._room[0] -= size

    def _initial_window(self) -> int:
        return self._ours.get(_SETTINGS.INITIAL_WINDOW_SIZE, _WINDOW)

    def _story(self) -> str:
        """The last of what the server said, for messages of failed tests."""
        said = "; ".join(repr(each)[:120] for each in self.frames[-8:])
        return f"the server's {len(self.frames)} frames end: {said}"


def data_frames(stream: int, body: bytes, *, end: bool) -> list[DataFrame]:
    """DATA frames of at most 16 KiB; an empty one if there is no body."""
    pieces = [body[at : at + _FRAME] for at in range(0, len(body), _FRAME)] or [b""]
    frames = [DataFrame(stream, piece) for piece in pieces]
    if end:
        frames[-1].flags.add("END_STREAM")
    return frames


def _text(text: bytes) -> bytes:
    """A string literal (RFC 7541 5.2), its length with 7 bits of prefix (5.1)."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    digits = bytearray([127])
    while size >= 128:
        digits.append(size % 128 | 128)
        size //= 128
    return bytes(digits) + bytes([size]) + text
