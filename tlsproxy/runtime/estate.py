"""What a supervisor has that the next one goes on with, as a Handover, and how it lets go of it.

Knows where each thing is; the owners know what it is. Rule: nothing in here changes what it looks at, until `let_go`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tlsproxy.runtime.admin import AdminServer
from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.blueprint import Heirloom
from tlsproxy.runtime.generations import Generations
from tlsproxy.runtime.messages import BackendPlan, Handover
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.metricsport import MetricsPort
from tlsproxy.runtime.sockets import Listener, close_listeners
from tlsproxy.runtime.systemd import Service
from tlsproxy.settings import Settings


@dataclass(frozen=True)
class Estate:
    """See the module's text. `settings` and `listeners` return those of the generation that serves."""

    settings: Callable[[], Settings]
    listeners: Callable[[], Sequence[Listener]]
    generations: Generations
    heirloom: Heirloom
    backends: Backends
    admin: AdminServer
    port: MetricsPort
    service: Service
    started: datetime

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
            self.admin.heirloom,
            (self.port.address, self.port.descriptors),
            line,
            self.service.notify,
            self.service.watchdog,
            self.started.isoformat(),
            self.collector.snapshot(),
        )

    def last_word(self) -> tuple[BackendPlan, dict[str, float]]:
        """Return what has come up since the handover: the plan as it is now, what was counted."""
        return self.backends.plan, self.collector.rest()

    def let_go(self) -> None:
        """Accept nothing any more. All of it goes on to be open elsewhere, so no name is removed."""
        close_listeners(self.listeners())
        self.admin.leave()
        self.port.close()
