"""What operators said about backends and sites, as a value: does it fit a configuration, what follows from it. PURE.

Knows BackendPlan and the configured sites. A route is named "SITE PATH", a site by its first host. Rule: the newer word
counts. A swap is remembered with the backends that the configuration named at the time; a configuration that names
others since then was written after it, and the swap is over. Where it is not known what it named, it is what it names
now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from tlsproxy.runtime.messages import BackendPlan
from tlsproxy.settings import Site
from tlsproxy.settings.sites import Health

Routes: TypeAlias = Mapping[str, tuple[str, ...]]
"""The backends of each route."""


def configured(sites: Iterable[Site]) -> dict[str, tuple[str, ...]]:
    """The backends that the configuration names for each route."""
    return {f"{site.hosts[0]} {route.path}": route.backends for site in sites for route in site.routes}


def in_use(routes: Routes, plan: BackendPlan) -> dict[str, tuple[str, ...]]:
    """The backends that each route has now."""
    return {name: plan.swapped.get(name, backends) for name, backends in routes.items()}


def health_of(sites: Iterable[Site], route: str) -> Health | None:
    return next(
        (each.health for site in sites for each in site.routes if f"{site.hosts[0]} {each.path}" == route), None
    )


def drained(plan: BackendPlan, url: str) -> BackendPlan:
    return replace(plan, drained=tuple(sorted({*plan.drained, url})))


def resumed(plan: BackendPlan, url: str) -> BackendPlan:
    return replace(plan, drained=tuple(each for each in plan.drained if each != url))


def paused(plan: BackendPlan, site: str, until: float) -> BackendPlan:
    return replace(plan, paused={**plan.paused, site: until})


def unpaused(plan: BackendPlan, site: str) -> BackendPlan:
    return replace(plan, paused={name: until for name, until in plan.paused.items() if name != site})


def swapped(plan: BackendPlan, routes: Routes, route: str, backends: Sequence[str]) -> BackendPlan:
    """The route has these backends from now on; the configured ones are no swap."""
    swaps = {name: urls for name, urls in plan.swapped.items() if name != route}
    instead_of = {name: urls for name, urls in plan.instead_of.items() if name != route}
    if set(backends) != set(routes[route]):
        swaps[route] = tuple(backends)
        instead_of[route] = routes[route]
    return replace(plan, swapped=swaps, instead_of=instead_of)


def fit(plan: BackendPlan, sites: Sequence[Site], now: float) -> tuple[BackendPlan, list[str]]:
    """What of a plan holds for these sites, and a sentence for each entry that does not.

    `now` is time.time(): a pause that is over is no entry.
    """
    routes = configured(sites)
    faults = {name: fault for name, urls in plan.swapped.items() if (fault := _misfit(name, urls, plan, routes))}
    swaps = {name: urls for name, urls in plan.swapped.items() if name not in faults}
    known = {url for urls in in_use(routes, replace(plan, swapped=swaps)).values() for url in urls}
    names = {site.hosts[0] for site in sites}
    dropped = [
        *(f"swap of {name}: {fault}" for name, fault in faults.items() if fault != _SAME),
        *(f"drain of {url}: no route names it any more" for url in plan.drained if url not in known),
        *(f"pause of {site}: there is no such site any more" for site in plan.paused if site not in names),
    ]
    fitting = replace(
        plan,
        swapped=swaps,
        instead_of={name: plan.instead_of.get(name, routes[name]) for name in swaps},
        drained=tuple(url for url in plan.drained if url in known),
        paused={site: until for site, until in plan.paused.items() if site in names and until > now},
    )
    return fitting, dropped


def without_others(routes: Routes, plan: BackendPlan) -> list[str]:
    """The routes of which no backend gets requests because all of them are drained."""
    return [name for name, urls in in_use(routes, plan).items() if set(urls) <= set(plan.drained)]


_SAME = "the configuration names the same backends now"


def _misfit(route: str, urls: Sequence[str], plan: BackendPlan, routes: Routes) -> str:
    now = routes.get(route)
    if now is None:
        return "there is no such route any more"
    if set(now) == set(urls):
        return _SAME
    if plan.instead_of.get(route, now) != now:
        return f"the configuration was changed since then, and names {', '.join(now)}"
    return ""
