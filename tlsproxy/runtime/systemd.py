"""What systemd and a service say to each other: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

Knows variables and datagrams, nothing of generations or of what is listened on. Rules: the variables are taken out of
the environment, so that no child believes they are meant for it; a manager that can't be reached never stops a proxy;
WATCHDOG=1 is sent only while somebody answers for the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.notifier import Notifier

logger = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""

_PATIENCE = 0.5
"""Seconds for a manager whose queue is full (net.unix.max_dgram_qlen): a lost READY=1 is a failed start."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivationError(TlsproxyError):
    """What the service manager has set makes no sense. The message begins with the variable or the socket."""


@dataclass(frozen=True)
class Service:
    """What the service manager wants of this process: nothing at all, if there is none.

    `notify` is the address to tell it how we are, `watchdog` how many seconds we may be silent (0: for ever),
    `sockets` the (name, file descriptor) of what it listens on for us.
    """

    notify: str = ""
    watchdog: float = 0.0
    sockets: tuple[tuple[str, int], ...] = ()


def take_service(environ: MutableMapping[str, str], pid: int) -> Service:
    """Take the variables out of `environ` and return what they say to process `pid`. Raises ActivationError."""
    said = {name: environ.pop(name, "") for name in _VARIABLES}
    watched = said["WATCHDOG_PID"] in ("", str(pid))
    return Service(
        notify=said["NOTIFY_SOCKET"],
        watchdog=_number("WATCHDOG_USEC", said["WATCHDOG_USEC"]) / 1e6 if watched else 0.0,
        sockets=_sockets(said) if said["LISTEN_PID"] == str(pid) else (),
    )


class ServiceNotifier(Notifier):
    """Tells the service manager how we are. Nothing here raises; a manager that is busy is waited for a moment."""

    # Mutable: _is_heard (whether the last word went out; a manager that is gone is complained of once), _text.

    def __init__(self, address: str) -> None:
        """`address` is that of NOTIFY_SOCKET: a path, or @name for one without a file (unix(7), abstract)."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._is_heard = True
        self._text = ""

    def __repr__(self) -> str:
        return f"<ServiceNotifier {self._address!r}>"

    def ready(self, status: str = "") -> None:
        self._text = status or self._text
        self._say("READY=1", f"STATUS={self._text}")

    def reloading(self) -> None:
        # The time lets systemd tell this reload from one before it (Type=notify-reload).
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=Changing over")

    def stopping(self) -> None:
        self._say("STOPPING=1", "STATUS=Finishing what is in flight")

    def failed(self, reason: str) -> None:
        self._say(f"STATUS={reason}")

    def alive(self) -> None:
        self._say("WATCHDOG=1")

    def hand_over(self, pid: int) -> None:
        # Only the main process may name another one.
        self._say(f"MAINPID={pid}", "READY=1", f"STATUS={self._text}")

    def _say(self, *lines: str) -> None:
        # One line is one assignment: what an error has in more lines becomes one.
        text = "\n".join(" ".join(line.split("\n")) for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_PATIENCE)
                sock.sendto(text.encode(errors="replace"), self._address)
        except OSError as error:
            if self._is_heard:
                logger.warning("systemd.unreachable", extra={"socket": self._address, "error": str(error)})
            self._is_heard = False
        else:
            self._is_heard = True


def make_notifier(address: str) -> Notifier:
    """Return who tells the service manager at `address`, or one who tells nobody."""
    return ServiceNotifier(address) if address else Notifier()


async def feed_watchdog(notifier: Notifier, patience: float, is_answering: Callable[[float], Awaitable[bool]]) -> None:
    """Say at least twice in `patience` seconds that all is well, as long as it is. Runs until it is cancelled.

    `is_answering` gets how many seconds it may take to find out.
    """
    while True:
        if await is_answering(patience / 4):
            notifier.alive()
        await asyncio.sleep(patience / 4)


def _number(name: str, text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise ActivationError(f'{name}="{text}" is not a number. The service manager sets it; unset it in a shell.')
    return int(text)


def _sockets(said: MutableMapping[str, str]) -> tuple[tuple[str, int], ...]:
    count = _number("LISTEN_FDS", said["LISTEN_FDS"])
    names = said["LISTEN_FDNAMES"].split(":") if said["LISTEN_FDNAMES"] else []
    found = []
    for place in range(count):
        descriptor = FIRST_DESCRIPTOR + place
        with contextlib.suppress(OSError):  # one that is not open is said by whoever looks at it
            os.set_inheritable(descriptor, False)
        found.append((names[place] if place < len(names) else "", descriptor))
    return tuple(found)
