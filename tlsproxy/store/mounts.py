"""Whether a directory outlives its container: where it really lies, from the kernel's table of mounts.

Knows: /proc/self/mountinfo (proc_pid_mountinfo(5)). Does not know: stores, CAs, the environment. Rule: it counts what
holds the very directory; a volume in a container is durable, a tmpfs on a host is not.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MOUNTINFO = Path("/proc/self/mountinfo")
_KINDS = {
    "overlay": "overlay of a container",
    "aufs": "overlay of a container",
    "fuse.fuse-overlayfs": "overlay of a container",
    "tmpfs": "tmpfs",
    "ramfs": "tmpfs",
    "rootfs": "tmpfs",
}
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table; `parent` is the id of the mount that it lies on."""

    id: int
    parent: int
    point: PurePosixPath
    kind: str


@dataclass(frozen=True, slots=True)
class Ephemeral:
    """A place that is gone after a restart. `kind` is "overlay of a container", "tmpfs" or "memory"."""

    kind: str
    place: str
    is_kubernetes: bool = False

    @property
    def is_fatal(self) -> bool:
        """Tell whether to refuse a production CA. On Kubernetes pods without a volume are common: a warning there."""
        return not self.is_kubernetes

    def __str__(self) -> str:
        what = {
            "memory": "keeps certificates and accounts in memory",
            "tmpfs": "lies in memory (tmpfs)",
        }.get(self.kind, f"lies on the {self.kind}")
        return (
            f"{self.place}: the store {what} and is gone after a restart. Each start would order all certificates "
            "again, until the CA refuses for a week. Put a volume there, or set store.allow_ephemeral = true."
        )


def ephemeral(directory: Path, *, is_kubernetes: bool = False, table: str | None = None) -> Ephemeral | None:
    """Return what is wrong with a directory as a lasting place; None if nothing is, or if there is no telling.

    The directory may still be missing: then its nearest parent counts. `table` replaces the kernel's, for tests.
    """
    if table is None:
        try:
            table = _MOUNTINFO.read_text("utf-8", "surrogateescape")
        except OSError:
            return None
    mount = holder(PurePosixPath(directory.resolve()), parse(table))
    kind = _KINDS.get(mount.kind) if mount else None
    return Ephemeral(kind, str(directory), is_kubernetes) if kind else None


def parse(table: str) -> list[Mount]:
    """Return the mounts of a table; lines that are none are left out."""
    return [mount for mount in map(_parse_line, table.splitlines()) if mount]


def holder(path: PurePosixPath, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that a path without links lies on, as the kernel finds it: from the root down.

    The longest mount point alone does not tell: a mount may be hidden by a later one further up.
    """
    mounts = list(mounts)
    ids = {mount.id for mount in mounts if mount.parent != mount.id}
    below = {(mount.parent, mount.point): mount for mount in mounts if mount.id in ids}
    root = PurePosixPath("/")
    current = next((mount for mount in mounts if mount.point == root and mount.parent not in ids), None)
    for step in (*reversed(path.parents), path):
        while current and (covered := below.get((current.id, step))):
            current = covered
    return current


def _parse_line(line: str) -> Mount | None:
    """Parse `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw`; the fields before the dash vary."""
    fields, _, rest = line.partition(" - ")
    parts, kind = fields.split(" "), rest.split(" ")[0]
    if len(parts) < 6 or not kind or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return Mount(int(parts[0]), int(parts[1]), PurePosixPath(_unescaped(parts[4])), kind)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
