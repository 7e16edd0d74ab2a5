"""One request on one stream of an HTTP/2 connection to a backend. The `BackendStream` of its exchange.

Knows its own queue and windows; of the connection only what it needs to be sent. Never retries: Exchange does.

Rule kept: a piece of an answer is acknowledged, and so replaced in the backend's window, when the client takes more;
more of a request is asked for when the backend has taken enough of what came before it. Neither holds up any other
stream.

Mutable state: `_taker` or `_tunnel` (whose stream it is; neither: what comes is dropped), `_answering` and `_interim`
(what has come of the answer), `_paused` and `_held` (bytes not acknowledged), `_sent` and `_is_full`, `_key`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tlsproxy.proxy.backend import local_address
from tlsproxy.proxy.failures import (
    BackendFailure,
    BadAnswer,
    BrokenOff,
    ClosedBeforeAnswer,
    ClosedInAnswer,
    NotProcessed,
    NoWebSocket,
)
from tlsproxy.wire.http2_base import code_name
from tlsproxy.wire.http2_client import CANCEL, NO_ERROR, REFUSED_STREAM, StreamGone
from tlsproxy.wire.http2_heads import websocket_accept
from tlsproxy.wire.messages import Framing, ResponseHead

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import AnswerTaker, TunnelEnd
    from tlsproxy.proxy.multiplexed import MultiplexedConnection
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.forwarding import Outbound
    from tlsproxy.wire.messages import RequestHead

_HIGH: Final = 64 * 1024  # bytes of its request that a stream may have queued
_LOW: Final = 16 * 1024
_MOST_INTERIM: Final = 64
_NO_BODY: Final = Framing.NONE


class MultiplexedStream:
    """See the module's text. Made by `MultiplexedBackend.claim`; `begin` gives it its `number`."""

    __slots__ = (
        "_answering", "_connection", "_held", "_interim", "_is_full", "_is_reset", "_key", "_paused", "_sent", "_taker",
        "_tunnel", "number", "request", "reused",
    )  # fmt: skip

    may_refuse = True

    def __init__(self, connection: MultiplexedConnection) -> None:
        self._connection = connection
        self.number = 0
        self.request = b""  # of a WebSocket that waits for the backend's SETTINGS
        self.reused = connection.begun > 0
        self._taker: AnswerTaker | None = None
        self._tunnel: TunnelEnd | None = None
        self._answering = False
        self._interim = 0
        self._paused = False
        self._held = 0
        self._sent = 0
        self._is_full = False
        self._is_reset = False
        self._key: bytes | None = None  # of a WebSocket

    def __repr__(self) -> str:
        state = "tunnel" if self._tunnel else "active" if self._taker else "done"
        return f"<MultiplexedStream {self._connection.url} {self.number} {state}>"

    # --- BackendStream ------------------------------------------------------------------------------------------------

    @property
    def local_address(self) -> str:
        return local_address(self._connection.transport)

    def begin(self, taker: AnswerTaker, request: Outbound, head: RequestHead, body: bytes = b"") -> None:
        self._taker = taker
        connection = self._connection
        if head.upgrade:
            self._key = next((value for name, value in head.fields if name.lower() == b"sec-websocket-key"), b"")
            self.request = request.data
            connection.begin_websocket(self)
            return
        is_whole = head.framing is _NO_BODY or (head.framing is Framing.LENGTH and head.length == 0)
        connection.begin(self, request.data, ended=is_whole)
        if body:
            self.send(body)

    def send(self, data: bytes) -> None:
        connection = self._connection
        try:
            connection.codec.send_data(self.number, data)
        except (StreamGone, ValueError):
            return  # whoever has to know is told by `closed`
        connection.schedule()
        self._sent += len(data)
        if self._sent > _HIGH and not self._is_full and connection.codec.queued(self.number) > _HIGH:
            self._is_full = True
            connection.hold_back(self)
            taker = self._tunnel or self._taker
            if taker is not None:
                taker.backend_full()

    def end(self, trailers: Fields) -> None:
        try:
            if trailers:
                self._connection.codec.send_trailers(self.number, trailers)
            else:
                self._connection.codec.end(self.number)
        except (StreamGone, ValueError):
            return
        self._connection.schedule()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._acknowledge()

    def release(self, *, request_sent: bool) -> None:
        """A backend that answered early may never take the rest of the request: then the stream is reset."""
        self._taker = None
        self.resume_reading()
        if not request_sent or (self._sent and self._connection.codec.queued(self.number)):
            self.reset()

    def abort(self) -> None:
        """The connection lives on: others use it."""
        self._taker = self._tunnel = None
        self.resume_reading()
        self.reset()

    def become_tunnel(self, tunnel: TunnelEnd) -> None:
        self._taker = None
        self._tunnel = tunnel

    def close(self, *, said_goodbye: bool = False) -> None:
        """END_STREAM is what a FIN is elsewhere (RFC 8441 5).

        After a close frame a reset says as much, and hypercorn 0.18 survives it: it forgets the stream on which it has
        said its own, and its whole connection dies of DATA for that, even of none.
        """
        self._tunnel = None
        self.resume_reading()
        if said_goodbye and not self._connection.codec.queued(self.number):
            self.reset()
            return
        self.end([])
        self._connection.expect_end(self)

    # --- for the connection -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """End both directions; what has not been sent is dropped."""
        if not self._is_reset:
            self._is_reset = True
            self._connection.reset(self, CANCEL)

    def interim_received(self, head: ResponseHead) -> None:
        self._interim += 1
        if self._interim > _MOST_INTERIM:
            self.refused(f"more than {_MOST_INTERIM} interim answers to one request")
        elif self._taker is not None:
            self._taker.interim(head)

    def head_received(self, head: ResponseHead, *, ended: bool) -> None:
        taker = self._taker
        if taker is None:
            return
        self._answering = True
        self._connection.backend.learn_server(head.server)
        if self._key is not None and head.status < 300:
            self._switch(taker, head, ended=ended)
            return
        taker.answer_head(head)
        if ended:
            self._end([])
        elif head.framing is _NO_BODY:
            self._connection.expect_end(self)  # some servers send a body to HEAD; that is their fault, not the answer's
            self._end([])

    def body_received(self, data: bytes, *, ended: bool) -> None:
        if data:
            if self._taker is not None:
                self._taker.answer_data(data)
            elif self._tunnel is not None:
                self._tunnel.backend_data(data)
            if self._paused:
                self._held += len(data)
            else:
                self._connection.codec.acknowledge(self.number, len(data))
        if ended:
            self._end([])

    def trailers_received(self, trailers: Fields) -> None:
        self._end(trailers)

    def flush(self) -> None:
        """Nothing more comes in this turn of the loop."""
        if self._taker is not None:
            self._taker.answer_flush()

    def refused(self, note: str) -> None:
        """The answer can't be taken."""
        taker = self._taker
        self.abort()
        if taker is not None:
            taker.backend_failed(BadAnswer(self._connection.url, note))

    def closed(self, code: int, *, by_backend: bool) -> None:
        """Nothing more can be sent or will come."""
        self.resume_reading()
        if self._taker is not None or self._tunnel is not None:
            self.fail(self._closed_failure(code, by_backend=by_backend))

    def lost(self, why: str, *, was_sent: bool) -> None:
        """The connection is gone."""
        url = self._connection.url
        if self._answering or self._interim:
            self.fail(ClosedInAnswer(url, f"{why} in the middle of the answer"))
        elif was_sent:
            self.fail(ClosedBeforeAnswer(url, f"{why} before the answer"))
        else:
            self.fail(NotProcessed(url, f"{why} before the request was sent"))

    def fail(self, failure: BackendFailure) -> None:
        taker, self._taker = self._taker, None
        tunnel, self._tunnel = self._tunnel, None
        if taker is not None:
            taker.backend_failed(failure)
        elif tunnel is not None:
            tunnel.backend_closed()

    def has_room(self) -> bool:
        """Whether the backend has taken enough of the request to be sent more of it."""
        return self._connection.codec.queued(self.number) <= _LOW

    def ready(self) -> None:
        self._is_full = False
        taker = self._tunnel or self._taker
        if taker is not None:
            taker.backend_ready()

    def crash(self) -> None:
        """Called in an except block: a fault of ours speaks against the request, not against the backend."""
        taker = self._taker
        self.abort()
        if taker is not None:
            taker.crash()

    def no_websocket(self) -> None:
        self.fail(NoWebSocket(self._connection.url, "its SETTINGS do not allow WebSocket (RFC 8441)"))

    # --- private ------------------------------------------------------------------------------------------------------

    def _switch(self, taker: AnswerTaker, head: ResponseHead, *, ended: bool) -> None:
        """The 200 of an extended CONNECT means the 101 of an upgrade. Its proof is ours to write: no key was sent."""
        answer = ResponseHead(101, b"")
        answer.upgrade = b"websocket"
        answer.template = head.template
        answer.fields = [field for field in head.fields if field[0] != b"sec-websocket-accept"]
        answer.fields.append((b"Sec-WebSocket-Accept", websocket_accept(self._key or b"")))
        taker.switched(answer, b"")
        if ended:
            self._end([])

    def _end(self, trailers: Fields) -> None:
        if self._taker is not None:
            self._taker.answer_end(trailers)
        elif self._tunnel is not None:
            self._tunnel.backend_closed()

    def _acknowledge(self) -> None:
        if self._held:
            held, self._held = self._held, 0
            self._connection.codec.acknowledge(self.number, held)
            self._connection.schedule()

    def _closed_failure(self, code: int, *, by_backend: bool) -> BackendFailure:
        url = self._connection.url
        if code == REFUSED_STREAM and not self._answering and not self._interim:
            return NotProcessed(url, "the request was refused" if by_backend else "it left before it took the request")
        if by_backend and code == NO_ERROR and not self._answering and not self._interim:
            return ClosedBeforeAnswer(url, "the stream was closed without an answer")  # hypercorn 0.18 leaves like that
        if by_backend:
            return BrokenOff(url, f"it reset the stream ({code_name(code)})")
        return BadAnswer(url, "the answer is malformed (RFC 9113 8.1.1)")
