"""One folder of a store, held open: everything in it is reached through its descriptor.

Knows: descriptors, links, owners. Does not know: what is in a file, which folders there are. Rules: whoever owns a
store can put anything in it, and root works there too (`sudo tlsproxy trust`): no link in the store is ever followed,
and root gives the owner only what it has just made itself.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from tlsproxy.errors import StoreError
from tlsproxy.store.whole import replace_in, sync

OPEN_MODE = 0o077
_PIECE = 1 << 16  # bytes read at once; a record has some 3 kB
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO that somebody put there must not stop us
_ATTEMPTS = 8
_TICKS = (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)  # ns; file systems keep no less of a time (FAT: 2 s)


class Folder:
    """A folder that is there. Close it, or use it in `with`. Methods raise OSError, and StoreError for a link."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: Path, *, is_inside: bool = True) -> None:
        """Open it. The directory of the store itself (not `is_inside`) may be behind a link."""
        self.path = path
        try:
            self._descriptor = os.open(path, _FOLDER | (os.O_NOFOLLOW if is_inside else 0))
        except OSError as error:
            if is_inside and error.errno in (errno.ENOTDIR, errno.ELOOP) and path.is_symlink():
                raise _link(path) from error
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"

    def status(self) -> os.stat_result:
        return os.fstat(self._descriptor)

    def names(self) -> list[str]:
        return os.listdir(self._descriptor)  # noqa: PTH208 - a Path knows no descriptor

    def has(self, name: str) -> bool:
        try:
            os.lstat(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str, most: int = sys.maxsize) -> bytes | None:
        """Return what is in a file, of a longer one a bit more than `most` bytes; None if there is none."""
        try:
            descriptor = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return _read_all(descriptor, most)
        finally:
            os.close(descriptor)

    def replace(self, name: str, content: bytes, beside: Folder) -> None:
        """Write a file whole or not at all; it has come to stay. Only for the holder of the lock."""
        before = self.status().st_mtime_ns
        replace_in(self._descriptor, name, content, beside=beside._descriptor, owner=self._heir())
        self.settle(before)

    def remove(self, name: str) -> None:
        """Remove a file for good, if it is there. Only for the holder of the lock."""
        before = self.status().st_mtime_ns
        if self.drop(name):
            self.settle(before)

    def drop(self, name: str) -> bool:
        """Remove a file that may be there again after a power cut. Tell whether it was there."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def open_own(self, name: str) -> int:
        """Return a descriptor of a file, for locking it; made if it is missing."""
        for _ in range(_ATTEMPTS):  # somebody else may make it or remove it between the two
            with suppress(FileExistsError):
                return self._make(name)
            with suppress(FileNotFoundError):
                return self._open(name, os.O_RDWR)
        raise OSError(errno.EBUSY, "it comes and goes")

    def close_to_others(self) -> None:
        if self.status().st_mode & OPEN_MODE:
            os.fchmod(self._descriptor, 0o700)

    def bequeath(self, owner: os.stat_result) -> None:
        """Give a folder that root has just made to whoever the store belongs to, who must be able to use it."""
        status = self.status()
        is_new = status.st_uid == os.geteuid() and not self.names()  # or somebody has put another in its place
        if os.geteuid() == 0 and status.st_uid != owner.st_uid and is_new:
            os.fchown(self._descriptor, owner.st_uid, owner.st_gid)

    def settle(self, before: int) -> None:
        """Sync the folder, and see that its time has moved on: the kernel's clock ticks slower than we write."""
        for step in _TICKS:
            if self.status().st_mtime_ns > before:
                break
            os.utime(self._descriptor, ns=(before, before + step))
        sync(self._descriptor)

    def sync(self) -> None:
        sync(self._descriptor)

    def _open(self, name: str, right: int) -> int:
        try:
            return os.open(name, right | _FILE, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _link(self.path / name) from error
            raise

    def _make(self, name: str) -> int:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=self._descriptor)
        try:
            if heir := self._heir():
                os.fchown(descriptor, *heir)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _heir(self) -> tuple[int, int] | None:
        """Return uid and gid for what root makes here; None if it is to stay as it is made."""
        status = self.status()
        return (status.st_uid, status.st_gid) if os.geteuid() == 0 != status.st_uid else None


def check_inside(path: Path, status: os.stat_result, owner: os.stat_result) -> None:
    """Raise StoreError for something in place of a folder that whoever owns the store can't have got from us."""
    if stat.S_ISLNK(status.st_mode):
        raise _link(path)
    if status.st_uid != owner.st_uid:
        raise StoreError(
            f"{path}: this folder belongs to uid {status.st_uid}, and the store that it is in to uid {owner.st_uid}. "
            f"If it is in its place, run: chown -R {owner.st_uid}:{owner.st_gid} {path}  Else move it away."
        )


def _link(path: Path) -> StoreError:
    return StoreError(
        f"{path}: this is a symbolic link, and inside a certificate store none is followed. Find out who put it there "
        "and remove it; to keep the store elsewhere, change store.url or make the whole directory a link."
    )


def _read_all(descriptor: int, most: int) -> bytes:
    pieces: list[bytes] = []
    while piece := os.read(descriptor, _PIECE):
        pieces.append(piece)
        if len(piece) < _PIECE or len(pieces) * _PIECE > most:
            break
    return b"".join(pieces)
