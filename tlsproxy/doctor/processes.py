"""Which process listens at an address of this machine, and the version of the server that it runs. Reads /proc.

Sees processes of the own user, root those of all; none of other containers. Says only names and versions of what is
found in a command line, which may hold secrets. Blocks; nothing is run.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from tlsproxy.doctor.addresses import is_own, own_addresses
from tlsproxy.doctor.asking import Address
from tlsproxy.doctor.servers import KNOWN, Server, is_plain

_PROC = Path("/proc")
_LISTENING = "0A"
_APP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(?:\(\))?")
_MOST_PACKAGES = 20


def find_server(address: Address, name: str) -> Server:
    """Return what is known of the server that listens there; `name` is what it calls itself, maybe ""."""
    for pid in _holders(_inodes(address)):
        words = _command(pid)
        started, said = _started(words)
        real = name or started
        version = _version(pid, words, real)
        if not started and not version:  # something between, as docker-proxy
            continue
        runs_in = started if started == "gunicorn" and real == "uvicorn" else ""
        app = next((word for word in words[1:] if _APP.fullmatch(word)), "")
        server = Server(real, version, app, pid, runs_in, is_deaf="--no-proxy-headers" in words)
        return replace(server, is_plain=bool(started) and is_plain(said, server, address))
    return Server(name)


def _started(words: list[str]) -> tuple[str, list[str]]:
    """Return the server that a command starts ("" for none), and what the command says after its name."""
    for known in KNOWN:
        for index, word in enumerate(words[:4]):
            if known in Path(word).name:
                return known, words[index + 1 :]
    return "", []


def _inodes(address: Address) -> set[str]:
    if address.path:
        return _unix_inodes(address.path)
    return _tcp_inodes(address.port) if _is_here(address.host) else set()


def _is_here(host: str) -> bool:
    """Tell whether a name or address means this machine: another one's port has nothing to do with ours."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    own = own_addresses()
    return all(is_own(ip_address(str(each[4][0]).partition("%")[0]), own) for each in found)


def _tcp_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for row in map(str.split, (_PROC / "net" / table).read_text().splitlines()[1:]):
                if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port:
                    found.add(row[9])
    return found


def _unix_inodes(path: str) -> set[str]:
    with contextlib.suppress(OSError):
        rows = [line.split(maxsplit=7) for line in (_PROC / "net/unix").read_text().splitlines()[1:]]
        return {row[6] for row in rows if len(row) == 8 and row[7] == path}
    return set()


def _holders(inodes: set[str]) -> Iterator[int]:
    names = {f"socket:[{inode}]" for inode in inodes}
    if not names:
        return
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and _holds(folder / "fd", names):
            yield int(folder.name)


def _holds(folder: Path, names: set[str]) -> bool:
    try:
        entries = list(folder.iterdir())
    except OSError:  # somebody else's, or gone
        return False
    for entry in entries:
        with contextlib.suppress(OSError):
            if str(entry.readlink()) in names:
                return True
    return False


def _command(pid: int) -> list[str]:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in words if word]


def _version(pid: int, words: list[str], name: str) -> str:
    """Return the version of the package of that name which the process has at hand."""
    if name not in KNOWN:
        return ""
    for packages in _package_folders(pid, words):
        for found in packages.glob(f"[{name[0]}{name[0].upper()}]{name[1:]}-*.dist-info"):
            return found.name.removesuffix(".dist-info").partition("-")[2]
    return ""


def _package_folders(pid: int, words: list[str]) -> Iterator[Path]:
    """Yield the folders that it takes packages from: beside its program, and where its libraries are mapped from."""
    for word in words[:2]:
        if "/bin/" in word:
            yield from sorted(Path(word).parent.parent.glob("lib/python3*/site-packages"))
    with contextlib.suppress(OSError):
        maps = (_PROC / str(pid) / "maps").read_text(errors="replace")
        found = re.findall(r" (/\S*?/(?:site|dist)-packages)/", maps)
        yield from map(Path, list(dict.fromkeys(found))[:_MOST_PACKAGES])
