"""Records in the memory of one process: for tests and for embedding. Forgets everything at exit.

Knows: keys, leases, a clock. Rule: whatever holds for records in a directory holds here, except that nothing outlives
the process and that a lease can't be lost by a death.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tlsproxy.store.certificates import CertificateStore
from tlsproxy.store.records import Lease, LeaseLost, check_folder, check_name, split_key


@dataclass(frozen=True, slots=True)
class _Held:
    lease: Lease
    ends: float


class MemoryRecords:
    """Keeps the contract of Records, except that nothing outlives the process."""

    # Mutable: _values, _changes (writes so far, by folder) and _leases (by name, for ever); guarded by _lock.

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: dict[tuple[str, str], bytes] = {}
        self._changes: dict[str, int] = {}
        self._leases: dict[str, _Held] = {}
        self._lock = threading.RLock()

    def read(self, key: str) -> bytes | None:
        return self._values.get(split_key(key))

    def write(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        parts = split_key(key)
        with self._guarded(lease):
            self._values[parts] = bytes(value)
            self._changed(parts[0])

    def remove(self, key: str, lease: Lease | None = None) -> None:
        parts = split_key(key)
        with self._guarded(lease):
            if self._values.pop(parts, None) is not None:
                self._changed(parts[0])

    def keys(self, folder: str) -> tuple[str, ...]:
        check_folder(folder)
        with self._lock:
            return tuple(sorted(name for there, name in self._values if there == folder))

    def folders(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted({folder for folder, _ in self._values}))

    def version(self, folder: str) -> str:
        check_folder(folder)
        return str(self._changes.get(folder, 0))

    def where(self, key: str) -> str:
        return f"memory: {key}"

    def acquire(self, name: str, seconds: float) -> Lease | None:
        check_name(name)
        with self._lock:
            held = self._leases.get(name)
            if held and held.ends > self._clock():
                return None
            lease = Lease(name, held.lease.token + 1 if held else 1, f"{os.getpid()}-{os.urandom(4).hex()}")
            self._leases[name] = _Held(lease, self._clock() + seconds)
        return lease

    def renew(self, lease: Lease, seconds: float) -> None:
        with self._guarded(lease):
            self._leases[lease.name] = _Held(lease, self._clock() + seconds)

    def release(self, lease: Lease) -> None:
        with self._lock:
            held = self._leases.get(lease.name)
            if held and held.lease == lease:
                self._leases[lease.name] = _Held(lease, float("-inf"))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._lock:
            yield

    def close(self) -> None:
        with self._lock:
            for held in list(self._leases.values()):
                self.release(held.lease)

    def __repr__(self) -> str:
        return f"<MemoryRecords {len(self._values)} records>"

    @contextmanager
    def _guarded(self, lease: Lease | None) -> Iterator[None]:
        with self._lock:
            if lease:
                held = self._leases.get(lease.name)
                if held is None or held.lease != lease:
                    raise LeaseLost(f"{lease.name}: somebody else has taken this work over. The result is dropped.")
                if held.ends <= self._clock():
                    raise LeaseLost(f"{lease.name}: the time for this work ran out. The result is dropped.")
            yield

    def _changed(self, folder: str) -> None:
        self._changes[folder] = self._changes.get(folder, 0) + 1


class MemoryStore(CertificateStore):
    """A certificate store over records in memory, unsealed."""

    def __init__(self) -> None:
        super().__init__(MemoryRecords())
