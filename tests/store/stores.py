"""Every kind of store there is, for tests that ask all of them: in memory and in a directory, plain and sealed."""

from dataclasses import dataclass
from pathlib import Path

from tlsproxy.store.base import CertificateStore, Records
from tlsproxy.store.file import FileRecords
from tlsproxy.store.memory import MemoryRecords
from tlsproxy.store.sealed import Keyring, SealedRecords

KINDS = ["memory", "file", "memory sealed", "file sealed"]
OLD, NEW = "0f" * 32, "a passphrase that is really quite long"
OLD_RING, NEW_RING, BOTH = Keyring([OLD]), Keyring([NEW]), Keyring([NEW, OLD])


@dataclass
class Clock:
    """A clock that stands still until it is told to move. Seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def make_records(kind: str, directory: Path, clock: Clock) -> Records:
    raw: Records = MemoryRecords(clock) if kind.startswith("memory") else FileRecords(directory, clock)
    return SealedRecords(raw, OLD_RING) if kind.endswith("sealed") else raw


def make_store(kind: str, directory: Path) -> CertificateStore:
    raw: Records = MemoryRecords() if kind.startswith("memory") else FileRecords(directory)
    return CertificateStore(raw, OLD_RING if kind.endswith("sealed") else None)
