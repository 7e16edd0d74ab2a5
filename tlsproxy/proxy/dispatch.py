"""A request's way to a backend: which one, over which connection, and when. The half of an exchange that sends nothing.

Knows routes, backends, who may be asked and where to wait; nothing of the client and nothing of an answer. A request
that need not wait passes one test; all others go through the `Line` of their route.

Rules kept: as long as nothing was sent, any request may move on to another backend; a request is in line or on its way,
never both.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy import failures
from tlsproxy.proxy.phase import CONNECTING, NEW
from tlsproxy.proxy.record import Record
from tlsproxy.proxy.waiting_line import KNOCK_APART
from tlsproxy.wire.grammar import IDEMPOTENT

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.router import Route
    from tlsproxy.proxy.services import Services
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.proxy.waiting_line import Line, Reason
    from tlsproxy.wire.messages import RequestHead

_NOBODY: Final = "drained, down, or failed lately: all backends"


class Dispatch(Record):
    """See the module's text. A `waiting_line.Waiter`.

    Mutable state: `state`; `backend` (claimed: it counts this request as one of its own); `_connecting`; `_line` (in
    which it waits) and `_deadlines` (of it, however often it waits there).
    """

    __slots__ = ("_connecting", "_deadlines", "_line", "_services", "state")

    def __init__(self, head: RequestHead, info: ConnectionInfo, services: Services) -> None:
        super().__init__(head, info)
        self._services = services
        self.state = NEW
        self._connecting: asyncio.Task[None] | None = None
        self._line: Line | None = None
        self._deadlines: dict[Reason, float] | None = None

    # --- for the other half -------------------------------------------------------------------------------------------

    def _dispatch(self, route: Route) -> None:
        """Claim a connection to a backend and send, or start to connect, or wait."""
        if route.line.is_watched:
            if route.line.has_to_wait or not self._go(route):
                self._wait(route.line)
            return
        backend = route.upstream.choose(self.client)
        if backend is None:
            self._find_nobody(route, failures.NoBackend(route.label, _NOBODY))
        else:
            self._ask(route, backend)

    def _connect_again(self, route: Route, backend: Backend) -> None:
        """The request may be sent once more: to the same backend, if that may still be asked.

        With `hold` not at once: a server that is killed loses its connections a moment before its listener, and would
        get what was sent again in that moment to take along.
        """
        if route.line.hold:
            self._leave_backend()
            self.state = CONNECTING
            self._connecting = self._services.loop.create_task(self._begin_anew(route))
        elif backend.may_be_asked:
            self._connect(route, backend, reuse=False)
        else:
            self._leave_backend()
            self._dispatch(route)

    def _stop_looking(self) -> None:
        """The request is not to be sent any more."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._line is not None:
            self._line.leave(self)
            self._line = None

    @property
    def _outlives_restart(self) -> bool:
        """Whether the request may be sent again though its connection was new.

        A server that is ended resets the connections that it has yet to accept; a route with `hold` waits for it.
        """
        return self.head.method in IDEMPOTENT and self.forward is not None and self.forward.route.line.hold > 0

    def _place_freed(self, backend: Backend) -> None:
        for line in backend.lines:
            line.call()

    # --- what the other half does -------------------------------------------------------------------------------------

    def _send(self, connection: BackendStream) -> None:
        raise NotImplementedError

    def _give_up(self, failure: failures.BackendFailure) -> None:
        raise NotImplementedError

    def crash(self) -> None:
        """End the exchange: our own code failed. Called in an except block."""
        raise NotImplementedError

    # --- waiting_line.Waiter ------------------------------------------------------------------------------------------

    def take_turn(self) -> bool:
        assert self.forward is not None  # noqa: S101
        line, self._line = self._line, None
        if self._go(self.forward.route):
            return True
        self._line = line
        return False

    def take_over(self, backend: Backend, connection: BackendStream) -> None:
        self._line = None
        self.backend = backend
        backend.requests += 1
        try:
            self._send(connection)
        except Exception:  # noqa: BLE001  # the others in line go on
            self.crash()

    def waited_in_vain(self, failure: failures.BackendFailure) -> None:
        self._line = None
        try:
            self._give_up(failure)
        except Exception:  # noqa: BLE001
            self.crash()

    # --- private ------------------------------------------------------------------------------------------------------

    def _go(self, route: Route) -> bool:
        """Ask a backend, if there is one with room, or give up; False: wait, or stay in line."""
        upstream = route.upstream
        backend = route.sticky.find(self.head) if route.sticky is not None else None
        if backend is None:
            backend = upstream.choose(self.client)
        elif not upstream.has_room(backend):
            return False  # what this client has there is worth waiting for
        if backend is not None:
            self._ask(route, backend)
            return True
        if upstream.is_busy():
            return False
        if route.line.hold:
            route.line.hold_on()
            return False
        self._give_up(failures.NoBackend(route.label, _NOBODY))
        return True

    def _ask(self, route: Route, backend: Backend) -> None:
        self._take(backend)
        connection = backend.claim()
        if connection is None:
            self._connect(route, backend, reuse=True)
        else:
            self._send(connection)

    def _connect(self, route: Route, backend: Backend, *, reuse: bool) -> None:
        self.state = CONNECTING
        self._connecting = self._services.loop.create_task(self._reach(route, backend, reuse=reuse))

    async def _reach(self, route: Route, backend: Backend, *, reuse: bool) -> None:
        try:
            connection = await route.upstream.connect(
                backend, self.client, timeout=self._services.connect_timeout, move_to=self._move_to, reuse=reuse
            )
            self._connecting = None
            self._send(connection)
        except failures.ConnectFailed as failure:
            self._connecting = None
            self._find_nobody(route, failure)
        except Exception:  # noqa: BLE001  # nobody waits for this task, and the client would wait for ever
            self.crash()

    async def _begin_anew(self, route: Route) -> None:
        try:
            await asyncio.sleep(KNOCK_APART)
            self._connecting = None
            self._dispatch(route)
        except Exception:  # noqa: BLE001  # as in `_reach`
            self.crash()

    def _find_nobody(self, route: Route, failure: failures.BackendFailure) -> None:
        """Wait for a backend that has too much to do, or is about to come back; else give up."""
        line, is_busy = route.line, failure.may_wait and route.upstream.is_busy(self.backend)
        if not (is_busy or (line.hold and failure.nobody_listens)):
            self._give_up(failure)
            return
        if not is_busy:
            line.hold_on()
        self._leave_backend()
        self._wait(line)

    def _wait(self, line: Line) -> None:
        if self._deadlines is None:
            self._deadlines = {}
        failure = line.join(self, self._deadlines)
        if failure is not None:
            self._give_up(failure)
            return
        self._line = line
        self.state = CONNECTING

    def _take(self, backend: Backend) -> None:
        self.backend = backend
        backend.active += 1
        backend.requests += 1

    def _move_to(self, backend: Backend) -> None:
        self._leave_backend()
        self._take(backend)
        self.retries += 1

    def _leave_backend(self) -> None:
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.active -= 1
            self._place_freed(backend)
