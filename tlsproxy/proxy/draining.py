"""How the connections of a worker that leaves come to their end: at the end of what they do, or of the time they have.

Knows connections and the sites of what is in flight on them; not who accepts after us. Strategy: every connection is
told once; it then ends by itself with its answer. What is still there after `timeout` is cut, except what belongs to a
site that stays as it is: that may take until `streams`, and WebSockets are told to leave only shortly before. Rule: it
ends at the latest when it was said to, and may be told to end sooner at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tlsproxy.proxy.connection import Connection
    from tlsproxy.proxy.listener import Connections
    from tlsproxy.proxy.services import Services

logger = logging.getLogger(__name__)

_GRACE: Final = 1.0  # seconds in which a client that has only just connected may begin to speak to a draining worker
_FEW_NAMES: Final = 10  # that are logged
_LAST_WORDS: Final = 0.25  # seconds for a 503 to go out
_FAREWELL: Final = 10.0  # seconds for a WebSocket to end once it was told to


class Draining:
    """See the module's text. Times in seconds.

    Mutable: _end (loop time when all is over), _latest (it was hastened: not later than this), _limit (of the wait).
    """

    def __init__(
        self,
        connections: Connections,
        services: Services,
        loop: asyncio.AbstractEventLoop,
        dismiss: Callable[[], None] = lambda: None,
    ) -> None:
        """`dismiss` sends away who still waits for a backend, and may not stay: nothing of those was sent to one."""
        self._connections = connections
        self._services = services
        self._loop = loop
        self._dismiss = dismiss
        self._end = self._latest = math.inf
        self._limit: asyncio.Timeout | None = None

    async def run(self, timeout: float, unchanged: Collection[str] = (), streams: float = 0.0) -> int:
        """Return when no connection is left: how many were cut."""
        now = self._loop.time()
        may_stay = streams > timeout and self._latest == math.inf
        stays = self._services.staying = frozenset(unchanged if may_stay else ())
        self._end = min(now + (streams if stays else timeout), self._latest)
        self._tell(min(_GRACE, timeout / 2))
        await self._wait_and_dismiss(now + timeout, timeout)
        cut = 0
        if self._services.staying and self._connections:
            cut = self._cut(self._leaving(), timeout)
            self._report()
            await self._wait(self._end - min(_FAREWELL, (self._end - self._loop.time()) / 2))
            self._tell_all()
        await self._wait_and_dismiss(self._end, self._end - now)
        return cut + self._cut(self._connections, self._end - now)

    def hasten(self, timeout: float) -> None:
        """Be done in `timeout` seconds, if it was not to be sooner: whatever stays has to leave now."""
        self._latest = min(self._latest, self._loop.time() + timeout)
        self._end = min(self._end, self._latest)
        self._tell_all()
        if self._limit is not None:
            self._limit.reschedule(self._loop.time())

    def _tell(self, grace: float) -> None:
        """At once, except those that came just now: their first bytes are under way."""
        now = self._loop.time()
        new = [each for each in self._connections if each.idle_since is not None and now - each.idle_since < grace]
        for connection in set(self._connections).difference(new):
            connection.drain()
        for connection in new:
            self._loop.call_later(grace, connection.drain)

    def _tell_all(self) -> None:
        self._services.staying = frozenset()
        for connection in self._connections:
            connection.drain()

    async def _wait_and_dismiss(self, until: float, timeout: float) -> None:
        """Whoever waits for a backend hears that there will be none, while there is time to say so."""
        await self._wait(until - min(_LAST_WORDS, timeout / 10))
        self._dismiss()
        await self._wait(until)

    async def _wait(self, until: float) -> None:
        """Wait for the last connection, until then or until it is to be sooner."""
        try:
            async with asyncio.timeout_at(min(until, self._end)) as self._limit:
                await self._connections.empty.wait()
        except TimeoutError:
            pass
        finally:
            self._limit = None

    def _leaving(self) -> list[Connection]:
        """Those with nothing in flight that may stay."""
        lets_stay = self._services.lets_stay
        return [each for each in self._connections if not any(map(lets_stay, each.sites_in_flight()))]

    def _cut(self, connections: Iterable[Connection], after: float) -> int:
        cut = 0
        for connection in connections:
            connection.abort()
            cut += 1
        if cut:
            logger.warning("drain.cut", extra={"connections": cut, "after_seconds": round(after, 1)})
        return cut

    def _report(self) -> None:
        """Say who is still there, and for how long at most."""
        lets_stay = self._services.lets_stay
        staying = [list(filter(lets_stay, each.sites_in_flight())) for each in self._connections]
        names = sorted({site.name for sites in staying for site in sites if site is not None})
        if names:
            told = {"connections": sum(map(bool, staying)), "sites": names[:_FEW_NAMES]}
            logger.info("drain.staying", extra={**told, "at_most_seconds": round(self._end - self._loop.time())})
