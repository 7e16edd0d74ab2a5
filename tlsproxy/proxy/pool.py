"""One server that answers requests: its idle connections. Whether it may be asked is its `Condition`.

Strategy: `Backend.claim` is a synchronous look-up; only `Backend.connect` waits. Idle connections are a stack (the
newest is the least likely to be closed already) and are given up before the server would close them: the limit follows
the server's name and what was observed (measured: gunicorn closes after 2 s, uvicorn and hypercorn after 5 s, granian
after 30 s).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tlsproxy.proxy.backend import BackendConnection
from tlsproxy.proxy.condition import Condition
from tlsproxy.proxy.dialing import Place

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.router import Site
    from tlsproxy.proxy.waiting_line import Line

logger = logging.getLogger(__name__)

_IDLE_BY_SERVER: Final = {b"gunicorn": 1.5, b"uvicorn": 4.0, b"hypercorn": 4.0, b"granian": 25.0}
_BURST: Final = 4  # times the idle connections that are kept
_BURST_LASTS: Final = 1.0
_SHORTEST_IDLE: Final = 0.5
_LEARNED_FOR: Final = 600.0
_AT_ONCE: Final = 0.25  # seconds
_ABOUT: Final = 0.2
_LONGEST_CLOSE: Final = 10.0


class Abortable(Protocol):
    """What is being closed in peace, and may have to be ended without."""

    def abort(self) -> None: ...


class Backend(Condition):
    """One server that answers requests.

    Mutable state: `idle`, `active` and `requests`; `lines` (by the routes' settings); `_idle_limit` (its patience);
    and what every `Condition` has.
    """

    __slots__ = (
        "_idle_limit", "_learned_at", "_place", "_server", "_suspected", "_writing", "active", "closing", "idle",
        "lines", "most_idle", "quoted", "requests",
    )  # fmt: skip

    idle_default: ClassVar[float] = 4.0  # seconds, of servers that are not known

    def __init__(self, url: str, *, most_idle: int) -> None:
        super().__init__(url)
        self.quoted = json.dumps(url)  # for the access log
        self._place = Place(url)
        self.most_idle = most_idle
        self.idle: list[BackendConnection] = []
        self.closing: list[tuple[float, Abortable]] = []  # since when they have been closing, oldest first
        self.active = 0
        self.lines: tuple[Line, ...] = ()  # where requests wait until it has fewer than it may have
        self.requests = 0  # begun since the start, each trial of one that moved on counts
        self._writing: list[BackendConnection] = []
        self._server = b""
        self._idle_limit = self.idle_default
        self._learned_at = 0.0  # 0: the limit is not learned
        self._suspected = (0.0, 0.0)  # when the server last closed one early, and after how long

    def __repr__(self) -> str:
        return f"<Backend {self.url} {self.active} active, {len(self.idle)} idle, {self._failures} failures>"

    def claim(self) -> BackendStream | None:
        """The newest idle connection, or None: then `connect`."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.is_open:
                connection.reused = True
                return connection
        return None

    async def connect(self, timeout: float) -> BackendStream:
        """A new connection. Raises ConnectFailed."""
        return await self._place.connect(lambda: BackendConnection(self), timeout)

    def put_back(self, connection: BackendConnection) -> None:
        """Take a connection whose answer is complete into the stack.

        A burst, as of a page's hundred streams over HTTP/2, may be followed by another: what is beyond the limit is
        closed by `close_idle` when it was not wanted for a second.
        """
        if len(self.idle) >= self.most_idle * _BURST:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self.idle.append(connection)

    def forget(self, connection: BackendConnection) -> None:
        """An idle connection is gone: closed by the server."""
        if connection in self.idle:
            self.idle.remove(connection)
            self.learn_patience(connection.idle_since)

    def learn_patience(self, idle_since: float) -> None:
        """The server has just closed a connection that was idle since then: others are given up earlier.

        It is taken for the server's habit when it happens again after about as long: one that is started anew closes
        what it has after any time, all at once.
        """
        now = time.monotonic()
        lasted = now - idle_since
        if not _SHORTEST_IDLE <= lasted < self._idle_limit:
            return
        (at, before), self._suspected = self._suspected, (now, lasted)
        if now - at > _AT_ONCE and abs(lasted - before) < lasted * _ABOUT:
            self._idle_limit = max(_SHORTEST_IDLE, lasted * 0.8)
            self._learned_at = now
            logger.info("backend.idle_limit", extra={"backend": self.url, "seconds": round(self._idle_limit, 2)})

    def learn_server(self, name: bytes) -> None:
        """Set the idle limit by what the server calls itself, unless something shorter was observed."""
        if name == self._server:
            return
        self._server = name
        if not self._learned_at:
            self._idle_limit = idle_limit_of(name, self.idle_default)

    def turn_ends_for(self, connection: BackendConnection) -> None:
        """`connection` has something to write: have it do so at the end of this turn of the loop."""
        if not self._writing:
            asyncio.get_running_loop().call_soon(self._write_out)
        self._writing.append(connection)

    def _write_out(self) -> None:
        writing, self._writing = self._writing, []
        for connection in writing:
            connection.write_out()

    def close_idle(self, now: float) -> None:
        """Close what has been idle too long. The stack is oldest first. What was learned is forgotten after a while:
        a server that was only restarted looked impatient too.
        """
        if self._learned_at and now - self._learned_at > _LEARNED_FOR:
            self._learned_at = 0.0
            self._idle_limit = idle_limit_of(self._server, self.idle_default)
        while self.closing and self.closing[0][0] <= now - _LONGEST_CLOSE:
            self.closing.pop(0)[1].abort()
        if not self.may_be_asked:  # and what ended meanwhile has come back
            self.close_all_idle()
        limit = now - self._idle_limit
        idle = self.idle
        while idle and idle[0].idle_since <= limit:
            idle.pop(0).abort()
        while len(idle) > self.most_idle and idle[0].idle_since <= now - _BURST_LASTS:
            idle.pop(0).abort()

    def close_all_idle(self) -> None:
        while self.idle:
            self.idle.pop().abort()

    def close(self) -> None:
        """The worker leaves: let go of every connection that nobody holds."""
        self.close_all_idle()

    def let_go(self) -> None:
        self.close_all_idle()

    @property
    def idle_connections(self) -> int:
        return len(self.idle)

    def report(self) -> dict[str, Any]:
        """How it is, for operators; the times are time.time()."""
        state, why, since = self.state()
        return {
            "url": self.url,
            "state": state,
            "why": why,
            "active": self.active,
            "idle": self.idle_connections,
            "requests": self.requests,
            "failures": self._failures,
            "since": since,
        }


def describe(backends: Iterable[Backend], sites: Iterable[Site]) -> list[dict[str, Any]]:
    """Report on each backend that has a route or requests, with the routes ("SITE PATH") that lead to it."""
    routes: dict[str, list[str]] = {}
    for site in sites:
        for forward in site.forwards:
            for backend in forward.route.upstream.backends:
                routes.setdefault(backend.url, []).append(f"{site.name} {forward.route.label}")
    wanted = [backend for backend in backends if backend.active or backend.url in routes]
    return [{**backend.report(), "routes": routes.get(backend.url, [])} for backend in wanted]


def idle_limit_of(server: bytes, default: float) -> float:
    product = server.partition(b"/")[0].lower()
    return next((limit for name, limit in _IDLE_BY_SERVER.items() if product.startswith(name)), default)
