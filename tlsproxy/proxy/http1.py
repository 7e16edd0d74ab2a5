"""The driver of one client's HTTP/1.1 connection: requests in, one exchange at a time, answers out in order.

Knows HTTP/1.1 and its deadlines, not TLS and not routing. Pipelined requests wait in the codec's buffer; when more than
`_PIPELINE` bytes wait, reading stops. What an exchange sends in one turn of the loop is collected and written once, so
that it becomes one TLS record and one system call.

Mutable state: `_exchange` (the request being answered), `_body_pending` (its body is not complete), `_waiting_since`
and `_waiting_for` (the deadline that runs), `_last` (this answer is the connection's last), `_full` (the client has yet
to take what was written: no further request is begun, or answers would pile up here), `_tunnel`.
"""

from __future__ import annotations

import logging
import time
from enum import Enum
from http import HTTPStatus
from typing import Final

from tlsproxy.proxy.exchange import Exchange
from tlsproxy.proxy.router import Site
from tlsproxy.proxy.services import Services
from tlsproxy.proxy.stream import ClientStream, ConnectionInfo
from tlsproxy.proxy.tunnel import Tunnel
from tlsproxy.proxy.vouching import make_peer
from tlsproxy.wire.fields import Fields
from tlsproxy.wire.http1 import RequestReader, chunk, last_chunk, response_head_bytes
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead

logger = logging.getLogger(__name__)

_PIPELINE: Final = 64 * 1024
_QUIET_BEFORE_CLOSE: Final = 1.0  # seconds a draining worker lets an idle connection send one more request
_RENAMED: Final = {  # by RFC 9110; Python 3.11 still has the old names
    413: b"Content Too Large",
    414: b"URI Too Long",
    416: b"Range Not Satisfiable",
    422: b"Unprocessable Content",
}
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus} | _RENAMED
_CONNECTION_CLOSE: Final = (b"Connection", b"close")
_CONNECTION_KEEP_ALIVE: Final = (b"Connection", b"keep-alive")
_CHUNKED: Final = (b"Transfer-Encoding", b"chunked")
_SWITCHED: Final = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]


class Wait(Enum):
    """What the connection waits for from the client; each has its own limit."""

    HEAD = 0
    BODY = 1
    NEXT_REQUEST = 2
    NOTHING = 3


# A global costs a third of looking a member up on its Enum.
_HEAD, _BODY, _NEXT_REQUEST, _NOTHING = Wait
_NO_BODY: Final = Framing.NONE


class Http1Driver:
    """See the module's text. A `stream.Driver` to the connection and an `exchange.ClientSide` to the exchange."""

    __slots__ = (
        "_body_pending", "_chunked", "_exchange", "_full", "_last", "_out", "_paused", "_peer", "_reader",
        "_services", "_serving", "_tunnel", "_version", "_waiting_for", "_waiting_since", "stream",
    )  # fmt: skip

    def __init__(self, stream: ClientStream, services: Services) -> None:
        self.stream = stream
        self._services = services
        self._reader = RequestReader(
            header_size=services.header_size, header_count=services.header_count, target_size=services.target_size
        )
        self._peer = make_peer(stream.info, services.forwarding)
        self._exchange: Exchange | None = None
        self._tunnel: Tunnel | None = None
        self._out: list[bytes] = []
        self._version = 11
        self._body_pending = False
        self._chunked = False
        self._last = False
        self._full = False
        self._serving = False
        self._paused = False
        self._waiting_for = _HEAD
        self._waiting_since = time.monotonic()

    @property
    def info(self) -> ConnectionInfo:
        return self.stream.info

    # --- stream.Driver ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.client_data(data)
            return
        self._reader.receive(data)
        try:
            if self._exchange is None and not self._full:
                self._serve()
            elif self._body_pending:
                self._read_body()
            elif self._reader.buffered > _PIPELINE:
                self.pause_request()
        except Exception:  # noqa: BLE001  # security rule 9: a fault of ours ends this connection, no other
            self.crashed()

    def eof_received(self) -> None:
        if self._tunnel is not None:
            self._tunnel.client_closed()
        elif self._exchange is not None:
            self._exchange.client_gone()
        self.stream.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._last = True
        if self._tunnel is not None:
            self._tunnel.client_closed()
        elif self._exchange is not None:
            self._exchange.client_gone()

    def pause_writing(self) -> None:
        self._full = True
        if self._tunnel is not None:
            self._tunnel.client_full()
        elif self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        self._full = False
        if self._tunnel is not None:
            self._tunnel.client_ready()
        elif self._exchange is not None:
            self._exchange.client_ready()
        elif not self._last:
            self._go_on()

    def check_deadline(self, now: float) -> None:
        """Enforce the limit of what is being waited for, and hand the tick on. `now` is monotonic."""
        if self._tunnel is not None:
            self._tunnel.check_deadline(now)
            return
        if self._exchange is not None:
            self._exchange.check_deadline(now)
        waited = now - self._waiting_since
        if self._waiting_for is _NEXT_REQUEST:
            if waited > (_QUIET_BEFORE_CLOSE if self._services.draining else self._services.keep_alive):
                self.stream.close()
        elif self._waiting_for is _HEAD:
            if waited > self._services.header_timeout:
                self._header_timed_out()
        elif self._waiting_for is _BODY and not self._paused and waited > self._services.body_idle:
            self._body_timed_out()

    def drain(self) -> None:
        """Finish what is in flight; an idle connection may send one more request within a second, then it is closed."""
        if self._tunnel is not None:
            self._tunnel.drain()
        elif self._exchange is None and not self._reader.buffered:
            self._waiting_for = _NEXT_REQUEST
            self._waiting_since = time.monotonic()

    def sites_in_flight(self) -> list[Site | None]:
        if self._tunnel is not None:
            return [self._tunnel.site]
        return [] if self._exchange is None else [self._exchange.site]

    @property
    def idle_since(self) -> float | None:
        """A client that has yet to send its head counts as idle too: slow ones must not keep others out."""
        return self._waiting_since if self._waiting_for in (_NEXT_REQUEST, _HEAD) else None

    # --- reading requests ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Start exchanges until one has to wait for its backend, or no whole head is left."""
        if self._serving:
            return
        self._serving = True
        reader = self._reader
        try:
            while self._exchange is None and not self._last and not self._full:
                head = reader.next_head()
                if head is None:
                    self._wait_for_head()
                    return
                self._start(head)
        except ProtocolError as error:
            self._refuse_head(error)
        except Exception:  # noqa: BLE001  # here too: the end of the answer before may have led here
            self.crashed()
        finally:
            self._serving = False

    def _wait_for_head(self) -> None:
        if self._reader.buffered and self._waiting_for is not _HEAD:
            self._waiting_for = _HEAD
            self._waiting_since = time.monotonic()

    def _start(self, head: RequestHead) -> None:
        self._version = head.version
        self._last = not head.keep_alive
        self._chunked = False
        self._body_pending = head.framing is not _NO_BODY
        exchange = self._exchange = Exchange(self, self._services, head, self.stream.info)
        self._waiting_for = _NOTHING
        exchange.start(self._peer)
        if self._body_pending and self._exchange is exchange:
            # A client that waits for a 100 is not slow: the backend is (RFC 9110 10.1.1).
            self._waiting_for = _NOTHING if head.expect_continue else _BODY
            self._read_body()

    def _read_body(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._waiting_since = time.monotonic()
        try:
            data = self._reader.read_body()
        except ProtocolError as error:
            self._last = True
            exchange.request_failed(error)
            return
        if data:
            self._waiting_for = _BODY
            exchange.request_data(data)
        if self._reader.body_done and self._exchange is exchange:
            self._body_pending = False
            self._waiting_for = _NOTHING
            exchange.request_end(self._reader.trailers)

    def _refuse_head(self, error: ProtocolError) -> None:
        """Answer a head that can't be read, and close: what follows it has no meaning (security rule 3)."""
        self._last = True
        self._version = 11
        self._body_pending = True  # unread bytes may follow: close with patience
        exchange = self._exchange = Exchange(self, self._services, self._reader.refused_head(), self.stream.info)
        if self._waiting_for is _HEAD:
            exchange.started = self._waiting_since
        exchange.error = error.note
        exchange.refuse(error.status, error.reason)

    def _header_timed_out(self) -> None:
        if self._reader.buffered:
            self._refuse_head(
                ProtocolError(408, "The request header did not arrive in time.", "limits.header_timeout exceeded")
            )
        else:
            self.stream.close()  # it never said anything

    def _body_timed_out(self) -> None:
        self._last = True
        self._waiting_for = _NOTHING
        if self._exchange is not None:
            self._exchange.request_failed(
                ProtocolError(408, "The request body did not arrive in time.", "limits.body_idle exceeded")
            )

    # --- exchange.ClientSide ------------------------------------------------------------------------------------------

    def send_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        if status == 100 and self._body_pending:
            self._waiting_for = _BODY
            self._waiting_since = time.monotonic()
        self.stream.write(response_head_bytes(status, reason or _REASONS.get(status, b""), fields))

    def send_head(self, status: int, reason: bytes, fields: Fields, length: int, *, has_body: bool) -> None:
        fields = list(fields)
        if length >= 0:
            if status != 204:  # RFC 9110 8.6
                fields.append((b"Content-Length", b"%d" % length))
        elif has_body:
            if self._version == 11:
                self._chunked = True
                fields.append(_CHUNKED)
            else:
                self._last = True
        if self._body_pending or self._services.draining:
            self._last = True
        if self._last:
            fields.append(_CONNECTION_CLOSE)
        elif self._version == 10:
            fields.append(_CONNECTION_KEEP_ALIVE)
        self._out.append(response_head_bytes(status, reason or _REASONS.get(status, b""), fields))

    def send_data(self, data: bytes) -> None:
        self._out.append(chunk(data) if self._chunked else data)

    def send_end(self, trailers: Fields) -> None:
        if self._chunked:
            self._out.append(last_chunk(trailers))

    def flush(self) -> None:
        out = self._out
        if len(out) == 1:
            self.stream.write(out[0])
        elif out:
            self.stream.write(b"".join(out))
        self._out = []

    def pause_request(self) -> None:
        self._paused = True
        self.stream.pause_reading()

    def resume_request(self) -> None:
        if self._paused:
            self._paused = False
            self._waiting_since = time.monotonic()
            self.stream.resume_reading()

    def exchange_done(self, *, request_complete: bool) -> None:
        self._exchange = None
        if not request_complete or self._body_pending or (self._last and self._paused):
            self.flush()  # unread bytes of the client would turn our FIN into a reset
            self._waiting_for = _NOTHING
            self._last = True
            self.stream.finish()
        elif self._last:
            self._waiting_for = _NOTHING
            out, self._out = self._out, []
            self.stream.close(b"".join(out))
        else:
            self.flush()
            self._next_request()

    def exchange_cut(self) -> None:
        self._last = True
        self.flush()
        self.stream.abort()

    def accept_upgrade(self, fields: Fields) -> str:
        """The 101 (RFC 9110 15.2.2). Whether the backend's handshake fits the client's is for the client to check."""
        self.send_interim(101, b"", [*fields, *_SWITCHED])
        return ""

    def start_tunnel(self, tunnel: Tunnel) -> bytes:
        self._tunnel = tunnel
        self._exchange = None
        self._waiting_for = _NOTHING
        self.resume_request()
        return self._reader.take_rest()

    def _next_request(self) -> None:
        self._waiting_for = _NEXT_REQUEST
        self._waiting_since = time.monotonic()
        self._go_on()

    def _go_on(self) -> None:
        """Take up the requests that wait; if the client is full, `resume_writing` will."""
        if self._full:
            return
        self.resume_request()
        if self._reader.buffered:
            self._serve()

    def crashed(self) -> None:
        logger.exception("exchange.crashed", extra={"client": self.stream.info.client})
        self._last = True
        if self._exchange is not None:
            self._exchange.crashed()
        self.stream.close()
