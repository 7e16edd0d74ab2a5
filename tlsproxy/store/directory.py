"""One directory of records on a local disk: its modes, file names and lock, and how a file is replaced in it.

Knows: files, modes, flock. Does not know: what a record is, leases. Rules: a file is written in `new/`, synced and
renamed to its place, so that a crash at any moment leaves the old one or the new one; readers never lock; a directory
that holds other things is never closed on our own account.
"""

import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

from tlsproxy.errors import StoreError
from tlsproxy.store.records import CERTIFICATES, FOLDERS

LOCK, NEW, LEASES = "lock", "new", "leases"
_OURS = {*FOLDERS, LOCK, NEW, LEASES, "admin.sock"}
_LONGEST_STEM = 200  # file systems take 255 bytes; digest and suffix need room
_OPEN_MODE = 0o077
_LOCK_TIMEOUT = 10.0  # seconds; a writer needs milliseconds
_NOT_PLAIN = re.compile(r"[^a-z0-9._-]|^\.")
_ADVICE = {
    errno.EROFS: "It is mounted read-only: mount it for writing or change store.url.",
    errno.EACCES: "Give it to the user with uid {uid} (chown) or change store.url.",
    errno.EPERM: "Give it to the user with uid {uid} (chown) or change store.url.",
    errno.ENOSPC: "The disk is full: make room.",
    errno.EDQUOT: "The disk quota is used up: make room.",
    errno.ENOTDIR: "Change store.url to a directory.",
    errno.EXDEV: "All folders in it must lie on one file system: mount that at the directory itself.",
}


def stem_of(name: str) -> str:
    """Return a file name that no two names share, not even on a file system that ignores case.

    Everything but `a-z 0-9 . _ -` is percent-encoded, a leading dot too; long names end in a digest after `~`.
    """
    stem = _NOT_PLAIN.sub(_encoded, name)
    if len(stem) <= _LONGEST_STEM:
        return stem
    return f"{stem[:_LONGEST_STEM]}~{sha256(name.encode()).hexdigest()[:32]}"


def is_shortened(stem: str) -> bool:
    """Tell whether the file name does not tell the whole name."""
    return "~" in stem


def name_of(stem: str) -> str | None:
    """Return the name behind a file name that is not shortened; None for one that no name has."""
    name = unquote(stem)
    return name if stem.isascii() and stem_of(name) == stem else None


def examine(directory: Path, *, made_for_us: bool = False) -> None:
    """Raise StoreError for what would keep this process from opening a store there. Changes nothing.

    `made_for_us`: if the directory is missing, somebody who may do so makes it for this user first.
    """
    records = directory / CERTIFICATES
    with explained(directory, "opened"):
        nearest = next(path for path in (records, *records.parents) if _is_there(path))
        for existing in {directory, records} & {nearest, nearest.parent}:
            _must_be_closed(existing, is_inside=existing == records)
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if nearest != records and os.statvfs(nearest).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        right = os.R_OK if nearest == records else os.W_OK
        if made_for_us and nearest not in (directory, records):
            right = 0
        if not os.access(nearest, right | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def prepare(directory: Path) -> None:
    """Make the directory and the folder of the certificates, and close to others what is open. Raises StoreError."""
    with explained(directory, "opened"):
        _private(directory)
        make_folder(directory, CERTIFICATES)
        for folder in _OURS - {LOCK, "admin.sock", CERTIFICATES}:
            with suppress(FileNotFoundError):
                _close(directory / folder, is_inside=True)


def make_folder(directory: Path, folder: str) -> Path:
    """Return a folder of the directory, made if it is missing. Raises OSError."""
    path = directory / folder
    _private(path, is_inside=True)
    _adopt(path, directory)
    return path


def replace_file(directory: Path, path: Path, text: bytes) -> None:
    """Write a file of a folder so that it is there whole or not at all, and has come to stay. Raises OSError.

    Only for the holder of the lock.
    """
    before = os.stat(path.parent).st_mtime_ns  # noqa: PTH116 - as fast as it gets
    descriptor, temporary = tempfile.mkstemp(dir=make_folder(directory, NEW))  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            _adopt(file.fileno(), directory)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _settle(path.parent, before)


def remove_file(path: Path) -> None:
    """Remove a file for good, if it is there. Raises OSError. Only for the holder of the lock."""
    try:
        before = path.parent.stat().st_mtime_ns
        path.unlink()
    except FileNotFoundError:
        return
    _settle(path.parent, before)


def open_lock(directory: Path) -> int:
    """Return a descriptor that holds the lock; closing it, or dying, lets go. Removes what dead writers left."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _adopt(descriptor, directory)
        _wait_for_flock(descriptor, directory)
        _remove_leftovers(directory / NEW)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_held(path: Path, directory: Path) -> int | None:
    """Return a descriptor of the file, made if missing, that is locked until it is closed; None if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _adopt(descriptor, directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def explained(path: Path, verb: str) -> Iterator[None]:
    """Raise StoreError for an OSError in the block: what, why, what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(explain(path, verb, error)) from error


def explain(path: Path, verb: str, error: OSError) -> str:
    advice = _ADVICE.get(error.errno or 0, "Look at the disk and the mount.")
    return f"{path}: the certificate store can't be {verb} ({error.strerror}). {advice.format(uid=os.geteuid())}"


def _encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02x}" for byte in match[0].encode())


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _private(directory: Path, *, is_inside: bool = False) -> None:
    """Make the directory, or see that only its owner can enter it."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _close(directory, is_inside=is_inside)
    else:
        _sync(directory.parent)


def _close(directory: Path, *, is_inside: bool) -> None:
    if _must_be_closed(directory, is_inside=is_inside):
        directory.chmod(0o700)


def _must_be_closed(directory: Path, *, is_inside: bool) -> bool:
    """Tell whether others can enter a directory of ours; raise for one that is not ours to close."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is not a directory")
    if not status.st_mode & _OPEN_MODE:
        return False
    # Somebody who points the store at /tmp or a home directory must not find its mode changed.
    ours = status.st_uid == os.geteuid() and {path.name for path in directory.iterdir()} <= _OURS
    if not ours and not is_inside:
        raise StoreError(
            f"{directory}: other users can enter this directory (mode {stat.S_IMODE(status.st_mode):04o}), "
            f"and private keys are to be kept in it. Run: chmod 0700 {directory}  or give a directory of its own."
        )
    return True


def _wait_for_flock(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{directory}: another process has been writing for {_LOCK_TIMEOUT:.0f} s. "
                    f"Find it with: fuser {directory / LOCK}"
                ) from None
            time.sleep(0.02)
        else:
            return


def _remove_leftovers(new: Path) -> None:
    """Remove what writers left that were killed between write and rename. Only for the holder of the lock."""
    with suppress(FileNotFoundError):
        for path in new.iterdir():
            path.unlink(missing_ok=True)


def _settle(folder: Path, before: int) -> None:
    """Sync the folder, and see that its time has moved on: the kernel's clock ticks slower than we write."""
    if os.stat(folder).st_mtime_ns <= before:  # noqa: PTH116
        os.utime(folder, ns=(before, before + 1))
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _adopt(made: int | Path, directory: Path) -> None:
    """Let what root makes in somebody's store (`sudo tlsproxy trust`) belong to that somebody, who must read it."""
    owner = directory.stat()
    if os.geteuid() == 0 and os.stat(made).st_uid != owner.st_uid:  # noqa: PTH116 - also takes descriptors
        os.chown(made, owner.st_uid, owner.st_gid)
