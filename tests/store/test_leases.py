"""Leases between processes: a killed holder frees at once, a paused one when its time is up, and tokens only grow."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.store.stores import Clock
from tests.system.running import until
from tlsproxy.errors import StoreError
from tlsproxy.store.base import Lease, LeaseLost
from tlsproxy.store.file import FileRecords

HOLD = """
import sys
from pathlib import Path
from tlsproxy.store.base import LeaseLost
from tlsproxy.store.file import FileRecords
records = FileRecords(Path(sys.argv[1]))
lease = records.acquire("a", float(sys.argv[2]))
print(lease.token if lease else "none", flush=True)
for line in sys.stdin:
    try:
        records.write("state/a", b"from the child", lease)
        print("written", flush=True)
    except LeaseLost as error:
        records.release(lease)
        print("lost", flush=True)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def records(directory: Path) -> Iterator[FileRecords]:
    made = FileRecords(directory)
    yield made
    made.close()


@contextmanager
def holder(directory: Path, seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run another process that tries to take the lease; yield it and the token it got."""
    command = [sys.executable, "-c", HOLD, str(directory), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write("write\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def taken(records: FileRecords, seconds: float = 60) -> Lease:
    lease = records.acquire("a", seconds)
    assert lease
    return lease


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "leases").iterdir())


def test_files_do_not_pile_up(directory: Path) -> None:
    clock = Clock()
    records = FileRecords(directory, clock)
    for _ in range(3):
        records.release(taken(records))
    assert files(directory) == ["a.json"]
    for _ in range(3):
        taken(records)
        clock.now += 61
    assert files(directory) == ["a.6.held", "a.json"]
    records.close()


def test_the_token_survives_everything(directory: Path) -> None:
    tokens = []
    for _ in range(3):
        records = FileRecords(directory)
        tokens.append(taken(records).token)
        records.close()
    FileRecords(directory).release(Lease("a", 3, "x"))
    assert [*tokens, taken(FileRecords(directory)).token] == [1, 2, 3, 4]


def test_after_a_restart_of_the_machine_the_clock_begins_again_and_nobody_waits(directory: Path) -> None:
    """Nobody holds a lock then, whatever end stands in the file."""
    before = FileRecords(directory, Clock(1e9))
    taken(before)
    before.close()
    assert taken(FileRecords(directory, Clock(1.0))).token == 2


def test_two_stores_in_one_process_see_each_other(directory: Path) -> None:
    one, other = FileRecords(directory), FileRecords(directory)
    lease = taken(one)
    assert other.acquire("a", 60) is None
    one.close()
    assert taken(other).token == 2
    with pytest.raises(LeaseLost):
        one.write("state/a", b"late", lease)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"token": "x"}'])
def test_a_damaged_lease_is_named(records: FileRecords, directory: Path, damage: bytes) -> None:
    lease = taken(records)
    (directory / "leases" / "a.json").write_bytes(damage)
    said = r"leases/a\.json: this lease is damaged.*delete the file"
    with pytest.raises(StoreError, match=said):
        records.acquire("a", 60)
    with pytest.raises(StoreError, match=said):
        records.write("state/a", b"", lease)
    assert records.acquire("b", 60)


def test_a_full_disk_takes_no_lease_and_leaves_no_file(
    records: FileRecords, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.release(taken(records))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="The disk is full"):
            records.acquire("a", 60)
    assert files(directory) == ["a.json"]
    assert taken(records).token == 2


def test_a_writer_killed_between_the_two_files_of_a_lease_harms_nobody(records: FileRecords, directory: Path) -> None:
    records.release(taken(records))
    (directory / "leases" / "a.2.held").touch()
    assert taken(records).token == 2


@pytest.mark.system
class TestProcesses:
    def test_one_winner_of_twenty(self, directory: Path) -> None:
        command = [sys.executable, "-c", HOLD, str(directory), "60"]
        contenders = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(20)
        ]
        try:
            with ThreadPoolExecutor(20) as pool:
                said = list(pool.map(lambda process: process.stdout and process.stdout.readline(), contenders))
        finally:
            for process in contenders:
                process.kill()
                process.communicate()
        assert sorted(said, key=str) == ["1\n", *["none\n"] * 19]

    def test_a_killed_holder_frees_at_once(self, directory: Path, records: FileRecords) -> None:
        with holder(directory, 3600) as (process, token):
            assert token == "1"
            assert records.acquire("a", 60) is None
            process.send_signal(signal.SIGKILL)
            process.wait(20)
            assert taken(records).token == 2

    def test_a_paused_holder_loses_it_when_its_time_is_up(self, directory: Path, records: FileRecords) -> None:
        with holder(directory, 0.5) as (process, token):
            assert token == "1"
            process.send_signal(signal.SIGSTOP)
            lease = until(lambda: records.acquire("a", 60), "the time of the paused holder is up")
            assert lease.token == 2
            records.write("state/a", b"from the parent", lease)
            process.send_signal(signal.SIGCONT)
            assert ask(process) == "lost"
            records.write("state/a", b"from the parent again", lease)
            assert records.acquire("a", 60) is None
        assert records.read("state/a") == b"from the parent again"
        assert json.loads((directory / "leases" / "a.json").read_text())["token"] == 2

    def test_a_paused_holder_that_comes_back_in_time_goes_on(self, directory: Path, records: FileRecords) -> None:
        with holder(directory, 3600) as (process, _):
            process.send_signal(signal.SIGSTOP)
            assert records.acquire("a", 60) is None
            process.send_signal(signal.SIGCONT)
            assert ask(process) == "written"
        assert records.read("state/a") == b"from the child"
