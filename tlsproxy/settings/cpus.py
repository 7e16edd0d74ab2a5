"""How many CPUs this process may really use: its affinity and the cgroup's quota, or the CPU count elsewhere."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_cpus(cgroup_root: Path = _CGROUP_ROOT, own_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of CPUs worth a worker, at least 1.

    A container limited to half a CPU on a 64-core machine must not start 64 workers: the quota (`docker run --cpus`) is
    rounded up, so that 1.5 CPUs are used whole.
    """
    counts = [_affinity()]
    quota = min(_quotas(cgroup_root, own_cgroup), default=math.inf)
    if quota < math.inf:
        counts.append(math.ceil(quota))
    return max(1, min(counts))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path, own_cgroup: Path) -> list[float]:
    """Every ancestor may limit: read cpu.max (cgroup v2) from our own group up to the root; then the v1 files."""
    found = [_read_v2(folder / "cpu.max") for folder in _own_folders(root, own_cgroup)]
    found.append(_read_v1(root / "cpu"))
    return [quota for quota in found if quota is not None and quota > 0]


def _own_folders(root: Path, own_cgroup: Path) -> list[Path]:
    lines = _read(own_cgroup).splitlines()
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    folder = root / own
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def _read_v2(path: Path) -> float | None:
    quota, _, period = _read(path).partition(" ")
    return _ratio(quota, period)


def _read_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", -1 is dropped by the caller, or no such file
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
