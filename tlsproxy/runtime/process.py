"""One child process, seen from the supervisor: its pid, its control channel, its readiness, its end.

Knows how a child is started and stopped, not what it does, nor whether another follows it (`Generation` does).
Rule: whoever holds a ChildProcess can always end it, and `exited` is set once and only after the process is reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.child import HELD_SIGNALS
from tlsproxy.runtime.children import describe_exit
from tlsproxy.runtime.control import ControlChannel, ControlError, control_pair
from tlsproxy.runtime.messages import Failed, Message, Ready, Start, Stats, StatsRequest

logger = logging.getLogger(__name__)

START_TIMEOUT = 120.0
"""Seconds from Start to Ready. Generous: a certifier may have thousands of internal certificates to make."""

PARTING_TIME = 5.0
"""Seconds between a child's last word and its end, before it is killed."""


class ChildFailed(TlsproxyError):
    """A child could not be started; the message holds its own reason."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is: enough to start it, and to start its replacement."""

    role: Literal["worker", "certifier"]
    module: str
    start: Start
    environment: Mapping[str, str]

    @property
    def is_worker(self) -> bool:
        return self.role == "worker"

    @property
    def name(self) -> str:
        return f"worker {self.start.slot}" if self.is_worker else self.role


class ChildProcess:
    """A running child. After `spawn` its owner runs `live` as a task and calls `poll` after each SIGCHLD."""

    # Mutable: is_started, is_aside, _ready_at, leaving, cut, told, _stats (whom the next is for) and _asked_at; the
    # three futures are set once.

    def __init__(self, spec: ChildSpec, popen: subprocess.Popen[bytes], channel: ControlChannel) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.channel = channel
        self.exited: asyncio.Future[int] = loop.create_future()
        self.is_started = False  # it was sent its Start
        self.leaving = False  # it has said that it accepts no more
        self.cut: int | None = None  # what Drained said; None until it came
        self._answer: asyncio.Future[Ready | Failed] = loop.create_future()
        self._reaped: asyncio.Future[int] = loop.create_future()
        self._stats: asyncio.Future[dict[str, int]] | None = None
        self._asked_at = 0.0  # when `_stats` was asked for
        self.is_aside = False  # it answers nothing: nobody is to wait for it
        self.told: Stats | None = None  # the last that came
        self._ready_at: float | None = None
        self._popen = popen

    def __repr__(self) -> str:
        state = describe_exit(self._reaped.result()) if self._reaped.done() else "running"
        return f"<ChildProcess {self.spec.name} pid {self.pid} {state}>"

    @classmethod
    async def spawn(cls, spec: ChildSpec) -> ChildProcess:
        """Start the process; it knows nothing yet. Raises ChildFailed when the system refuses (memory, descriptors)."""
        try:
            ours, theirs = control_pair()
        except OSError as error:
            raise ChildFailed(f"{spec.name} cannot be started: {error.strerror}") from error
        with theirs:
            channel = await ControlChannel.open(ours)
            # No await from here to the return: a cancelled spawn must not leave a process that nobody knows.
            try:
                return cls(spec, _popen(spec, theirs), channel)
            except OSError as error:
                channel.close()
                raise ChildFailed(f"{spec.name} cannot be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_ready(self) -> bool:
        """Whether it does its work: from Ready to its end."""
        return self._ready_at is not None and not self._reaped.done()

    @property
    def is_listening(self) -> bool:
        """Whether connections that it is given are accepted: from Ready to Leaving or its end, if it answers."""
        return self.is_ready and not self.leaving and not self.is_aside

    def silent_for(self) -> float:
        """Seconds since it was asked for its counters and has said nothing; 0 while no question is open."""
        return 0.0 if self._stats is None else asyncio.get_running_loop().time() - self._asked_at

    def healthy_for(self) -> float:
        """Seconds since Ready; 0 for a child that never was."""
        return 0.0 if self._ready_at is None else asyncio.get_running_loop().time() - self._ready_at

    async def live(self, handle: Callable[[ChildProcess, Message], None]) -> None:
        """Deliver what the child says until it has ended, then set `exited`.

        `exited` comes after the child's last word, so that a reason sent just before the end is never missed.
        """
        listening = asyncio.create_task(self._listen(handle))
        try:
            await _first_of(listening, self._reaped)
            if not self._reaped.done():
                await asyncio.wait({self._reaped}, timeout=PARTING_TIME)
                self.kill()
            await asyncio.wait({listening}, timeout=PARTING_TIME)
            self.exited.set_result(await self._reaped)
        finally:
            listening.cancel()
            self.channel.close()

    async def start(self) -> None:
        """Send Start and wait for Ready. Raises ChildFailed on Failed, on an early end, and after START_TIMEOUT."""
        self.is_started = True
        self.channel.send(self.spec.start)
        await _first_of(self._answer, self.exited, timeout=START_TIMEOUT)
        if self._answer.done():
            answer = self._answer.result()
            if isinstance(answer, Failed):
                raise ChildFailed(answer.reason)
        elif self.exited.done():
            raise ChildFailed(f"{self.spec.name} ended with {describe_exit(self.exited.result())} before it was ready")
        else:
            raise ChildFailed(f"{self.spec.name} was not ready after {START_TIMEOUT:.0f} s")

    async def ask_stats(self, timeout: float) -> dict[str, int] | None:
        """Return its counters; None when it is not ready, or has not answered within `timeout` seconds."""
        if not self.is_ready:
            return None
        if self._stats is None:
            loop = asyncio.get_running_loop()
            self._stats, self._asked_at = loop.create_future(), loop.time()
            self.channel.send(StatsRequest())
        asked = self._stats  # those who ask meanwhile share the answer
        await _first_of(asked, self.exited, timeout=timeout)
        return asked.result() if asked.done() else None

    def poll(self) -> None:
        """Reap the process if it has ended."""
        returncode = self._popen.poll()
        if returncode is not None and not self._reaped.done():
            self._reaped.set_result(returncode)

    def kill(self) -> None:
        """End it now. Popen knows whether the pid is still this child's, so nothing else can be hit."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()

    async def _listen(self, handle: Callable[[ChildProcess, Message], None]) -> None:
        try:
            async for message in self.channel:
                if isinstance(message, Ready | Failed):
                    self._take_answer(message)
                else:
                    if isinstance(message, Stats):
                        self._take_stats(message)
                    handle(self, message)
        except ControlError as error:
            logger.error("child.unintelligible", extra={"role": self.spec.name, "child": self.pid, "error": str(error)})  # noqa: TRY400 - the trace is the protocol's, not ours
            self.kill()

    def _take_answer(self, answer: Ready | Failed) -> None:
        if self._answer.done():
            raise ControlError(f"{type(answer).__name__} came twice")
        if isinstance(answer, Ready):
            self._ready_at = asyncio.get_running_loop().time()
        self._answer.set_result(answer)

    def _take_stats(self, stats: Stats) -> None:
        """For who asked. A child that leaves says unasked what it has counted since."""
        self.told = stats
        asked, self._stats = self._stats, None
        if asked is not None:
            asked.set_result(stats.values)


async def _first_of(*futures: asyncio.Future[Any], timeout: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _popen(spec: ChildSpec, control: socket.socket) -> subprocess.Popen[bytes]:
    # -P: never import from the directory the operator happened to stand in; it may belong to somebody else.
    command = [sys.executable, "-P", "-m", spec.module, "--control-fd", str(control.fileno())]
    descriptors = [control.fileno(), *(fd for _, fd, _ in spec.start.listeners)]
    with _signals_held():
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=descriptors, env=_child_environment(spec.environment)
        )


def _child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our own without the configuration: what a child may know comes in Start, and secrets stay out of its environ.

    What the operator has set wins over `extra`.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TLSPROXY_")}
    return {**extra, **inherited}


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let the child begin with HELD_SIGNALS blocked; a blocked mask survives exec, a handler does not."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
