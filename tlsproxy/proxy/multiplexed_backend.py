"""A backend that speaks HTTP/2: its connections, and who waits for one.

Strategy: requests share the newest connection that has room; one that is not needed any more has no requests, is idle
too long and closes. When none has room, the request waits: for a stream that ends, or for the one connect that is under
way, which all who wait share. When more wait than that connection takes, the next one is made, up to `_MOST`.

Rule kept: nobody waits longer than the connect timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy.failures import ConnectFailed, ConnectTimedOut, TooBusy
from tlsproxy.proxy.multiplexed import MultiplexedConnection
from tlsproxy.proxy.multiplexed_stream import MultiplexedStream
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.rate import Quiet
from tlsproxy.wire.http2_client import MOST_STREAMS

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream

_MOST: Final = 64  # connections of one worker to one backend; one that leaves, and ends its last streams, is none


class MultiplexedBackend(Backend):
    """See the module's text.

    Mutable state, besides `Backend`'s: `_connections` (newest first), `_waiting`, `_dialing`, `_timeout` (to connect),
    `_unspoken` and `usual_streams`.
    """

    __slots__ = ("_connections", "_dialing", "_timeout", "_unspoken", "_waiting", "quiet", "usual_streams")

    idle_default = 60.0  # a server that leaves says so (GOAWAY), and what it has not taken goes elsewhere

    def __init__(self, url: str, *, most_idle: int) -> None:
        super().__init__(url, most_idle=most_idle)
        self.quiet = Quiet()  # for lines that each of its connections would write
        self.usual_streams = MOST_STREAMS  # that it takes at a time, until a new connection knows better
        self._connections: list[MultiplexedConnection] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._dialing: asyncio.Task[None] | None = None
        self._timeout = 0.0
        self._unspoken = ""  # why the newest connection ended before the backend had said anything

    def __repr__(self) -> str:
        return (
            f"<Backend {self.url} {self.active} active, {len(self._connections)} connections, "
            f"{len(self._waiting)} waiting, {self._failures} failures>"
        )

    # --- Backend ------------------------------------------------------------------------------------------------------

    def claim(self) -> BackendStream | None:
        """A stream of a connection that has room, or None: then `connect`."""
        return None if self._waiting else self._take()

    async def connect(self, timeout: float) -> BackendStream:
        """A stream as soon as there is one, of a new connection if need be. Raises ConnectFailed."""
        self._timeout = timeout
        deadline = time.monotonic() + timeout
        stream = self.claim()  # there may be one meanwhile
        while stream is None:
            await self._wait(deadline, timeout)
            stream = self._take()
            if stream is None and self._unspoken:  # else it could go on, connect after connect, until the time is up
                raise ConnectFailed(self.url, self._unspoken)
        return stream

    def close_idle(self, now: float) -> None:
        super().close_idle(now)
        for connection in tuple(self._connections):
            connection.check(now, self._idle_limit)

    def close_all_idle(self) -> None:
        for connection in tuple(self._connections):
            if connection.is_idle:
                connection.shut_down()

    @property
    def idle_connections(self) -> int:
        return sum(connection.is_idle for connection in self._connections)

    def close(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
        self._waiting.clear()  # or a connection that goes would be replaced for them
        for connection in tuple(self._connections):
            connection.shut_down()

    # --- for MultiplexedConnection ------------------------------------------------------------------------------------

    def room_made(self) -> None:
        """Let as many of those who wait try as can have a stream now."""
        room = sum(max(0, connection.room) for connection in self._connections) if self._waiting else 0
        while room > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def gone(self, connection: MultiplexedConnection, why: str) -> None:
        """The connection is over; if the backend closed it because it was idle, that tells of its patience."""
        if not connection.codec.is_settled:
            self._unspoken = why
        if connection in self._connections:
            self._connections.remove(connection)
            if connection.is_idle and not connection.is_leaving:
                self.learn_patience(connection.idle_since)
            self._dial_if_needed()  # who waits for a stream of it would wait in vain

    # --- private ------------------------------------------------------------------------------------------------------

    def _take(self) -> MultiplexedStream | None:
        for connection in self._connections:
            if connection.room > 0:
                return MultiplexedStream(connection)
        return None

    async def _wait(self, deadline: float, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        if self._may_be_more:
            self._dial_if_needed()
        else:
            self.room_made()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await waiter
        except TimeoutError:
            if not self._connections:  # the connect under way has a moment left, and would say the same
                raise ConnectTimedOut(self.url, f"no connection within {timeout:g} s") from None
            raise TooBusy(self.url, f"no connection with room for one more request within {timeout:g} s") from None
        except asyncio.CancelledError:
            self.room_made()  # another one may have what this one leaves
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    @property
    def _may_be_more(self) -> bool:
        return sum(not connection.is_leaving for connection in self._connections) < _MOST

    def _dial_if_needed(self) -> None:
        if self._waiting and self._dialing is None and self._may_be_more:
            self._dialing = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        self._unspoken = ""
        try:
            connection = await self._place.connect(lambda: MultiplexedConnection(self), self._timeout)
        except ConnectFailed as failure:
            self._fail_waiting(failure)
            return
        finally:
            self._dialing = None
        if not connection.is_open:
            self._fail_waiting(ConnectFailed(self.url, self._unspoken))
            return
        self._connections.insert(0, connection)
        self.room_made()
        self._dial_if_needed()

    def _fail_waiting(self, failure: ConnectFailed) -> None:
        """No connection can be had. Where there are others, streams of them will end, or have."""
        if self._connections:
            self.room_made()
            return
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(failure)
