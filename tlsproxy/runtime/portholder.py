"""Who listens on a port: the answer to the first question after "address already in use". Linux, by /proc.

Advice only: a name that cannot be found out (another user's process, another system) is None, never an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"


def find_port_holder(port: int, proc: Path = Path("/proc")) -> str | None:
    """Return `nginx (pid 123)` for the process that listens on the TCP port, or None."""
    wanted = {f"socket:[{inode}]" for table in _tables(proc) for inode in listening_inodes(table, port)}
    if not wanted:
        return None
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted & set(_open_files(process)):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def listening_inodes(table: str, port: int) -> list[str]:
    """Return the inodes of the sockets that listen on `port`, from the text of /proc/net/tcp or tcp6 (proc(5))."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return [row[9] for row in rows if len(row) > 9 and row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _tables(proc: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            yield (proc / "net" / name).read_text()


def _open_files(process: Path) -> Iterator[str]:
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(entry.readlink())
