"""Who we are: check it at start, give up root in the children for good.

The supervisor stays root (it binds, and must bind again after a reload); it parses nothing that a client sent.
A child drops before it touches configured files or clients, so that a key the worker could not read again at the next
renewal is noticed at start. Rule: a drop is verified, and a drop that cannot be verified ends the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tlsproxy.errors import TlsproxyError

_PR_SET_NO_NEW_PRIVS = 38

ROOT_ADVICE = (
    'running as root without server.user: a flaw in a worker would be a flaw of root. Set server.user = "www-data" '
    "(ports are bound first, then the workers drop), or run as that user with CAP_NET_BIND_SERVICE"
)


class PrivilegeError(TlsproxyError):
    """The user we are, or should become, does not fit what was asked for. The message begins with the key to change."""


@dataclass(frozen=True)
class Account:
    """A system user as the kernel sees it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_account(user: str) -> Account | None:
    """Return the account to drop to, or None when there is nothing to drop.

    None means: no user was asked for, or this process already is that user. Raises PrivilegeError.
    """
    if not user:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f'server.user: there is no user "{user}" on this system. Create it (useradd --system {user}).'
        ) from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PrivilegeError(
            f'server.user: only root can become "{user}", this is uid {os.geteuid()}. '
            f"Start as root, start as {user}, or leave server.user empty."
        )
    return Account(user, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(user, entry.pw_gid)))


def drop_privileges(user: str) -> None:
    """Become `user` (if needed) and rule out new privileges for this process and what it executes.

    Raises PrivilegeError; the caller must not go on then.
    """
    account = find_account(user)
    if account is not None:
        _become(account)
        _verify(account)
    _forbid_new_privileges()


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Have the rights of the account meanwhile, no more: for root, to find out what its children could not do.

    No protection, for the way back stays open. Raises PrivilegeError.
    """
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups(account.groups)
    except OSError as error:
        raise _cannot_become(account, error) from error
    try:
        _act(account)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def judge_store(url: str, account: Account) -> None:
    """As root, refuse an existing store that is not for the account. Changes nothing. Raises PrivilegeError."""
    folder = _store_folder(url)
    if folder and folder.exists() and not _may(folder.stat(), account, stat.S_IWUSR):
        raise PrivilegeError(
            f"store.url: {folder} cannot be written by server.user. Run: chown -R {account.name} {folder}"
        )


def prepare_store(url: str, account: Account) -> None:
    """As root, see to it that the dropped children can use a `file:` store. Raises PrivilegeError.

    A missing directory is created for the account; an existing one is never changed, only judged.
    """
    judge_store(url, account)
    folder = _store_folder(url)
    if folder and not folder.exists():
        _make_folder(folder, account)


def prepare_log(access: str, account: Account) -> None:
    """As root, make the access log file for the dropped workers, who may not be allowed to make one beside it."""
    if access in ("-", "off") or Path(access).exists():
        return
    try:
        descriptor = os.open(access, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "wb"):
            os.fchown(descriptor, account.uid, account.gid)
    except OSError as error:
        raise PrivilegeError(
            f"log.access: cannot create {access}: {error.strerror}. Create its directory first."
        ) from error


def check_interpreter(account: Account) -> None:
    """Refuse a Python that the account cannot read, such as one below /root. Raises PrivilegeError.

    Children import before they drop, but not all: the first request that needs one more module would fail.
    """
    for home in dict.fromkeys(Path(module).resolve() for module in (os.__file__, __file__)):
        for folder in reversed(home.parents):
            if not _may(folder.stat(), account, stat.S_IXUSR):
                raise PrivilegeError(
                    f"server.user: {account.name} cannot read the program in {home.parent}, because {folder} is closed "
                    f"to it. Install Python and tlsproxy where every user may read them (/usr, /opt)."
                )


def _store_folder(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _make_folder(folder: Path, account: Account) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
        os.chown(folder, account.uid, account.gid)
    except OSError as error:
        raise PrivilegeError(
            f"store.url: cannot create {folder}: {error.strerror}. Create it for {account.name}."
        ) from error


def _may(status: os.stat_result, account: Account, right: int) -> bool:
    """Whether the mode gives the right (S_IWUSR, S_IXUSR) to the account; only the first class that fits counts."""
    if status.st_uid == account.uid:
        return bool(status.st_mode & right)
    if status.st_gid in account.groups:
        return bool(status.st_mode & right >> 3)
    return bool(status.st_mode & right >> 6)


def _become(account: Account) -> None:
    # Groups first: after setuid there is no right left to change them.
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise _cannot_become(account, error) from error


def _act(account: Account) -> None:
    try:
        os.setegid(account.gid)
        os.seteuid(account.uid)
    except OSError as error:
        raise _cannot_become(account, error) from error


def _cannot_become(account: Account, error: OSError) -> PrivilegeError:
    return PrivilegeError(
        f"server.user: cannot become {account.name}: {error.strerror}. A container needs the capabilities SETUID and "
        "SETGID for that; or start as that user and leave server.user empty."
    )


def _verify(account: Account) -> None:
    changed = (
        os.getresuid() == (account.uid,) * 3
        and os.getresgid() == (account.gid,) * 3
        and set(os.getgroups()) == set(account.groups)
    )
    if not changed or _can_be_root():
        raise PrivilegeError(f"server.user: the change to {account.name} did not hold; refusing to serve")


def _can_be_root() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True


def _forbid_new_privileges() -> None:
    """No set-uid program can give back what was dropped (prctl(2); Python has no wrapper)."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")
