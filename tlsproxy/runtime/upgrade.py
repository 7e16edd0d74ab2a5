"""Upgrades: another supervisor, of whatever version is installed now, takes the place of this one.

Owns the successor and the line to the stand-in. What is handed over and what it means that somebody else is the proxy
is the supervisor's. Rules: an upgrade that fails leaves nothing behind; the pid that others know goes on to exist, as
a stand-in or by word to systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlsproxy.runtime import standin
from tlsproxy.runtime.estate import Estate
from tlsproxy.runtime.inheritance import Inheritance
from tlsproxy.runtime.messages import Drain, Handover, Prepared
from tlsproxy.runtime.notifier import Notifier
from tlsproxy.runtime.parting import parting_from
from tlsproxy.runtime.reload import ReloadRefused, Tell
from tlsproxy.runtime.successor import LEAVE_TIME, Successor, this_command
from tlsproxy.settings.values import parse_positive_duration

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a new version has until all of it is ready, if nobody says otherwise."""

COUNT_INTERVAL = 5.0
"""Seconds between two words on what was counted while we drain."""

STATS_LIMIT = 1.0

_PR_SET_CHILD_SUBREAPER = 36


class Upgrades:
    """See the module's text. The supervisor calls `poll` after each SIGCHLD."""

    # Mutable: _successor (from the start of one until it failed), _heir (the pid of the proxy: the successor's, or one
    # after it), _order (for our children then), _line and _end_of_line (to the stand-in: supervisors speak into the
    # first, whoever becomes the stand-in has the other one).

    def __init__(self, inheritance: Inheritance, command: Sequence[str] | None = None) -> None:
        """`command` is by default the one that this process was started with."""
        self._command = list(command or this_command())
        self._service = inheritance.service
        self.has_strangers = os.getpid() == 1  # orphans become our children, or did once: they are ours to reap
        self._successor: Successor | None = None
        self._heir = 0
        self._order = Drain()
        self._line = inheritance.line
        self._end_of_line: socket.socket | None = None

    @property
    def successor(self) -> Successor | None:
        """Who is the proxy now; None as long as this process is."""
        return self._successor if self._successor and self._successor.is_proxy else None

    @property
    def heir(self) -> int:
        """The pid of who is the proxy now, as far as is known here; 0 as long as this process is."""
        return self._heir

    @property
    def stays(self) -> bool:
        """Whether this process will be a stand-in."""
        return self._end_of_line is not None

    @property
    def line(self) -> socket.socket | None:
        return self._line

    def pids(self) -> set[int]:
        return {self._successor.pid} if self._successor else set()

    def poll(self) -> None:
        if self._successor is not None:
            self._successor.poll()

    async def perform(self, tell: Tell, options: Mapping[str, str], estate: Estate) -> dict[str, Any]:
        """Have a new supervisor be the proxy; return what a client is told. Raises UpgradeFailed, ReloadRefused."""
        began = time.monotonic()
        patience = _read_patience(options)
        tell("start", " ".join(self._command))
        self._draw_line()
        try:
            self._successor, prepared = await self._prepare(tell, patience, estate)
            await self._successor.take_over(*estate.last_word())
        except asyncio.CancelledError:
            await self._give_up(0.5)  # we are to stop, and are waited for
            raise
        except BaseException:
            await self._give_up(LEAVE_TIME)
            estate.take_back()
            raise
        self._heir = self._successor.pid
        self._order = parting_from(estate.settings(), prepared)
        number, seconds = estate.generations.serving.number + 1, round(time.monotonic() - began, 2)
        return {"generation": number, "proxy": self._heir, "seconds": seconds}

    def announce(self, notifier: Notifier, *, hang_up: bool) -> None:
        """Tell those who know this process as the proxy that another one is, or is behind it.

        `hang_up`: a SIGHUP came too late for us.
        """
        if self._successor is None:
            return
        if self._line is None:
            notifier.hand_over(self._heir)
        else:
            if not self.stays:
                with contextlib.suppress(OSError):
                    self._line.sendall(b"%d\n" % self._heir)
            self._line.close()
        self._successor.announced()
        if hang_up:
            os.kill(self._heir, signal.SIGHUP)

    async def leave(self, estate: Estate, reopen: Callable[[], None]) -> None:
        """Have our children come to their ends as the proxy says, and let it know what is counted meanwhile."""
        if self._successor is None:
            return
        logger.info("proxy.leaving", extra={"proxy": self._heir})
        orders = asyncio.create_task(self._successor.orders(reopen, estate.hasten))
        counting = asyncio.create_task(_count(estate, self._successor))
        try:
            await estate.leave(self._order)
        finally:
            for task in (orders, counting):
                task.cancel()
            await asyncio.gather(orders, counting, return_exceptions=True)
        await self._successor.leave(estate.collector.rest())
        logger.info("proxy.left", extra={"proxy": self._heir, "stays": self.stays})

    def pass_on(self, number: signal.Signals) -> None:
        """Hand a signal on to who is the proxy now. Ctrl-C has reached all of the terminal's group already."""
        if self._end_of_line is None:
            return
        if number == signal.SIGINT and _has_terminal():
            return
        with contextlib.suppress(ProcessLookupError):
            self._heir = standin.newest(self._heir, self._end_of_line.fileno())
            os.kill(self._heir, number)

    def stand_in(self) -> int:
        """Become the stand-in, if there is to be one: then this returns only when it could not be executed."""
        if self._successor is None or self._end_of_line is None:
            return 0
        self._heir = standin.newest(self._heir, self._end_of_line.fileno())
        if self._successor.returncode is not None and self._heir == self._successor.pid:
            return _as_shell(self._successor.returncode)
        arguments = [str(self._heir), str(self._end_of_line.fileno())]
        self._end_of_line.set_inheritable(True)
        with contextlib.suppress(OSError):
            if Path(standin.__file__).exists():  # not, if the upgrade has replaced the environment
                os.execv(sys.executable, [sys.executable, "-I", "-S", standin.__file__, *arguments])  # noqa: S606
        return standin.main(arguments)

    async def _prepare(self, tell: Tell, patience: float, estate: Estate) -> tuple[Successor, Prepared]:
        line = -1 if self._line is None else self._line.fileno()
        handed = estate.handover(line)
        self._successor = await Successor.start(self._command, _descriptors(handed))
        prepared = await self._successor.prepare(
            lambda: estate.handover(line), patience, lambda text: tell("version", text)
        )
        tell("ready", "all its workers are ready")
        return self._successor, prepared

    def take_signals(self, estate: Estate, reopen: Callable[[], None]) -> None:
        """From now on they are for who is the proxy, or mean that we are to be quick."""
        loop = asyncio.get_running_loop()
        for number in standin.HANDED_ON:
            loop.add_signal_handler(number, self._on_signal, number, estate, reopen)

    def _on_signal(self, number: signal.Signals, estate: Estate, reopen: Callable[[], None]) -> None:
        if self.stays:
            self.pass_on(number)
        elif number in (signal.SIGTERM, signal.SIGINT):
            estate.hasten(0.0)
        elif number == signal.SIGUSR1:
            reopen()

    def _draw_line(self) -> None:
        """Have a line to this process as a stand-in, if it has to be one and nobody is."""
        if self._line is not None or not sys.platform.startswith("linux"):
            return
        if os.getpid() != 1 and self._service.notify:
            return
        # The supervisor's supervisors become our children when their parents end (prctl(2)); it survives the exec.
        self.has_strangers = True
        _be_subreaper(True)
        self._end_of_line, self._line = socket.socketpair()
        self._end_of_line.setblocking(False)

    async def _give_up(self, patience: float) -> None:
        if self._successor is not None:
            await self._successor.end(patience)  # which needs `poll`
            self._successor = None
        if self._end_of_line is not None and self._line is not None:
            self._end_of_line.close()
            self._line.close()
            self._end_of_line = self._line = None
            _be_subreaper(False)  # orphans to come are nobody's here


def _read_patience(options: Mapping[str, str]) -> float:
    """Return how long an upgrade may take. Raises ReloadRefused."""
    try:
        return parse_positive_duration(options["timeout"]) if "timeout" in options else PATIENCE
    except ValueError as error:
        raise ReloadRefused(f"timeout: {error}") from error


def hold_signals() -> None:
    """From now on signals wait for the stand-in."""
    signal.pthread_sigmask(signal.SIG_BLOCK, standin.FETCHED)


async def _count(estate: Estate, successor: Successor) -> None:
    while True:
        await asyncio.sleep(COUNT_INTERVAL)
        await asyncio.gather(*(each.refresh_stats(STATS_LIMIT) for each in estate.generations))
        successor.tell(estate.collector.rest())


def _be_subreaper(wanted: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _descriptors(handed: Handover) -> list[int]:
    found = [number for _, number, _, _, _ in handed.listeners]
    found += handed.metrics[1]
    found += [handed.admin[1]] if handed.admin else []
    return found + ([handed.line] if handed.line >= 0 else [])


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _as_shell(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
