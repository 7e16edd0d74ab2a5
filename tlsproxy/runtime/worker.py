"""A worker process: from its control socket to a serving Front, and out again. `python -m tlsproxy.runtime.worker`.

Knows the order of its life (Start, drop, build, Ready, serve, drain), nothing of connections. Rules: it leaves in
three ways only, and all of them drain: told to by the supervisor, by SIGTERM, or because the supervisor is gone (its
end of the control socket closes, even by kill -9). An exception in a callback is logged and ends nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from tlsproxy import logs
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.front import Front
from tlsproxy.runtime.child import open_control_socket, release_signals
from tlsproxy.runtime.control import (
    CertificatesChanged,
    ControlChannel,
    ControlError,
    Drain,
    Drained,
    Failed,
    Message,
    Ready,
    ReopenLogs,
    Start,
    Stats,
    StatsRequest,
)
from tlsproxy.runtime.privileges import drop_privileges
from tlsproxy.runtime.sockets import adopt_listeners
from tlsproxy.settings import Settings
from tlsproxy.store.base import open_store

logger = logging.getLogger(__name__)


DRAIN_OVERRUN = 1.0
"""Seconds a drain may take beyond its own limit before the worker leaves without it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Live and return the exit code."""
    sock = open_control_socket(sys.argv[1:] if argv is None else argv)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(sock))


async def _live(sock: socket.socket) -> int:
    channel = await ControlChannel.open(sock)
    _install_signals(channel)
    try:
        return await _run(channel)
    finally:
        # Flushes the last word.
        channel.close()
        await channel.wait_closed()


async def _run(channel: ControlChannel) -> int:
    start = await channel.receive()
    if not isinstance(start, Start):
        return 0  # told to leave, or left alone, before there was anything to do
    try:
        settings = Settings.model_validate_json(start.settings)
        front = _set_up(settings, start)
    except TlsproxyError as error:
        channel.send(Failed(str(error)))
        return error.exit_code
    except Exception as error:
        logger.exception("worker.failed", extra={"slot": start.slot})
        channel.send(Failed(f"worker {start.slot} could not be set up: {type(error).__name__}: {error}"))
        return 1
    await Worker(channel, front, drain=settings.server.drain).serve()
    return 0


def _set_up(settings: Settings, start: Start) -> Front:
    logs.configure(settings.log)
    # Before the store, a key or a client is touched: what root alone can read must fail now, not at a renewal.
    drop_privileges(settings.server.user)
    front = Front(
        settings,
        store=open_store(settings.store.url),
        ticket_secret=bytes.fromhex(start.ticket_secret),
        loop=asyncio.get_running_loop(),
    )
    front.start(adopt_listeners(start.listeners))
    return front


class Worker:
    """A worker that is set up: obeys the supervisor until it is time to leave."""

    def __init__(self, channel: ControlChannel, front: Front, *, drain: float) -> None:
        """`drain` is the time to leave in when no order names one."""
        self._channel = channel
        self._front = front
        self._drain_time = drain

    async def serve(self) -> None:
        """Say Ready, serve, drain. Returns when this process has nothing left to do."""
        self._channel.send(Ready())
        while not isinstance(message := await self._receive(), Drain | None):
            self._obey(message)
        await self._drain(message.timeout if message else self._drain_time)

    async def _receive(self) -> Message | None:
        """A supervisor that cannot be understood is treated like one that is gone."""
        try:
            return await self._channel.receive()
        except ControlError as error:
            logger.error("worker.unintelligible", extra={"error": str(error)})  # noqa: TRY400 - no trace of ours
            return None

    def _obey(self, message: Message) -> None:
        match message:
            case CertificatesChanged(names=names):
                for problem in self._front.certificates_changed(names):
                    logger.error("certificate.refused", extra={"error": problem})
            case ReopenLogs():
                self._front.reopen_logs()
            case StatsRequest():
                self._channel.send(Stats(self._front.stats()))
            case _:
                logger.error("worker.unexpected_message", extra={"message_type": type(message).__name__})

    async def _drain(self, timeout: float) -> None:
        cut = 0

        def count() -> None:
            nonlocal cut
            cut = self._front.stats()["connections"]

        # Armed before the Front's own limit, so it runs just before the Front cuts what is left.
        counting = asyncio.get_running_loop().call_later(timeout, count)
        try:
            async with asyncio.timeout(timeout + DRAIN_OVERRUN):
                await self._front.drain(timeout)
        except TimeoutError:
            logger.error("worker.drain_overrun", extra={"timeout": timeout})  # noqa: TRY400 - says it all
        counting.cancel()
        self._channel.send(Drained(cut))


def _install_signals(channel: ControlChannel) -> None:
    """SIGTERM drains this worker alone (the supervisor replaces it); Ctrl-C is the supervisor's to answer."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_exception)
    loop.add_signal_handler(signal.SIGTERM, channel.deliver, None)
    loop.add_signal_handler(signal.SIGUSR1, channel.deliver, ReopenLogs())
    release_signals(signal.SIGINT, signal.SIGHUP)


def _log_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.error("worker.exception", extra={"where": context["message"]}, exc_info=context.get("exception"))


if __name__ == "__main__":
    sys.exit(main())
