"""What every place that keeps records promises: bytes by key, leases with fencing tokens, one lock for writers.

The plug point of storage: a directory and a memory today, databases later. Knows: keys. Does not know: what a record
says (certificates.py does), how it is sealed (sealed.py), names of sites. Rule: a record is whole or absent; whoever
reads sees the old one or the new one, never a part of each.
"""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tlsproxy.errors import StoreError

CERTIFICATES = "certificates"
FOLDERS = (CERTIFICATES, "state", "challenges", "accounts", "ledger", "probe")
"""The folders in use. A key may have any other, except those that an implementer needs for itself."""

RESERVED = frozenset({"leases", "new", "lock"})
_FOLDER = re.compile(r"[a-z]{1,32}")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a name, for a while.

    `token` grows with every holder of the name, for ever: it tells a late holder from the present one. `owner` says for
    people who it is, and differs from lease to lease.
    """

    name: str
    token: int
    owner: str


class LeaseLost(StoreError):
    """Somebody else works on this name now, or the time ran out: drop the result."""


class RecordDamaged(StoreError):
    """The record was read, and is none: only making it again helps. Nothing to do with a disk or a key that is away."""


class Records(Protocol):
    """Bytes by key. A key is `folder/name`: a folder of letters a-z, and a name of 1 to 512 characters.

    Contract of an implementer:

    * Names are opaque and case-sensitive; any character may occur (`*`, `/`, `:`, NUL, non-ASCII), no lone surrogate.
    * `write` replaces the whole record at once. When it returns, the record has survived a power cut; when it raises
      StoreError, the old record is still there and complete.
    * What is not there is no error: `read` returns None, `remove` does nothing.
    * A record that can't be read raises StoreError that says where it lies; all other records stay usable and `write`
      and `remove` work on it. `keys` names it.
    * With a lease, `write` and `remove` check it and do their work in one step: nobody can take over in between.
    * Reading needs neither a lock nor the right to write.
    * All methods may be called from several threads and processes, and block for the length of one disk or network
      round trip: call them on cold paths only.
    * A key that no store takes raises ValueError.
    """

    def read(self, key: str) -> bytes | None:
        """Return the record, or None. Raises StoreError."""

    def write(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        """Store or replace. Raises StoreError; LeaseLost when `lease` is no longer the current one of its name."""

    def remove(self, key: str, lease: Lease | None = None) -> None:
        """Forget the record, if there is one. Raises StoreError, LeaseLost."""

    def keys(self, folder: str) -> tuple[str, ...]:
        """Return the names of a folder, sorted. Raises StoreError."""

    def folders(self) -> tuple[str, ...]:
        """Return the folders that there are, sorted. Leases are not among them. Raises StoreError."""

    def version(self, folder: str) -> str:
        """Return a text that differs from an earlier one if anything was written there in between. Cheap. StoreError.

        Ask before reading: what is written while you read then shows at the next look.
        """

    def where(self, key: str) -> str:
        """Say for a person where the record lies."""

    def acquire(self, name: str, seconds: float) -> Lease | None:
        """Take the lease of `name`, or return None while somebody alive holds it. Raises StoreError.

        It is free again when it is released, when its time is up, and at once when its holder's process has died.
        """

    def renew(self, lease: Lease, seconds: float) -> None:
        """Let the lease last for `seconds` from now. Raises LeaseLost, StoreError."""

    def release(self, lease: Lease) -> None:
        """Give the lease back; does nothing when it is not the current one. The token never goes back."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold off every other writer while the block runs; writing works inside.

        For read, decide, write: whoever enters must read again, another process may have done the work meanwhile.
        Ends with its holder, even if that is killed. Not for waiting on a network: everybody else waits.
        """

    def close(self) -> None:
        """Give back what is open, the leases too. May be called twice."""


def split_key(key: str) -> tuple[str, str]:
    """Return folder and name of a key. Raises ValueError for one that no store takes."""
    folder, _, name = key.partition("/")
    check_folder(folder)
    check_name(name)
    return folder, name


def check_folder(folder: str) -> None:
    if not _FOLDER.fullmatch(folder) or folder in RESERVED:
        raise ValueError(f"{folder[:40]!r} is no folder for records")


def check_name(name: str) -> None:
    """Raise ValueError for a name that no store takes."""
    if not 0 < len(name) <= 512:
        raise ValueError(f"record name of {len(name)} characters")
    if _SURROGATE.search(name):
        raise ValueError("record name with half a character (a lone surrogate)")
