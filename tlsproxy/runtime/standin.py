"""Who stays under the old pid after an upgrade: hands signals on to the supervisor, reaps, ends as it ends.

Whoever started `tlsproxy run` knows one pid: as PID 1 a container ends with it, and an init (tini, runit, supervisord)
or a shell takes its end for the end of the proxy. So the old supervisor, when it has drained, executes this file, which
is small (no import of the house, -I -S) and never changes again. Under systemd it is not needed: MAINPID= tells.

    python standin.py PID LINE        PID: the supervisor; LINE: a descriptor, on which each supervisor names its heir

Rules: signals are blocked before the exec and never handled, only fetched, so that none is lost in between; what a
terminal sends (Ctrl-C) reaches the whole group and is not sent twice; nobody but the supervisor's end ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

HANDED_ON = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
FETCHED = HANDED_ON | {signal.SIGCHLD}

_SI_KERNEL = 0x80
"""si_code of a signal that the terminal sent (sigaction(2)); kill(2) has SI_USER, 0."""


def main(argv: Sequence[str]) -> int:
    """Stay until the supervisor ends; return its exit code as a shell tells it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FETCHED)
    supervisor, line = int(argv[0]), int(argv[1])
    os.set_blocking(line, False)
    while True:
        code, supervisor = reap(supervisor, line)
        if code is not None:
            return code
        if not lives(supervisor) and newest(supervisor, line) == supervisor:
            return 1  # it ended as the child of a supervisor that still drains; other orphans are no proxy
        # A sweep every few seconds beside SIGCHLD: an orphan that ended before it was ours came with its own signal.
        caught = signal.sigtimedwait(FETCHED, 5.0)
        supervisor = newest(supervisor, line)
        if caught and caught.si_signo in HANDED_ON and caught.si_code != _SI_KERNEL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, caught.si_signo)


def lives(pid: int) -> bool:
    """Whether there is such a process; one of ours that nobody has reaped yet counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def newest(supervisor: int, line: int) -> int:
    """Return the last pid that was named on the line, else the one known before."""
    with contextlib.suppress(OSError):
        while received := os.read(line, 4096):
            supervisor = int(received.split()[-1])
    return supervisor


def reap(supervisor: int, line: int) -> tuple[int | None, int]:
    """Collect who has ended; return (the exit code if it was the supervisor, who is the supervisor)."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            # Nobody is left; the one that was named last ended as somebody else's child.
            return 1, supervisor
        if not pid:
            return None, supervisor
        # It names its heir before it ends.
        supervisor = newest(supervisor, line)
        if pid == supervisor:
            code = os.waitstatus_to_exitcode(status)
            return (code if code >= 0 else 128 - code), supervisor


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
