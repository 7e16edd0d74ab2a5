"""The parent: binds, starts a generation, watches over it, ends it. No TLS, HTTP or ACME in here.

    tlsproxy run ─ Supervisor ─┬─ certifier          SIGTERM, SIGINT   drain, leave; a second one: leave now
         owns the listeners,   ├─ worker 0           SIGUSR1           reopen the log files
         sleeps until a child  └─ worker 1 …         SIGCHLD           reap, replace
         ends, a signal comes,
         or somebody asks on the admin socket

Rule: before `proxy.ready` every failure ends everything and says why; after it no child's death ends the proxy.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlsproxy import logs
from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime import host
from tlsproxy.runtime.admin import AdminServer, Identity
from tlsproxy.runtime.blueprint import Heirloom, make_generation
from tlsproxy.runtime.messages import BackendPlan, ReopenLogs
from tlsproxy.runtime.naming import Names
from tlsproxy.runtime.notifier import Notifier
from tlsproxy.runtime.rotation import LogMaker
from tlsproxy.runtime.scrape import Configured, Scraper
from tlsproxy.runtime.sockets import Listener, bind_listeners, close_listeners
from tlsproxy.settings import Loaded, Settings

logger = logging.getLogger(__name__)


def run(loaded: Loaded) -> int:
    """Serve until told to stop. Returns the exit code; a reason not to start goes to stderr."""
    settings = loaded.settings
    logs.configure(settings.log)
    try:
        host.check_user(settings)
        host.raise_file_limit()
        slots = settings.resolve_workers()
        listeners = bind_listeners(settings.listen.https, settings.listen.http, slots)
        try:
            asyncio.run(Supervisor(settings, listeners).serve())
        finally:
            close_listeners(listeners)
    except TlsproxyError as error:
        sys.stderr.write(f"tlsproxy: {error}\n")
        return error.exit_code
    return 0


class Supervisor:
    """The composition root of the parent."""

    # Mutable: _generation (the one that serves), the two events that stop signals set.

    def __init__(self, settings: Settings, listeners: tuple[Listener, ...]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._plan = BackendPlan()
        self._heirloom = Heirloom()
        self._notifier = Notifier()
        self._log_maker = LogMaker(settings)
        self._generation = make_generation(1, settings, listeners, self._heirloom, self._plan)
        names = Names(settings.sites)
        self._scraper = Scraper(
            self._heirloom.ears.collector,
            lambda: (self._generation,),
            lambda: Configured.of(self._settings),
            time.time(),
        )
        identity = _identity(settings, listeners)
        self._admin = AdminServer(identity, lambda: self._generation, names.certificate, self._scraper.page)
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def serve(self) -> None:
        """Start, serve, stop. Raises TlsproxyError when it could not start; no child outlives the call."""
        self._install_signals()
        try:
            if await self._start():
                await self._stop.wait()
                await self._drain()
        finally:
            await self._generation.kill()
            await self._admin.kill()
            self._scraper.close()

    async def _start(self) -> bool:
        """Return whether the generation is ready; False when a stop came first. Raises its reason for failing."""
        starting = asyncio.create_task(self._generation.start())
        if await _is_first(starting, self._stop):
            starting.result()
            if self._settings.admin.socket != "off":
                await self._admin.open(Path(self._settings.admin.socket))
            self._log_ready()
            self._notifier.ready()
            gc.freeze()
            gc.enable()  # the command has switched it off
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        logger.info("proxy.stopped", extra={"during": "start"})
        return False

    async def _drain(self) -> None:
        """Stop within `server.drain`, or at once when asked a second time. Whatever was cut is said."""
        logger.info("proxy.draining", extra={"timeout": self._settings.server.drain})
        self._notifier.stopping()
        # The kernel refuses new connections once the last copy is closed: ours here, the workers' in their drain.
        close_listeners(self._listeners)
        # The next proxy may start as soon as the ports are free, and then needs the name of the socket.
        self._admin.close()
        drain = asyncio.create_task(self._generation.drain(self._settings.server.drain, last=True))
        if await _is_first(drain, self._stop_now):
            outcome = drain.result()
            level = logging.WARNING if outcome.cut or outcome.killed else logging.INFO
            logger.log(level, "proxy.stopped", extra={"cut": outcome.cut, "killed": list(outcome.killed)})
            return
        logger.warning("proxy.stopped", extra={"killed": self._generation.names(), "during": "drain"})
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)

    def _install_signals(self) -> None:
        handlers: Mapping[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR1: self._on_reopen,
            signal.SIGCHLD: self._on_child,
        }
        loop = asyncio.get_running_loop()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)

    def _on_stop(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        logger.warning("proxy.reload_unavailable", extra={"hint": "restart tlsproxy to apply a new configuration"})

    def _on_reopen(self) -> None:
        self._log_maker.make()
        self._generation.send_to_workers(ReopenLogs())

    def _on_child(self) -> None:
        self._generation.poll()
        if os.getpid() == 1:
            host.reap_strangers(self._generation.pids())

    def _log_ready(self) -> None:
        ready = {
            "listeners": list(_describe(self._listeners)),
            "sites": len(self._settings.sites),
            "workers": self._settings.resolve_workers(),
            "pid": os.getpid(),
        }
        logger.info("proxy.ready", extra=ready)


def _identity(settings: Settings, listeners: Iterable[Listener]) -> Identity:
    return Identity(sites=len(settings.sites), listeners=_describe(listeners), started=datetime.now(UTC))


def _describe(listeners: Iterable[Listener]) -> tuple[str, ...]:
    return tuple(str(listener) for listener in listeners if listener.slot == 0)


async def _is_first(task: asyncio.Task[Any], event: asyncio.Event) -> bool:
    """Wait for the task or the event; return whether the task is done."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return task.done()
