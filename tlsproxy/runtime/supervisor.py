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
import contextlib
import gc
import logging
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlsproxy import logs
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.openssl import openssl_environment
from tlsproxy.runtime import privileges
from tlsproxy.runtime.admin import AdminServer, Identity
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.messages import ListenerKind, ReopenLogs, Start
from tlsproxy.runtime.naming import Names
from tlsproxy.runtime.process import ChildSpec
from tlsproxy.runtime.rotation import LogMaker
from tlsproxy.runtime.sockets import Listener, bind_listeners, close_listeners
from tlsproxy.settings import Loaded, Settings

logger = logging.getLogger(__name__)

TICKET_SECRET_BYTES = 32


def run(loaded: Loaded) -> int:
    """Serve until told to stop. Returns the exit code; a reason not to start goes to stderr."""
    settings = loaded.settings
    logs.configure(settings.log)
    try:
        _check_user(settings)
        _raise_file_limit()
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
        # One secret for all generations: sessions survive a worker's death and, later, a reload.
        self._ticket_secret = secrets.token_hex(TICKET_SECRET_BYTES)
        self._log_maker = LogMaker(settings)
        self._generation = self._make_generation(1)
        names = Names(settings.sites)
        self._admin = AdminServer(_identity(settings, listeners), lambda: self._generation, names.certificate)
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

    async def _start(self) -> bool:
        """Return whether the generation is ready; False when a stop came first. Raises its reason for failing."""
        starting = asyncio.create_task(self._generation.start())
        if await _is_first(starting, self._stop):
            starting.result()
            if self._settings.admin.socket != "off":
                await self._admin.open(Path(self._settings.admin.socket))
            self._log_ready()
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

    def _make_generation(self, number: int) -> Generation:
        inherited: tuple[tuple[ListenerKind, int, int], ...] = tuple(
            (listener.kind, listener.socket.fileno(), listener.slot) for listener in self._listeners
        )
        environment = openssl_environment()
        first = Start(self._settings.for_child(), generation=number, addresses=_https_addresses(self._listeners))
        certifier = ChildSpec("certifier", "tlsproxy.runtime.certifier", first, {})
        settings = self._settings.for_worker()
        starts = [
            Start(settings, inherited, self._ticket_secret, slot, number)
            for slot in range(self._settings.resolve_workers())
        ]
        workers = [ChildSpec("worker", "tlsproxy.runtime.worker", start, environment) for start in starts]
        return Generation(number, certifier, workers)

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
            _reap_strangers(self._generation.pids())

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


def _https_addresses(listeners: Iterable[Listener]) -> tuple[str, ...]:
    """Return what getsockname says, once for the sockets of all slots."""
    return tuple(listener.address for listener in listeners if listener.kind == "https" and listener.slot == 0)


async def _is_first(task: asyncio.Task[Any], event: asyncio.Event) -> bool:
    """Wait for the task or the event; return whether the task is done."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return task.done()


def _check_user(settings: Settings) -> None:
    """Find out before anything is bound whether the children will be able to become `server.user`."""
    account = privileges.find_account(settings.server.user)
    if account is not None:
        privileges.check_interpreter(account)
        privileges.prepare_store(settings.store.url, account)
        privileges.prepare_log(settings.log.access, account)
    elif os.geteuid() == 0 and not settings.server.user:
        logger.warning("privileges.root", extra={"hint": privileges.ROOT_ADVICE})


def _raise_file_limit() -> None:
    """A proxy needs two descriptors per request; the usual soft limit of 1024 exists for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    # macOS reports no limit but takes none above OPEN_MAX; it then stays as it was.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _reap_strangers(known: Collection[int]) -> None:
    """As PID 1 of a container we inherit orphans (of `docker exec`, of hooks); nobody else collects them."""
    while True:
        try:
            # WNOWAIT: one of our own must stay for Popen, which wants its status; its SIGCHLD is still to come.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
