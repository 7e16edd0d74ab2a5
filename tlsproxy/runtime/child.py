"""What every child process does first: find its control socket, take its signals under control.

Worker and certifier share it. Rule: the supervisor alone decides when a child leaves, so the signals that a terminal
or an init system sends to the whole group (Ctrl-C, hang-up) must not end a child on their own.
"""

from __future__ import annotations

import argparse
import signal
import socket
from collections.abc import Sequence

HELD_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""Blocked by the supervisor while it spawns and inherited over exec, so that none of them can hit a child between its
exec and its first handler; `release_signals` lets the ones that came meanwhile through."""


def open_control_socket(argv: Sequence[str]) -> socket.socket:
    """Return the socket named by `--control-fd N`. The caller hands it to `ControlChannel.open`, which then owns it."""
    parser = argparse.ArgumentParser(description="A child process of `tlsproxy run`; not to be started by hand.")
    parser.add_argument("--control-fd", type=int, required=True)
    sock = socket.socket(fileno=parser.parse_args(argv).control_fd)
    # It came through exec; what this child executes itself must not hold it open after our end.
    sock.set_inheritable(False)
    return sock


def release_signals(*ignored: signal.Signals) -> None:
    """Ignore `ignored`, then unblock everything the supervisor held back. Call after own handlers are installed."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
