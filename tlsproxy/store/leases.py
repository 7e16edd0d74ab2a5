"""Leases among the processes of one machine: who may work on a name, told by a token that only grows.

    leases/acme%2fapi.example.com.json       token, owner and end of the latest lease
    leases/acme%2fapi.example.com.7.held     flock of whoever holds token 7; gone when it was given back

Knows: two files per name, a clock. Does not know: records, what the work is. Rules: everything happens under the lock
of the store; a lease is alive while its file is locked (the kernel unlocks it when the holder dies) and its time is not
up (a paused holder must not block others for ever); a token is never removed, only replaced by a higher one.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tlsproxy.errors import StoreError
from tlsproxy.store.directory import LEASES, explained, make_folder, open_held, replace_file, stem_of
from tlsproxy.store.folder import Folder
from tlsproxy.store.records import Lease, LeaseLost, check_name


def boot_time() -> float:
    """Return seconds on a clock that all processes of the machine share, that never jumps and also counts sleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class _Latest:
    token: int
    owner: str
    ends: float


class FileLeases:
    """The leases of one directory. `exclusive` is the lock of its writers."""

    # Mutable: _held, the open locked file of each lease taken here. Guarded by exclusive().

    def __init__(
        self, directory: Path, exclusive: Callable[[], AbstractContextManager[None]], clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._exclusive = exclusive
        self._clock = clock
        self._held: dict[Lease, int] = {}

    def acquire(self, name: str, seconds: float) -> Lease | None:
        check_name(name)
        with self._opened() as folder:
            latest = _latest(folder, name)
            if latest.ends > self._clock() and _is_alive(folder, name, latest.token):
                return None
            lease = Lease(name, latest.token + 1, f"{os.getpid()}-{os.urandom(4).hex()}")
            self._take(folder, lease, latest.token, seconds)
        return lease

    def renew(self, lease: Lease, seconds: float) -> None:
        with self._opened() as folder:
            self._check(folder, lease)
            self._save(folder, lease, seconds)

    def release(self, lease: Lease) -> None:
        with self._opened() as folder:
            latest = _latest(folder, lease.name)
            if (latest.token, latest.owner) == (lease.token, lease.owner):
                folder.drop(_held_file(lease.name, lease.token))
                self._let_go(lease)

    def check(self, lease: Lease) -> None:
        """Raise LeaseLost unless the lease is the current one. Only for the holder of the lock."""
        with self._opened() as folder:
            self._check(folder, lease)

    def close(self) -> None:
        """Let go of every lease taken here: they are free at once."""
        for lease in list(self._held):
            self._let_go(lease)

    @contextmanager
    def _opened(self) -> Iterator[Folder]:
        with self._exclusive(), explained(self._directory, "written"), make_folder(self._directory, LEASES) as folder:
            yield folder

    def _check(self, folder: Folder, lease: Lease) -> None:
        latest = _latest(folder, lease.name)
        if (latest.token, latest.owner) != (lease.token, lease.owner):
            self._let_go(lease)
            raise LeaseLost(f"{lease.name}: somebody else has taken this work over. The result is dropped.")
        if latest.ends <= self._clock() or not folder.has(_held_file(lease.name, lease.token)):
            self._let_go(lease)
            raise LeaseLost(f"{lease.name}: the time for this work ran out. The result is dropped.")

    def _take(self, folder: Folder, lease: Lease, before: int, seconds: float) -> None:
        """Lock a file for the new token, then make it the latest. Dead or late holders' files go first: no litter."""
        file = _held_file(lease.name, lease.token)
        descriptor = open_held(folder, file)
        if descriptor is None:
            path = folder.path / file
            raise StoreError(f"{path}: somebody holds a lease that does not exist yet. Find it with: fuser {path}")
        self._held[lease] = descriptor
        try:
            folder.drop(_held_file(lease.name, before))
            self._save(folder, lease, seconds)
        except BaseException:
            folder.drop(file)
            self._let_go(lease)
            raise

    def _save(self, folder: Folder, lease: Lease, seconds: float) -> None:
        ends = self._clock() + seconds
        record = {"name": lease.name, "token": lease.token, "owner": lease.owner, "ends": ends}
        replace_file(self._directory, folder, _file(lease.name), json.dumps(record).encode("ascii"))

    def _let_go(self, lease: Lease) -> None:
        descriptor = self._held.pop(lease, None)
        if descriptor is not None:
            os.close(descriptor)


def _latest(folder: Folder, name: str) -> _Latest:
    content = folder.read(_file(name))
    if content is None:
        return _Latest(0, "", 0.0)
    try:
        record = json.loads(content)
        return _Latest(int(record["token"]), str(record["owner"]), float(record["ends"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder.path / _file(name)}: this lease is damaged. Stop all tlsproxy processes, delete the file and "
            "start again."
        ) from error


def _is_alive(folder: Folder, name: str, token: int) -> bool:
    file = _held_file(name, token)
    if not folder.has(file):
        return False
    descriptor = open_held(folder, file)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _file(name: str) -> str:
    return f"{stem_of(name)}.json"


def _held_file(name: str, token: int) -> str:
    return f"{stem_of(name)}.{token}.held"
