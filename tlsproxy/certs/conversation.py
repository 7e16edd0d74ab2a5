"""The asyncio side of one session with a CA: each request in a thread, waits without one.

Knows: which failures pass by themselves, how long to wait between two looks. Does not know: what is asked for. Rules:
one request at a time (a session is not for two threads); a wait follows the CA's Retry-After and ends at a deadline; a
CA that is away for a moment in the middle of an order costs time, not the order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step, unwatched
from tlsproxy.certs.tools import Tools

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FIRST_PAUSE = 0.25
"""Seconds to the second look: a CA on the same machine is done by then, and `acme` alone would wait a whole one."""
LONGEST_PAUSE = 8.0
_LONGEST_RETRY_AFTER = 30.0  # within an order; whoever asks for more than the deadline gets the deadline
PASSING = frozenset({FailureKind.UNREACHABLE, FailureKind.BUSY})


class Patience:
    """Pauses between looks at something that takes its time: 0.25 s, doubling to 8 s, until `seconds` are over."""

    # Mutable: _pause.

    def __init__(self, seconds: float, *, step: str, directory: str, identifier: str = "") -> None:
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._seconds, self._step, self._directory, self._identifier = seconds, step, directory, identifier
        self._pause = FIRST_PAUSE

    async def pause(self, retry_after: float | None = None) -> None:
        """Wait for the next look. Raises AcmeFailure (BUSY) when there is no time for one."""
        wait = self._pause if retry_after is None else min(max(retry_after, FIRST_PAUSE), _LONGEST_RETRY_AFTER)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise AcmeFailure(
                FailureKind.BUSY,
                detail=f"no answer to the {self._step} within {self._seconds:.0f} seconds",
                step=self._step,
                directory=self._directory,
                identifier=self._identifier,
            )
        await asyncio.sleep(min(wait, left))


class Conversation:
    """Runs the blocking calls of one session, one after the other. `progress` hears why it is waiting."""

    # Mutable: _told (the trouble that `progress` has heard of last).

    def __init__(self, tools: Tools, progress: Progress = unwatched) -> None:
        self._tools, self._progress, self._told = tools, progress, ""
        self._turn = threading.Lock()

    async def ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one call of the session. When cancelled, the request still ends before the next one begins."""
        return await self._tools.in_thread(self._in_turn, partial(call, *args, **kwargs))

    async def insist(self, patience: Patience, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that may be repeated; try again while the CA is away or busy. Raises the last failure."""
        while True:
            try:
                return await self.ask(call, *args, **kwargs)
            except AcmeFailure as failure:
                if failure.kind not in PASSING:
                    raise
                await self._wait_for(patience, failure)

    async def _wait_for(self, patience: Patience, failure: AcmeFailure) -> None:
        wait = (failure.retry_at - self._tools.now()).total_seconds() if failure.retry_at else None
        if wait is not None and wait > _LONGEST_RETRY_AFTER:
            raise failure  # it is told when to come back, and that is not within this order
        if str(failure) != self._told:
            self._told = str(failure)
            self._progress(Step("wait", "", self._told))
            logger.info("acme.waiting", extra={"directory": failure.directory, "error": self._told})
        try:
            await patience.pause(wait)
        except AcmeFailure:
            raise failure from None

    def _in_turn(self, call: Callable[[], T]) -> T:
        with self._turn:
            return call()


async def finish_first(work: Awaitable[T]) -> T:
    """Await `work`; when cancelled meanwhile, let it end before the cancellation goes on. It must have a deadline."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            await asyncio.wait([task])
        raise
