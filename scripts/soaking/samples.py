"""What the proxy holds at a moment: memory, descriptors, processes; and how that grew over the hours.

Memory is counted as PSS where the kernel tells it (smaps_rollup: pages that processes share are divided among them),
in bytes. Knows /proc; nothing of load or of what is done meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.benchmark import measure

PROC = Path("/proc")


@dataclass(frozen=True)
class Sample:
    """One look. `elapsed` in seconds since the start of the soak."""

    elapsed: float
    processes: int
    memory: int
    supervisor: int
    worker: int
    certifier: int
    descriptors: int
    requests: int
    failures: int

    def line(self) -> str:
        return json.dumps(asdict(self))


def look(root: int, elapsed: float, requests: int, failures: int) -> Sample:
    """Look at the tree of the supervisor `root`. The worker is the biggest one."""
    family = measure.tree(root)
    memory = {stat.pid: _pss(stat.pid) or stat.rss for stat in family}
    roles = {stat.pid: _role(stat.pid) for stat in family}
    return Sample(
        elapsed=elapsed,
        processes=len(family),
        memory=sum(memory.values()),
        supervisor=memory.get(root, 0),
        worker=max((memory[pid] for pid, role in roles.items() if role == "worker"), default=0),
        certifier=max((memory[pid] for pid, role in roles.items() if role == "certifier"), default=0),
        descriptors=sum(_descriptors(stat.pid) for stat in family),
        requests=requests,
        failures=failures,
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope: units of y per unit of x; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def stamp() -> str:
    return time.strftime("%H:%M:%S", time.gmtime())


def _role(pid: int) -> str:
    with contextlib.suppress(OSError):
        command = (PROC / str(pid) / "cmdline").read_bytes()
        for role in ("worker", "certifier"):
            if f"runtime.{role}".encode() in command:
                return role
    return "supervisor"


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list((PROC / str(pid) / "fd").iterdir()))
    return 0
