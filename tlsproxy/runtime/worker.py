"""A worker process: from its control socket to a serving Front, and out again. `python -m tlsproxy.runtime.worker`.

Knows the order of its life (Start, drop, build, Ready, Serve, drain), nothing of connections. Rules: it accepts from
nobody before all of its generation are ready (Serve), so that one that is not to serve after all has nobody to cut. It
leaves in three ways only, and all of them drain: told to by the supervisor, by SIGTERM, or because the supervisor is
gone (its end of the control socket closes, even by kill -9). An exception in a callback is logged, and ends nothing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import uvloop

from tlsproxy import logs
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.front import Front
from tlsproxy.runtime.child import open_control_socket, release_signals
from tlsproxy.runtime.control import ControlChannel, ControlError
from tlsproxy.runtime.messages import (
    AdoptListeners,
    CertificateRefused,
    CertificatesChanged,
    CertificateWanted,
    Drain,
    Drained,
    Failed,
    Leaving,
    Message,
    PlanChanged,
    Probe,
    Probed,
    Ready,
    ReleaseListeners,
    ReopenLogs,
    Serve,
    Start,
    Stats,
    StatsRequest,
)
from tlsproxy.runtime.privileges import drop_privileges
from tlsproxy.runtime.sockets import Slots, inherit_listeners
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
    gc.disable()  # thousands of sites are built without garbage: looking for it takes a third of the time
    worker = _prepare(start, channel)
    if isinstance(worker, int):
        return worker
    del start  # with thousands of sites it is megabytes, as the settings were
    _spare_the_collector()
    await worker.serve()
    return 0


def _prepare(start: Start, channel: ControlChannel) -> Worker | int:
    """Return the worker; or the exit code, after the supervisor was told why there is none."""
    try:
        settings = Settings.from_parent(start.settings)
        front, others = _set_up(settings, start, channel)
    except TlsproxyError as error:
        channel.send(Failed(str(error)))
        return error.exit_code
    except Exception as error:
        logger.exception("worker.failed", extra={"slot": start.slot})
        channel.send(Failed(f"worker {start.slot} could not be set up: {type(error).__name__}: {error}"))
        return 1
    return Worker(channel, front, others, slot=start.slot, drain=settings.server.drain)


def _set_up(settings: Settings, start: Start, channel: ControlChannel) -> tuple[Front, Slots]:
    """Return the Front, which listens nowhere yet, and the sockets of all slots."""
    logs.configure(settings.log)
    # Before the store, a key or a client is touched: what root alone can read must fail now, not at a renewal.
    drop_privileges(settings.server.user)
    front = Front(
        settings,
        store=open_store(settings.store.url, settings.store.master_keys()),
        ticket_secret=bytes.fromhex(start.ticket_secret),
        loop=asyncio.get_running_loop(),
        want=lambda host, client: channel.send(CertificateWanted(host, client)),
    )
    front.apply(start.plan)
    front.start()
    return front, inherit_listeners(start.listeners)


def _spare_the_collector() -> None:
    """What was built until now stays; requests make hardly any cycles. A full collection would pause every client."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)


class Worker:
    """A worker that is set up: obeys the supervisor until it is time to leave."""

    # Mutable: _others, which loses the slots that the Front has adopted; _is_leaving; _probing (a task for each open
    # Probe).

    def __init__(self, channel: ControlChannel, front: Front, others: Slots, *, slot: int, drain: float) -> None:
        """`others` are the inherited sockets: those of its own `slot` until Serve, and those of other slots.

        `drain` is the time to leave in when no order names one.
        """
        self._slot = slot
        self._channel = channel
        self._front = front
        self._others = others
        self._drain_time = drain
        self._is_leaving = False
        self._probing: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Say Ready, serve, drain. Returns when this process has nothing left to do."""
        self._channel.send(Ready())
        # A supervisor that is gone starts nobody who could serve what is queued.
        order = await self._obey_until_drain() or Drain(last=True)
        meanwhile = asyncio.create_task(self._obey_meanwhile())
        await self._drain(order)
        meanwhile.cancel()

    async def _obey_until_drain(self) -> Drain | None:
        """Return the order to leave, or None when the supervisor is gone."""
        while not isinstance(message := await self._receive(), Drain | None):
            try:
                self._obey(message)
            except Exception:
                # A worker that serves is worth more than the order that it could not carry out.
                logger.exception("worker.order_failed", extra={"order": type(message).__name__})
        return message

    async def _obey_meanwhile(self) -> None:
        """While draining: a second order to leave, or the supervisor's end, makes it shorter."""
        while (order := await self._obey_until_drain()) is not None:
            self._hasten(order)
        self._hasten(Drain())

    def _hasten(self, order: Drain) -> None:
        timeout = self._drain_time if order.timeout is None else order.timeout
        self._front.hasten(timeout)

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
            case CertificateRefused(host=host, reason=reason, until=seconds):
                self._front.certificate_refused(host, reason, seconds)
            case AdoptListeners() | ReleaseListeners() | Serve() if self._is_leaving:
                pass  # given before it was heard that we leave; our sockets are closed, and others listen
            case AdoptListeners(slots=slots):
                self._adopt(slots)
            case ReleaseListeners(slots=slots):
                self._others.update((slot, self._front.release(slot)) for slot in slots)
            case Serve():
                self._adopt([self._slot])
            case ReopenLogs():
                self._front.reopen_logs()
            case StatsRequest():
                self._channel.send(self._stats())
            case Probe():
                probing = asyncio.create_task(self._probe(message))
                self._probing.add(probing)
                probing.add_done_callback(self._probing.discard)
            case PlanChanged(plan=plan):
                self._front.apply(plan)
            case _:
                logger.error("worker.unexpected_message", extra={"message_type": type(message).__name__})

    def _adopt(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._front.adopt(slot, self._others.pop(slot, ()))

    async def _probe(self, order: Probe) -> None:
        self._channel.send(Probed(order.id, await self._front.probe(order.route, order.backends)))

    async def _drain(self, order: Drain) -> None:
        self._is_leaving = True
        self._channel.send(Leaving())
        for _, sock in chain.from_iterable(self._others.values()):
            sock.close()
        timeout = self._drain_time if order.timeout is None else order.timeout
        longest = max(timeout, order.streams)
        cut = 0
        try:
            async with asyncio.timeout(longest + DRAIN_OVERRUN):
                cut = await self._front.drain(
                    timeout, last=order.last, dropped=order.dropped, unchanged=order.unchanged, streams=order.streams
                )
        except TimeoutError:
            logger.error("worker.drain_overrun", extra={"timeout": longest})  # noqa: TRY400 - says it all
            cut = self._front.stats()["connections"]
        self._channel.send(self._stats())
        self._channel.send(Drained(cut))

    def _stats(self) -> Stats:
        return Stats(self._front.stats(), self._front.series(), self._front.backends())


def _install_signals(channel: ControlChannel) -> None:
    """SIGTERM drains this worker alone (the supervisor replaces it); Ctrl-C is the supervisor's to answer."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_exception)
    loop.add_signal_handler(signal.SIGTERM, channel.deliver, Drain())
    loop.add_signal_handler(signal.SIGUSR1, channel.deliver, ReopenLogs())
    release_signals(signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def _log_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.error("worker.exception", extra={"where": context["message"]}, exc_info=context.get("exception"))


if __name__ == "__main__":
    sys.exit(main())
