"""Reloads and upgrades, one at a time: who asks, what is told of each, and what else than processes they exchange.

Knows no configuration and no process: the supervisor does the work and tells its steps. Rules: one at a time; who asks
meanwhile is told so, but a SIGHUP, which nobody can answer, is remembered (once: one reload covers all that came before
it); each ends with one line in the log, and whoever follows it gets the same sentence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from tlsproxy.errors import ConfigError, TlsproxyError
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult
from tlsproxy.settings import Settings

logger = logging.getLogger(__name__)

Tell: TypeAlias = Callable[[str, str], None]
"""Called with a step and what there is to say of it, for a person."""


Perform: TypeAlias = Callable[[Tell, Mapping[str, str]], Awaitable[dict[str, Any]]]
"""Does the work, with the options that a client has given, and returns what the client gets as result."""


class ReloadRefused(TlsproxyError):
    """What a reload cannot change, or not now. The message says what to do instead."""


class Move(Protocol):
    """Something new that is ready to take the place of what there was. Exactly one of the two is called."""

    async def commit(self) -> None:
        """Exchange. Can't fail, and waits for nothing."""
        ...

    def undo(self) -> None:
        """Let go of the new one; the old one has not noticed."""
        ...


class Movable(Protocol):
    """What the supervisor itself has open and the configuration may change: the admin socket, the port of metrics."""

    async def prepare(self, settings: Settings) -> Move | None:
        """Open what these settings want; None if nothing changes. Raises TlsproxyError."""
        ...


class Reloads:
    """See the module's text."""

    # Mutable: _task (of what is under way), _verb (what it is), _again (a SIGHUP came meanwhile), _is_open (something
    # serves that could be replaced), _stopped.

    def __init__(self, reload: Perform, upgrade: Perform) -> None:
        self._deeds = {"reload": reload, "upgrade": upgrade}
        self._verb = ""
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._is_open = False
        self._stopped = False

    def open(self) -> None:
        """The first generation serves: from now on it can be replaced, and is if a SIGHUP came before."""
        self._is_open = True
        self._follow_up()

    @property
    def is_under_way(self) -> bool:
        return self._task is not None

    def ask(self, options: Mapping[str, str]) -> Call:
        """Begin a reload; return where its steps and its result come. Raises ReloadRefused."""
        return self._ask("reload", "admin", options)

    def ask_upgrade(self, options: Mapping[str, str]) -> Call:
        """Begin an upgrade, likewise."""
        return self._ask("upgrade", "admin", options)

    def signal_upgrade(self) -> None:
        """Begin an upgrade for a SIGUSR2; one that comes at the wrong time is lost, and that is said."""
        try:
            self._ask("upgrade", "SIGUSR2", {})
        except ReloadRefused as error:
            logger.warning("proxy.upgrade_refused", extra={"error": str(error)})

    def hang_up(self) -> None:
        """Begin a reload for a SIGHUP, or remember it for after the start or the one that is under way."""
        if self.is_under_way or not self._is_open:
            self._again = True
        elif not self._stopped:
            self._begin("reload", "SIGHUP", {})

    def cease(self) -> bool:
        """Begin no other; return whether a SIGHUP is left for who comes after us."""
        self._stopped = True
        return self._again

    async def stop(self) -> None:
        """Break off what is under way (which undoes it), and begin no other."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _ask(self, verb: str, by: str, options: Mapping[str, str]) -> Call:
        if self._stopped:
            raise ReloadRefused("the proxy is stopping")
        if not self._is_open:
            raise ReloadRefused("the proxy is starting. Ask again when it is ready.")
        if self.is_under_way:
            raise ReloadRefused(f"{_A[self._verb]} is under way already. Wait for its end, then ask again.")
        return self._begin(verb, by, options)

    def _begin(self, verb: str, by: str, options: Mapping[str, str]) -> Call:
        call = Call(AdminCall(0, verb, options=dict(options)))
        self._verb = verb
        self._task = asyncio.create_task(self._run(call, by))
        return call

    async def _run(self, call: Call, by: str) -> None:
        verb = call.message.verb
        perform = self._deeds[verb]
        _log_beginning(verb, by)
        try:
            result = await perform(lambda step, text: call.add(AdminProgress(0, step, "", text)), call.message.options)
        except asyncio.CancelledError:
            _fail(call, "the proxy was stopped meanwhile", 503)
            raise
        except TlsproxyError as error:
            _fail(call, str(error), 422 if isinstance(error, ConfigError | ReloadRefused) else 500)
        except Exception as error:
            logger.exception("proxy.reload_crashed")
            _fail(call, f"unexpected {type(error).__name__}: {error}; the log of the proxy shows where", 500)
        else:
            _log_end(verb, result)
            call.finish(AdminResult(0, 200, result))
        finally:
            self._task = None
        self._follow_up()

    def _follow_up(self) -> None:
        if self._again and not self._stopped:
            self._again = False
            self._begin("reload", "SIGHUP", {})


_A = {"reload": "a reload", "upgrade": "an upgrade"}


def _log_beginning(verb: str, by: str) -> None:
    if verb == "upgrade":
        logger.info("proxy.upgrading", extra={"by": by})
    else:
        logger.info("proxy.reloading", extra={"by": by})


def _log_end(verb: str, result: Mapping[str, Any]) -> None:
    if verb == "upgrade":
        logger.info("proxy.upgraded", extra=result)
    else:
        logger.info("proxy.reloaded", extra=result)


def _fail(call: Call, reason: str, status: int) -> None:
    told = {"error": reason, "hint": "everything goes on as before"}
    if call.message.verb == "upgrade":
        logger.error("proxy.upgrade_failed", extra=told)
    else:
        logger.error("proxy.reload_failed", extra=told)
    call.finish(AdminResult(0, status, {"error": reason}))
