"""What operators have said about backends and sites, put into effect on the routes of this worker.

Knows routes, lines and backends; not who said it or when. A plan comes whole each time and what it does not mention is
as configured, so that the same plan may be applied any number of times. Rule kept: whatever changes, requests under way
go on where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from tlsproxy.proxy.upstream import Upstream

if TYPE_CHECKING:
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.router import Route, Site


class Plan(Protocol):
    """See `runtime.messages.BackendPlan`."""

    @property
    def drained(self) -> Sequence[str]: ...
    @property
    def swapped(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def paused(self) -> Mapping[str, float]: ...
    @property
    def key(self) -> str: ...


class Orders:
    """See the module's text. `find` makes or finds the backend of a URL, `backends` are all that were made so far."""

    def __init__(self, sites: Sequence[Site], find: Callable[[str], Backend], backends: dict[str, Backend]) -> None:
        self._sites = sites
        self._find = find
        self._backends = backends
        self._configured = {route: route.upstream for route in self._routes()}
        self._connect_routes("")

    def apply(self, plan: Plan) -> None:
        """Have the plan hold from now on."""
        for site in self._sites:
            for forward in site.forwards:
                self._swap(forward.route, plan.swapped.get(f"{site.name} {forward.route.label}", ()))
        self._connect_routes(plan.key)
        for url, backend in self._backends.items():
            if url in plan.drained:
                backend.drain()
            else:
                backend.resume()
        self._pause(plan.paused)
        self._forget()

    def _forget(self) -> None:
        """Let go of backends that only an earlier swap named, and at which nothing is under way or being closed."""
        upstreams = [*self._configured.values(), *(route.upstream for route in self._routes())]
        used = {backend.url for upstream in upstreams for backend in upstream.backends}
        for url, backend in list(self._backends.items()):
            if url not in used and not backend.active and not backend.closing:
                self._backends.pop(url).close()

    def _routes(self) -> list[Route]:
        return [forward.route for site in self._sites for forward in site.forwards]

    def _swap(self, route: Route, urls: Sequence[str]) -> None:
        configured = self._configured[route]
        if not urls:
            upstream = configured
        elif list(urls) == [backend.url for backend in route.upstream.backends]:
            return
        else:
            upstream = Upstream([self._find(url) for url in urls], configured.balance, configured.limit)
        if upstream is not route.upstream:
            route.swap(upstream)

    def _connect_routes(self, key: str) -> None:
        """Tell backends and routes what they have to know of each other."""
        routes = self._routes()
        used = {backend for route in routes for backend in route.upstream.backends}
        siblings = {b for route in routes if len(route.upstream.backends) > 1 for b in route.upstream.backends}
        lines: dict[Backend, list[Route]] = {}
        for route in routes:
            if route.sticky is not None:
                route.sticky.follow(route.upstream.backends, bytes.fromhex(key))
            if route.upstream.limit:
                for backend in route.upstream.backends:
                    lines.setdefault(backend, []).append(route)
        for backend in self._backends.values():
            backend.has_siblings = backend in siblings
            backend.lines = tuple(route.line for route in lines.get(backend, ()))
            if backend not in used:
                backend.close_all_idle()

    def _pause(self, paused: Mapping[str, float]) -> None:
        """Wall-clock time becomes that of the deadlines here: a clock that jumps makes no pause longer or shorter."""
        difference = time.monotonic() - time.time()
        now = time.monotonic()
        for site in self._sites:
            until = paused.get(site.name, 0.0) + difference
            for forward in site.forwards:
                line = forward.route.line
                if site.name in paused and until > now:
                    line.pause(until)
                else:
                    line.resume()
                line.call()  # other backends may have room
