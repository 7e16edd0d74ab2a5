"""Reloads, one after the other: who asks, what is told of each, and what else than processes they exchange.

Knows no configuration and no process: the supervisor does the work and tells its steps. Rules: one at a time; who asks
meanwhile is told so, but a SIGHUP, which nobody can answer, is remembered (once: one reload covers all that came before
it); every reload ends with one line in the log, and whoever follows it gets the same sentence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from tlsproxy.errors import ConfigError, TlsproxyError
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult
from tlsproxy.settings import Settings

logger = logging.getLogger(__name__)

Tell: TypeAlias = Callable[[str, str], None]
"""Called with a step and what there is to say of it, for a person."""


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
    """See the module's text. `perform` does the work and returns what a client gets as result."""

    # Mutable: _task and _call (of the reload under way), _again (a SIGHUP came meanwhile), _stopped.

    def __init__(self, perform: Callable[[Tell], Awaitable[dict[str, Any]]]) -> None:
        self._perform = perform
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._stopped = False

    @property
    def is_under_way(self) -> bool:
        return self._task is not None

    def ask(self) -> Call:
        """Begin a reload; return where its steps and its result come. Raises ReloadRefused."""
        if self._stopped:
            raise ReloadRefused("the proxy is stopping")
        if self.is_under_way:
            raise ReloadRefused("a reload is under way already. Wait for its end, then ask again.")
        return self._begin("admin")

    def hang_up(self) -> None:
        """Begin a reload for a SIGHUP, or remember it for after the one that is under way."""
        if self.is_under_way:
            self._again = True
        elif not self._stopped:
            self._begin("SIGHUP")

    async def stop(self) -> None:
        """Break off what is under way (which undoes it), and begin no other."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self, by: str) -> Call:
        call = Call(AdminCall(0, "reload"))
        self._task = asyncio.create_task(self._run(call, by))
        return call

    async def _run(self, call: Call, by: str) -> None:
        logger.info("proxy.reloading", extra={"by": by})
        try:
            result = await self._perform(lambda step, text: call.add(AdminProgress(0, step, "", text)))
        except asyncio.CancelledError:
            _fail(call, "the proxy was stopped meanwhile", 503)
            raise
        except TlsproxyError as error:
            _fail(call, str(error), 422 if isinstance(error, ConfigError | ReloadRefused) else 500)
        except Exception as error:
            logger.exception("proxy.reload_crashed")
            _fail(call, f"unexpected {type(error).__name__}: {error}; the log of the proxy shows where", 500)
        else:
            logger.info("proxy.reloaded", extra=result)
            call.finish(AdminResult(0, 200, result))
        finally:
            self._task = None
        if self._again and not self._stopped:
            self._again = False
            self._begin("SIGHUP")


def _fail(call: Call, reason: str, status: int) -> None:
    logger.error("proxy.reload_failed", extra={"error": reason, "hint": "everything goes on as before"})
    call.finish(AdminResult(0, status, {"error": reason}))
