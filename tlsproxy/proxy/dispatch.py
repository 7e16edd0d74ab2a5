"""A request's way to a backend: which one, over which connection. The half of an exchange that sends nothing.

Knows routes, backends and who may be asked; nothing of the client and nothing of an answer.

Rule kept: as long as nothing was sent, any request may move on to another backend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tlsproxy.proxy import failures
from tlsproxy.proxy.phase import CONNECTING, NEW
from tlsproxy.proxy.record import Record

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.router import Route
    from tlsproxy.proxy.services import Services
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.wire.messages import RequestHead


class Dispatch(Record):
    """See the module's text.

    Mutable state: `state`; `backend` (claimed: it counts this request as one of its own); `_connecting`.
    """

    __slots__ = ("_connecting", "_services", "state")

    def __init__(self, head: RequestHead, info: ConnectionInfo, services: Services) -> None:
        super().__init__(head, info)
        self._services = services
        self.state = NEW
        self._connecting: asyncio.Task[None] | None = None

    # --- for the other half -------------------------------------------------------------------------------------------

    def _dispatch(self, route: Route) -> None:
        """Claim a connection to a backend and send, or start to connect."""
        backend = route.upstream.choose(self.client)
        if backend is None:
            self._give_up(failures.NoBackend(route.label, "every backend of the route failed lately"))
            return
        self._take(backend)
        connection = backend.claim()
        if connection is None:
            self._connect(route, backend, reuse=True)
        else:
            self._send(connection)

    def _connect(self, route: Route, backend: Backend, *, reuse: bool) -> None:
        self.state = CONNECTING
        self._connecting = self._services.loop.create_task(self._reach(route, backend, reuse=reuse))

    def _stop_looking(self) -> None:
        """The request is not to be sent any more."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    # --- what the other half does -------------------------------------------------------------------------------------

    def _send(self, connection: BackendStream) -> None:
        raise NotImplementedError

    def _give_up(self, failure: failures.BackendFailure) -> None:
        raise NotImplementedError

    def crash(self) -> None:
        """End the exchange: our own code failed. Called in an except block."""
        raise NotImplementedError

    # --- private ------------------------------------------------------------------------------------------------------

    async def _reach(self, route: Route, backend: Backend, *, reuse: bool) -> None:
        try:
            connection = await route.upstream.connect(
                backend, self.client, timeout=self._services.connect_timeout, move_to=self._move_to, reuse=reuse
            )
            self._connecting = None
            self._send(connection)
        except failures.ConnectFailed as failure:
            self._connecting = None
            self._give_up(failure)
        except Exception:  # noqa: BLE001  # nobody waits for this task, and the client would wait for ever
            self.crash()

    def _take(self, backend: Backend) -> None:
        self.backend = backend
        backend.active += 1
        backend.requests += 1

    def _move_to(self, backend: Backend) -> None:
        if self.backend is not None:
            self.backend.active -= 1
        self._take(backend)
        self.retries += 1
