"""What is asked of the certifier, from the question to its result. Several may follow one question.

Knows ids, progress and time limits; nothing of sockets, of HTTP or of what a verb means. Rules: every call gets exactly
one result, also when the certifier dies or never answers; whoever stops listening changes nothing for the certifier or
for others who follow.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping

from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult

LONGEST_HISTORY = 1000
"""Steps that are kept for those who come late; an order takes about twenty, the rest is "still waiting"."""


class Call:
    """One question to the certifier and what has come back so far."""

    # Mutable: _steps grows, result is set once, _news is replaced each time it is set.

    def __init__(self, message: AdminCall) -> None:
        self.message = message
        self.result: AdminResult | None = None
        self._steps: list[AdminProgress] = []
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        state = f"ended with {self.result.status}" if self.result else "open"
        return f"<Call {self.message.id} {self.message.verb} {self.message.name} {state}>"

    async def wait(self) -> AdminResult:
        """Return the result once it is there. Every call has its limit: this ends."""
        while self.result is None:
            await self._news.wait()
        return self.result

    async def follow(self, patience: float) -> AsyncGenerator[AdminProgress | AdminResult | None, None]:
        """Yield every step from the first on, then the result; None whenever nothing came for `patience` seconds."""
        seen = 0
        while True:
            while seen < len(self._steps):
                seen += 1
                yield self._steps[seen - 1]
            if self.result is not None:
                yield self.result
                return
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                yield None

    def add(self, step: AdminProgress) -> None:
        if len(self._steps) < LONGEST_HISTORY and self.result is None:
            self._steps.append(step)
            self._tell()

    def finish(self, result: AdminResult) -> None:
        """Set the result; the first one counts."""
        if self.result is None:
            self.result = result
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class OpenCalls:
    """The calls that have no result yet."""

    # Mutable: _open (by id), with a timer for each call.

    def __init__(self) -> None:
        self._open: dict[int, tuple[Call, asyncio.TimerHandle]] = {}
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, verb: str, name: str, options: Mapping[str, str], limit: float) -> Call:
        """Return a new call, which ends with status 504 after `limit` seconds at the latest."""
        call = Call(AdminCall(next(self._ids), verb, name, dict(options)))
        late = AdminResult(call.message.id, 504, {"error": _LATE.format(limit=limit)})
        timer = asyncio.get_running_loop().call_later(limit, self.take, late)
        self._open[call.message.id] = (call, timer)
        return call

    def take(self, message: AdminProgress | AdminResult) -> None:
        """Hand on what the certifier said. One that is over (it took too long) is not heard any more."""
        call, timer = self._open.get(message.id, (None, None))
        if call is None or timer is None:
            return
        if isinstance(message, AdminProgress):
            call.add(message)
        else:
            timer.cancel()
            del self._open[message.id]
            call.finish(message)

    def fail(self, reason: str) -> None:
        """End all of them with status 503: nobody is left who could answer."""
        for number in list(self._open):
            self.take(AdminResult(number, 503, {"error": reason}))


_LATE = "the certifier has not answered for {limit:.0f} s; what it does goes on. Look at the log of the proxy."
