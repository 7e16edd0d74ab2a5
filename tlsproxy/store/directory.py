"""One directory of records on a local disk: its modes, file names and lock, and the folders in it.

Knows: files, modes, flock. Does not know: what a record is, leases. Rules: a file is written in `new/`, synced and
renamed to its place, so that a crash at any moment leaves the old one or the new one; readers never lock; a directory
that holds other things is never closed on our own account; what is inside is reached as folder.py says.
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

from tlsproxy.errors import StoreError
from tlsproxy.store.folder import OPEN_MODE, Folder, check_inside
from tlsproxy.store.records import CERTIFICATES, FOLDERS

LOCK, NEW, LEASES, PLAN = "lock", "new", "leases", "plan"
_SUBFOLDERS = {*FOLDERS, NEW, LEASES, PLAN}
_OURS = {*_SUBFOLDERS, LOCK, "admin.sock"}
_LONGEST_STEM = 200  # file systems take 255 bytes; digest and suffix need room
_LOCK_TIMEOUT = 10.0  # seconds; a writer needs milliseconds
_NOT_PLAIN = re.compile(r"[^a-z0-9._-]|^\.")
_FOREIGN = "Give it to the user with uid {uid} (chown), if that one runs the proxy, or change store.url."
_ADVICE = {
    errno.EROFS: "It is mounted read-only: mount it for writing or change store.url.",
    errno.EACCES: _FOREIGN,
    errno.EPERM: _FOREIGN,
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
        _check_folders(directory)
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
        _make_private(directory)
        make_folder(directory, CERTIFICATES).close()
        for name in _SUBFOLDERS - {CERTIFICATES}:
            with suppress(FileNotFoundError):
                _close_folder(directory, name)


def open_folder(directory: Path, name: str) -> Folder:
    """Open a folder of the directory for reading. Raises OSError, StoreError."""
    return Folder(directory / name)


def claim_folder(directory: Path, name: str, *, is_new: bool = False) -> Folder:
    """Open a folder of the directory for writing; see that it is of this store and closed. OSError, StoreError."""
    folder, owner = Folder(directory / name), directory.stat()
    try:
        if is_new:
            folder.bequeath(owner)
        check_inside(folder.path, folder.status(), owner)
        folder.close_to_others()
    except BaseException:
        folder.close()
        raise
    return folder


def make_folder(directory: Path, name: str) -> Folder:
    """Open a folder of the directory for writing, made if it is missing. Raises OSError, StoreError."""
    return claim_folder(directory, name, is_new=_make(directory / name))


def replace_file(directory: Path, folder: Folder, name: str, content: bytes) -> None:
    """Write a file of a folder so that it is there whole or not at all, and has come to stay. Raises OSError.

    Only for the holder of the lock.
    """
    with make_folder(directory, NEW) as new:
        folder.replace(name, content, beside=new)


def open_lock(directory: Path) -> int:
    """Return a descriptor that holds the lock; closing it, or dying, lets go. Removes what dead writers left."""
    with Folder(directory, is_inside=False) as top:
        descriptor = top.open_own(LOCK)
    try:
        _wait_for_flock(descriptor, directory)
        _remove_leftovers(directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_held(folder: Folder, name: str) -> int | None:
    """Return a descriptor of the file, made if missing, that is locked until it is closed; None if another has it."""
    descriptor = folder.open_own(name)
    try:
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


def _check_folders(directory: Path) -> None:
    """Raise StoreError for a folder of the store that it can't be used with. Opens nothing."""
    for name in sorted(_SUBFOLDERS):
        with suppress(FileNotFoundError, NotADirectoryError):
            check_inside(directory / name, (directory / name).lstat(), directory.stat())


def _make_private(directory: Path) -> None:
    """Make the directory, or see that only its owner can enter it."""
    if not _make(directory) and _must_be_closed(directory, is_inside=False):
        with Folder(directory, is_inside=False) as top:
            top.close_to_others()


def _make(path: Path) -> bool:
    """Tell whether the directory had to be made."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return False
    with Folder(path.parent, is_inside=False) as parent:
        parent.sync()
    return True


def _close_folder(directory: Path, name: str) -> None:
    """Close a folder to others. One that is closed may be somebody else's: whoever only reads others may go on."""
    status = (directory / name).lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_mode & OPEN_MODE:
        claim_folder(directory, name).close()


def _must_be_closed(directory: Path, *, is_inside: bool) -> bool:
    """Tell whether others can enter a directory of ours; raise for one that is not ours to close."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is not a directory")
    if not status.st_mode & OPEN_MODE:
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


def _remove_leftovers(directory: Path) -> None:
    """Remove what writers left that were killed between write and rename. Only for the holder of the lock."""
    with suppress(FileNotFoundError), claim_folder(directory, NEW) as new:
        for name in new.names():
            new.drop(name)
