"""What a reload reads before anything changes, and what it says to those who leave after it.

Knows settings, old and new; starts, opens and closes nothing. Rule: what a running proxy can't change is refused with a
sentence, before anything has been touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tlsproxy.runtime import preflight
from tlsproxy.runtime.messages import Drain, Prepared
from tlsproxy.runtime.reload import ReloadRefused
from tlsproxy.runtime.sockets import Listener
from tlsproxy.runtime.succession import digests, unchanged
from tlsproxy.settings import Loaded, Settings


async def read_anew(reread: Callable[[], Loaded], before: Settings, warn: Callable[[str], None]) -> Loaded:
    """Return the configuration as it is now, inspected as for a start. Raises ConfigError, ReloadRefused."""
    loaded = await asyncio.to_thread(reread)
    _refuse_fixed(before, loaded.settings)
    if loaded.settings.server.user:
        # It acts as that user meanwhile, and so would whatever else ran at the same time.
        warnings = preflight.inspect(loaded)
    else:
        warnings = await asyncio.to_thread(preflight.inspect, loaded)
    for warning in warnings:
        warn(warning)
    if loaded.settings.store.url != before.store.url:
        warn("store.url has changed: certificates are looked for and kept in the new store, and nowhere else")
    return loaded


def parting(before: Settings, after: Settings, dropped: Iterable[Listener]) -> Drain:
    """Return what to say to those who have served `before`: how long what may take."""
    now = {site.hosts[0]: site for site in after.sites}
    server = after.server
    unchanged = tuple(site.hosts[0] for site in before.sites if now.get(site.hosts[0]) == site)
    stays = server.drain_streams > server.drain and unchanged
    return Drain(
        server.drain,
        unchanged=unchanged if stays else (),
        streams=server.drain_streams if stays else 0.0,
        dropped=tuple(listener.socket.fileno() for listener in dropped),
    )


def parting_from(before: Settings, prepared: Prepared) -> Drain:
    """Return the same for an upgrade: what the new supervisor serves is known by digests."""
    server = before.server
    same = unchanged(digests(before.sites), prepared.sites)
    stays = server.drain_streams > server.drain and same
    return Drain(
        server.drain,
        unchanged=same if stays else (),
        streams=server.drain_streams if stays else 0.0,
        dropped=prepared.dropped,
    )


def describe_parting(order: Drain) -> str:
    """Say it to a person."""
    said = f"what is in flight has {order.timeout:g} s"
    if order.unchanged:
        sites = "1 site that has" if len(order.unchanged) == 1 else f"{len(order.unchanged)} sites that have"
        said += f", {order.streams:g} s on the {sites} not changed"
    return said


def _refuse_fixed(before: Settings, after: Settings) -> None:
    if before.server.user != after.server.user:
        raise ReloadRefused(
            f'server.user cannot change from "{before.server.user}" to "{after.server.user}" while the proxy runs, for '
            "store and logs belong to that user. Restart tlsproxy."
        )
