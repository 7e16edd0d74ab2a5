"""What a certificate store promises, and how a store URL becomes one.

Knows: names and bundles. Does not know: what a name stands for (store/sources.py does), sites, processes.
Rule: a record is whole or absent; whoever reads sees the old bundle or the new one, never a key of the one and a chain
of the other.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from tlsproxy.errors import StoreError
from tlsproxy.store.bundle import Bundle


class CertificateStore(Protocol):
    """Certificates by name. The only thing that the request path and the certificate path both know.

    Contract of an implementer:

    * Names are opaque, case-sensitive text of 1 to 512 characters; any character may occur (`*`, `/`, `:`, non-ASCII).
    * `put` replaces the whole record at once. When it returns, the record has survived a power cut; when it raises
      StoreError, the old record is still there and complete.
    * A name that is not there is no error: `get` returns None, `delete` does nothing.
    * A record that can't be understood raises StoreError that says where it lies; all other records stay usable and
      `put` and `delete` work on it. `list` names it.
    * Reading needs neither a lock nor the right to write.
    * All methods may be called from several threads and processes, and block for the length of one disk or network
      round trip: call them on cold paths only.
    * `repr` and errors never contain a key.
    """

    def get(self, name: str) -> Bundle | None:
        """Return the bundle, or None. Raises StoreError."""

    def put(self, name: str, bundle: Bundle) -> None:
        """Store or replace. Raises StoreError, ValueError for a name that is empty or too long."""

    def delete(self, name: str) -> None:
        """Forget the record, if there is one. Raises StoreError."""

    def list(self) -> tuple[str, ...]:
        """Return all names, sorted. Raises StoreError."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold off every other writer while the block runs; `put` and `delete` work inside.

        For read, decide, write: whoever enters must read again, another process may have done the work meanwhile.
        Ends with its holder, even if that is killed. Not for waiting on a network: everybody else waits.
        """

    def close(self) -> None:
        """Give back what is open. May be called twice."""


def open_store(url: str) -> CertificateStore:
    """Return the store behind `file:///directory` or `memory:`. Raises StoreError.

    A memory store belongs to one process: what one process puts there no other sees.
    """
    from tlsproxy.store.file import FileStore  # noqa: PLC0415 - the implementations import this module
    from tlsproxy.store.memory import MemoryStore  # noqa: PLC0415

    directory = _directory(url)
    return MemoryStore() if directory is None else FileStore(directory)


def examine_store(url: str, *, made_for_us: bool = False) -> None:
    """Raise StoreError for what would keep this process from opening the store. Changes nothing, makes nothing.

    `made_for_us`: what is missing of the way to it, somebody who may do so makes for this user first.
    """
    from tlsproxy.store.file import examine  # noqa: PLC0415

    directory = _directory(url)
    if directory is not None:
        examine(directory, made_for_us=made_for_us)


def _directory(url: str) -> Path | None:
    """Return the directory of a file store, None for a store in memory."""
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


def check_name(name: str) -> None:
    """Raise ValueError for a name that no store takes."""
    if not 0 < len(name) <= 512:
        raise ValueError(f"certificate name of {len(name)} characters")
