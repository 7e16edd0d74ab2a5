"""What the kernel knows of a process: memory, descriptors, CPU time. 0 where it can't be known (gone, or no Linux)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def resident_memory(pid: int) -> int:
    """Return bytes."""
    fields = _read(pid, "statm").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def open_descriptors(pid: int) -> int:
    """Return how many are open; that is for the process's own user to know, and for root."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        # Linux 6.2 and later say it at once; to list the 50 000 of a busy worker would hold up the supervisor.
        return folder.stat().st_size or sum(1 for _ in folder.iterdir())
    except OSError:
        return 0


def cpu_seconds(pid: int) -> float:
    """Return what it has used since it began, as user and in the kernel (proc(5), fields 14 and 15 of stat)."""
    fields = _read(pid, "stat").rpartition(")")[2].split()  # the name before it may hold anything
    return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
