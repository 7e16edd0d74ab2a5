"""One connection to one backend. Knows HTTP, not routing. Never retries: Exchange does.

Mutable state: `_exchange` (whose answer is being read; None = idle), `_answering` (its head has come), `_interim` (how
many 1xx came). A connection goes back to its pool only when the answer is complete, nothing unread is left in either
direction and both sides want to keep it (security rule 3).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, cast

from tlsproxy.proxy.failures import BackendFailure, BadAnswer, ClosedBeforeAnswer, ClosedInAnswer
from tlsproxy.wire.answers import ResponseReader
from tlsproxy.wire.http1 import chunk, last_chunk
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead, ResponseHead

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import AnswerTaker, TunnelEnd
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.forwarding import Outbound

logger = logging.getLogger(__name__)

_MOST_INTERIM: Final = 64
_HIGH_WATER: Final = 64 * 1024
_LOW_WATER: Final = 16 * 1024
_SMALL: Final = 1024  # bytes: below, what a piece costs while it waits in the transport is more than joining it
_SETTINGS: Final = b"\4\0\0\0\0\0"  # type, flags and stream of the frame that begins HTTP/2 (RFC 9113 3.4)
_WRITE_H2C: Final = 'it answers in HTTP/2; write its address with "h2c://"'
_NO_BODY: Final = Framing.NONE
_CHUNKED: Final = Framing.CHUNKED  # a global costs a third of looking a member up on its Enum


def local_address(transport: asyncio.BaseTransport | None) -> str:
    """Our address on a connection; "" where there is none, as on a unix socket."""
    name = transport.get_extra_info("sockname") if transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else ""


class BackendConnection(asyncio.Protocol):
    """See the module's text. A `BackendStream`, made by `Backend.connect`."""

    __slots__ = (
        "_answering", "_chunked", "_exchange", "_has_body", "_interim", "_is_paused", "_keep", "_out", "_reader",
        "_transport", "_tunnel", "_unwritten", "backend", "idle_since", "is_open", "reused",
    )  # fmt: skip

    may_refuse = False

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.reused = False
        self.is_open = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._exchange: AnswerTaker | None = None
        self._tunnel: TunnelEnd | None = None
        self._answering = False
        self._chunked = False  # the request's body is
        self._keep = False
        self._has_body = False
        self._interim = 0
        self._is_paused = False
        self._unwritten = 0  # bytes in it
        self._out: list[bytes] = []  # pieces of a request with a body, or of a tunnel, that leave when the turn ends

    def __repr__(self) -> str:
        state = "tunnel" if self._tunnel else "active" if self._exchange else "idle"
        return f"<BackendConnection {self.backend.url} {state}>"

    # --- BackendStream ------------------------------------------------------------------------------------------------

    @property
    def local_address(self) -> str:
        return local_address(self._transport)

    def begin(self, taker: AnswerTaker, request: Outbound, head: RequestHead, body: bytes = b"") -> None:
        """Send the head (and maybe the first of the body) of a request; `taker` gets the answer."""
        self._exchange = taker
        self._answering = False
        self._interim = 0
        self._has_body = bool(body)
        self._chunked = head.framing is _CHUNKED
        self._reader.expect(head.method)
        if head.framing is _NO_BODY:
            self._transport.write(request.data)  # type: ignore[union-attr]  # claimed connections are open
            return
        self._write_soon(request.data)
        if body:
            self._write_soon(chunk(body) if self._chunked else body)

    def send(self, data: bytes) -> None:
        """Send a piece of the request's body, or of a tunnel."""
        self._has_body = True
        self._write_soon(chunk(data) if self._chunked else data)

    def end(self, trailers: Fields) -> None:
        """A counted body ends by itself."""
        if self._chunked:
            self._has_body = True
            self._write_soon(last_chunk(trailers))

    def _write_soon(self, data: bytes) -> None:
        """Write at the end of this turn: a system call for each piece was a quarter of the cost of an upload."""
        if not self._out:
            self.backend.turn_ends_for(self)
        self._out.append(data)
        self._unwritten += len(data)
        if self._unwritten > _HIGH_WATER:  # a turn may bring 8 MiB: libuv reads on until somebody says stop
            self.write_out()

    def write_out(self) -> None:
        """The turn has ended."""
        out, self._out = self._out, []
        self._unwritten = 0
        if out and self._transport is not None:
            if sum(map(len, out)) < len(out) * _SMALL:
                out = [b"".join(out)]
            self._transport.writelines(out)

    def pause_reading(self) -> None:
        if self.is_open and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if self.is_open and self._transport is not None:
            self._transport.resume_reading()

    def release(self, *, request_sent: bool) -> None:
        """The answer was taken whole: back to the pool, or closed if anything stands against that."""
        self._exchange = None
        if request_sent and self._keep and not self._reader.buffered and self.is_open and not self._holds_body():
            if self._is_paused:  # the end of the answer was what filled the client
                self.resume_reading()
            self.backend.put_back(self)
        else:
            self.abort()

    def _holds_body(self) -> bool:
        """Whether bytes of the request's body still wait here: a backend that answered early may never take them."""
        if not self._has_body or self._transport is None:
            return False
        return bool(self._out) or self._transport.get_write_buffer_size() > 0

    def abort(self) -> None:
        """Close at once. The exchange hears nothing any more."""
        self.is_open = False
        self._exchange = None
        self._tunnel = None
        self._out = []
        if self._transport is not None:
            self._transport.abort()

    def become_tunnel(self, tunnel: TunnelEnd) -> None:
        """From now on every byte is the tunnel's."""
        self._exchange = None
        self._tunnel = tunnel
        self._chunked = False

    def close(self, *, said_goodbye: bool = False) -> None:
        """Close after what was written has been sent, or at last when the backend has had its time to take it."""
        if self.is_open:
            self.backend.closing.append((time.monotonic(), self))
        self.is_open = False
        self._exchange = None
        self._tunnel = None
        self.write_out()
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        self._transport.set_write_buffer_limits(high=_HIGH_WATER, low=_LOW_WATER)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self._without_exchange(data)
            return
        self._reader.receive(data)
        try:
            self._advance(exchange)
        except ProtocolError as error:
            speaks_http2 = data[3:9] == _SETTINGS and not self._answering
            self._fail(BadAnswer(self.backend.url, _WRITE_H2C if speaks_http2 else error.note))
        except Exception:  # noqa: BLE001  # a fault of ours speaks against the request, not against the backend
            self.abort()
            exchange.crash()

    def eof_received(self) -> None:
        self.is_open = False  # the transport closes when this returns
        if self._tunnel is not None:
            self._tunnel.backend_closed()
        elif self._exchange is not None:
            self._end_of_stream(self._exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._transport = None
        if self._tunnel is not None:
            self._tunnel.backend_closed()
        elif self._exchange is not None:
            self._fail(self._closed_failure(exc))
        else:
            self.backend.forget(self)

    def pause_writing(self) -> None:
        taker = self._tunnel or self._exchange
        if taker is not None:
            taker.backend_full()

    def resume_writing(self) -> None:
        taker = self._tunnel or self._exchange
        if taker is not None:
            taker.backend_ready()

    # --- reading the answer -------------------------------------------------------------------------------------------

    def _advance(self, exchange: AnswerTaker) -> None:
        reader = self._reader
        if not self._answering:
            head = reader.next_head()
            while head is not None and head.status < 200:
                if not self._take_interim(exchange, head):
                    return
                head = reader.next_head()
            if head is None:
                return
            self._answering = True
            self._keep = head.keep_alive
            if head.server is not None:
                self.backend.learn_server(head.server)
            exchange.answer_head(head)
        if not reader.body_done:
            data = reader.read_body()
            if data:
                exchange.answer_data(data)
        if self._exchange is not exchange:
            return  # the exchange gave up on us meanwhile
        if reader.body_done:
            exchange.answer_end(reader.trailers)
        else:
            exchange.answer_flush()

    def _take_interim(self, exchange: AnswerTaker, head: ResponseHead) -> bool:
        """Hand on a 1xx; False when there is nothing more to read for this exchange."""
        self._interim += 1
        if self._interim > _MOST_INTERIM:
            raise ProtocolError(502, f"more than {_MOST_INTERIM} interim answers to one request")
        if head.status == 101:
            exchange.switched(head, self._reader.take_rest())
        else:
            exchange.interim(head)
        return self._exchange is exchange

    def _end_of_stream(self, exchange: AnswerTaker) -> None:
        if not self._answering:
            self._fail(self._closed_failure(None))
            return
        try:
            self._reader.receive_eof()
        except ProtocolError as error:
            self._fail(ClosedInAnswer(self.backend.url, error.note))
            return
        self._keep = False
        exchange.answer_end(self._reader.trailers)

    def _closed_failure(self, exc: Exception | None) -> BackendFailure:
        why = f"connection lost ({exc})" if exc else "connection closed"
        if self._answering or self._interim or self._reader.buffered:
            return ClosedInAnswer(self.backend.url, why + " in the middle of the answer")
        return ClosedBeforeAnswer(self.backend.url, why + " before the answer")

    def _fail(self, failure: BackendFailure) -> None:
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.backend_failed(failure)

    def _without_exchange(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.backend_data(data)
            return
        # RFC 9112 9.2: bytes on an idle connection can only be a mistake or an attack; they answer nothing.
        logger.warning("backend.unasked_answer", extra={"backend": self.backend.url, "bytes": len(data)})
        self.backend.forget(self)
        self.abort()
