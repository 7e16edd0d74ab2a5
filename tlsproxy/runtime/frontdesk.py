"""Where others ask the proxy, and who answers: the admin socket, the port of metrics, what is behind the two.

Knows who has which answer; nothing of children or of how an upgrade goes. Rule: from the moment on that the next
supervisor has the plan of operators nothing here changes it, for that one would not hear of it. Changes are refused;
swaps hear nothing of workers, so none comes to its switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from tlsproxy.runtime.admin import AdminServer
from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.generations import Generations
from tlsproxy.runtime.messages import Probe, Probed
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.metricsport import MetricsPort
from tlsproxy.runtime.naming import Names
from tlsproxy.runtime.operators import Operators
from tlsproxy.runtime.overview import Identity, Sources
from tlsproxy.runtime.scrape import Configured, Scraper
from tlsproxy.runtime.sockets import Listener
from tlsproxy.settings import Settings

_QUESTIONS = {"backends", "sites"}  # the verbs of operators that change nothing
_ELSEWHERE = "an upgrade is under way, and the next process has the plan already. Ask again in a moment."


class FrontDesk:
    """See the module's text. `living` returns the generation that serves, then those that drain."""

    # Mutable: _settings and _identity (exchanged by each reload), _is_plan_elsewhere.

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        *,
        generations: Generations,
        living: Callable[[], Sequence[Generation]],
        backends: Backends,
        collector: Collector,
        deeds: Mapping[str, Callable[[Mapping[str, str]], Call]],
    ) -> None:
        """`deeds` are what the proxy can do with itself, for the admin API."""
        self._settings = settings
        self._identity = identity
        self._generations = generations
        self._is_plan_elsewhere = False
        self._operators = Operators(backends, self._ask_worker)
        self._scraper = Scraper(
            collector, living, lambda: Configured.of(self._settings), started=identity.started.timestamp()
        )
        sources = Sources(
            generations.describe_draining,
            backends.rows,
            self._scraper.certificates,
            collector,
            lambda: sorted(backends.plan.paused),
        )
        self.admin = self._make_admin(deeds, sources)
        self.port = MetricsPort(self.admin.answer)

    def __repr__(self) -> str:
        return f"<FrontDesk {'without' if self._is_plan_elsewhere else 'with'} the plan>"

    @property
    def identity(self) -> Identity:
        return self._identity

    def describe(self, settings: Settings, identity: Identity) -> None:
        """From now on this is what the proxy is."""
        self._settings, self._identity = settings, identity
        self.admin.describe(identity, Names(settings.sites).certificate)

    async def operate(self, verb: str, name: str, options: Mapping[str, str]) -> Any:
        """Do, or tell, what an operator wants of backends and sites. Raises Refusal."""
        if self._is_plan_elsewhere and verb not in _QUESTIONS:
            raise Refusal(503, _ELSEWHERE)
        return await self._operators.act(verb, name, options)

    def probed(self, answer: Probed) -> None:
        """A worker has answered a Probe."""
        if not self._is_plan_elsewhere:
            self._operators.probed(answer)

    def give_plan_away(self) -> None:
        """The next supervisor is told the plan now."""
        self._is_plan_elsewhere = True

    def take_plan_back(self) -> None:
        """There is no next supervisor after all."""
        self._is_plan_elsewhere = False

    async def end_swaps(self) -> None:
        await self._operators.close()

    def close(self) -> None:
        """Take no more clients, and give the names free. Those who are there stay until `kill`."""
        self.admin.close()
        self.port.close()

    def leave(self) -> None:
        """Take no more clients, and have those who are there ask the process that listens there too."""
        self.admin.leave()
        self.port.leave()

    async def kill(self) -> None:
        """Part with everybody."""
        await self.admin.kill()
        await self.port.kill()
        self._scraper.close()

    def _make_admin(self, deeds: Mapping[str, Callable[[Mapping[str, str]], Call]], sources: Sources) -> AdminServer:
        return AdminServer(
            self._identity,
            lambda: self._generations.serving,
            canonical=Names(self._settings.sites).certificate,
            scrape=self._scraper.page,
            deeds=deeds,
            operate=self.operate,
            sources=sources,
        )

    def _ask_worker(self, message: Probe) -> bool:
        return not self._is_plan_elsewhere and self._generations.serving.ask_one_worker(message)


def identify(settings: Settings, listeners: Iterable[Listener], started: datetime) -> Identity:
    """Return what stays the same until the next reload."""
    return Identity(len(settings.sites), tuple(str(each) for each in listeners if each.slot == 0), started)
