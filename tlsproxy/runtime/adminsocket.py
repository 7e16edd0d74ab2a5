"""The unix socket of the admin API: where it lies, who may connect, whose it is.

Knows paths, modes and the kernel's refusals, nothing of HTTP. Rules: it is mode 0600 from its first moment; a socket
that somebody answers at is never replaced, a dead one is; only our own is removed; every refusal says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from tlsproxy.errors import TlsproxyError

LONGEST_PATH = 107 if sys.platform == "linux" else 103
"""Bytes of a path in sockaddr_un (unix(7)), without the final zero."""

BACKLOG = 16

_LOCK_TIME = 2.0  # seconds to wait for another proxy that is looking at the same place; it needs a millisecond
_UMASK = 0o177  # the kernel gives a socket 0777 less the mask: 0600


class AdminSocketError(TlsproxyError):
    """There can be no admin socket at that path. The message begins with the path."""


class AdminSocket:
    """A listening socket and its name in the file system. Its owner calls `remove`, then closes the socket."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self.socket = sock
        self._identity = _identity(path)

    def __repr__(self) -> str:
        return f"<AdminSocket {self.path}>"

    def remove(self) -> None:
        """Remove the name if it is still ours. Before the socket is closed: nobody takes the name while it answers."""
        with contextlib.suppress(OSError):
            if self.socket.fileno() >= 0 and _identity(self.path) == self._identity:
                self.path.unlink()


async def open_admin_socket(path: Path) -> AdminSocket:
    """Listen at `path`; make its folder and replace a dead socket if need be. Raises AdminSocketError."""
    try:
        _make_folder(path.parent)
        async with _alone(path.parent):
            _make_room(path)
            return AdminSocket(path, _listen(path))
    except OSError as error:
        raise AdminSocketError(_explain(path, error)) from error


def inherit_admin_socket(path: Path, sock: socket.socket) -> AdminSocket | None:
    """Return what another process has listened with at `path`, or None when it is not there any more."""
    try:
        return AdminSocket(path, sock)
    except OSError:
        sock.close()
        return None


async def start_server(welcome: Callable[[StreamReader, StreamWriter], None], admin: AdminSocket) -> asyncio.Server:
    """Accept there. The name is removed by AdminSocket and nobody else: another process may listen there too."""
    # asyncio of Python 3.13 removes it when the server is closed, unless it is told not to.
    keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    return await asyncio.start_unix_server(welcome, sock=admin.socket, **keep)


def connect_admin_socket(path: Path, timeout: float) -> socket.socket:
    """Return a connection to whoever listens at `path`, with `timeout` seconds for every step. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        with _reachable(path) as name:
            sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _make_folder(folder: Path) -> None:
    """/run/tlsproxy may be entered by everybody: who may not connect is told so, and not that nobody is there."""
    folder.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)


@contextlib.asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """Keep other proxies from looking meanwhile: of two that find a dead socket, one would remove the other's new one.

    The lock is the folder's own, so it leaves nothing behind, and ends with its holder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        async with asyncio.timeout(_LOCK_TIME):
            while not _lock(descriptor):
                await asyncio.sleep(0.02)
        yield
    except TimeoutError as error:
        raise OSError(errno.EBUSY, f"another process has locked the folder {folder}") from error
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_room(path: Path) -> None:
    """Remove a socket at which nobody listens. Raises AdminSocketError for everything else that is there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AdminSocketError(f"{path} is no socket. Remove it, or give admin.socket another path.")
        # Not for longer than this: a listener with a full queue is alive.
        connect_admin_socket(path, 0).close()
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink()
        return
    except BlockingIOError:
        pass
    raise AdminSocketError(
        f"{path} is in use by another running proxy. Give one of them a path of its own (admin.socket)."
    )


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(path) as name, _masked():
            sock.bind(name)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _masked() -> Iterator[None]:
    before = os.umask(_UMASK)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield a name for the path that fits into an address; a long one is reached through its open folder."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    # O_PATH: the right to enter the folder is enough, as it is for the short way.
    folder = os.open(path.parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(name)) > LONGEST_PATH or sys.platform != "linux":
            raise OSError(errno.ENAMETOOLONG, "the name is too long for a socket")
        yield name
    finally:
        os.close(folder)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _explain(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{path}: the admin socket cannot be made there ({reason}). Set admin.socket to a path this user may write."
        )
    return f"{path}: the admin socket cannot be made there ({reason}). Set admin.socket to another path."
