"""The processes of one benchmark: started pinned to cores, ended by pid, none left behind.

Knows nothing of what they do. Every process gets its own session so that Ctrl-C reaches the benchmark alone, which
then ends each of them in `close`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.benchmark import measure

STOP_PATIENCE = 5.0


class Processes:
    """Owns what it starts. Mutable state: the list of running processes."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self, command: Sequence[str | Path], *, cores: frozenset[int], environ: Mapping[str, str], output: Path
    ) -> subprocess.Popen[str]:
        """Start a server; what it prints goes to the file `output`."""
        with output.open("ab") as sink:
            return self._spawn(command, cores, environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)

    def open(
        self, command: Sequence[str | Path], *, cores: frozenset[int], environ: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Start a generator that talks over standard input and output."""
        pipe = subprocess.PIPE
        return self._spawn(command, cores, environ, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)

    def _spawn(
        self,
        command: Sequence[str | Path],
        cores: frozenset[int],
        environ: Mapping[str, str],
        **streams: object,
    ) -> subprocess.Popen[str]:
        pinned = ["taskset", "-c", ",".join(map(str, sorted(cores))), *map(str, command)]
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            pinned, env={**os.environ, **environ}, text=True, start_new_session=True, **streams
        )
        self._running.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        """End a process and whatever of its tree outlives it."""
        family = measure.tree(process.pid)
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _kill_orphans(family[1:])
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._running.remove(process)

    def close(self) -> None:
        """End everything, the youngest first."""
        for process in reversed(self._running.copy()):
            self.stop(process)


def _kill_orphans(family: Sequence[measure.ProcessStat]) -> None:
    deadline = time.monotonic() + 2
    while (left := [stat for stat in family if _is_alive(stat)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for stat in left:
        os.kill(stat.pid, signal.SIGKILL)


def _is_alive(stat: measure.ProcessStat) -> bool:
    """Whether it is still the same process: a pid may have been given away again, a start time not."""
    found = measure.tree(stat.pid)
    return bool(found) and found[0].started == stat.started
