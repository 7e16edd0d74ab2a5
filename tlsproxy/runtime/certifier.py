"""The certifier process, `python -m tlsproxy.runtime.certifier`: control socket in, good certificates out.

Knows the order of its life (Start, drop, prepare, Ready; after Serve everything that may wait for a CA), nothing of
certificates.
Rules: only names leave it, never keys; it leaves when it is told to or when the supervisor is gone, and no signal but
SIGKILL ends it; a failure after Ready is logged and tried again.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tlsproxy import logs
from tlsproxy.certs.manager import CertificateManager
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.metrics import series_name
from tlsproxy.runtime.certifier_calls import CertifierCalls
from tlsproxy.runtime.child import open_control_socket, release_signals
from tlsproxy.runtime.control import ControlChannel, ControlError
from tlsproxy.runtime.families import ACME_FAILURES
from tlsproxy.runtime.messages import (
    AdminCall,
    CertificateRefused,
    CertificatesChanged,
    CertificateWanted,
    Drain,
    Drained,
    Failed,
    Ready,
    Serve,
    Start,
    Stats,
    StatsRequest,
)
from tlsproxy.runtime.privileges import drop_privileges
from tlsproxy.settings import Settings
from tlsproxy.store.base import CertificateStore, open_store

if TYPE_CHECKING:
    from tlsproxy.certs.acme_manager import AcmeManager

logger = logging.getLogger(__name__)

POLL_INTERVAL = 2.0
"""Seconds between looks at the certificate files."""
MARGIN = 0.5
"""Seconds of a drain that are kept for what comes after the orders, and least seconds for them."""
TOO_EARLY = 0.5
"""Seconds until a client may ask again whose wish came before anybody could grant it."""
FIRST_RETRY, LONGEST_RETRY = 5.0, 300.0
"""Seconds between tries to set up what talks to CAs."""
ORPHANED = 2.0
"""Seconds to clean up in when the supervisor is gone: nobody waits, but a CA may still look at an answer of ours."""
MOST_EARLY = 1000
"""Wishes that are kept while what grants them is being brought in."""


def main(argv: Sequence[str] | None = None) -> int:
    """Live and return the exit code."""
    sock = open_control_socket(sys.argv[1:] if argv is None else argv)
    return asyncio.run(live(sock))


async def live(sock: socket.socket) -> int:
    """Serve one supervisor until it has had enough; return the exit code. Takes over the socket."""
    release_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    channel = await ControlChannel.open(sock)
    try:
        return await _converse(channel)
    except ControlError as error:
        logger.error("certifier.control_failed", extra={"error": str(error)})  # noqa: TRY400 - the message says it all
        return 1
    finally:
        channel.close()
        await channel.wait_closed()


async def _converse(channel: ControlChannel) -> int:
    start = await channel.receive()
    if start is None:
        return 0
    if not isinstance(start, Start):
        raise ControlError(f"the first message must be Start, not {type(start).__name__}")
    gc.disable()  # thousands of sites are built without garbage: looking for it takes a third of the time
    try:
        settings, store = _set_up(start)
        manager = await _prepare(settings, store)
    except TlsproxyError as error:
        channel.send(Failed(str(error)))
        return 1
    # For workers that outlived an earlier certifier and may have missed what it had to say; at first there are none.
    channel.send(CertificatesChanged(()))
    channel.send(Ready())
    certifier = Certifier(channel, settings, store, manager, start.addresses)
    del start  # with thousands of sites it is megabytes
    gc.freeze()
    gc.enable()
    await certifier.serve()
    return 0


def _set_up(start: Start) -> tuple[Settings, CertificateStore]:
    settings = Settings.from_parent(start.settings)
    logs.configure(settings.log)
    # Here and not in a thread: no_new_privs holds for the calling thread and those it starts (prctl(2)).
    drop_privileges(settings.server.user)
    return settings, open_store(settings.store.url, settings.store.master_keys())


async def _prepare(settings: Settings, store: CertificateStore) -> CertificateManager:
    manager = CertificateManager(settings.sites, store)
    if problems := await asyncio.to_thread(manager.prepare, datetime.now(UTC)):
        raise TlsproxyError("\n".join(problems))
    return manager


class Certifier:
    """A certifier that is ready: watches, obtains and obeys until it is time to leave."""

    # Mutable: _acme (once it is imported, if a site wants it), _early (wishes until then; None: nobody waits for it),
    # _tasks.

    def __init__(
        self,
        channel: ControlChannel,
        settings: Settings,
        store: CertificateStore,
        manager: CertificateManager,
        addresses: Sequence[str],
    ) -> None:
        self._channel, self._settings, self._store = channel, settings, store
        self._manager, self._addresses = manager, tuple(addresses)
        self._calls = CertifierCalls(settings, store, channel.send, lambda name: self._announce((name,)))
        self._acme: AcmeManager | None = None
        is_demanded = any(site.certificate == "on_demand" for site in settings.sites)
        self._early: list[CertificateWanted] | None = [] if is_demanded else None
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self) -> None:
        self._tasks = [asyncio.create_task(self._watch())]
        drain = Drain(ORPHANED, last=True)
        try:
            drain = await self._listen()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._acme is not None:
                patience = self._settings.server.drain if drain.timeout is None else drain.timeout
                await self._acme.stop(max(patience - MARGIN, MARGIN), is_last=drain.last)
            await self._calls.close()
        self._channel.send(self._stats())
        self._channel.send(Drained())

    async def _listen(self) -> Drain:
        """Return how to leave, when it is time. What is meant for workers only is no concern."""
        async for message in self._channel:
            match message:
                case Serve():
                    self._tasks.append(asyncio.create_task(self._start_acme()))
                case StatsRequest():
                    self._channel.send(self._stats())
                case AdminCall():
                    self._calls.take(message)
                case CertificateWanted():
                    self._wish(message)
                case Drain():
                    return message
        return Drain(ORPHANED, last=True)

    def _stats(self) -> Stats:
        failures = self._acme.take_failures() if self._acme is not None else {}
        series = {
            series_name(ACME_FAILURES.name, {"name": name, "type": kind}): float(count)
            for (name, kind), count in failures.items()
        }
        return Stats(self._manager.stats(), series)

    def _wish(self, wish: CertificateWanted) -> None:
        """Pass a wish on; one that comes too early waits, as its client does: a start is no reason to be refused."""
        if self._acme is not None and self._acme.demand is not None:
            self._acme.demand.want(wish.host, wish.client)
        elif self._early is not None and len(self._early) < MOST_EARLY:
            self._early.append(wish)
        else:
            self._refuse(wish.host, "nobody can grant it now, see the log", TOO_EARLY)

    async def _start_acme(self) -> None:
        """Bring in what talks to CAs: after Ready, in a thread, and only for sites that want it. It takes a while."""
        if not any(site.certificate in ("acme", "on_demand") for site in self._settings.sites):
            return
        pause = FIRST_RETRY
        while self._acme is None:
            try:
                self._acme = self._calls.acme = await self._make_acme()
            except Exception as error:
                logger.exception("certifier.acme_failed", extra={"retry_in": pause})
                self._calls.trouble = f"{type(error).__name__}: {error}"
            self._calls.tried.set()
            self._grant_early()
            if self._acme is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY)

    async def _make_acme(self) -> AcmeManager:
        module = await asyncio.to_thread(importlib.import_module, "tlsproxy.certs.acme_manager")
        acme: AcmeManager = module.AcmeManager(
            self._settings, self._store, announce=self._announce, refuse=self._refuse, addresses=self._addresses
        )
        try:
            await acme.start()
        except BaseException:
            await acme.stop(MARGIN)
            raise
        return acme

    def _grant_early(self) -> None:
        early, self._early = self._early or [], None
        for wish in early:
            self._wish(wish)

    def _announce(self, names: tuple[str, ...]) -> None:
        self._channel.send(CertificatesChanged(names))

    def _refuse(self, host: str, reason: str, seconds: float) -> None:
        self._channel.send(CertificateRefused(host, reason, seconds))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                names = await asyncio.to_thread(self._manager.tick, datetime.now(UTC))
            except Exception:
                # A flaw in one look must not end all renewals, silently least of all.
                logger.exception("certifier.tick_failed")
                continue
            if names:
                self._announce(names)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not sys.exit: that waits for threads, and one may wait for a CA that does not answer. All is said and stored.
    os._exit(status)
