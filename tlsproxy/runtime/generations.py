"""The generation that serves, those before it that are coming to their end, and the one that is yet to serve.

Knows which is which and how one follows the other; nothing of configurations or listeners. Rules: there is always one
that serves, and it is replaced by one whose children are all ready, in one step; whoever is started here is ended here;
how many may be on their way out is limited, for each has as many processes as the first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.generation import DrainOutcome, Generation, time_for_children
from tlsproxy.runtime.messages import BackendPlan, CertificateWanted, Drain, Message

logger = logging.getLogger(__name__)

MOST_DRAINING = 8


class NothingServes(TlsproxyError):
    """Asked for before the first generation was ready."""


class Generations:
    """See the module's text. The owner calls `poll` after each SIGCHLD."""

    # Mutable: _known (all that have children), _serving, _ends (a task for each that drains, oldest first).

    def __init__(self) -> None:
        self._known: list[Generation] = []
        self._serving: Generation | None = None
        self._ends: dict[Generation, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Generations {', '.join(str(each.number) for each in self._known)}>"

    def __iter__(self) -> Iterator[Generation]:
        """All that have children."""
        return iter(tuple(self._known))

    @property
    def serving(self) -> Generation:
        if self._serving is None:
            raise NothingServes("the proxy is starting. Try again in a moment.")
        return self._serving

    @property
    def draining(self) -> tuple[Generation, ...]:
        return tuple(self._ends)

    async def prepare(self, generation: Generation) -> None:
        """Have all its children ready. Raises ChildFailed; nothing of it is left then."""
        self._known.append(generation)
        try:
            await generation.prepare()
        except BaseException:
            await self.discard(generation)
            raise

    async def discard(self, generation: Generation) -> None:
        """End one that was prepared, and is not to serve after all."""
        await generation.kill()
        self._known.remove(generation)

    def serve(self, generation: Generation, order: Drain) -> None:
        """Let a prepared one serve, and the one that served so far leave as the order says."""
        before, self._serving = self._serving, generation
        generation.serve()
        if before is not None:
            before.retire()
            self._ends[before] = asyncio.create_task(self._end(before, order))
        for oldest in self.draining[:-MOST_DRAINING]:
            logger.warning("generation.ended_early", extra={"generation": oldest.number, "draining": len(self._ends)})
            oldest.hasten(order.timeout or 0.0)

    async def end(self, timeout: float) -> DrainOutcome:
        """End all within `timeout` seconds; nobody follows."""
        ends = list(self._ends.values())
        for each in self.draining:
            each.hasten(timeout)
        outcome = await self.serving.drain(timeout, Drain(time_for_children(timeout), last=True))
        await asyncio.gather(*ends, return_exceptions=True)
        return outcome

    async def leave(self, order: Drain) -> None:
        """Let all come to their ends, the one that serves as the order says: another supervisor goes on."""
        generation = self.serving
        generation.retire()
        self._ends[generation] = asyncio.create_task(self._end(generation, order))
        while self._ends:
            await asyncio.wait(tuple(self._ends.values()))

    def hasten(self, timeout: float) -> None:
        """Have those that drain be gone within so many seconds."""
        for each in self.draining:
            each.hasten(timeout)

    async def kill(self) -> None:
        """End all now."""
        ends = list(self._ends.values())
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, *(each.kill() for each in self), return_exceptions=True)

    def poll(self) -> None:
        for each in self:
            each.poll()

    def pids(self) -> set[int]:
        return set().union(*(each.pids() for each in self))

    def names(self) -> list[str]:
        return [name for each in self for name in each.names()]

    def send_to_workers(self, message: Message) -> None:
        for each in self:
            each.send_to_workers(message)

    def change_plan(self, plan: BackendPlan) -> None:
        for each in self:
            each.change_plan(plan)

    def pass_wish(self, wish: CertificateWanted) -> None:
        """Ask the certifier that stays."""
        if self._serving is not None:
            self._serving.pass_wish(wish)

    def describe_draining(self) -> list[dict[str, Any]]:
        """Return for each that drains its number, its workers' pids, and the seconds that it may still take."""
        return [
            {"generation": each.number, "workers": each.worker_pids(), "seconds_left": round(each.seconds_left(), 1)}
            for each in self.draining
        ]

    async def _end(self, generation: Generation, order: Drain) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        longest = max(order.timeout or 0.0, order.streams)
        try:
            outcome = await generation.drain(longest + 0.5, order)
            level = logging.WARNING if outcome.cut or outcome.killed else logging.INFO
            told = {"generation": generation.number, "cut": outcome.cut, "killed": list(outcome.killed)}
            logger.log(level, "generation.ended", extra={**told, "seconds": round(loop.time() - began, 1)})
        finally:
            self._ends.pop(generation, None)
            if not generation.pids():
                self._known.remove(generation)
