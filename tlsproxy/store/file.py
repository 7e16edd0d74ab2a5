"""Records in a directory: one file per record, for the processes of one machine.

    <directory>/            0700
      lock                  flock of whoever writes; the kernel frees it when its holder dies
      new/                  files being written
      leases/               who works on which name (leases.py)
      certificates/  state/  accounts/  …                0700
        acme%2fapi.example.com.json                      0600, the whole record
        <200 characters>~<digest>.json, ….name           a name too long for a file name stands in a file beside it

Knows: which file is which record. Does not know: what a record means (certificates.py does), whether it is sealed.
Rules: as in directory.py and leases.py. Only on local disks: flock and rename over NFS promise less.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tlsproxy.errors import StoreError
from tlsproxy.store.certificates import CertificateStore
from tlsproxy.store.directory import (
    claim_folder,
    explain,
    explained,
    is_shortened,
    make_folder,
    name_of,
    open_folder,
    open_lock,
    prepare,
    replace_file,
    stem_of,
)
from tlsproxy.store.folder import Folder
from tlsproxy.store.leases import FileLeases, boot_time
from tlsproxy.store.records import Lease, check_folder, split_key

_SUFFIX = ".json"
_NAME_SUFFIX = ".name"


class FileRecords:
    """Keeps the contract of Records in one directory. Opening makes the directory if it can."""

    # Mutable: _lock_fd and _depth (how often this thread has entered `exclusive`), guarded by _thread_lock.

    def __init__(self, directory: Path, clock: Callable[[], float] = boot_time) -> None:
        """Open or make the directory. Raises StoreError when it can't be used or is open to other users."""
        self._directory = directory
        self._thread_lock = threading.RLock()
        self._lock_fd = -1
        self._depth = 0
        self._leases = FileLeases(directory, self.exclusive, clock)
        prepare(directory)

    def read(self, key: str) -> bytes | None:
        folder, name = split_key(key)
        try:
            with open_folder(self._directory, folder) as opened:
                return opened.read(f"{stem_of(name)}{_SUFFIX}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(explain(Path(self._path(key)), "read", error)) from error

    def write(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        folder, name = split_key(key)
        stem = stem_of(name)
        with self.exclusive(), explained(self._directory, "written"):
            if lease:
                self._leases.check(lease)
            with make_folder(self._directory, folder) as opened:
                if is_shortened(stem) and not opened.has(f"{stem}{_NAME_SUFFIX}"):
                    replace_file(self._directory, opened, f"{stem}{_NAME_SUFFIX}", name.encode())
                replace_file(self._directory, opened, f"{stem}{_SUFFIX}", value)

    def remove(self, key: str, lease: Lease | None = None) -> None:
        folder, name = split_key(key)
        with self.exclusive(), explained(self._directory, "written"):
            if lease:
                self._leases.check(lease)
            with suppress(FileNotFoundError), claim_folder(self._directory, folder) as opened:
                opened.remove(f"{stem_of(name)}{_SUFFIX}")
                opened.remove(f"{stem_of(name)}{_NAME_SUFFIX}")

    def keys(self, folder: str) -> tuple[str, ...]:
        check_folder(folder)
        with explained(self._directory / folder, "read"):
            try:
                opened = open_folder(self._directory, folder)
            except FileNotFoundError:
                return ()
            with opened:
                stems = [file.removesuffix(_SUFFIX) for file in opened.names() if file.endswith(_SUFFIX)]
                return tuple(sorted(filter(None, [_name(opened, stem) for stem in stems])))

    def folders(self) -> tuple[str, ...]:
        with explained(self._directory, "read"), os.scandir(self._directory) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return tuple(sorted(filter(_is_folder, found)))

    def version(self, folder: str) -> str:
        check_folder(folder)
        try:
            status = os.lstat(f"{self._directory}/{folder}")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise StoreError(explain(self._directory / folder, "read", error)) from error
        return f"{status.st_ino:x}-{status.st_mtime_ns:x}"

    def where(self, key: str) -> str:
        return self._path(key)

    def acquire(self, name: str, seconds: float) -> Lease | None:
        return self._leases.acquire(name, seconds)

    def renew(self, lease: Lease, seconds: float) -> None:
        self._leases.renew(lease, seconds)

    def release(self, lease: Lease) -> None:
        self._leases.release(lease)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        # flock belongs to the open file, so threads of this process need a lock of their own before it.
        with self._thread_lock:
            self._enter()
            try:
                yield
            finally:
                self._leave()

    def close(self) -> None:
        with self._thread_lock:
            self._leases.close()

    def __repr__(self) -> str:
        return f"<FileRecords {self._directory}>"

    def _enter(self) -> None:
        if self._depth == 0:
            with explained(self._directory, "written"):
                self._lock_fd = open_lock(self._directory)
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._lock_fd)  # the last descriptor of an open file takes its flock with it
            self._lock_fd = -1

    def _path(self, key: str) -> str:
        folder, name = split_key(key)
        return f"{self._directory}/{folder}/{stem_of(name)}{_SUFFIX}"


class FileStore(CertificateStore):
    """A certificate store over records in a directory, unsealed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(FileRecords(directory))


def _name(folder: Folder, stem: str) -> str | None:
    """Return the name of a record, None for a file that is none."""
    if not is_shortened(stem):
        return name_of(stem)
    try:
        name = (folder.read(f"{stem}{_NAME_SUFFIX}") or b"").decode()
    except UnicodeDecodeError:
        return None
    return name if stem_of(name) == stem else None


def _is_folder(name: str) -> bool:
    try:
        check_folder(name)
    except ValueError:
        return False
    return True
