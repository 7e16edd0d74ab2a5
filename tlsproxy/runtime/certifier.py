"""The certifier process, `python -m tlsproxy.runtime.certifier`: control socket in, good certificates out.

Knows the order of its life (Start, drop, prepare, Ready, look again every two seconds), nothing of certificates.
Rules: only names leave it, never keys; it leaves when it is told to or when the supervisor is gone, and no signal but
SIGKILL ends it; a failure after Ready is logged and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from tlsproxy import logs
from tlsproxy.certs.manager import CertificateManager
from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.child import open_control_socket, release_signals
from tlsproxy.runtime.control import (
    CertificatesChanged,
    ControlChannel,
    ControlError,
    Drain,
    Drained,
    Failed,
    Ready,
    Start,
    Stats,
    StatsRequest,
)
from tlsproxy.runtime.privileges import drop_privileges
from tlsproxy.settings import Settings
from tlsproxy.store.base import open_store

logger = logging.getLogger(__name__)

POLL_INTERVAL = 2.0
"""Seconds between looks at the certificate files."""


def main(argv: Sequence[str] | None = None) -> int:
    """Live and return the exit code."""
    sock = open_control_socket(sys.argv[1:] if argv is None else argv)
    return asyncio.run(live(sock))


async def live(sock: socket.socket) -> int:
    """Serve one supervisor until it has had enough; return the exit code. Takes over the socket."""
    release_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
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
    try:
        manager = await _prepare(start)
    except TlsproxyError as error:
        channel.send(Failed(str(error)))
        return 1
    # For workers that outlived an earlier certifier and may have missed what it had to say; at first there are none.
    channel.send(CertificatesChanged(manager.names()))
    channel.send(Ready())
    watching = asyncio.create_task(_watch(manager, channel))
    try:
        await _listen(manager, channel)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return 0


async def _prepare(start: Start) -> CertificateManager:
    settings = Settings.from_parent(start.settings)
    logs.configure(settings.log)
    # Here and not in a thread: no_new_privs holds for the calling thread and those it starts (prctl(2)).
    drop_privileges(settings.server.user)
    manager = CertificateManager(settings.sites, open_store(settings.store.url))
    if problems := await asyncio.to_thread(manager.prepare, datetime.now(UTC)):
        raise TlsproxyError("\n".join(problems))
    return manager


async def _listen(manager: CertificateManager, channel: ControlChannel) -> None:
    """Return when it is time to leave. What is meant for workers only (ReopenLogs) is no concern here."""
    async for message in channel:
        if isinstance(message, StatsRequest):
            channel.send(Stats(manager.stats()))
        elif isinstance(message, Drain):
            channel.send(Drained())
            return


async def _watch(manager: CertificateManager, channel: ControlChannel) -> None:
    while True:
        await asyncio.sleep(POLL_INTERVAL)
        try:
            names = await asyncio.to_thread(manager.tick, datetime.now(UTC))
        except Exception:
            # A flaw in one look must not end all renewals, silently least of all.
            logger.exception("certifier.tick_failed")
            continue
        if names:
            channel.send(CertificatesChanged(names))


if __name__ == "__main__":
    sys.exit(main())
