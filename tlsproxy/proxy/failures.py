"""What can go wrong with a backend, as values that carry the client's answer (style 9).

`detail` is for the client and names no address; `note` is for the operator and does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tlsproxy.wire.grammar import IDEMPOTENT

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream


class BackendFailure(Exception):
    """The backend could not answer. `status` is for the client; `counts` says if it speaks against the backend.

    `nobody_listens`: not now; a server that is just being started anew will soon. `may_wait`: for another backend that
    is busy.
    """

    status: ClassVar[int] = 502
    detail: ClassVar[str] = "The application behind this server could not be reached."
    counts: ClassVar[bool] = True
    nobody_listens: ClassVar[bool] = False
    may_wait: ClassVar[bool] = True
    retry_after: int = 5  # seconds, for a 503 (RFC 9110 10.2.3)

    def __init__(self, backend: str, why: str) -> None:
        super().__init__(f"{backend}: {why}")
        self.note = f"{backend}: {why}"

    def allows_replay(self, method: bytes, *, reused: bool) -> bool:
        """Whether the request may be sent again; `reused`: its connection had carried others before."""
        return False


class ConnectFailed(BackendFailure):
    """Nothing was sent: another backend may be tried whatever the method."""

    nobody_listens = True


class ConnectTimedOut(ConnectFailed):
    status = 504
    nobody_listens = False
    detail = "The application behind this server did not accept a connection in time."


class TooBusy(ConnectFailed):
    """It does all that it lets us ask for at once."""

    status = 503
    detail = "The application behind this server has more to do than it can at the moment."
    counts = False
    nobody_listens = False


class OutOfResources(ConnectFailed):
    """This process has no descriptor or memory left for one more connection: no backend could be reached."""

    status = 503
    detail = "This server has more to do than it can at the moment."
    counts = False
    nobody_listens = False
    may_wait = False  # its turn would come at once, and again


class ClosedBeforeAnswer(BackendFailure):
    """The connection ended without one byte of an answer."""

    detail = "The application behind this server closed the connection without an answer."

    def allows_replay(self, method: bytes, *, reused: bool) -> bool:
        """A reused connection was most likely closed before the request came; if not, twice does no more than once."""
        return reused and method in IDEMPOTENT


class NotProcessed(BackendFailure):
    """The backend said that nothing of this request was processed (RFC 9113 8.7): any request may be sent again."""

    status = 503
    detail = "The application behind this server did not accept the request."

    def allows_replay(self, method: bytes, *, reused: bool) -> bool:
        return True


class ClosedInAnswer(BackendFailure):
    """The connection ended within the head or body of the answer."""

    detail = "The application behind this server stopped in the middle of its answer."


class BrokenOff(BackendFailure):
    """It gave this request up, and said so: it lives.

    Servers of gRPC do that with whatever is no call: what one client sends must not take them from all others.
    """

    detail = "The application behind this server broke off its answer."
    counts = False


class BadAnswer(BackendFailure):
    """The answer breaks HTTP, or was not asked for."""

    detail = "The application behind this server sent an answer that is not valid HTTP."


class AnswerTimedOut(BackendFailure):
    status = 504
    detail = "The application behind this server did not answer in time."


class NoWebSocket(BackendFailure):
    """Nothing was sent: it would not have known what it is."""

    detail = "The application behind this server does not accept WebSocket connections."
    counts = False


class NoBackend(BackendFailure):
    """No backend of the route may be asked: drained, down, or left alone because it failed lately."""

    nobody_listens = True

    status = 503
    detail = "The application behind this server is not available at the moment."
    counts = False


class QueueFull(BackendFailure):
    """Every backend has as many requests as it may, and as many wait as may."""

    status = 503
    detail = "The application behind this server has more to do than it can at the moment."
    counts = False
    retry_after = 1


class QueueTimedOut(QueueFull):
    """It has waited for its turn long enough."""


class Paused(BackendFailure):
    """An operator has paused the site; `retry_after` is when that ends."""

    status = 503
    detail = "This site is paused for a moment."
    counts = False

    def __init__(self, route: str, why: str, retry_after: int) -> None:
        super().__init__(route, why)
        self.retry_after = retry_after


def may_be_replayed(connection: BackendStream, method: bytes) -> bool:
    """Whether what is sent on `connection` may yet fail in a way that allows a replay."""
    return connection.may_refuse or (connection.reused and method in IDEMPOTENT)
