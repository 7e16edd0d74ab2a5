"""What an exchange needs of its way to a backend, and what that calls back: the contract of every kind of backend.

Rule: the exchange says what to send, the backend's side knows how it is framed on the wire. A `BackendStream` carries
one request at a time: an HTTP/1.1 connection, or one stream of an HTTP/2 connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tlsproxy.proxy.failures import BackendFailure
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.forwarding import Outbound
    from tlsproxy.wire.messages import RequestHead, ResponseHead


class AnswerTaker(Protocol):
    """What a backend's side calls while it reads an answer. Any of these may abort the stream."""

    def interim(self, head: ResponseHead) -> None: ...
    def switched(self, head: ResponseHead, rest: bytes) -> None: ...
    def answer_head(self, head: ResponseHead) -> None: ...
    def answer_data(self, data: bytes) -> None: ...
    def answer_end(self, trailers: Fields) -> None: ...
    def answer_flush(self) -> None: ...
    def backend_failed(self, failure: BackendFailure) -> None: ...
    def backend_full(self) -> None: ...
    def backend_ready(self) -> None: ...
    def crash(self) -> None: ...


class TunnelEnd(Protocol):
    """What a backend's side calls after it was switched to another protocol."""

    def backend_data(self, data: bytes) -> None: ...
    def backend_closed(self) -> None: ...
    def backend_full(self) -> None: ...
    def backend_ready(self) -> None: ...


class BackendStream(Protocol):
    """One request's way to a backend. None of these calls back into a failure: that comes in a later turn of the loop.

    `reused`: the connection has carried requests before. `may_refuse`: it may fail with `NotProcessed` at any time
    before the answer, so what was sent of a request has to be kept for it.
    """

    reused: bool

    @property
    def may_refuse(self) -> bool: ...

    @property
    def local_address(self) -> str:
        """Our address on the connection, as the backend sees it if nothing translates it; "" on a unix socket."""
        ...

    def begin(self, taker: AnswerTaker, request: Outbound, head: RequestHead, body: bytes = b"") -> None:
        """Send the head, and what there is of the body as it came; `taker` gets the answer."""
        ...

    def send(self, data: bytes) -> None:
        """Send a piece of the request's body as it came, or of what a tunnel carries."""
        ...

    def end(self, trailers: Fields) -> None:
        """The request's body is complete. Not called for a request that has none."""
        ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def release(self, *, request_sent: bool) -> None:
        """The answer was taken whole. Without `request_sent` the rest of the request will not come."""
        ...

    def abort(self) -> None:
        """End it at once, whatever is under way. The taker hears nothing any more."""
        ...

    def become_tunnel(self, tunnel: TunnelEnd) -> None:
        """From now on every byte is the tunnel's."""
        ...

    def close(self, *, said_goodbye: bool = False) -> None:
        """End a tunnel after what was sent has gone; `said_goodbye`: a close frame has passed."""
        ...
