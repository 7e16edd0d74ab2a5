"""One question to one server: are you well? A connection of its own for each, in h11 or HTTP/2, and bounded.

Knows what is asked and what counts as well; not when it is asked, nor what follows (`health`). An answer of 2xx or 3xx
is well. A server of HTTP/2 may be one of gRPC, which answers a GET with 415, with an answer of its own kind or with a
reset of the stream: whatever of these it does, it lives. Where there is nothing to ask for, a connection is enough.

Rule: the verdict is a sentence for the operator, "" for well; the answer's body is read, to leave as a client should,
but tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import h11

from tlsproxy.proxy.failures import ConnectFailed
from tlsproxy.wire.http2_client import ClientCodec, Http2Error

if TYPE_CHECKING:
    from tlsproxy.proxy.dialing import Place
    from tlsproxy.wire.fields import Field, Fields
    from tlsproxy.wire.messages import ResponseHead

_MOST_HEAD: Final = 64 * 1024  # bytes
_MOST_BODY: Final = 64 * 1024
_UNSUPPORTED: Final = 415
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_CUT: Final = "it closed the connection without an answer"


class Question:
    """What a server is asked: `path` with GET, "" for no more than a connection. `fields` include Host."""

    def __init__(self, path: str = "", fields: Sequence[Field] = (), *, timeout: float) -> None:
        self.path = path
        self.fields = fields
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"<Question {f'GET {self.path}' if self.path else 'connect'}, {self.timeout:g} s>"


async def ask(url: str, place: Place, question: Question) -> str:
    """What is wrong with the server, "" if it is well. Raises OutOfResources: this says nothing about the server."""
    witness = _witness(url, question)
    try:
        async with asyncio.timeout(question.timeout):
            await place.connect(lambda: witness, question.timeout)
            await witness.heard
    except TimeoutError:
        return witness.verdict(f"no answer within {question.timeout:g} s")
    except ConnectFailed as failure:
        if not failure.counts:
            raise
        return failure.note.removeprefix(f"{url}: ")
    finally:
        witness.leave()
    return witness.verdict(_CUT)


def _witness(url: str, question: Question) -> _Witness:
    if url.startswith("h2c"):
        return _Http2Witness(question)
    return _Http1Witness(question) if question.path else _Witness(question)


def _judge(path: str, status: int) -> str:
    if 200 <= status < 400:
        return ""
    return f"GET {path} was answered with {status} {_PHRASES.get(status, '')}".rstrip()


class _Witness(asyncio.Protocol):
    """Hears that there is a connection, and nothing more. `heard` is done when there is no more to wait for."""

    def __init__(self, question: Question) -> None:
        self.heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._question = question
        self._transport: asyncio.Transport | None = None
        self._verdict: str | None = None

    def verdict(self, otherwise: str) -> str:
        return otherwise if self._verdict is None else self._verdict

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._begin(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _begin(self, transport: asyncio.Transport) -> None:
        self._end("")

    def _end(self, verdict: str | None = None) -> None:
        if verdict is not None and self._verdict is None:
            self._verdict = verdict
        if not self.heard.done():
            self.heard.set_result(None)


class _Http1Witness(_Witness):
    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        self._body = 0

    def _begin(self, transport: asyncio.Transport) -> None:
        fields = [*self._question.fields, (b"Connection", b"close")]
        request = h11.Request(method="GET", target=self._question.path, headers=fields)
        transport.write((self._h11.send(request) or b"") + (self._h11.send(h11.EndOfMessage()) or b""))

    def data_received(self, data: bytes) -> None:
        if self.heard.done():
            return
        try:
            self._h11.receive_data(data)
            self._read()
        except h11.RemoteProtocolError as error:
            self._end(f"its answer is not valid HTTP/1.1 ({error})")

    def eof_received(self) -> None:
        """May be the end of an answer that has no other."""
        with contextlib.suppress(h11.RemoteProtocolError):
            self._h11.receive_data(b"")
            self._read()
        self._end()

    def _read(self) -> None:
        while (event := self._h11.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                self._verdict = _judge(self._question.path, event.status_code)
            elif isinstance(event, h11.Data):
                self._body += len(event.data)
            if not isinstance(event, h11.InformationalResponse | h11.Response | h11.Data) or self._body > _MOST_BODY:
                self._end()
                return


class _Http2Witness(_Witness):
    """Implements `http2_client.ClientEvents`."""

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self._codec = ClientCodec(self)
        self._body = 0

    def _begin(self, transport: asyncio.Transport) -> None:
        if self._question.path:
            lines = b"".join(b"%b: %b\r\n" % field for field in self._question.fields)
            # The codec takes heads as `forwarding` writes them, with these two at their end.
            own = b"X-Request-ID: health\r\nX-Request-Start: t=0\r\n"
            self._codec.request(b"GET %b HTTP/1.1\r\n%b%b\r\n" % (self._question.path.encode(), lines, own), ended=True)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.heard.done():
            return
        if not self._codec.is_settled and data.startswith(b"HTTP/1."):
            self._end('it answers in HTTP/1.1; write its address with "http://"')
            return
        try:
            self._codec.receive(data)
            self._flush()
        except Http2Error as error:
            self._end(f"its answer is not valid HTTP/2 ({error.note})")
        if self._codec.is_over:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._codec.close()

    def _flush(self) -> None:
        while data := self._codec.send(0):
            self._transport.write(data)  # type: ignore[union-attr]  # there is one, or nothing would have come

    # --- ClientEvents -------------------------------------------------------------------------------------------------

    def settings_received(self) -> None:
        if not self._question.path:
            self._end("")

    def head_received(self, stream: int, head: ResponseHead, *, ended: bool) -> None:
        kinds = [value for name, value in head.fields if name.lower() == b"content-type"]
        is_grpc = head.status == _UNSUPPORTED or any(kind.startswith(b"application/grpc") for kind in kinds)
        self._verdict = "" if is_grpc else _judge(self._question.path, head.status)
        if ended:
            self._end()

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        self._body += len(data)
        if ended or self._body > _MOST_BODY:
            self._end()

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        self._end()

    def answer_refused(self, stream: int, note: str) -> None:
        self._end(f"its answer is not valid HTTP/2 ({note})")

    def stream_closed(self, stream: int, code: int, *, by_backend: bool) -> None:
        self._end("" if by_backend else None)

    def interim_received(self, stream: int, head: ResponseHead) -> None: ...
    def backend_leaves(self, code: int, note: str) -> None: ...
    def pong_received(self) -> None: ...
