"""Files that are there whole or not at all: written beside their place, synced, renamed to it.

Knows descriptors of folders. Does not know: stores, what is in a file. Rules: every file has mode 0600 from its first
moment; a link at the place is replaced, never followed; who returns from here has the file on the disk for good.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, in place of another or of a link. Raises OSError; what was there is there still, then."""
    folder = os.open(path.parent, _FOLDER)
    try:
        replace_in(folder, path.name, content, prefix=f".{path.name[:60]}-")
        sync(folder)
    finally:
        os.close(folder)


def replace_in(
    folder: int,
    name: str,
    content: bytes,
    *,
    prefix: str = "",
    beside: int | None = None,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write a file of an open folder; the folder is not synced yet. Raises OSError.

    `beside`: another folder of the same file system where it is written first. `owner`: uid and gid that it is to have.
    """
    place = folder if beside is None else beside
    temporary = f"{prefix}{os.urandom(8).hex()}"
    descriptor = os.open(temporary, _MAKE, 0o600, dir_fd=place)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner:
                os.fchown(descriptor, *owner)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=place, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=place)
        raise


def sync(folder: int) -> None:
    """See that what was renamed in the folder, or removed, stays so. Raises OSError."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't, and that must not fail a backup
            raise
