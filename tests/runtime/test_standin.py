"""The process that stays under the old pid: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.running import until
from tlsproxy.runtime import standin

pytestmark = pytest.mark.system

# As the old supervisor does it: start the next one as a child, then execute the stand-in.
_OLD = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
line = int(sys.argv[1])
os.set_inheritable(line, True)
child = subprocess.Popen([sys.executable, "-c", sys.argv[3]], pass_fds=[int(sys.argv[4])])
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
os.execv(sys.executable, [sys.executable, "-I", "-S", sys.argv[2], str(child.pid), str(line)])
"""

# A supervisor that says which signals it gets; SIGUSR2 makes an heir and ends it, as an upgrade does; SIGTERM ends it.
_SUPERVISOR = """
import os, signal, subprocess, sys
me = {source!r}
fetched = {{signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}}
signal.pthread_sigmask(signal.SIG_BLOCK, fetched)
print("up", os.getpid(), flush=True)
while True:
    got = signal.sigwait(fetched)
    print(signal.Signals(got).name, os.getpid(), flush=True)
    if got == signal.SIGTERM:
        sys.exit(5)
    if got == signal.SIGUSR2:
        heir = subprocess.Popen([sys.executable, "-c", me.format(source=me, line={line})], pass_fds=[{line}])
        os.write({line}, b"%d\\n" % heir.pid)
        sys.exit(0)
"""


class StandIn:
    """A process that has become the stand-in for a supervisor."""

    def __init__(self, output: Path) -> None:
        self._output = output
        ours, theirs = socket.socketpair()
        with ours, theirs, output.open("wb") as out:
            script = _SUPERVISOR.format(source=_SUPERVISOR, line=theirs.fileno())
            command = [sys.executable, "-c", _OLD, str(ours.fileno()), standin.__file__, script, str(theirs.fileno())]
            fds = [ours.fileno(), theirs.fileno()]
            self.process = subprocess.Popen(command, stdout=out, pass_fds=fds, start_new_session=True)

    def pid_after(self, word: str) -> int:
        """Return the pid that comes with the last line of that word, once there is one."""

        def find() -> int:
            lines = [line.split() for line in self._output.read_text().splitlines()]
            return next((int(line[1]) for line in reversed(lines) if line[0] == word and len(line) == 2), 0)

        return until(find, f"{word} in the output")

    def is_standing_in(self) -> bool:
        return Path(f"/proc/{self.process.pid}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-I", b"-S"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], StandIn]]:
    made: list[StandIn] = []

    def make() -> StandIn:
        made.append(StandIn(tmp_path / "output"))
        until(made[-1].is_standing_in, "the stand-in is there")
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait(10)


def test_signals_reach_the_supervisor_and_its_end_is_told(start: Callable[[], StandIn]) -> None:
    stand_in = start()
    supervisor = stand_in.pid_after("up")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        stand_in.process.send_signal(number)
        assert stand_in.pid_after(number.name) == supervisor
    stand_in.process.send_signal(signal.SIGTERM)
    assert stand_in.process.wait(10) == 5


def test_the_heir_of_the_heir_is_known(start: Callable[[], StandIn]) -> None:
    stand_in = start()
    first = stand_in.pid_after("up")
    stand_in.process.send_signal(signal.SIGUSR2)
    second = until(lambda: pid if (pid := stand_in.pid_after("up")) != first else 0, "the heir is up")
    until(lambda: not Path(f"/proc/{first}").exists(), "the first one is reaped, not a zombie")
    stand_in.process.send_signal(signal.SIGHUP)
    assert stand_in.pid_after("SIGHUP") == second
    stand_in.process.send_signal(signal.SIGTERM)
    assert stand_in.process.wait(10) == 5


def test_a_supervisor_that_is_killed_is_told_as_a_shell_tells_it(start: Callable[[], StandIn]) -> None:
    stand_in = start()
    os.kill(stand_in.pid_after("up"), signal.SIGKILL)
    assert stand_in.process.wait(10) == 128 + signal.SIGKILL


def test_it_is_small(start: Callable[[], StandIn]) -> None:
    """Its own memory, without the pages of the interpreter that all share."""
    stand_in = start()
    stand_in.pid_after("up")
    status = Path(f"/proc/{stand_in.process.pid}/status").read_text()
    anonymous = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    assert anonymous < 8 * 1024


def test_it_does_not_stay_for_strangers() -> None:
    """Its supervisor ended and was reaped by another one; as PID 1 there may be other processes for ever."""
    code = """
import os, subprocess, sys
from tlsproxy.runtime import standin
stranger = subprocess.Popen(["sleep", "60"])
gone = subprocess.Popen(["true"])
gone.wait()
ours, theirs = os.pipe()
code = standin.main([str(gone.pid), str(ours)])
assert stranger.poll() is None
stranger.kill()
sys.exit(code + 10)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 11
