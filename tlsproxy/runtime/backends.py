"""What operators do about backends and sites while the proxy runs: drain, pause, resume; what there is of them.

Owns the plan of the supervisor: all workers go by it, then it is kept in a file. Knows the configured sites, asks the
workers how their backends are; to change the backends of a route safely is the work of `swaps`. Rules: who asks for
what is so already gets it said that it is so; what can't be kept, or not at once, is done all the same, with a warning,
for who drains a backend has no time for a disk; what workers say is believed as far as it is about what they see.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tlsproxy.errors import StoreError
from tlsproxy.runtime import plans
from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.messages import BackendPlan
from tlsproxy.runtime.naming import Names
from tlsproxy.runtime.planfile import PlanFile
from tlsproxy.runtime.reload import Move
from tlsproxy.runtime.rows import Report, merge
from tlsproxy.settings import Settings, Site

logger = logging.getLogger(__name__)

KEY_BYTES = 32
STATS_LIMIT = 1.0
LONGEST_PAUSE = 24 * 3600.0
SAVE_LIMIT = 2.0
"""Seconds that who has said something waits for the disk; a write takes milliseconds, the store's lock up to 10 s."""


class Backends:
    """The plan and its owner. `generations` returns those that live, the serving one first."""

    # Mutable: _settings (of the serving generation), _plan, _saving (orders writers: the last plan is the last
    # written), _saved (what is in the file, as far as is known), _dropped (what was said last not to fit), _tasks
    # (saving).

    def __init__(self, settings: Settings, generations: Callable[[], Sequence[Generation]]) -> None:
        """Reads what was kept; what does not fit the settings is dropped, with a line in the log."""
        self._settings = settings
        self._generations = generations
        self._file = PlanFile(settings.store.url)
        self._saving = asyncio.Lock()
        self._tasks: set[asyncio.Task[list[str]]] = set()
        self._saved = self._file.load()
        self._dropped: list[str] = []
        self._plan = self._fitted(self._saved, settings)

    def __repr__(self) -> str:
        return f"<Backends {self.plan!r}>"

    @property
    def plan(self) -> BackendPlan:
        """What all workers go by now."""
        return self._plan

    @property
    def sites(self) -> Sequence[Site]:
        return self._settings.sites

    @property
    def routes(self) -> dict[str, tuple[str, ...]]:
        """The configured backends of each route."""
        return plans.configured(self.sites)

    # --- generations --------------------------------------------------------------------------------------------------

    def plan_for(self, settings: Settings) -> BackendPlan:
        """The plan for a generation of these settings, that may come to serve or not."""
        return plans.fit(self._plan, settings.sites, time.time())[0]

    async def prepare(self, settings: Settings) -> Move:
        """For a reload: what is to be done once the generation of these settings serves."""
        return _Settling(self, settings)

    def settle(self, settings: Settings) -> None:
        """The generation of these settings serves now: what does not fit them is over. Waits for no disk."""
        if settings.store.url != self._settings.store.url:
            self._file, self._saved = PlanFile(settings.store.url), BackendPlan()
        self._settings = settings
        self._plan = self._fitted(self._plan, settings)
        for generation in self._generations()[:1]:  # those that drain know the routes that what is dropped was about
            generation.change_plan(self.plan)
        if self._is_worth_saving():
            self._begin_saving()

    def adopt(self, plan: BackendPlan) -> None:
        """Go on with the plan of another supervisor, which may have been kept nowhere.

        One of an older version does not say what its swaps replaced; then the file does, if there is one.
        """
        if plan.key:
            handed = replace(plan, instead_of={**self._saved.instead_of, **plan.instead_of})
            self._plan = self._fitted(handed, self._settings)

    async def keep(self) -> None:
        """Write down what the file does not say: what was dropped, and the key of cookies, which survive a restart."""
        if self._is_worth_saving():
            await self._save_in_time()

    # --- what operators want ------------------------------------------------------------------------------------------

    async def rows(self) -> list[dict[str, Any]]:
        """One row for each backend of the configuration, of a swap, or of requests that are still under way."""
        return merge(await self.reports(), plans.in_use(self.routes, self.plan), self.plan.drained)

    async def drain(self, url: str) -> dict[str, Any]:
        """Have `url` get no new request. Raises Refusal."""
        self._require(url)
        warnings = await self.change(plans.drained(self.plan, url))
        alone = [route for route in plans.without_others(self.routes, self.plan) if url in self._urls(route)]
        warnings += [f"{route} has no other backend: its requests get 503 (or wait, with hold)" for route in alone]
        return {"url": url, "state": "draining", "warnings": warnings}

    async def resume(self, url: str) -> dict[str, Any]:
        self._require(url)
        warnings = await self.change(plans.resumed(self.plan, url))
        return {"url": url, "state": "up", "warnings": warnings}

    def site_rows(self) -> list[dict[str, Any]]:
        now = time.time()
        return [
            {
                "site": site.hosts[0],
                "hosts": list(site.hosts),
                "paused_for": max(0.0, round(self.plan.paused.get(site.hosts[0], 0.0) - now, 1)),
                "routes": [self._route_row(f"{site.hosts[0]} {route.path}", route.path) for route in site.routes],
            }
            for site in self.sites
        ]

    async def pause(self, host: str, seconds: float) -> dict[str, Any]:
        """Have the requests of a site wait for so long, at most. Raises Refusal."""
        if seconds > LONGEST_PAUSE:
            raise Refusal(400, f"a pause has at most {LONGEST_PAUSE / 3600:.0f} hours; ask again to lengthen it")
        site = self.site(host).hosts[0]
        paused = plans.paused(self.plan, site, time.time() + seconds)
        return {"site": site, "paused_for": seconds, "warnings": await self.change(paused)}

    async def resume_site(self, host: str) -> dict[str, Any]:
        site = self.site(host).hosts[0]
        was_paused = self.plan.paused.get(site, 0.0) > time.time()
        warnings = await self.change(plans.unpaused(self.plan, site))
        return {"site": site, "paused_for": 0.0, "was_paused": was_paused, "warnings": warnings}

    # --- for swaps ----------------------------------------------------------------------------------------------------

    def site(self, host: str) -> Site:
        """The site that serves this host. Raises Refusal."""
        site = Names(self.sites).site(host)
        if site is None:
            hosts = [host for site in self.sites for host in site.hosts]
            known = ", ".join(hosts[:8]) + " …" * (len(hosts) > 8)
            raise Refusal(404, f"{host}: no site has this host. There is {known}")
        return site

    async def swap(self, route: str, backends: Sequence[str]) -> list[str]:
        """Have the route go to these backends from now on; return warnings."""
        return await self.change(plans.swapped(self.plan, self.routes, route, backends))

    async def change(self, plan: BackendPlan) -> list[str]:
        """Have all workers go by it, at once, then keep it; return warnings.

        Not first the file: a crash between the two forgets a command that nobody was told the end of, but a disk that
        hangs would have requests go on to a backend that is about to be stopped.
        """
        self._plan = plan
        for generation in self._generations():
            generation.change_plan(plan)
        return await self._save_in_time()

    async def reports(self) -> list[Report]:
        """What each worker of each generation says of each backend."""
        asked = [generation.backend_reports(STATS_LIMIT) for generation in self._generations()]
        answers: Iterable[Mapping[int, list[dict[str, Any]] | None]] = await asyncio.gather(*asked)
        return [Report(pid, rows) for answer in answers for pid, rows in answer.items()]

    # --- private ------------------------------------------------------------------------------------------------------

    def _fitted(self, plan: BackendPlan, settings: Settings) -> BackendPlan:
        """What of it fits, with a key; what does not is said, once where the same plan comes from several sides."""
        fitting, dropped = plans.fit(plan, settings.sites, time.time())
        for entry in dropped:
            if entry not in self._dropped:
                logger.warning("backends.state_dropped", extra={"entry": entry})
        self._dropped = dropped
        return replace(fitting, key=plan.key or secrets.token_hex(KEY_BYTES))

    def _is_worth_saving(self) -> bool:
        """Whether the file is to say something else; a key that makes no cookies is nothing."""
        has_cookies = any(route.sticky for site in self.sites for route in site.routes)
        now, then = (replace(each, key="") for each in (self._plan, self._saved))
        return now != then or (has_cookies and self._plan.key != self._saved.key)

    def _require(self, url: str) -> None:
        known = {each for urls in plans.in_use(self.routes, self.plan).values() for each in urls}
        if url not in known | set(self.plan.drained):
            raise Refusal(404, f"{url}: no route has this backend. There is {', '.join(sorted(known)[:16])}")

    def _urls(self, route: str) -> Sequence[str]:
        return plans.in_use(self.routes, self.plan).get(route, ())

    def _route_row(self, name: str, path: str) -> dict[str, Any]:
        return {"path": path, "backends": list(self._urls(name)), "swapped": name in self.plan.swapped}

    async def _save_in_time(self) -> list[str]:
        """Return what stands against it, as a warning; a save that takes longer goes on."""
        task = self._begin_saving()
        await asyncio.wait({task}, timeout=SAVE_LIMIT)  # which leaves the task alone, whatever becomes of who waits
        if task.done():
            return task.result()
        late = f"{self._file.path} was not written within {SAVE_LIMIT:g} s"
        logger.warning("backends.state_not_kept", extra={"error": f"{late}; this goes on"})
        return [f"this would not survive a restart of the proxy yet: {late}. This goes on; the log says if it fails."]

    def _begin_saving(self) -> asyncio.Task[list[str]]:
        task = asyncio.create_task(self._save())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _save(self) -> list[str]:
        """Return what stands against it, as a warning."""
        async with self._saving:
            plan = self._plan
            if plan is self._saved:  # by who waited before us
                return []
            try:
                await asyncio.to_thread(self._file.save, plan)
            except StoreError as error:
                logger.warning("backends.state_not_kept", extra={"error": str(error)})
                return [f"this will not survive a restart of the proxy: {error}"]
            self._saved = plan
            return []


class _Settling:
    """Settings that are yet to be served."""

    def __init__(self, backends: Backends, settings: Settings) -> None:
        self._backends = backends
        self._settings = settings

    async def commit(self) -> None:
        self._backends.settle(self._settings)

    def undo(self) -> None:
        """Nothing was done."""
