"""A backend that speaks HTTP/2 in the clear and does what the test says, frame by frame. RFC 9113, server side.

hyperframe makes and reads the frames, hpack the header blocks, so that the proxy's codec is not judged by itself.
Nothing is repaired and little is done by itself: SETTINGS and PING are acknowledged; windows are opened only by `grant`
(or by `generous`), and the proxy is held to those it was given. Every wait ends after `PATIENCE` seconds.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

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

from tests.fakes.backend import Backend
from tests.fakes.frames import CANCEL, NO_ERROR, PREFACE, Fields, block, data_frames, headers_frames
from tests.fakes.peer import CUT, PATIENCE

_WINDOW: Final = 65_535
MAX_STREAMS, INITIAL_WINDOW, CONNECT = 3, 4, 8  # RFC 9113 6.5.2, RFC 8441 3


@dataclass
class Request:
    """What the proxy has sent on one stream."""

    stream: int
    fields: Fields = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def body(self) -> bytes:
        return bytes(self.received)

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key == name.encode()]

    def get(self, name: str) -> bytes | None:
        """The value of a field that must not come twice."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else None


class H2cPeer:
    """One accepted connection. `begin` reads the preface and sends SETTINGS."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.frames: list[Frame] = []
        self.requests: dict[int, Request] = {}
        self.settings: dict[int, int] = {}
        self.goaways: list[GoAwayFrame] = []
        self.pings: list[bytes] = []
        self.generous = True
        """Whether what DATA takes of the windows is given back at once."""
        self.pongs = True
        """Whether PINGs are answered."""
        self.ended = ""
        self._given: dict[int, int] = {0: _WINDOW}
        self._granted: dict[int, int] = {0: 0}
        self._initial = _WINDOW
        self._served = 0
        self._preface = b""
        self._rest = b""
        self._has_begun = False
        self._heard: set[bytes] = set()
        self._block: tuple[HeadersFrame, bytearray] | None = None
        self._decoder = hpack.Decoder(max_header_list_size=2**20)

    # --- sending ------------------------------------------------------------------------------------------------------

    def begin(self, settings: Mapping[int, int] | None = None) -> H2cPeer:
        settings = dict(settings or {})
        self._initial = settings.get(INITIAL_WINDOW, _WINDOW)
        self._has_begun = True
        self.send(SettingsFrame(0, settings), *([SettingsFrame(0, flags=["ACK"])] if self.settings else []))
        self.until(lambda: bool(self.settings), "SETTINGS")
        return self

    def send(self, *frames: Frame | bytes) -> None:
        """In one piece. A proxy that has closed already is no error here: reading tells."""
        data = b"".join(each if isinstance(each, bytes) else each.serialize() for each in frames)
        with contextlib.suppress(*CUT, BrokenPipeError):
            self.sock.sendall(data)

    def head(self, stream: int, fields: Fields | None = None, *, status: int = 200, end: bool = False) -> None:
        self.send(*headers_frames(block([(b":status", b"%d" % status), *(fields or [])]), stream, end_stream=end))

    def data(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """DATA, whatever the windows."""
        self.send(*data_frames(stream, body, end=end))

    def trailers(self, stream: int, fields: Fields) -> None:
        self.send(*headers_frames(block(fields), stream))

    def answer(self, stream: int, body: bytes = b"ok", fields: Fields | None = None, *, status: int = 200) -> None:
        """A whole answer in one piece."""
        head = headers_frames(block([(b":status", b"%d" % status), *(fields or [])]), stream, end_stream=not body)
        self.send(*head, *(data_frames(stream, body, end=True) if body else []))

    def reset(self, stream: int, code: int = CANCEL) -> None:
        self.send(RstStreamFrame(stream, code))

    def goaway(self, last: int, code: int = NO_ERROR) -> None:
        self.send(GoAwayFrame(0, last, code))

    def grant(self, stream: int, size: int) -> None:
        """Let the proxy send so much more."""
        self._given[stream] = self._given.get(stream, self._initial) + size
        self.send(WindowUpdateFrame(stream, size))

    def change_settings(self, settings: Mapping[int, int]) -> None:
        self.send(SettingsFrame(0, dict(settings)))

    def close(self) -> None:
        self.sock.close()

    # --- what came ----------------------------------------------------------------------------------------------------

    def next_request(self, *, whole: bool = True) -> Request:
        """The next request in order of arrival; `whole`: once its body has ended."""
        self._served += 1
        number = self._served
        self.until(lambda: len(self.requests) >= number, f"request {number}")
        request = list(self.requests.values())[number - 1]
        if whole:
            self.until(lambda: request.ended, f"the end of {request}")
        return request

    def granted(self, stream: int) -> int:
        """What the proxy has given back of the window of `stream` by WINDOW_UPDATE."""
        return self._granted.get(stream, 0)

    def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Read until the condition holds; an error when the connection ends or nothing comes for too long."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert not self.ended, f"{self.ended} while waiting for {what}; {self._story()}"
            assert self._more(limit - time.monotonic()), f"waited in vain for {what}; {self._story()}"

    def expect_reset(self, request: Request, code: int = CANCEL) -> None:
        self.until(lambda: request.reset is not None, f"RST_STREAM of {request.stream}")
        assert request.reset == code, self._story()

    def expect_end(self) -> None:
        """The proxy closes the connection."""
        limit = time.monotonic() + PATIENCE
        while not self.ended:
            assert self._more(limit - time.monotonic()), f"it was not closed; {self._story()}"

    def ping(self) -> None:
        """Wait until the proxy has dealt with everything that was sent."""
        mark = b"%08d" % len(self._heard)
        self.send(PingFrame(0, mark))
        self.until(lambda: mark in self._heard, "a pong")

    def is_quiet(self, seconds: float = 0.1) -> bool:
        """True if nothing comes for a while: for what must not happen, if a `ping` can't tell."""
        return not self._more(seconds)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _more(self, seconds: float) -> bool:
        self.sock.settimeout(max(seconds, 0.001))
        try:
            data = self.sock.recv(262_144)
        except TimeoutError:
            return False
        except OSError:
            self.ended = "reset"
            return True
        finally:
            self.sock.settimeout(PATIENCE)
        if not data:
            self.ended = "closed"
        self._hear(data)
        return True

    def _hear(self, data: bytes) -> None:
        if len(self._preface) < len(PREFACE):
            missing = len(PREFACE) - len(self._preface)
            self._preface, data = self._preface + data[:missing], data[missing:]
            assert PREFACE.startswith(self._preface), self._preface
        data = self._rest + data
        at = 0
        while at + 9 <= len(data):
            heard, size = Frame.parse_frame_header(memoryview(data[at : at + 9]))
            if at + 9 + size > len(data):
                break
            heard.parse_body(memoryview(data[at + 9 : at + 9 + size]))
            at += 9 + size
            self.frames.append(heard)
            self._take(heard)
        self._rest = data[at:]

    def _take(self, heard: Frame) -> None:
        match heard:
            case HeadersFrame():
                self._block = heard, bytearray(heard.data)
                self._end_block("END_HEADERS" in heard.flags)
            case ContinuationFrame():
                assert self._block is not None, heard
                self._block[1].extend(heard.data)
                self._end_block("END_HEADERS" in heard.flags)
            case DataFrame():
                self._take_data(heard)
            case RstStreamFrame():
                self.requests[heard.stream_id].reset = heard.error_code
            case SettingsFrame() if "ACK" not in heard.flags:
                self.settings = {**self.settings, **heard.settings}
                if self._has_begun:
                    self.send(SettingsFrame(0, flags=["ACK"]))
            case PingFrame() if "ACK" in heard.flags:
                self._heard.add(heard.opaque_data)
            case PingFrame():
                self.pings.append(heard.opaque_data)
                if self.pongs:
                    self.send(PingFrame(0, heard.opaque_data, flags=["ACK"]))
            case WindowUpdateFrame():
                self._granted[heard.stream_id] = self.granted(heard.stream_id) + heard.window_increment
            case GoAwayFrame():
                self.goaways.append(heard)

    def _take_data(self, heard: DataFrame) -> None:
        number, size = heard.stream_id, len(heard.data)
        given = self._given.setdefault(number, self._initial)
        assert size <= min(given, self._given[0]), f"{size} bytes exceed the window; {self._story()}"
        self._given[number] -= size
        self._given[0] -= size
        request = self.requests[number]
        assert not request.ended, f"DATA behind the end: {heard}"
        request.received += heard.data
        request.ended = "END_STREAM" in heard.flags
        if self.generous and size:
            self.grant(0, size)
            if not request.ended:
                self.grant(number, size)

    def _end_block(self, is_whole: bool) -> None:
        if not is_whole or self._block is None:
            return
        (head, data), self._block = self._block, None
        fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(bytes(data), raw=True)]
        if head.stream_id in self.requests:
            self.requests[head.stream_id].trailers = fields
        else:
            self.requests[head.stream_id] = Request(head.stream_id, fields)
        self.requests[head.stream_id].ended = "END_STREAM" in head.flags

    def _story(self) -> str:
        said = "; ".join(repr(each)[:120] for each in self.frames[-8:])
        return f"the proxy's {len(self.frames)} frames end: {said}"


class H2cBackend(Backend):
    """A listening socket; its connections are `H2cPeer`s."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self.url = f"h2c+unix:{path}" if path else self.url.replace("http:", "h2c:")

    def __enter__(self) -> Self:
        return self

    def connection(self, settings: Mapping[int, int] | None = None, *, begin: bool = True) -> H2cPeer:
        """Accept the next one. `begin=False`: nothing is sent, not even SETTINGS."""
        peer = H2cPeer(self.accept().sock)
        return peer.begin(settings) if begin else peer
