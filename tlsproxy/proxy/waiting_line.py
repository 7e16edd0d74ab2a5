"""The requests of one route that wait in this worker: first come, first served.

Knows who waits, for what and how long; not what a request is. There are three things to wait for, and a line as a whole
waits for one of them:
* PAUSED: an operator has paused the site; it ends by itself;
* HELD: nobody listens at the backends of a route with `hold`. One caller for all knocks ten times a second, and when
  somebody opens, the first in line gets that very connection;
* BUSY: every backend has as many requests as it may (`max_requests`); each one that ends lets the next one go.

Rules kept: nobody overtakes; no more wait than `most`; each wait has an end, which the worker's tick looks for (no
timer per request); who has left the line, for whatever reason, is never told to go.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from tlsproxy.proxy import failures

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.upstream import Upstream

LONGEST_PAUSE: Final = 30.0
"""Seconds that a request waits for the end of a pause, however long that lasts."""

_LEFT: Final = "the process that it waited in left"
KNOCK_APART: Final = 0.1
"""Seconds between two looks whether somebody listens by now."""

_KNOCK_TIMEOUT: Final = 0.3  # seconds a door: a machine that swallows packets must not use up all the time


class Reason(Enum):
    PAUSED = 0
    HELD = 1
    BUSY = 2


class Waiter(Protocol):
    """A request in line. Each of these takes care of its own faults, but for what `crash` is for."""

    def take_turn(self) -> bool:
        """Go on, one way or another; False: there is no room at a backend for this one."""
        ...

    def take_over(self, backend: Backend, connection: BackendStream) -> None:
        """Go on over this connection; `backend` counts it already."""
        ...

    def waited_in_vain(self, failure: failures.BackendFailure) -> None: ...

    def crash(self) -> None: ...


class Line:
    """See the module's text. Times in seconds; `upstream` is the route's, and changes with it.

    Mutable state: `is_watched` (requests have to ask here first), `_waiting` (who, and until when for each reason),
    `_paused_until` (monotonic, 0: not paused), `_knocking` (the one caller), `_is_called` (the next turn of the loop
    lets go who may), `_is_closed`.
    """

    __slots__ = (
        "_is_called", "_is_closed", "_is_special", "_is_sticky", "_knocking", "_paused_until", "_waiting", "hold",
        "is_watched", "label", "most", "patience", "upstream",
    )  # fmt: skip

    def __init__(
        self,
        label: str,
        upstream: Upstream,
        *,
        most: int = 100,
        patience: float = 10.0,
        hold: float = 0.0,
        is_limited: bool = False,
        is_sticky: bool = False,
    ) -> None:
        """`is_limited`: its backends have a `max_requests`; `is_sticky`: not every request can go to every backend."""
        self.label = label
        self.upstream = upstream
        self.most = most
        self.patience = patience
        self.hold = hold
        self._is_special = self.is_watched = is_limited or is_sticky
        self._is_sticky = is_sticky
        self._waiting: dict[Waiter, dict[Reason, float]] = {}
        self._paused_until = 0.0
        self._knocking: asyncio.Task[None] | None = None
        self._is_called = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Line {self.label} {len(self._waiting)} waiting, {self.reason.name}>"

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def reason(self) -> Reason:
        """What the line waits for, or would wait for if it had to."""
        if self._paused_until:
            return Reason.PAUSED
        return Reason.HELD if self._knocking is not None else Reason.BUSY

    @property
    def has_to_wait(self) -> bool:
        """Whether a request that comes now may not go at once."""
        return bool(self._waiting) or self.reason is not Reason.BUSY

    # --- requests -----------------------------------------------------------------------------------------------------

    def join(self, waiter: Waiter, deadlines: dict[Reason, float]) -> failures.BackendFailure | None:
        """Stand at the end of the line; or the reason why there is no room in it.

        `deadlines` are kept by the waiter, who may come back: nobody's time begins anew.
        """
        if len(self._waiting) >= self.most:
            return self._full()
        self._waiting[waiter] = deadlines
        self._see_deadline(waiter, time.monotonic())
        self.is_watched = True
        self.call()
        return None

    def leave(self, waiter: Waiter) -> None:
        """The request will not go on, or did. Whoever was not in line may leave it too."""
        self._waiting.pop(waiter, None)
        self._settle()

    def hold_on(self) -> None:
        """Nobody listens: knock until somebody does."""
        if self._knocking is None and not self._is_closed:
            self.is_watched = True
            self._knocking = asyncio.get_running_loop().create_task(self._knock())

    def call(self) -> None:
        """There may be room at a backend: let go who may, in the next turn of the loop."""
        if self._waiting and not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._go_on)

    # --- the worker ---------------------------------------------------------------------------------------------------

    def pause(self, until: float) -> None:
        """Have all requests wait until then (monotonic), or `resume`."""
        self._paused_until = until
        self.is_watched = True

    def resume(self) -> None:
        """Let go on; what there was to wait for before the pause has its whole time again."""
        if self._paused_until:
            self._paused_until = 0.0
            for deadlines in self._waiting.values():
                deadlines.pop(Reason.BUSY, None)
                deadlines.pop(Reason.HELD, None)
            self.call()
            self._settle()

    def sweep(self, now: float) -> None:
        """Send away who has waited too long. `now` is monotonic."""
        if self._paused_until and now >= self._paused_until:
            self.resume()
        reason = self.reason
        for waiter in tuple(self._waiting):
            if waiter in self._waiting and self._see_deadline(waiter, now) <= now:  # one may take others along
                self.leave(waiter)
                waiter.waited_in_vain(self._in_vain(reason, now))
        self.call()  # a backend may have come back without a word to us

    def dismiss(self) -> None:
        """Send everybody away: the worker has no time left for them."""
        failure: failures.BackendFailure = failures.NoBackend(self.label, f"no backend was free, and {_LEFT}")
        if self._paused_until:
            failure = failures.Paused(self.label, f"paused, and {_LEFT}", self._rest_of_pause(time.monotonic()))
        for waiter in tuple(self._waiting):
            if waiter in self._waiting:
                self.leave(waiter)
                waiter.waited_in_vain(failure)

    def close(self) -> None:
        """The worker leaves: nobody goes on from here."""
        self._is_closed = True
        if self._knocking is not None:
            self._knocking.cancel()

    # --- private ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self.is_watched = self._is_special or self.has_to_wait

    def _see_deadline(self, waiter: Waiter, now: float) -> float:
        """Until when it waits for what the line waits for now. Each reason has its time, once."""
        reason, deadlines = self.reason, self._waiting[waiter]
        if reason not in deadlines:
            limit = LONGEST_PAUSE if reason is Reason.PAUSED else self.hold if reason is Reason.HELD else self.patience
            deadlines[reason] = now + limit
        return deadlines[reason]

    def _go_on(self) -> None:
        self._is_called = False
        for waiter in tuple(self._waiting):
            if self.reason is not Reason.BUSY:
                return
            if waiter in self._waiting and not self._lets_go(waiter) and not self._is_sticky:
                return  # nor is there room for anybody behind it; where clients belong to backends, there may be
        self._settle()

    def _lets_go(self, waiter: Waiter) -> bool:
        try:
            if not waiter.take_turn():
                return False
        except Exception:  # noqa: BLE001  # a fault in one request must not keep the others here
            self._waiting.pop(waiter, None)
            waiter.crash()
        self._waiting.pop(waiter, None)
        return True

    async def _knock(self) -> None:
        """One caller for all: a server that starts must not be met by a thousand connects."""
        try:
            while self._waiting:
                await asyncio.sleep(KNOCK_APART)
                opened = await self._try_all()
                if opened is not None:
                    self._enter(*opened)
                    break
        finally:
            self._knocking = None
            self._settle()
        self.call()

    async def _try_all(self) -> tuple[Backend, BackendStream] | None:
        """A new connection to the first backend that accepts one; its place there is taken."""
        tried: list[Backend] = []
        while (backend := self.upstream.choose("", tried)) is not None:
            tried.append(backend)
            backend.active += 1
            try:
                return backend, await backend.connect(min(self.hold, _KNOCK_TIMEOUT))
            except failures.ConnectFailed:
                backend.active -= 1
            except BaseException:
                backend.active -= 1
                raise
        return None

    def _enter(self, backend: Backend, connection: BackendStream) -> None:
        """Let the first in line have the connection, if that is still where requests are to go."""
        is_right = not self._paused_until and backend.may_be_asked and backend in self.upstream.backends
        first = next(iter(self._waiting), None) if is_right else None
        if first is None:
            backend.active -= 1
            connection.abort()
            return
        del self._waiting[first]
        first.take_over(backend, connection)

    def _full(self) -> failures.BackendFailure:
        why = f"{self.most} requests wait already (queue)"
        if self._paused_until:
            return failures.Paused(self.label, f"paused, and {why}", self._rest_of_pause(time.monotonic()))
        if self._knocking is not None:
            return failures.NoBackend(self.label, f"no backend accepts connections, and {why}")
        return failures.QueueFull(self.label, why)

    def _in_vain(self, reason: Reason, now: float) -> failures.BackendFailure:
        if reason is Reason.PAUSED:
            why = f"paused by an operator for longer than {LONGEST_PAUSE:g} s"
            return failures.Paused(self.label, why, self._rest_of_pause(now))
        if reason is Reason.HELD:
            return failures.NoBackend(self.label, f"no backend accepted a connection within hold {self.hold:g} s")
        return failures.QueueTimedOut(self.label, f"its turn did not come within queue_timeout {self.patience:g} s")

    def _rest_of_pause(self, now: float) -> int:
        return max(1, round(self._paused_until - now))
