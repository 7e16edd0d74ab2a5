"""Health checks of a worker: who is asked when, and when an answer makes a backend down or up again.

One task per route that has a `health` and backend of it, off the request path; what is asked is in `inquiry`, what
follows from the verdict in `condition`. Each worker asks for itself: the way from here to there is part of the answer.

Rules: `fails` answers in a row make a backend down and `passes` in a row make it up. At first nothing is known, and it
is believed to be up: an answer that says so is enough then, and until there is a verdict it is asked once a second.
What this process lacks (descriptors) says nothing about a backend. Questions of many routes don't come at once: each
begins at a time of its own, and at most `_AT_ONCE` are under way.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy.dialing import Place
from tlsproxy.proxy.failures import OutOfResources
from tlsproxy.proxy.inquiry import Question, ask

if TYPE_CHECKING:
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.router import Site
    from tlsproxy.settings.sites import Health
    from tlsproxy.settings.sites import Site as ConfiguredSite
    from tlsproxy.wire.fields import Field

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 64
_FIRST_WITHIN: Final = 0.5  # seconds after the start
_UNSETTLED: Final = 1.0  # seconds between two questions while there is no verdict
_JITTER: Final = 0.05  # of the interval


class Tally:
    """What has been answered so far. Pure."""

    # Mutable: _is_down (the verdict, None before the first), _contrary (answers in a row that speak against it).

    def __init__(self, *, fails: int, passes: int) -> None:
        self._fails = fails
        self._passes = passes
        self._is_down: bool | None = None
        self._contrary = 0

    @property
    def is_settled(self) -> bool:
        return self._is_down is not None

    def count(self, why: str) -> bool:
        """Take an answer ("" for well); return whether it is the verdict from now on, or goes on being it."""
        is_bad = bool(why)
        if is_bad == self._is_down:
            self._contrary = 0
            return True
        self._contrary = self._contrary + 1 if is_bad or self._is_down else self._passes
        if self._contrary < (self._fails if is_bad else self._passes):
            return False
        self._is_down = is_bad
        self._contrary = 0
        return True


class HealthChecks:
    """The health checks of all routes. The owner calls `follow` in a running loop, and `close` in the end."""

    # Mutable: _tasks (by route and URL).

    def __init__(
        self, sites: Iterable[ConfiguredSite], *, connect_timeout: float, fields: Sequence[Field] = ()
    ) -> None:
        """`fields` are sent with every question, besides its own."""
        self._connect_timeout = connect_timeout
        self._checks: dict[str, tuple[Health, Question]] = {
            f"{site.hosts[0]} {route.path}": (route.health, _question(site.hosts, route.health, fields))
            for site in sites
            for route in site.routes
            if route.health is not None
        }
        self._tasks: dict[tuple[str, str], tuple[Backend, asyncio.Task[None]]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def __repr__(self) -> str:
        return f"<HealthChecks of {len(self._checks)} routes, {len(self._tasks)} backends>"

    def follow(self, sites: Iterable[Site]) -> None:
        """Ask the backends that the routes have now. One that left a route is no longer judged by its check."""
        wanted = {
            (route, backend.url): backend
            for site in sites
            for forward in site.forwards
            if (route := f"{site.name} {forward.route.label}") in self._checks
            for backend in forward.route.upstream.backends
        }
        for key, (backend, task) in list(self._tasks.items()):
            if wanted.get(key) is not backend:
                del self._tasks[key]
                task.cancel()
                backend.judged(key[0], "")
        for key, backend in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = (backend, asyncio.create_task(self._watch(key[0], backend)))

    async def probe(self, route: str, urls: Sequence[str]) -> dict[str, str]:
        """Ask these once, as backends of the route ("SITE PATH"); what is wrong with each, "" if it is well."""
        _, question = self._checks.get(route, (None, Question(timeout=self._connect_timeout)))
        return dict(zip(urls, await asyncio.gather(*(_ask_once(url, question) for url in urls)), strict=True))

    def close(self) -> None:
        for _, task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _watch(self, route: str, backend: Backend) -> None:
        health, question = self._checks[route]
        tally = Tally(fails=health.fails, passes=health.passes)
        place = Place(backend.url)
        await asyncio.sleep(random.uniform(0, min(health.interval, _FIRST_WITHIN)))  # noqa: S311
        while True:
            try:
                async with self._turns:
                    why = await ask(backend.url, place, question)
                if tally.count(why):
                    backend.judged(route, why)
            except OutOfResources as failure:
                logger.warning("health.not_asked", extra={"backend": backend.url, "why": failure.note})
            except Exception:
                logger.exception("health.crashed", extra={"backend": backend.url})
            pause = health.interval if tally.is_settled else min(health.interval, _UNSETTLED)
            await asyncio.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311


async def _ask_once(url: str, question: Question) -> str:
    try:
        return await ask(url, Place(url), question)
    except OutOfResources as failure:
        return failure.note.removeprefix(f"{url}: ")


def _question(hosts: Sequence[str], health: Health, fields: Sequence[Field]) -> Question:
    """As a client of the site would ask over https, so that no redirect to https or check of hosts is in the way."""
    exact = [host for host in hosts if not host.startswith("*")]
    name = health.host or next(iter(exact), hosts[0].removeprefix("*.").removeprefix("*") or "localhost")
    own = [
        (b"Host", f"[{name}]".encode() if ":" in name else name.encode()),
        (b"User-Agent", b"tlsproxy-health"),
        (b"Accept", b"*/*"),
        (b"X-Forwarded-Proto", b"https"),
    ]
    return Question(health.path, [*own, *fields], timeout=health.timeout)
