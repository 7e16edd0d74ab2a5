"""The parent: binds, starts a generation, watches over it, ends it. No TLS, HTTP or ACME in here.

    tlsproxy run ─ Supervisor ─┬─ certifier          SIGTERM, SIGINT   drain, leave; a second one: leave now
         owns the listeners,   ├─ worker 0           SIGUSR1           reopen the log files
         sleeps until a child  └─ worker 1 …         SIGCHLD           reap, replace
         ends, a signal comes,
         or somebody asks on the admin socket     SIGUSR2           upgrade: another supervisor takes over

Rule: before `proxy.ready` every failure ends everything and says why; after it no child's death ends the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from tlsproxy import logs
from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime import host
from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.blueprint import Heirloom, make_generation
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.estate import Estate
from tlsproxy.runtime.families import RELOADS
from tlsproxy.runtime.frontdesk import FrontDesk, identify
from tlsproxy.runtime.generation import Ears, Generation
from tlsproxy.runtime.generations import Generations
from tlsproxy.runtime.heartbeat import Heartbeat
from tlsproxy.runtime.inheritance import Inheritance
from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult, Drain, Ready, ReopenLogs
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.overview import Identity
from tlsproxy.runtime.parting import describe_parting, parting, read_anew
from tlsproxy.runtime.relisten import change_listeners
from tlsproxy.runtime.reload import Movable, Reloads, Tell
from tlsproxy.runtime.rotation import LogMaker
from tlsproxy.runtime.sockets import close_listeners
from tlsproxy.runtime.systemd import feed_watchdog, make_notifier
from tlsproxy.runtime.upgrade import Upgrades, hold_signals
from tlsproxy.settings import Loaded, Settings

logger = logging.getLogger(__name__)

_LAST_WORD = 1.0  # seconds for who asked for the stop to hear that it is done


class Supervisor:
    """The composition root of the parent. Takes over what it inherits."""

    # Mutable: _settings, _listeners and _log_maker (exchanged by each reload), _tasks (while we are the proxy), the two
    # events that stop signals set.

    def __init__(self, settings: Settings, inheritance: Inheritance, reread: Callable[[], Loaded]) -> None:
        self._settings, self._listeners, self._log_maker = settings, inheritance.listeners, LogMaker(settings)
        self._inheritance = inheritance
        self._reread = reread
        self._tasks: list[asyncio.Task[None]] = []
        self._watchdog: asyncio.Task[None] | None = None
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._is_followed = False  # somebody waits for the end of the stop
        self._farewell = Call(AdminCall(0, "stop"))
        self._notifier = make_notifier(inheritance.service.notify)
        self.upgrades = Upgrades(inheritance)
        self._reloads = Reloads(self._reload, self._upgrade)
        self._generations = Generations()
        self._backends = Backends(settings, self._living)
        self._backends.adopt(inheritance.plan)
        self._collector = Collector()
        self._collector.absorb(inheritance.totals)
        self._desk = self._make_desk()
        self._heirloom = self._make_heirloom()
        self._estate = self._make_estate()
        self._movables: list[Movable] = [self._desk.admin, self._backends, self._desk.port]

    def _make_desk(self) -> FrontDesk:
        desk = FrontDesk(
            self._settings,
            self._identity(),
            generations=self._generations,
            living=self._living,
            backends=self._backends,
            collector=self._collector,
            deeds={"reload": self._reloads.ask, "upgrade": self._reloads.ask_upgrade, "stop": self._stop_for_admin},
        )
        desk.port.inherit(*self._inheritance.metrics)
        return desk

    def _make_heirloom(self) -> Heirloom:
        heard = self._generations
        ears = Ears(self._collector, self._desk.probed, heard.send_to_workers, heard.pass_wish)
        return Heirloom(self._inheritance.ticket_secret, ears)

    def _make_estate(self) -> Estate:
        return Estate(
            settings=lambda: self._settings,
            listeners=lambda: self._listeners,
            generations=self._generations,
            heirloom=self._heirloom,
            backends=self._backends,
            desk=self._desk,
            inheritance=self._inheritance,
        )

    async def serve(self) -> None:
        """Start, serve, stop. Raises TlsproxyError when it could not start; no child outlives the call."""
        self._install_signals()
        try:
            if await self._start():
                await self._stop.wait()
                await self._reloads.stop()
                await self._desk.end_swaps()
                await (self._leave() if self.upgrades.successor else self._drain())
        except TlsproxyError as error:
            if self._inheritance.predecessor is not None:
                await self._inheritance.predecessor.refuse(str(error))
            raise
        finally:
            for task in self._tasks:
                task.cancel()
            await self._generations.kill()
            await self._desk.kill()
            close_listeners(self._listeners)
            if self.upgrades.stays:
                hold_signals()

    async def _start(self) -> bool:
        """Return whether the generation is ready; False when a stop came first. Raises its reason for failing."""
        if self._inheritance.predecessor is not None:
            await self._inheritance.predecessor.open()
        await self._desk.admin.inherit(self._inheritance.admin, self._settings.admin.socket)
        port = await self._desk.port.prepare(self._settings)
        if port is not None and self._inheritance.predecessor is None:
            await port.commit()
        number = self._inheritance.number
        first = make_generation(number, self._settings, self._listeners, self._heirloom, self._backends.plan)
        starting = asyncio.create_task(self._prepare(first))
        if await _is_first(starting, self._stop):
            starting.result()
            self._generations.serve(first, Drain())
            await self._desk.admin.open(self._settings.admin.socket)
            if port is not None and self._inheritance.predecessor is not None:
                await port.commit()
            self._begin_tasks()
            await self._backends.keep()
            self._log_ready()
            gc.freeze()
            gc.enable()  # the command has switched it off
            self._reloads.open()
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        logger.info("proxy.stopped", extra={"during": "start"})
        return False

    async def _prepare(self, first: Generation) -> None:
        """Return when it is to serve. Raises the reason if it can't, or need not."""
        predecessor = self._inheritance.predecessor
        await self._generations.prepare(first)
        if predecessor is not None:
            self._inheritance.relisten.commit()
            word = await self._inheritance.take_over(self._settings)
            self._backends.adopt(word.plan)
            self._collector.absorb(word.totals)
            first.change_plan(self._backends.plan)

    def _begin_tasks(self) -> None:
        """What goes on beside the children, from the moment on that we are the proxy."""
        predecessor, service = self._inheritance.predecessor, self._inheritance.service
        if predecessor is None:
            self._notifier.ready(self._describe())
        else:
            close_listeners(self._inheritance.relisten.dropped)
            predecessor.send(Ready())
            told = predecessor.follow(self._collector.absorb, lambda: self._notifier.ready(self._describe()))
            self._tasks.append(asyncio.create_task(told))
        if self.upgrades.line is not None:
            asyncio.get_running_loop().add_reader(self.upgrades.line, self._on_line)
        heartbeat = Heartbeat(self._living, self._collector)
        self._tasks.append(asyncio.create_task(heartbeat.run()))
        if service.watchdog:
            watch = feed_watchdog(self._notifier, service.watchdog, self._is_answering)
            self._watchdog = asyncio.create_task(watch)
            self._tasks.append(self._watchdog)

    async def _drain(self) -> None:
        """Stop within `server.drain`, or at once when asked a second time. Whatever was cut is said."""
        timeout = self._settings.server.drain
        logger.info("proxy.draining", extra={"timeout": timeout})
        self._farewell.add(AdminProgress(0, "drain", "", f"what is in flight has {timeout:g} s"))
        self._notifier.stopping()
        # The kernel refuses new connections once the last copy is closed: ours here, the workers' in their drain.
        close_listeners(self._listeners)
        # The next proxy may start as soon as the ports are free, and then needs the name of the socket.
        self._desk.close()
        drain = asyncio.create_task(self._estate.end(timeout))
        if await _is_first(drain, self._stop_now):
            outcome = drain.result()
            told = {"cut": outcome.cut, "killed": list(outcome.killed)}
            level = logging.WARNING if outcome.cut or outcome.killed else logging.INFO
            logger.log(level, "proxy.stopped", extra=told)
        else:
            told = {"cut": 0, "killed": self._generations.names()}
            logger.warning("proxy.stopped", extra={"killed": told["killed"], "during": "drain"})
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
        self._farewell.finish(AdminResult(0, 200, told))
        await self._desk.admin.see_off(_LAST_WORD if self._is_followed else 0)

    # --- an upgrade ---------------------------------------------------------------------------------------------------

    async def _upgrade(self, tell: Tell, options: Mapping[str, str]) -> dict[str, Any]:
        """Have another supervisor be the proxy; then our own children are to leave."""
        self._notifier.reloading()
        try:
            result = await self.upgrades.perform(tell, options, self._estate)
        except BaseException:
            self._notifier.ready()
            raise
        if self.upgrades.line is not None:
            asyncio.get_running_loop().remove_reader(self.upgrades.line)
        if self._watchdog is not None:
            self._watchdog.cancel()  # systemd watches the other one now
        self._estate.let_go()  # before anybody is told: who asks then asks the other one
        self.upgrades.take_signals(self._estate, self._on_reopen)  # at once: later is too late for what comes meanwhile
        self.upgrades.announce(self._notifier, hang_up=self._reloads.cease())
        self._stop.set()
        return result

    async def _leave(self) -> None:
        """Another supervisor is the proxy: what is in flight comes to its end here."""
        await self.upgrades.leave(self._estate, self._on_reopen)
        await self._desk.admin.see_off(_LAST_WORD)

    # --- a reload -----------------------------------------------------------------------------------------------------

    async def _reload(self, tell: Tell, _: Mapping[str, str]) -> dict[str, Any]:
        """Have a new generation serve what the configuration says now. Until all of it is ready nothing changes."""
        began = time.monotonic()
        self._notifier.reloading()
        result = "failed"
        try:
            tell("read", "the configuration")
            loaded = await read_anew(self._reread, self._settings, lambda warning: tell("warning", warning))
            await self._exchange(loaded.settings, tell)
            result = "ok"
        finally:
            self._collector.count(RELOADS.name, result=result)
            self._notifier.ready(self._describe())
        return {
            "generation": self._generations.serving.number,
            "seconds": round(time.monotonic() - began, 2),
            "sites": len(self._settings.sites),
            "workers": self._settings.resolve_workers(),
            "listeners": list(self._desk.identity.listeners),
            "draining": len(self._generations.draining),
        }

    async def _exchange(self, settings: Settings, tell: Tell) -> None:
        """Everything that can fail comes first, and is undone if it does; what comes then can't, nor be interrupted."""
        host.check_user(settings, is_reload=True)
        log_maker = LogMaker(settings)
        slots = settings.resolve_workers()
        async with contextlib.AsyncExitStack() as undo:
            listeners = change_listeners(self._listeners, settings.listen.https, settings.listen.http, slots)
            undo.callback(listeners.undo)
            moves = []
            for movable in self._movables:
                if (move := await movable.prepare(settings)) is not None:
                    undo.callback(move.undo)
                    moves.append(move)
            number = self._generations.serving.number + 1
            tell("start", f"generation {number}, with workers: {slots}")
            plan = self._backends.plan_for(settings)
            generation = make_generation(number, settings, listeners.listeners, self._heirloom, plan)
            await self._generations.prepare(generation)
            undo.push_async_callback(self._generations.discard, generation)
            listeners.commit()
            undo.pop_all()
        generation.change_plan(self._backends.plan_for(settings))  # operators may have spoken meanwhile
        order = parting(self._settings, settings, listeners.dropped)
        self._settings, self._log_maker, self._listeners = settings, log_maker, listeners.listeners
        self._generations.serve(generation, order)
        close_listeners(listeners.dropped)
        logs.configure(settings.log)
        self._desk.describe(settings, self._identity())
        for move in moves:
            await move.commit()
        tell("drain", f"generation {number - 1}: {describe_parting(order)}")
        gc.unfreeze()  # else what ended since the last reload, with its cycles, stays for ever: 30 KiB each time
        gc.collect()  # of the configuration before
        gc.freeze()

    def _install_signals(self) -> None:
        handlers: Mapping[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._reloads.hang_up,
            signal.SIGUSR1: self._on_reopen,
            signal.SIGUSR2: self._reloads.signal_upgrade,
            signal.SIGCHLD: self._on_child,
        }
        loop = asyncio.get_running_loop()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)

    def _on_stop(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _on_line(self) -> None:
        """Nobody says anything on it: whoever stood in for us is gone, and with it the pid that others watch."""
        if self.upgrades.line is not None:
            asyncio.get_running_loop().remove_reader(self.upgrades.line)
        self._on_stop()

    def _stop_for_admin(self, _: Mapping[str, str]) -> Call:
        self._is_followed = True
        self._on_stop()
        return self._farewell

    def _on_reopen(self) -> None:
        self._log_maker.make()
        self._generations.send_to_workers(ReopenLogs())
        if self._inheritance.predecessor is not None:
            self._inheritance.predecessor.reopen_logs()

    def _on_child(self) -> None:
        self._generations.poll()
        self.upgrades.poll()
        if self.upgrades.has_strangers:
            host.reap_strangers(self._generations.pids() | self.upgrades.pids())

    async def _is_answering(self, limit: float) -> bool:
        return any(answer is not None for answer in (await self._generations.serving.worker_stats(limit)).values())

    def _living(self) -> tuple[Generation, ...]:
        """The one that serves, and those that drain."""
        return (self._generations.serving, *self._generations.draining)

    def _identity(self) -> Identity:
        return identify(self._settings, self._listeners, self._inheritance.started)

    def _describe(self) -> str:
        number, sites = self._generations.serving.number, len(self._settings.sites)
        return f"{sites} sites, {self._settings.resolve_workers()} workers, generation {number}"

    def _log_ready(self) -> None:
        ready = {
            "listeners": list(self._desk.identity.listeners),
            "sites": len(self._settings.sites),
            "workers": self._settings.resolve_workers(),
            "pid": os.getpid(),
        }
        logger.info("proxy.ready", extra=ready)


async def _is_first(task: asyncio.Task[Any], event: asyncio.Event) -> bool:
    """Wait for the task or the event; return whether the task is done."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return task.done()
