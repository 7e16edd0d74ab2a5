"""One HTTP/2 stream: a request of the client and what is sent for it. The `ClientSide` of its exchange.

Knows its own queue and deadlines; of the connection only the driver it was made by. What the client sends goes through
its `Inflow`. After an upgrade (RFC 8441) it is what the tunnel writes to.

Rule kept: a piece of the answer is asked for when the client has taken enough of what came before it.

Mutable state: `_exchange` or `_tunnel` (who the stream belongs to), `body_pending` (more of the request is to come),
`_has_answered` (our last frame is queued), `_is_over` (whoever it belonged to is done), `_is_full`, `_written`, and for
the deadline `_taken`, `_taken_at`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy import grpc
from tlsproxy.proxy.exchange import Exchange
from tlsproxy.proxy.http2_inflow import Inflow
from tlsproxy.proxy.phase import ANSWERING, CONNECTING
from tlsproxy.wire.http2 import StreamGone
from tlsproxy.wire.http2_base import code_name
from tlsproxy.wire.http2_heads import is_right_accept
from tlsproxy.wire.messages import ProtocolError

if TYPE_CHECKING:
    from tlsproxy.proxy.http2 import Http2Driver
    from tlsproxy.proxy.router import Site
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.proxy.tunnel import Tunnel
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import RequestHead

logger = logging.getLogger(__name__)

_HIGH: Final = 64 * 1024  # bytes of its answer that a stream may have queued
_LOW: Final = 16 * 1024
_MUCH: Final = 16 * 1024  # bytes in a piece that are worth a look at what is queued
_NO_ERROR: Final = 0
_INTERNAL_ERROR: Final = 2
_CANCEL: Final = 8


class Http2Stream:
    """See the module's text."""

    __slots__ = (
        "_driver", "_exchange", "_has_answered", "_head", "_inflow", "_is_full", "_is_over", "_number", "_taken",
        "_taken_at", "_tunnel", "_written", "body_pending",
    )  # fmt: skip

    def __init__(self, driver: Http2Driver, number: int, head: RequestHead, *, ended: bool) -> None:
        self._driver = driver
        self._number = number
        self._head = head
        self._exchange: Exchange | None = None
        self._tunnel: Tunnel | None = None
        self._inflow = None if ended else Inflow(driver, number)
        self.body_pending = not ended
        self._has_answered = False
        self._is_over = False
        self._is_full = False
        self._written = 0
        self._taken = 0
        self._taken_at = 0.0

    def __repr__(self) -> str:
        return f"<Http2Stream {self._number} {self._tunnel or self._exchange}>"

    @property
    def info(self) -> ConnectionInfo:
        return self._driver.stream.info

    @property
    def site(self) -> Site | None:
        owner = self._tunnel or self._exchange
        return owner.site if owner is not None else None

    @property
    def stream(self) -> Http2Stream:
        """What a tunnel writes to."""
        return self

    # --- for the driver -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the exchange, with what has come of the body meanwhile."""
        exchange = self._exchange = Exchange(self, self._driver.services, self._head, self._driver.stream.info)
        try:
            exchange.start(self._driver.peer)
            # What comes before the answer to an upgrade is the tunnel's.
            if self._inflow is not None and self._exchange is exchange and not self._head.upgrade:
                self._begin_body(self._inflow)
        except Exception:  # noqa: BLE001  # security rule 9: a fault of ours ends this request, no other
            self.crashed()

    def refuse(self, error: ProtocolError) -> None:
        """Answer a head that can't be taken."""
        exchange = self._exchange = Exchange(self, self._driver.services, self._head, self._driver.stream.info)
        exchange.error = error.note
        exchange.refuse(error.status, error.reason)

    def data_received(self, data: bytes, *, ended: bool) -> None:
        """A piece of the request's body, or of the tunnel."""
        inflow = self._inflow
        if inflow is None:
            return  # libnghttp2 lets nothing through behind END_STREAM
        inflow.count(len(data))
        try:
            if inflow.early is not None:
                inflow.early += data  # stays unacknowledged: no more than a window can wait here
            elif data:
                self._take(inflow, data)
            if ended:
                self.body_ended([])
        except Exception:  # noqa: BLE001
            self.crashed()

    def body_ended(self, trailers: Fields) -> None:
        self.body_pending = False
        inflow = self._inflow
        if inflow is None:
            return
        inflow.end()
        if inflow.early is not None:
            inflow.trailers = trailers
        elif self._tunnel is not None:
            self._tunnel.client_ended()
        elif self._exchange is not None:
            self._exchange.request_end(trailers)

    def reset_by_client(self, code: int) -> None:
        """Say in the log how it ended. A request against the protocol is reset by the codec."""
        if self._exchange is not None and not self._exchange.error:
            self._exchange.error = f"the client reset the stream ({code_name(code)})"

    def closed(self) -> None:
        """Nothing more can be sent or will come: whoever is not done with the client learns that it left."""
        tunnel, exchange = self._tunnel, self._exchange
        self.body_pending = False  # or `_be_over` would have the driver wait for the end of what has ended
        if self._inflow is not None:
            self._inflow.drop()
        self._tunnel = self._exchange = None
        if tunnel is not None:
            tunnel.client_closed()
        elif exchange is not None:
            exchange.client_gone()

    def check_deadline(self, now: float) -> None:
        """Enforce the limits of what is being waited for. `now` is monotonic."""
        if self._tunnel is not None:
            self._tunnel.check_deadline(now)
        elif self._exchange is not None:
            self._exchange.check_deadline(now)
        services = self._driver.services
        if self._inflow is not None and self._inflow.is_late(now, self._body_patience()):
            self._body_timed_out()
        if self._is_stalled(now, services.write_idle):
            self._give_up()

    def drain(self) -> None:
        """The worker leaves: what is in flight may end; a tunnel is told."""
        if self._tunnel is not None:
            self._tunnel.drain()

    def hold(self) -> None:
        """Ask the backend for no more."""
        if self._tunnel is not None:
            self._tunnel.client_full()
        elif self._exchange is not None:
            self._exchange.client_full()

    def let_go(self) -> None:
        """Ask the backend for more, if there is room."""
        if not self.has_room():
            self._driver.hold_back(self)
            return
        self._is_full = False
        if self._tunnel is not None:
            self._tunnel.client_ready()
        elif self._exchange is not None:
            self._exchange.client_ready()

    def has_room(self) -> bool:
        return self._driver.codec.queued(self._number) <= _LOW

    def is_sent(self) -> bool:
        """Whether the answer has left the codec, its end too: that waits for a window as its bytes do."""
        codec = self._driver.codec
        return codec.queued(self._number) == 0 and codec.has_window(self._number)

    def stop_request(self) -> None:
        """The answer is out, the request is not complete: the rest of it is not wanted (RFC 9113 8.1)."""
        if self.body_pending:
            self._reset(_NO_ERROR)

    # --- the request --------------------------------------------------------------------------------------------------

    def _begin_body(self, inflow: Inflow) -> None:
        if self.body_pending and not self._head.expect_continue:
            # A client that waits for a 100 is not slow: the backend is (RFC 9110 10.1.1).
            inflow.wait()
        early, inflow.early = inflow.early, None
        if early:
            self._take(inflow, bytes(early))
        if inflow.trailers is not None:
            self.body_ended(inflow.trailers)

    def _take(self, inflow: Inflow, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.client_data(data)
        elif self._exchange is not None:
            if self.body_pending:
                inflow.wait()  # who did not wait for a 100 is expected to go on
            self._exchange.request_data(data)
        inflow.taken(flows=self._exchange is None or self._exchange.state is not CONNECTING)

    def _body_patience(self) -> float:
        """Who listens to an answer that has begun, as in a call of gRPC with streams both ways, need not speak."""
        services, exchange = self._driver.services, self._exchange
        return services.tunnel_idle if exchange is not None and exchange.state is ANSWERING else services.body_idle

    def _body_timed_out(self) -> None:
        if self._exchange is not None:
            self._exchange.request_failed(
                ProtocolError(408, "The request body did not arrive in time.", "limits.body_idle exceeded")
            )

    # --- exchange.ClientSide ------------------------------------------------------------------------------------------

    def send_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        if status == 100 and self.body_pending and self._inflow is not None:
            self._inflow.wait()
        try:
            self._driver.codec.inform(self._number, status, fields)
        except StreamGone:
            return
        self._driver.schedule()

    def accept_upgrade(self, fields: Fields) -> str:
        """Tell the client 200 (RFC 8441 5). The backend's proof that it understood was for us, who sent the key."""
        accepts = [value for name, value in fields if name.lower() == b"sec-websocket-accept"]
        if len(accepts) != 1 or not is_right_accept(self._key(), accepts[0]):
            return "its Sec-WebSocket-Accept is not the one of the key it was sent (RFC 6455 4.1)"
        rest = [field for field in fields if field[0].lower() != b"sec-websocket-accept"]
        with contextlib.suppress(StreamGone):  # `closed` tells the tunnel
            self._driver.codec.respond(self._number, 200, rest, ended=False)
        self._driver.schedule()
        return ""

    def _key(self) -> bytes:
        return next((value for name, value in self._head.fields if name.lower() == b"sec-websocket-key"), b"")

    def send_head(self, status: int, reason: bytes, fields: Fields, length: int, *, has_body: bool) -> None:
        if length >= 0 and status != 204:  # RFC 9110 8.6
            fields = [*fields, (b"content-length", b"%d" % length)]
        self._has_answered = not has_body or length == 0
        try:
            self._driver.codec.respond(self._number, status, fields, ended=self._has_answered)
        except StreamGone:
            self._has_answered = True

    def send_data(self, data: bytes) -> None:
        if self._has_answered:
            return
        driver = self._driver
        try:
            driver.codec.send_data(self._number, data)
        except StreamGone:
            self._has_answered = True
            return
        size = len(data)
        self._written += size
        if self._written > _HIGH or size > _MUCH or driver.is_tight:
            self._look_at_queue()

    def send_end(self, trailers: Fields) -> None:
        if self._has_answered:
            return
        self._has_answered = True
        try:
            if trailers:
                self._driver.codec.send_trailers(self._number, trailers)
            else:
                self._driver.codec.end(self._number)
        except StreamGone:
            return

    def flush(self) -> None:
        self._driver.schedule()

    def pause_request(self) -> None:
        if self._inflow is not None:
            self._inflow.pause()

    def resume_request(self) -> None:
        if self._inflow is not None:
            self._inflow.resume()

    def exchange_done(self, *, request_complete: bool) -> None:
        self._exchange = None
        self._be_over()

    def exchange_cut(self) -> None:
        """Half an answer must not look like a whole one (security rule 8)."""
        if grpc.is_call(self._head):
            self.send_end(grpc.BROKEN_OFF)
            return
        self._has_answered = True
        self._reset(_INTERNAL_ERROR)

    def crashed(self) -> None:
        logger.exception("exchange.crashed", extra={"client": self.info.client})
        if self._exchange is not None:
            self._exchange.crashed()
        else:
            self._reset(_INTERNAL_ERROR)

    def start_tunnel(self, tunnel: Tunnel) -> bytes:
        self._tunnel = tunnel
        self._exchange = None
        inflow = self._inflow
        if inflow is None:
            return b""
        early, inflow.early = inflow.early or b"", None
        inflow.resume()
        inflow.acknowledge()
        if inflow.trailers is not None:
            self._driver.services.loop.call_soon(tunnel.client_ended)
        return bytes(early)

    # --- what a tunnel writes to --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.send_data(data)
        self._driver.schedule()

    def pause_reading(self) -> None:
        self.pause_request()

    def resume_reading(self) -> None:
        self.resume_request()

    def close(self) -> None:
        """The tunnel is over: END_STREAM for the client's FIN (RFC 8441 5)."""
        self._tunnel = None
        self.send_end([])
        self._be_over()

    def _be_over(self) -> None:
        """Whoever the stream belonged to is done. What the client still sends is not wanted (RFC 9113 8.1)."""
        self._is_over = True
        if self._inflow is not None:
            self._inflow.drop()
        if self.body_pending:
            self._driver.finish(self)
        else:
            self._driver.schedule()

    # --- the queue ----------------------------------------------------------------------------------------------------

    def _look_at_queue(self) -> None:
        driver = self._driver
        if not self._is_full and driver.codec.queued(self._number) > (_LOW if driver.is_tight else _HIGH):
            self._is_full = True
            driver.hold_back(self)
            self.hold()
        driver.look_at_budget()

    def _is_stalled(self, now: float, patience: float) -> bool:
        """Whether the client took nothing of what is queued, or of the end of it, for so long.

        A stream whose own window is open waits behind others (RFC 9218): then it is theirs that has to move.
        """
        codec = self._driver.codec
        queued = codec.queued(self._number)
        taken = self._driver.moved if codec.has_own_window(self._number) else self._written - queued
        if not (queued or self._is_over) or taken != self._taken or not self._taken_at:
            self._taken, self._taken_at = taken, now
            return False
        return now - self._taken_at > patience

    def _give_up(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            exchange.error = exchange.error or "the client took nothing for limits.write_idle"
        self._reset(_CANCEL)

    def _reset(self, code: int) -> None:
        try:
            self._driver.codec.reset(self._number, code)
        except StreamGone:
            return
        self._driver.schedule()
