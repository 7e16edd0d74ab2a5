"""The supervisor that served before us, seen from the new one: it gives us everything, drains and ends.

Knows the socket to it and what is said there; what is done with it is `supervisor`'s. The beginning (`find`, `receive`,
`fail`) blocks, because there is no event loop yet; with `open` it goes on in the loop. Rule: as long as it has not said
TakeOver it is the proxy, and its end is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator, MutableMapping

from tlsproxy import __version__
from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.control import ControlChannel, ControlError, FrameDecoder, encode
from tlsproxy.runtime.messages import (
    Drain,
    Failed,
    Handover,
    Hello,
    Message,
    Prepared,
    ReopenLogs,
    Serve,
    TakeOver,
    Totals,
)
from tlsproxy.runtime.succession import PROTOCOL, VARIABLE, UpgradeFailed

HANDOVER_TIME = 30.0
"""Seconds for the old supervisor to answer Hello: it has nothing to wait for."""


class Predecessor:
    """The old supervisor. Whoever has found it ends with `fail`, or with `open` and the rest."""

    # Mutable: _channel (from open on), _gone.

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._channel: ControlChannel | None = None
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Predecessor {'in the loop' if self._channel else 'before the loop'}>"

    def receive(self) -> Handover:
        """Return what it hands over. Raises UpgradeFailed."""
        decoder = FrameDecoder()
        try:
            self._socket.settimeout(HANDOVER_TIME)
            while received := self._socket.recv(1 << 20):
                for message in decoder.feed(received):
                    if not isinstance(message, Handover):
                        raise UpgradeFailed(f"the running proxy said {type(message).__name__} instead of handing over")
                    return message
        except (OSError, ControlError) as error:
            raise UpgradeFailed(f"the running proxy does not hand over ({error})") from error
        raise UpgradeFailed("the running proxy has given up the upgrade")

    def fail(self, reason: str) -> None:
        """Say why there will be no new supervisor. For as long as there is no loop."""
        with contextlib.suppress(OSError):
            self._socket.sendall(encode(Failed(reason)))

    async def open(self) -> None:
        """Go on in this event loop."""
        self._channel = await ControlChannel.open(self._socket)

    def send(self, message: Message) -> None:
        """Say something; nothing if it is gone."""
        if self._channel is not None:
            self._channel.send(message)

    async def refuse(self, reason: str) -> None:
        """Say why there will be no new supervisor, from the loop."""
        self.send(Failed(reason))
        self.close()
        if self._channel is not None:
            await self._channel.wait_closed()

    async def hand_over(self, prepared: Prepared) -> TakeOver | None:
        """Say that all is ready; return its word, or None when it wants us no longer."""
        self.send(prepared)
        message = await self._receive()
        return message if isinstance(message, TakeOver) else None

    async def follow(
        self, take: Callable[[dict[str, float]], None], announced: Callable[[], None] = lambda: None
    ) -> None:
        """Take what its children count until they end, return when it has ended; `announced`: all know of us."""
        while (message := await self._receive()) is not None:
            if isinstance(message, Totals):
                take(message.series)
            elif isinstance(message, Serve):
                announced()
        self.close()
        self._gone.set()

    async def gone(self, timeout: float | None = None) -> None:
        """Return when it has ended, or after so many seconds; `follow` sees it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._gone.wait()

    def reopen_logs(self) -> None:
        self.send(ReopenLogs())

    def hurry(self, timeout: float) -> None:
        """Have it gone within so many seconds."""
        self.send(Drain(timeout))

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        else:
            self._socket.close()

    async def _receive(self) -> Message | None:
        if self._channel is None:
            return None
        with contextlib.suppress(ControlError):
            return await self._channel.receive()
        return None


def find_predecessor(environ: MutableMapping[str, str]) -> Predecessor | None:
    """Take the variable out of `environ` and greet the supervisor behind it; None if this is no upgrade."""
    text = environ.pop(VARIABLE, "")
    if not text.isdigit():
        return None
    try:
        if not stat.S_ISSOCK(os.fstat(int(text)).st_mode):
            return None
        sock = socket.socket(fileno=int(text))
        sock.set_inheritable(False)
        sock.sendall(encode(Hello(PROTOCOL, __version__)))
    except OSError:  # the number of something else: a variable that somebody has kept
        return None
    return Predecessor(sock)


@contextlib.contextmanager
def told_of_failure(predecessor: Predecessor | None) -> Iterator[None]:
    """Tell the old supervisor the reason if what is done inside fails."""
    try:
        yield
    except TlsproxyError as error:
        if predecessor is not None:
            predecessor.fail(str(error))
        raise
    except Exception as error:
        if predecessor is not None:
            predecessor.fail(f"the new version failed with {type(error).__name__}: {error}")
        raise
