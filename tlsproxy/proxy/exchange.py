"""One request and its answer: the only object that knows both sides, and the only one that may retry.

Strategy: the client side (`ClientSide`: an HTTP/1.1 driver or an HTTP/2 stream) hands in a checked head and then body
pieces; the exchange routes, builds the outbound head, has `Dispatch` find a way to a backend (`BackendStream`) and
passes pieces both ways as they come. Everything is a callback; the one task is a connect, on the cold path.

Rules kept: no request is sent twice unless nothing of it can have been processed (RFC 9110 9.2.2); once the client has
the head of an answer, a failure can only be shown by cutting the stream; exactly one log line per exchange.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, assert_never

from tlsproxy.proxy import failures
from tlsproxy.proxy.dispatch import Dispatch
from tlsproxy.proxy.kept import LOST, NOTHING, KeptBody
from tlsproxy.proxy.phase import ANSWERING, DONE, SENT, TUNNEL
from tlsproxy.proxy.replies import http_date, refusal
from tlsproxy.proxy.router import Challenge, Forward, Redirect, Refuse
from tlsproxy.proxy.tunnel import Tunnel
from tlsproxy.wire.fields import Fields, allowed_trailers, answer_trailers
from tlsproxy.wire.forwarding import Peer, outbound_request
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead, ResponseHead

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.clientside import ClientSide
    from tlsproxy.proxy.services import Services
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.wire.forwarding import Outbound

_NO_BODY: Final = Framing.NONE
_CHUNKED: Final = Framing.CHUNKED


class Exchange(Dispatch):
    """See the module's text.

    Mutable state, besides `Dispatch`'s: `_connection`; `_kept` (body pieces that may have to be sent again) and
    `_replayed`; `_request_complete`; `_progress` (when something last moved); and what the record tells.
    """

    __slots__ = (
        "_client", "_connection", "_is_held", "_is_stuck", "_kept", "_progress", "_replayed", "_request",
        "_request_complete", "_sent_at",
    )  # fmt: skip

    def __init__(self, client_side: ClientSide, services: Services, head: RequestHead, info: ConnectionInfo) -> None:
        super().__init__(head, info, services)
        self._client = client_side
        self._request: Outbound | None = None
        self._connection: BackendStream | None = None
        self._request_complete = head.framing is _NO_BODY or (head.framing is Framing.LENGTH and head.length == 0)
        self._kept = NOTHING if self._request_complete else KeptBody()
        self._progress = self.started
        self._sent_at = 0.0
        self._is_stuck = self._is_held = False  # the backend takes no more of the request; its answer is not read
        self._replayed = False

    def __repr__(self) -> str:
        return f"<Exchange {self.head.method.decode()} {self.head.host} {self.state.name} {self.status or ''}>"

    # --- the client's side --------------------------------------------------------------------------------------------

    def start(self, peer: Peer) -> None:
        """Route the request and act on the outcome."""
        outcome = self._services.router.decide(self.head, self.info)
        match outcome:
            case Forward():
                self._forward(outcome, peer)
            case Redirect() | Challenge():
                self.site = outcome.site
                self.request_id = self._services.next_request_id()
                self._reply(outcome.status, outcome.fields, outcome.body)
            case Refuse():
                self.site = outcome.site
                self.refuse(outcome.status, outcome.detail)
            case _:
                assert_never(outcome)

    def request_data(self, data: bytes) -> None:
        """A piece of the request's body."""
        self.bytes_in += len(data)
        if self._over_body_limit(self.bytes_in):
            return
        self._progress = time.monotonic()
        if self._kept.is_whole:
            self._keep(data)
        if self._connection is not None:
            self._connection.send(data)

    def request_end(self, trailers: Fields) -> None:
        """The request's body is complete."""
        if self._request_complete:
            return
        self._request_complete = True
        self._progress = time.monotonic()
        trailers = allowed_trailers(trailers)
        if self._kept.is_whole:
            self._kept.trailers = trailers
        if self._connection is not None:
            self._connection.end(trailers)

    def request_failed(self, error: ProtocolError) -> None:
        """The request's body broke the protocol: the backend must never see a complete request."""
        self.error = error.note
        self._drop_backend()
        self._fail(error.status, error.reason)

    def client_gone(self) -> None:
        """The client went away before its answer was complete: stop the work for it at once."""
        if self.state is DONE:
            return
        if self.status == 0:
            self.status = 499
        self.error = self.error or "client closed the connection"
        self._drop_backend()
        self._finish()

    def client_full(self) -> None:
        """The client does not take the answer as fast as it comes."""
        self._is_held = True
        if self._connection is not None:
            self._connection.pause_reading()

    def client_ready(self) -> None:
        self._is_held = False
        self._progress = time.monotonic()
        if self._connection is not None:
            self._connection.resume_reading()

    def check_deadline(self, now: float) -> None:
        """Give up on a backend that does not answer, or takes no more of the request. `now` is monotonic."""
        if self._is_held or self.forward is None or self.backend is None:
            return
        limit = self.forward.route.response_timeout
        if (self.state is SENT or self._is_stuck) and now - self._progress > limit:
            self._drop_backend()
            why = f"no progress within response_timeout {limit:g} s"
            self.backend_failed(failures.AnswerTimedOut(self.backend.url, why))

    def refuse(self, status: int, detail: str, retry_after: int = 5) -> None:
        """Answer with an error of our own; the log says why."""
        self.error = self.error or detail
        if not self.request_id:
            self.request_id = self._services.next_request_id()
        fields, body = refusal(status, detail, self.request_id.decode(), self.head, retry_after)
        self._reply(status, fields, body)

    # --- the request on its way ---------------------------------------------------------------------------------------

    def _forward(self, forward: Forward, peer: Peer) -> None:
        self.forward = forward
        self.site = forward.site
        head, route = self.head, forward.route
        if head.framing is Framing.LENGTH and self._over_body_limit(head.length):
            return
        extra, services = route.extra, self._services
        if services.trace is not None:
            extra = [*extra, *services.trace.begin(self, head)]
        outbound = outbound_request(
            head,
            peer,
            route.outbound_target(head.target),
            request_id=services.next_request_id(),
            started_ms=int(self.started_at * 1000),
            prefix=route.prefix if route.strip else b"",
            extra=extra,
        )
        self.client = outbound.client
        self.request_id = outbound.request_id
        self._request = outbound
        self._dispatch(route)

    def _over_body_limit(self, size: int) -> bool:
        limit = self.forward.route.max_body if self.forward is not None else 0
        if not limit or size <= limit or self.state is DONE:
            return False
        self.error = f"max_body {limit} bytes exceeded"
        self._drop_backend()
        self._fail(413, f"The request body is larger than {limit} bytes.")
        return True

    def _send(self, connection: BackendStream) -> None:
        assert self._request is not None  # noqa: S101
        self._connection = connection
        self.state = SENT
        self.reused = connection.reused
        self._sent_at = self._progress = time.monotonic()
        self._is_stuck = self._is_held = False
        kept = self._kept
        if kept is NOTHING:
            connection.begin(self, self._request, self.head)
        else:
            self._client.resume_request()  # before `begin`, which may find the backend full and pause it again
            connection.begin(self, self._request, self.head, kept.data())
            if kept.trailers is not None:
                connection.end(kept.trailers)
        if self._replayed or not (failures.may_be_replayed(connection, self.head.method) or self._outlives_restart):
            self._kept = LOST  # no replay: what was sent is let go at once, and its memory is still in the caches

    def _keep(self, piece: bytes) -> None:
        """Hold a piece of the body while there is no connection or a replay is possible."""
        self._kept.add(piece)
        if self._kept.is_full:
            if self._connection is None:
                self._client.pause_request()
            else:
                self._kept = LOST

    # --- the backend's side (AnswerTaker) -----------------------------------------------------------------------------

    def interim(self, head: ResponseHead) -> None:
        """100, 102, 103 … go on to a client that may know them (RFC 9110 15.2)."""
        self._progress = time.monotonic()
        if self.head.version >= 11 and (head.status != 100 or self.head.expect_continue):
            self._client.send_interim(head.status, head.reason, head.fields)

    def switched(self, head: ResponseHead, rest: bytes) -> None:
        """A 101: right only if this client asked for just that (security rule 4)."""
        connection = self._connection
        assert connection is not None and self.backend is not None  # noqa: S101, PT018
        if not self.head.upgrade or head.upgrade != b"websocket":
            wrong = f"101 to {head.upgrade.decode('latin-1')!r}, not asked for"
        else:
            fields, sticky = head.fields, self.forward.route.sticky  # type: ignore[union-attr]  # it was forwarded
            wrong = self._client.accept_upgrade(sticky.mark(self.head, self.backend, fields) if sticky else fields)
        if wrong:
            self._drop_backend()
            self.backend_failed(failures.BadAnswer(self.backend.url, wrong))
            return
        self._note_answer(101)
        route = self.forward.route  # type: ignore[union-attr]  # it was forwarded
        if route.inspects and route.inspector is not None:
            route.inspector.answered(self, head, head.fields)
        self.state = TUNNEL
        tunnel = Tunnel(self, self._client.stream, connection, self._services)
        early = self._client.start_tunnel(tunnel)
        tunnel.start(early, rest)

    def answer_head(self, head: ResponseHead) -> None:
        self._note_answer(head.status)
        self.state = ANSWERING
        self._kept = LOST
        fields = head.fields
        if self.site is not None and self.site.hsts:
            fields = self.site.with_hsts(fields)
        if not head.is_dated:
            fields = [*fields, (b"Date", http_date())]  # RFC 9110 6.6.1: a recipient with a clock adds it
        if head.trailer and head.framing is _CHUNKED:
            fields = [*fields, (b"Trailer", head.trailer)]
        route = self.forward.route  # type: ignore[union-attr]  # it was forwarded
        if (route.inspects or 300 <= head.status < 400) and route.inspector is not None:
            fields = route.inspector.answered(self, head, fields, self._connection)
        if route.sticky is not None:
            fields = route.sticky.mark(self.head, self.backend, fields)
        self._client.send_head(head.status, head.reason, fields, head.length, has_body=head.framing is not _NO_BODY)

    def answer_data(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self._client.send_data(data)

    def answer_flush(self) -> None:
        self._client.flush()

    def answer_end(self, trailers: Fields) -> None:
        """The answer is whole. Its connection goes back to the pool before the client is served further."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # A refused upgrade: whether the backend still reads HTTP behind it is not worth finding out.
            connection.release(request_sent=self._request_complete and not self.head.upgrade)
        self._client.send_end(answer_trailers(trailers) if trailers else trailers)
        self._finish()

    def backend_failed(self, failure: failures.BackendFailure) -> None:
        """The connection is gone and the answer is not complete."""
        self._connection = None
        may_replay = self.state is SENT and self._kept.is_whole and not self._replayed
        if may_replay and failure.allows_replay(self.head.method, reused=self.reused or self._outlives_restart):
            self._replay()
            return
        if self.backend is not None and failure.counts:
            self.backend.failed(failure.note)
        self._give_up(failure)

    def backend_full(self) -> None:
        self._is_stuck = True
        self._client.pause_request()

    def backend_ready(self) -> None:
        self._is_stuck = False
        self._progress = time.monotonic()
        self._client.resume_request()

    def _replay(self) -> None:
        """On a new connection: another idle one may be just as dead."""
        assert self.backend is not None and self.forward is not None  # noqa: S101, PT018
        self._replayed = True
        self.retries += 1
        self.backend.close_all_idle()
        self._connect_again(self.forward.route, self.backend)

    def _note_answer(self, status: int) -> None:
        self.status = status
        self.backend_ms = (time.monotonic() - self._sent_at) * 1000
        if self.backend is not None:
            self.backend.succeeded()

    # --- endings ------------------------------------------------------------------------------------------------------

    def _give_up(self, failure: failures.BackendFailure) -> None:
        self.error = failure.note
        self._fail(failure.status, failure.detail, failure.retry_after)

    def _fail(self, status: int, detail: str, retry_after: int = 5) -> None:
        """Answer with an error, or cut the stream if an answer has begun."""
        if self.state is ANSWERING:
            self._client.exchange_cut()
            self._finish()
        elif self.state is not DONE:
            self.refuse(status, detail, retry_after)

    def crash(self) -> None:
        self._client.crashed()  # called in an except block outside the client's callbacks

    def crashed(self) -> None:
        """Our own code failed within this exchange (security rule 9)."""
        self.error = self.error or "internal error"
        self._drop_backend()
        self._fail(500, "This server failed to handle the request.")

    def _reply(self, status: int, fields: Fields, body: bytes) -> None:
        self.status = status
        self.state = ANSWERING
        fields = [*fields, (b"Date", http_date())]
        if self.site is not None and self.site.hsts and self.info.scheme == "https":
            fields = self.site.with_hsts(fields)
        has_body = self.head.method != b"HEAD"
        self._client.send_head(status, b"", fields, len(body), has_body=has_body)
        if body and has_body:
            self.bytes_out += len(body)
            self._client.send_data(body)
        self._client.send_end([])
        self._finish()

    def _drop_backend(self) -> None:
        self._stop_looking()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def tunnel_ended(self, bytes_in: int, bytes_out: int) -> None:
        """Both directions of the upgraded connection are over."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self._connection = None
        self._finish()

    def _finish(self) -> None:
        was_tunnel, self.state = self.state is TUNNEL, DONE
        self.ended = time.monotonic()
        backend = self.backend
        if backend is not None:
            backend.active -= 1
            if backend.lines:
                self._place_freed(backend)
        self._services.record(self)
        if not was_tunnel:
            self._client.exchange_done(request_complete=self._request_complete)
