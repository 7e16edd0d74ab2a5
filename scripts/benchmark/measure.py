"""What the kernel says a process tree has used: CPU time and resident memory.

Knows /proc and nothing about proxies. CPU is user + system time of every process of the tree, with that of children
already waited for, so a worker that dies between two readings is not lost.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessStat:
    """The fields of /proc/PID/stat that count here (proc(5)); CPU in seconds, memory in bytes."""

    pid: int
    parent: int
    own_cpu: float
    waited_cpu: float
    rss: int
    started: int


def parse_stat(line: str) -> ProcessStat:
    """Read one stat line. The name in parentheses may hold spaces and parentheses: fields count from the last one."""
    pid, _, rest = line.partition(" ")
    fields = rest[rest.rindex(")") + 2 :].split()
    return ProcessStat(
        pid=int(pid),
        parent=int(fields[1]),
        own_cpu=(int(fields[11]) + int(fields[12])) * TICK,
        waited_cpu=(int(fields[13]) + int(fields[14])) * TICK,
        rss=int(fields[21]) * PAGE,
        started=int(fields[19]),
    )


def tree(root: int) -> list[ProcessStat]:
    """Return `root` and all its descendants; empty when it is gone."""
    stats = {stat.pid: stat for stat in _all_processes()}
    return descendants(root, stats)


def descendants(root: int, stats: dict[int, ProcessStat]) -> list[ProcessStat]:
    """Pick the tree below `root` out of all processes, parents before children."""
    found = [stats[root]] if root in stats else []
    for parent in found:  # grows while it is walked
        found += [stat for stat in stats.values() if stat.parent == parent.pid]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time the tree has used so far."""
    return sum(stat.own_cpu + stat.waited_cpu for stat in tree(root))


def rss_bytes(root: int) -> int:
    """Resident memory of the tree. Pages shared by its processes count once for each: compare differences."""
    return sum(stat.rss for stat in tree(root))


def cpu_by_process(root: int) -> dict[int, float]:
    """CPU time of each process of the tree by itself."""
    return {stat.pid: stat.own_cpu for stat in tree(root)}


def cpu_by_thread(root: int) -> dict[int, float]:
    """CPU time of each thread of the tree by itself."""
    threads: dict[int, float] = {}
    for process in tree(root):
        for path in (PROC / str(process.pid) / "task").glob("*/stat"):
            if stat := _read(path):
                threads[stat.pid] = stat.own_cpu
    return threads


def core_seconds(cores: Iterable[int]) -> float:
    """Seconds these cores have not been idle, by whoever's work; idle and iowait are fields 4 and 5 (proc(5))."""
    wanted = {f"cpu{core}" for core in cores}
    lines = [line.split() for line in (PROC / "stat").read_text().splitlines()]
    return sum(sum(map(int, [*line[1:4], *line[6:9]])) for line in lines if line[0] in wanted) * TICK


class PeakMemory:
    """Samples the memory of a tree in the background while its `with` block runs."""

    def __init__(self, root: int, interval: float = 0.05) -> None:
        self.before = rss_bytes(root)
        self.peak = self.before
        self._root = root
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopped.wait(self._interval):
            self.peak = max(self.peak, rss_bytes(self._root))


def _all_processes() -> list[ProcessStat]:
    paths = (entry / "stat" for entry in PROC.iterdir() if entry.name.isdigit())
    return [stat for path in paths if (stat := _read(path)) is not None]


def _read(path: Path) -> ProcessStat | None:
    try:
        return parse_stat(path.read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return None
