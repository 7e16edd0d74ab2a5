"""Sites, routes and backends as the settings want them, put together when a worker begins.

Knows the settings of sites; not connections, and not what becomes of a site later (`orders` changes that). Rule kept:
there is one `Backend` for each URL, whoever names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from tlsproxy.proxy.multiplexed_backend import MultiplexedBackend
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.router import Route, Site
from tlsproxy.proxy.sticky import Sticky
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.proxy.waiting_line import Line

if TYPE_CHECKING:
    from tlsproxy import settings as configuration
    from tlsproxy.proxy.inspection import Inspection


class Assembly:
    """See the module's text. Mutable: `backends`, all that were asked for, by URL; who takes it closes them."""

    def __init__(self, settings: configuration.Settings, inspection: Inspection, secret: bytes) -> None:
        self.backends: dict[str, Backend] = {}
        self._inspection = inspection
        self._most_idle = settings.limits.pool_idle_per_backend
        self._workers = settings.resolve_workers()
        self._sticky_key = blake2b(secret, digest_size=32, person=b"sticky").digest()  # until a plan has one

    def make_sites(self, sites: Sequence[configuration.Site]) -> list[Site]:
        return [self._make_site(site) for site in sites]

    def find(self, url: str) -> Backend:
        """Routes that name the same backend share its pool and what is known of its health."""
        backend = self.backends.get(url)
        if backend is None:
            kind = MultiplexedBackend if url.startswith("h2c") else Backend
            backend = self.backends[url] = kind(url, most_idle=self._most_idle)
        return backend

    def _make_site(self, site: configuration.Site) -> Site:
        routes = [self._inspection.watch(self._make_route(route), route) for route in site.routes]
        return Site(site.hosts, routes, b"max-age=%d" % site.hsts if site.hsts else b"")

    def _make_route(self, route: configuration.Route) -> Route:
        limit = -(-route.max_requests // self._workers)  # of all workers together; rounded up, so that each has some
        upstream = Upstream([self.find(url) for url in route.backends], route.balance, limit)
        return Route(
            route.path,
            upstream,
            strip=route.strip_prefix,
            response_timeout=route.response_timeout,
            max_body=route.max_body,
            line=_make_line(route, upstream),
            sticky=Sticky(route.sticky, route.path, self._sticky_key) if route.sticky else None,
        )


def _make_line(route: configuration.Route, upstream: Upstream) -> Line:
    return Line(
        route.path,
        upstream,
        most=route.queue,
        patience=route.queue_timeout,
        hold=route.hold,
        is_limited=upstream.limit > 0,
        is_sticky=bool(route.sticky),
    )
