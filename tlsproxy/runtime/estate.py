"""What a supervisor has that the next one goes on with, as a Handover, and how it lets go of it.

Knows where each thing is; the owners know what it is. Rule: until `last_word` nothing in here changes what it looks at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.blueprint import Heirloom
from tlsproxy.runtime.frontdesk import FrontDesk
from tlsproxy.runtime.generation import DrainOutcome
from tlsproxy.runtime.generations import Generations
from tlsproxy.runtime.inheritance import Inheritance
from tlsproxy.runtime.messages import BackendPlan, Drain, Handover
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.sockets import Listener, close_listeners
from tlsproxy.settings import Settings

_PARTING_TIME = 1.0


@dataclass(frozen=True)
class Estate:
    """See the module's text. `settings` and `listeners` return those of the generation that serves."""

    settings: Callable[[], Settings]
    listeners: Callable[[], Sequence[Listener]]
    generations: Generations
    heirloom: Heirloom
    backends: Backends
    desk: FrontDesk
    inheritance: Inheritance

    @property
    def collector(self) -> Collector:
        return self.heirloom.ears.collector

    def handover(self, line: int) -> Handover:
        """Return all of it; `line` is the descriptor of the line to the stand-in, or -1."""
        return Handover(
            self.generations.serving.number,
            self.heirloom.ticket_secret,
            tuple((each.kind, each.socket.fileno(), each.slot, each.text, each.entry) for each in self.listeners()),
            self.backends.plan,
            self.desk.admin.heirloom,
            (self.desk.port.address, self.desk.port.descriptors),
            line,
            self.inheritance.service.notify,
            self.inheritance.service.watchdog,
            self.inheritance.started.isoformat(),
            self.collector.snapshot(),
        )

    def last_word(self) -> tuple[BackendPlan, dict[str, float]]:
        """Return what has come up since the handover: the plan, which is not changed here any more, and the totals."""
        self.desk.give_plan_away()
        return self.backends.plan, self.collector.rest()

    def take_back(self) -> None:
        """The last word was none: we go on."""
        self.desk.take_plan_back()

    def hasten(self, timeout: float) -> None:
        """Have all that drain be gone within so many seconds, those of the supervisor before us too."""
        self.generations.hasten(timeout)
        if self.inheritance.predecessor is not None:
            self.inheritance.predecessor.hurry(timeout)

    async def end(self, timeout: float) -> DrainOutcome:
        """End all within so many seconds, what the supervisor before us still has in flight too: nobody follows."""
        predecessor = self.inheritance.predecessor
        if predecessor is None:
            return await self.generations.end(timeout)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        predecessor.hurry(timeout)
        outcome = await self.generations.end(timeout)
        # Whoever ends when we end (a container, a service) must not end it before: it has as long as we have.
        await predecessor.gone(max(0.0, deadline - loop.time()) + _PARTING_TIME)
        return outcome

    async def leave(self, order: Drain) -> None:
        """Let all come to their ends, ours as the order says: another supervisor goes on."""
        await self.generations.leave(order)
        if self.inheritance.predecessor is not None:
            # Its streams may have longer than ours; their limit began before that of ours would.
            await self.inheritance.predecessor.gone(max(order.timeout or 0.0, order.streams) + _PARTING_TIME)

    def let_go(self) -> None:
        """Accept nothing any more. All of it goes on to be open elsewhere, so no name is removed."""
        close_listeners(self.listeners())
        self.desk.leave()
