"""How a store URL becomes a store; the names that the other rooms need stand here.

Knows: URLs. Does not know: records, files.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tlsproxy.errors import StoreError
from tlsproxy.store.certificates import CertificateStore
from tlsproxy.store.directory import examine
from tlsproxy.store.file import FileRecords
from tlsproxy.store.memory import MemoryRecords
from tlsproxy.store.mounts import Ephemeral, ephemeral
from tlsproxy.store.records import Lease, LeaseLost, RecordDamaged, Records
from tlsproxy.store.sealed import Keyring

__all__ = [
    "CertificateStore",
    "Lease",
    "LeaseLost",
    "RecordDamaged",
    "Records",
    "ephemeral_store",
    "examine_store",
    "open_records",
    "open_store",
]


def open_store(url: str, keys: Sequence[bytes | str] = ()) -> CertificateStore:
    """Return the store behind `file:///directory` or `memory:`. Raises StoreError.

    `keys`: master keys, the newest first; everything is sealed with the first. None: nothing is sealed.
    A memory store belongs to one process: what one process puts there no other sees.
    """
    return CertificateStore(open_records(url), Keyring(keys))


def open_records(url: str) -> Records:
    """Return the records behind a URL as they lie there, sealed or not. Raises StoreError."""
    directory = directory_of(url)
    return MemoryRecords() if directory is None else FileRecords(directory)


def examine_store(url: str, *, made_for_us: bool = False) -> None:
    """Raise StoreError for what would keep this process from opening the store. Changes nothing, makes nothing.

    `made_for_us`: what is missing of the way to it, somebody who may do so makes for this user first.
    """
    directory = directory_of(url)
    if directory is not None:
        examine(directory, made_for_us=made_for_us)


def ephemeral_store(url: str, *, is_kubernetes: bool = False) -> Ephemeral | None:
    """Return why what is in the store will not outlive a restart, as far as that can be told. Raises StoreError."""
    directory = directory_of(url)
    if directory is None:
        return Ephemeral("memory", url, is_kubernetes)
    return ephemeral(directory, is_kubernetes=is_kubernetes)


def directory_of(url: str) -> Path | None:
    """Return the directory of a file store, None for a store in memory. Raises StoreError for other URLs."""
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return None
    if parts.scheme != "file":
        raise StoreError(f"store.url {url!r}: unknown kind of store. Write file:///var/lib/tlsproxy.")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise StoreError(
            f"store.url {url!r}: the path must be absolute. Write three slashes: file:///var/lib/tlsproxy."
        )
    return Path(unquote(parts.path))
