"""The quota of a container limits the number of workers."""

import os
from pathlib import Path

import pytest

from tlsproxy.settings.cpus import available_cpus

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", ALL), ("50000 100000", 1), ("150000 100000", min(2, ALL)), ("broken", ALL), ("", ALL)],
)
def test_quota_of_cgroup_2(tmp_path: Path, quota: str, cpus: int) -> None:
    write(tmp_path / "cpu.max", quota)
    assert available_cpus(tmp_path, tmp_path / "absent") == cpus


def test_an_ancestor_may_be_the_tightest(tmp_path: Path) -> None:
    write(tmp_path / "own", "1:name=x:/y\n0::/a/b\n")
    write(tmp_path / "root/a/cpu.max", "10000 100000\n")
    write(tmp_path / "root/a/b/cpu.max", "max 100000\n")
    assert available_cpus(tmp_path / "root", tmp_path / "own") == 1


@pytest.mark.parametrize(("quota", "cpus"), [("-1", ALL), ("100000", 1)])
def test_quota_of_cgroup_1(tmp_path: Path, quota: str, cpus: int) -> None:
    write(tmp_path / "cpu/cpu.cfs_quota_us", quota)
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000")
    assert available_cpus(tmp_path, tmp_path / "absent") == cpus
