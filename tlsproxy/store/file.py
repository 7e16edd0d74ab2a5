"""A store in a directory: one JSON file per certificate, for the processes of one machine.

    <directory>/            0700
      lock                  flock of whoever writes; the kernel frees it when its holder dies
      certificates/         0700
        internal%2Flocalhost.json     0600, the whole record

Knows: files, modes, locks. Does not know: what a name or a record means. Rules: a file is written beside its place,
synced and renamed over it, so that a crash at any moment leaves the old record or the new one; readers never lock.
Only on local disks: flock and rename over NFS promise less.
"""

import errno
import fcntl
import json
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tlsproxy.errors import StoreError
from tlsproxy.store.base import check_name
from tlsproxy.store.bundle import Bundle

_RECORDS = "certificates"
_LOCK = "lock"
_SUFFIX = ".json"
_TEMPORARY = ".new-"
_LONGEST_STEM = 200  # file systems take 255 bytes; the suffix and mkstemp's letters need room
_OPEN_MODE = 0o077
_LOCK_TIMEOUT = 10.0  # seconds; a writer needs milliseconds
_ADVICE = {
    errno.EROFS: "It is mounted read-only: mount it for writing or change store.url.",
    errno.EACCES: "Give it to the user with uid {uid} (chown) or change store.url.",
    errno.EPERM: "Give it to the user with uid {uid} (chown) or change store.url.",
    errno.ENOSPC: "The disk is full: make room.",
    errno.EDQUOT: "The disk quota is used up: make room.",
    errno.ENOTDIR: "Change store.url to a directory.",
}


class FileStore:
    """Keeps the contract of CertificateStore in one directory. Opening makes the directory if it can."""

    # Mutable: _lock_fd and _depth (how often this thread has entered `exclusive`), guarded by _thread_lock.

    def __init__(self, directory: Path) -> None:
        """Open or make the directory. Raises StoreError when it can't be used or is open to other users."""
        self._directory = directory
        self._records = directory / _RECORDS
        self._thread_lock = threading.RLock()
        self._lock_fd = -1
        self._depth = 0
        with _explained(directory, "opened"):
            _private_directory(directory)
            _private_directory(self._records)
            _adopt(self._records, directory)

    def get(self, name: str) -> Bundle | None:
        path = self._path(name)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(_explain(path, "read", error)) from error
        try:
            return _bundle(name, json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}: the certificate record is damaged ({_short(error)}). "
                "Restore it from a backup, or delete the file to have it made again."
            ) from error

    def put(self, name: str, bundle: Bundle) -> None:
        check_name(name)
        record = {"name": name, **bundle.to_record()}
        with self.exclusive(), _explained(self._directory, "written"):
            _write(self._path(name), json.dumps(record, indent=1).encode("ascii"))

    def delete(self, name: str) -> None:
        with self.exclusive(), _explained(self._directory, "written"):
            self._path(name).unlink(missing_ok=True)
            _sync_directory(self._records)

    def list(self) -> tuple[str, ...]:
        with _explained(self._records, "read"):
            paths = [path for path in self._records.iterdir() if path.suffix == _SUFFIX]
        return tuple(sorted(filter(None, map(_name_of, paths))))

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
        pass  # nothing stays open between calls

    def __repr__(self) -> str:
        return f"<FileStore {self._directory}>"

    def _enter(self) -> None:
        if self._depth == 0:
            with _explained(self._directory, "written"):
                self._lock_fd = _open_lock(self._directory)
                _remove_leftovers(self._records)
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._lock_fd)  # the last descriptor of an open file takes its flock with it
            self._lock_fd = -1

    def _path(self, name: str) -> Path:
        return self._records / f"{_stem(name)}{_SUFFIX}"


def examine(directory: Path, *, made_for_us: bool = False) -> None:
    """Raise StoreError for what would keep this process from opening a store there. Changes nothing.

    `made_for_us`: if the directory is missing, somebody who may do so makes it for this user first.
    """
    records = directory / _RECORDS
    with _explained(directory, "opened"):
        nearest = next(path for path in (records, *records.parents) if _is_there(path))
        for existing in {directory, records} & {nearest, nearest.parent}:
            _must_be_closed(existing)
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if nearest != records and os.statvfs(nearest).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        right = os.R_OK if nearest == records else os.W_OK
        if made_for_us and nearest not in (directory, records):
            right = 0
        if not os.access(nearest, right | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _bundle(name: str, record: Any) -> Bundle:
    if record["name"] != name:
        raise ValueError(f"it is the record of {record['name']!r}")
    return Bundle.from_record(record)


def _stem(name: str) -> str:
    """Return a file name that no two names share, not even on a file system that ignores case.

    Everything but `a-z 0-9 . _ -` is percent-encoded, a leading dot too; long names end in a digest after `~`.
    """
    plain = b"abcdefghijklmnopqrstuvwxyz0123456789._-"
    stem = "".join(chr(byte) if byte in plain else f"%{byte:02x}" for byte in name.encode())
    stem = f"%2e{stem[1:]}" if stem.startswith(".") else stem
    if len(stem) <= _LONGEST_STEM:
        return stem
    return f"{stem[:_LONGEST_STEM]}~{sha256(name.encode()).hexdigest()[:32]}"


def _name_of(path: Path) -> str | None:
    if "~" not in path.stem:
        return unquote(path.stem)
    try:
        name = json.loads(path.read_bytes())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, and the shortened file name does not tell the name
    return name if isinstance(name, str) else None


def _private_directory(directory: Path) -> None:
    """Make the directory, or see that only its owner can enter it."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if _must_be_closed(directory):
            directory.chmod(0o700)


def _must_be_closed(directory: Path) -> bool:
    """Tell whether others can enter a directory of ours; raise for one that is not ours to close."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is not a directory")
    if not status.st_mode & _OPEN_MODE:
        return False
    # Somebody who points the store at /tmp or a home directory must not find its mode changed.
    ours = status.st_uid == os.geteuid() and {path.name for path in directory.iterdir()} <= {_RECORDS, _LOCK}
    if not ours and directory.name != _RECORDS:
        raise StoreError(
            f"{directory}: other users can enter this directory (mode {stat.S_IMODE(status.st_mode):04o}), "
            f"and private keys are to be kept in it. Run: chmod 0700 {directory}  or give a directory of its own."
        )
    return True


def _open_lock(directory: Path) -> int:
    """Return a descriptor that holds the lock; closing it, or dying, lets go."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _adopt(descriptor, directory)
        _wait_for_flock(descriptor, directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for_flock(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{directory}: another process has been writing for {_LOCK_TIMEOUT:.0f} s. "
                    f"Find it with: fuser {directory / _LOCK}"
                ) from None
            time.sleep(0.02)
        else:
            return


def _remove_leftovers(records: Path) -> None:
    """Remove what writers left that were killed between write and rename. Only for the holder of the lock."""
    for path in records.iterdir():
        if path.name.startswith(_TEMPORARY):
            path.unlink(missing_ok=True)


def _write(path: Path, text: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            _adopt(file.fileno(), path.parent)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _adopt(made: int | Path, directory: Path) -> None:
    """Let what root makes in somebody's store (`sudo tlsproxy trust`) belong to that somebody, who must read it."""
    owner = directory.stat()
    if os.geteuid() == 0 and os.stat(made).st_uid != owner.st_uid:  # noqa: PTH116 - also takes descriptors
        os.chown(made, owner.st_uid, owner.st_gid)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(_explain(path, verb, error)) from error


def _explain(path: Path, verb: str, error: OSError) -> str:
    advice = _ADVICE.get(error.errno or 0, "Look at the disk and the mount.")
    return f"{path}: the certificate store can't be {verb} ({error.strerror}). {advice.format(uid=os.geteuid())}"


def _short(error: Exception) -> str:
    """Return the reason without any piece of the record: a damaged one may still hold a key."""
    return f"not JSON at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]
