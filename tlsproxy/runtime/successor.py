"""The next supervisor, seen from the one that serves: started, prepared, then the proxy in our place.

Knows how it is started and what the two say to each other, not what is handed over nor what follows. Rules: until
`take_over` it can be ended without anybody noticing; every wait has a deadline; every way in which it does not come up
is one sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tlsproxy.runtime.children import describe_exit
from tlsproxy.runtime.control import ControlChannel, ControlError, control_pair
from tlsproxy.runtime.messages import (
    BackendPlan,
    Drain,
    Failed,
    Handover,
    Hello,
    Message,
    Prepared,
    Ready,
    ReopenLogs,
    Serve,
    TakeOver,
    Totals,
)
from tlsproxy.runtime.succession import PROTOCOL, VARIABLE, UpgradeFailed

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Message)

HELLO_TIME = 30.0
"""Seconds for the new program to say its first word: an interpreter that starts on a busy machine."""

TAKE_OVER_TIME = 10.0
"""Seconds for a new supervisor that is ready to say that it serves."""

LEAVE_TIME = 10.0
"""Seconds for a new supervisor that is not wanted to end its children, before it is killed."""

_WORDS_IN_LOG = "what it said is in the log"


def own_command(argv: Sequence[str], original: Sequence[str], executable: str, *, is_module: bool) -> list[str]:
    """Return the command that this process was started with, so that it leads to what is installed there now.

    A script is executed itself: its first line names the interpreter, and with it the virtual environment.
    `original` is sys.orig_argv; `is_module` tells whether it was `python -m`.
    """
    script = Path(argv[0])
    if not is_module and script.is_file() and os.access(script, os.X_OK):
        return [str(script.absolute()), *argv[1:]]
    return [executable, *original[1:]]


def this_command() -> list[str]:
    main = sys.modules.get("__main__")
    return own_command(sys.argv, sys.orig_argv, sys.executable, is_module=getattr(main, "__spec__", None) is not None)


class Successor:
    """A new supervisor. Its owner calls `poll` after each SIGCHLD, and `end` if it doesn't become the proxy."""

    # Mutable: is_proxy (from take_over on); _ended is set once.

    def __init__(self, popen: subprocess.Popen[bytes], channel: ControlChannel) -> None:
        self.is_proxy = False
        self._popen = popen
        self._channel = channel
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Successor pid {self.pid} {'is the proxy' if self.is_proxy else 'prepares'}>"

    @classmethod
    async def start(cls, command: Sequence[str], descriptors: Sequence[int]) -> Successor:
        """Start the program; it inherits the descriptors under their numbers. Raises UpgradeFailed."""
        try:
            ours, theirs = control_pair()
        except OSError as error:
            raise UpgradeFailed(f"the new version cannot be started: {error.strerror}") from error
        with theirs:
            channel = await ControlChannel.open(ours)
            # No await from here to the return: a cancelled start must not leave a process that nobody knows.
            try:
                return cls(_popen(command, theirs, descriptors), channel)
            except OSError as error:
                channel.close()
                raise UpgradeFailed(f"the new version cannot be started: {command[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def prepare(self, handover: Callable[[], Handover], patience: float, tell: Callable[[str], None]) -> Prepared:
        """Hand over as soon as it asks, return when all its children are ready. Raises UpgradeFailed.

        `patience` is how many seconds it may take; `tell` is told each step.
        """
        deadline = asyncio.get_running_loop().time() + patience
        hello = await self._expect(Hello, min(patience, HELLO_TIME), "had said nothing", "it said a word")
        if hello.protocol != PROTOCOL:
            raise UpgradeFailed(
                f"version {hello.version} takes over in another way than this one hands over; restart the proxy instead"
            )
        tell(f"version {hello.version} is there, process {self.pid}; it starts its workers")
        self._channel.send(handover())
        left = max(deadline - asyncio.get_running_loop().time(), 0.0)
        return await self._expect(Prepared, left, "was not ready", "it was ready", patience)

    async def take_over(self, plan: BackendPlan, totals: dict[str, float]) -> None:
        """Make it the proxy: when this returns, it serves. Raises UpgradeFailed."""
        self._channel.send(TakeOver(plan, totals))
        await self._expect(Ready, TAKE_OVER_TIME, "did not serve", "it served")
        self.is_proxy = True

    def announced(self) -> None:
        """Let it know that it may speak for itself from now on."""
        self._channel.send(Serve())

    def tell(self, totals: dict[str, float]) -> None:
        """Hand on what was counted since the last time."""
        if totals:
            self._channel.send(Totals(totals))

    async def orders(self, reopen: Callable[[], None], hurry: Callable[[float], None]) -> None:
        """Do what the proxy says while we drain: open the logs anew, be gone within so many seconds.

        A proxy that is gone needs us no longer either: `hurry(0)`.
        """
        with contextlib.suppress(ControlError):
            async for message in self._channel:
                match message:
                    case ReopenLogs():
                        reopen()
                    case Drain(timeout=timeout):
                        hurry(timeout or 0.0)
                    case _:
                        logger.error("upgrade.unexpected_message", extra={"message_type": type(message).__name__})
        hurry(0.0)

    async def leave(self, totals: dict[str, float]) -> None:
        """Send the last of what was counted, and part."""
        self.tell(totals)
        self._channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIME):
                await self._channel.wait_closed()

    @property
    def returncode(self) -> int | None:
        """As subprocess has it; None while it lives."""
        return self._ended.result() if self._ended.done() else None

    def poll(self) -> None:
        """Reap the process if it has ended."""
        returncode = self._popen.poll()
        if returncode is not None and not self._ended.done():
            self._ended.set_result(returncode)

    async def end(self, patience: float = LEAVE_TIME) -> None:
        """End it: politely, so that nothing it has begun is cut, then for sure. Safe at any time, also twice."""
        self._channel.close()
        if not self._ended.done():
            self._popen.terminate()
            await asyncio.wait({self._ended}, timeout=patience)
        if not self._ended.done():
            self._popen.kill()
            await asyncio.wait({self._ended}, timeout=LEAVE_TIME)

    async def _expect(self, kind: type[T], seconds: float, missing: str, then: str, patience: float | None = None) -> T:
        """Return the next message, which is to be of this kind; else raise UpgradeFailed in the words given."""
        try:
            async with asyncio.timeout(seconds):
                message = await self._channel.receive()
        except TimeoutError:
            raise UpgradeFailed(f"the new version {missing} after {patience or seconds:g} s; {_WORDS_IN_LOG}") from None
        except ControlError as error:
            raise UpgradeFailed(f"the new version does not speak as this one does: {error}") from error
        if isinstance(message, Failed):
            raise UpgradeFailed(message.reason)
        if message is None:
            raise UpgradeFailed(f"the new version {await self._describe_end()} before {then}; {_WORDS_IN_LOG}")
        if not isinstance(message, kind):
            raise UpgradeFailed(f"the new version said {type(message).__name__} before {then}")
        return message

    async def _describe_end(self) -> str:
        """It has closed the socket, so in all likelihood it ends just now."""
        await asyncio.wait({self._ended}, timeout=1.0)
        return f"ended with {describe_exit(self._ended.result())}" if self._ended.done() else "closed its socket"


def _popen(command: Sequence[str], control: socket.socket, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    inherited = [control.fileno(), *descriptors]
    environment = {**os.environ, VARIABLE: str(control.fileno())}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=inherited, env=environment)
