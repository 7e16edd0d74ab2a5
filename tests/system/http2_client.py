"""A client of HTTP/2 that sees what libraries hide: many requests on one connection, in one thread, and every GOAWAY.

It keeps to the server's windows, and goes on after a GOAWAY with what is in flight, as RFC 9113 6.8 asks of clients
(the library under httpx is closed by any GOAWAY). A `WebSocket` is one of its streams (RFC 8441).
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from hpack import Decoder, Encoder
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
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from tests.system.running import PATIENCE, Proxy, offering

Fields = Sequence[tuple[str, str]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = 2**31 - 1
ANY_STREAM = 2**31 - 1  # what the first of two GOAWAYs names
FIRST_WINDOW = 65_535
HEADER_END = 9


class Stream:
    """One request: what was answered so far. `reset` is the code with which the server ended it, None if it did not."""

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.status = 0
        self.interim: list[int] = []
        self.fields: dict[str, str] = {}
        self.body = bytearray()
        self.trailers: dict[str, str] | None = None
        self.ended = False
        self.reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def __repr__(self) -> str:
        return f"<Stream {self.number} {self.status} {len(self.body)} bytes ended={self.ended} reset={self.reset}>"


class Http2Client:
    """One connection. What waits (`wait`, `send` without a window) reads frames meanwhile."""

    def __init__(self, proxy: Proxy, host: str = "localhost") -> None:
        self.authority = f"{host}:{proxy.port}"
        self.streams: dict[int, Stream] = {}
        self.settings: dict[int, int] = {}
        self.goaways: list[tuple[int, int]] = []  # last stream, code
        self.closed = False
        self._socket = proxy.open(host, offering(proxy.trust, "h2"))
        assert self._socket.selected_alpn_protocol() == "h2"
        self._encoder, self._decoder = Encoder(), Decoder()
        self._received = bytearray()
        self._block = bytearray()  # of headers that are not complete
        self._window = FIRST_WINDOW
        self._stream_window = FIRST_WINDOW
        self._frame_size = 16_384
        self._next = 1
        self._socket.sendall(PREFACE)
        self._send(SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: LARGEST_WINDOW}))
        self._send(WindowUpdateFrame(0, window_increment=LARGEST_WINDOW - FIRST_WINDOW))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def socket(self) -> ssl.SSLSocket:
        return self._socket

    @property
    def last_stream(self) -> int:
        """The highest number that the server may still answer."""
        return min((last for last, _ in self.goaways), default=ANY_STREAM)

    def request(
        self, path: str, method: str = "GET", headers: Fields = (), *, ended: bool = True, protocol: str = ""
    ) -> Stream:
        """Begin a request; with `ended=False` its body follows by `send`."""
        stream = Stream(self._next, self._stream_window)
        self._next += 2
        self.streams[stream.number] = stream
        extended = [(":protocol", protocol)] if protocol else []
        pseudo = [(":method", method), (":scheme", "https"), (":authority", self.authority), (":path", path)]
        block = self._encoder.encode([*pseudo, *extended, *headers])
        frame = HeadersFrame(stream.number, block, flags=["END_HEADERS"])
        if ended:
            frame.flags.add("END_STREAM")
        self._send(frame)
        return stream

    def get(self, path: str) -> Stream:
        """Ask and wait for the whole answer."""
        return self.wait(self.request(path))

    def send(self, stream: Stream, data: bytes = b"", *, ended: bool = False) -> None:
        """Send a piece of a body as far as the windows allow, read until they allow more; stop when nobody wants it."""
        while data and not stream.over:
            size = min(len(data), self._window, stream.window, self._frame_size)
            if size <= 0:
                self.read()
                continue
            self._window -= size
            stream.window -= size
            piece, data = data[:size], data[size:]
            self._send(DataFrame(stream.number, piece, flags=["END_STREAM"] if ended and not data else []))
            ended = ended and bool(data)
        if ended and not stream.over:
            self._send(DataFrame(stream.number, b"", flags=["END_STREAM"]))

    def reset(self, stream: Stream, code: int = 8) -> None:
        """Give up one request (8 is CANCEL)."""
        self._send(RstStreamFrame(stream.number, code))
        stream.reset = code

    def ping(self) -> None:
        """Return when the server has dealt with everything that was sent before."""
        payload = b"%08d" % self._next
        self._send(PingFrame(opaque_data=payload))
        while True:
            for frame in self.read():
                if isinstance(frame, PingFrame) and frame.opaque_data == payload:
                    return

    def wait(self, stream: Stream) -> Stream:
        """Return when the answer is over; the connection's end before that is an error."""
        self.wait_until(lambda: stream.over)
        return stream

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.read()

    def read_to_the_end(self) -> None:
        """Read until the server has closed the connection with close_notify."""
        with contextlib.suppress(ConnectionError):
            while True:
                self.read()

    def read(self) -> list[Frame]:
        """Take what has come, at least one frame; raises ConnectionError when the server has closed."""
        while not (frames := list(self._frames())):
            data = self._socket.recv(262_144)  # times out by itself
            if not data:
                self.closed = True
                raise ConnectionError(f"closed, {self.goaways}, {[s for s in self.streams.values() if not s.over]}")
            self._received += data
        return frames

    def _frames(self) -> Iterator[Frame]:
        while len(self._received) >= HEADER_END:
            frame, length = Frame.parse_frame_header(memoryview(self._received[:HEADER_END]))
            if len(self._received) < HEADER_END + length:
                return
            frame.parse_body(memoryview(bytes(self._received[HEADER_END : HEADER_END + length])))
            del self._received[: HEADER_END + length]
            self._take(frame)
            yield frame

    def _take(self, frame: Frame) -> None:
        match frame:
            case HeadersFrame() | ContinuationFrame():
                self._take_headers(frame)
            case DataFrame():
                self._take_data(frame)
            case RstStreamFrame():
                self.streams[frame.stream_id].reset = frame.error_code
            case SettingsFrame() if "ACK" not in frame.flags:
                self._take_settings(frame)
            case PingFrame() if "ACK" not in frame.flags:
                self._send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
            case WindowUpdateFrame() if frame.stream_id == 0:
                self._window += frame.window_increment
            case WindowUpdateFrame():
                self.streams[frame.stream_id].window += frame.window_increment
            case GoAwayFrame():
                self.goaways.append((frame.last_stream_id, frame.error_code))

    def _take_headers(self, frame: HeadersFrame | ContinuationFrame) -> None:
        stream = self.streams[frame.stream_id]
        self._block += frame.data
        if isinstance(frame, HeadersFrame):
            stream.ended = "END_STREAM" in frame.flags
        if "END_HEADERS" not in frame.flags:
            return
        decoded = self._decoder.decode(bytes(self._block), raw=True)
        fields = {name.decode(): value.decode() for name, value in decoded}
        self._block.clear()
        status = int(fields.pop(":status", "0"))
        if not status:
            stream.trailers = fields
        elif status < 200:
            stream.interim.append(status)
        else:
            stream.status, stream.fields = status, fields

    def _take_data(self, frame: DataFrame) -> None:
        stream = self.streams[frame.stream_id]
        stream.body += frame.data
        stream.ended = "END_STREAM" in frame.flags
        if frame.flow_controlled_length:
            self._send(WindowUpdateFrame(0, window_increment=frame.flow_controlled_length))

    def _take_settings(self, frame: SettingsFrame) -> None:
        self.settings.update(frame.settings)
        size = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._stream_window)
        for stream in self.streams.values():
            stream.window += size - self._stream_window  # RFC 9113 6.9.2
        self._stream_window = size
        self._frame_size = self.settings.get(SettingsFrame.MAX_FRAME_SIZE, self._frame_size)
        self._send(SettingsFrame(flags=["ACK"]))

    def _send(self, frame: Frame) -> None:
        self._socket.settimeout(PATIENCE)
        self._socket.sendall(frame.serialize())


class WebSocket:
    """A WebSocket on one stream of a connection that has others as well."""

    def __init__(self, client: Http2Client, path: str, headers: Fields = ()) -> None:
        self._client = client
        version = ("sec-websocket-version", "13")
        self.stream = client.request(path, "CONNECT", [version, *headers], ended=False, protocol="websocket")
        client.wait_until(lambda: self.stream.status > 0 or self.stream.over)
        self._frames = Connection(ConnectionType.CLIENT)
        self._parts: list[str | bytes] = []

    def send(self, message: str | bytes) -> None:
        whole = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        self._client.send(self.stream, self._frames.send(whole))

    def receive(self) -> str | bytes:
        """Return the next message, whole; raises `Closed` if there is none."""
        while True:
            event = self._next_event()
            match event:
                case Message():
                    self._parts.append(event.data)
                    if event.message_finished:
                        return self._take_parts()
                case Ping():
                    self._client.send(self.stream, self._frames.send(event.response()))
                case CloseConnection():
                    raise Closed(event.code, event.reason or "")

    def ping(self) -> None:
        """Return when the pong has come; nothing else may come before."""
        self._client.send(self.stream, self._frames.send(Ping(b"here")))
        event = self._next_event()
        assert isinstance(event, Pong)
        assert bytes(event.payload) == b"here"

    def close(self, code: int, reason: str = "") -> None:
        """Say that it is over, and hear that said back."""
        self._client.send(self.stream, self._frames.send(CloseConnection(code, reason)))
        try:
            self.receive()
        except Closed as closed:
            assert closed.code == code  # noqa: PT017
            return
        raise AssertionError("a message after the close")

    def answer_close(self) -> None:
        """Say to a server that has closed that we close too, and end the stream."""
        self._client.send(self.stream, self._frames.send(CloseConnection(1000)), ended=True)

    def _take_parts(self) -> str | bytes:
        parts, self._parts = self._parts, []
        if isinstance(parts[0], str):
            return "".join(part for part in parts if isinstance(part, str))
        return b"".join(part for part in parts if isinstance(part, bytes))

    def _next_event(self) -> Event:
        while True:
            for event in self._frames.events():
                return event
            self._client.wait_until(lambda: bool(self.stream.body) or self.stream.over)
            if not self.stream.body:
                raise Closed(1006, f"{self.stream}")
            self._frames.receive_data(bytes(self.stream.body))
            self.stream.body.clear()


class Closed(Exception):
    """The server ended the WebSocket; 1006: without a word."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason
