"""Where a directory really lies. The tables are those of real machines, shortened."""

from pathlib import Path, PurePosixPath

import pytest

from tlsproxy.store.base import ephemeral_store
from tlsproxy.store.mounts import ephemeral, holder, parse

HOST = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
28 27 0:24 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=1g
29 27 0:25 / /tmp rw - tmpfs tmpfs rw
30 27 254:1 / /srv/a\040folder rw - xfs /dev/vdb rw
31 27 0:40 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=l,upperdir=u
"""
DOCKER = """
500 400 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=l,upperdir=u,workdir=w
501 500 0:51 / /proc rw - proc proc rw
502 500 0:52 / /dev rw,nosuid - tmpfs tmpfs rw
503 500 254:0 /volumes/store/_data /var/lib/tlsproxy rw,relatime master:1 - ext4 /dev/vda rw
504 500 0:53 / /run/secrets rw - tmpfs tmpfs rw
"""
HIDDEN = """
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 254:1 / /a/b rw - ext4 /dev/vdb rw
3 1 0:60 / /a rw - tmpfs tmpfs rw
"""
STACKED = """
1 1 0:1 / / rw - rootfs rootfs rw
2 1 254:0 / / rw - ext4 /dev/vda rw
3 2 254:1 / /store rw - ext4 /dev/vdb rw
4 3 0:60 / /store rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("table", "path", "kind"),
    [
        (HOST, "/var/lib/tlsproxy", "ext4"),
        (HOST, "/", "ext4"),
        (HOST, "/run/tlsproxy", "tmpfs"),
        (HOST, "/running", "ext4"),
        (HOST, "/srv/a folder/store", "xfs"),
        (HOST, "/srv/a", "ext4"),
        (HOST, "/var/lib/docker/overlay2/x/merged/var", "overlay"),
        (DOCKER, "/var/lib/tlsproxy", "ext4"),
        (DOCKER, "/var/lib/tlsproxy/certificates", "ext4"),
        (DOCKER, "/var/lib", "overlay"),
        (DOCKER, "/", "overlay"),
        (HIDDEN, "/a/b/c", "tmpfs"),
        (HIDDEN, "/b", "ext4"),
        (STACKED, "/store", "tmpfs"),
        (STACKED, "/x", "ext4"),
    ],
)
def test_what_holds_a_path(table: str, path: str, kind: str) -> None:
    mount = holder(PurePosixPath(path), parse(table))
    assert mount
    assert mount.kind == kind


def test_tables_that_do_not_tell() -> None:
    for table in ("", "nonsense\n\n1 2 3\n- x", "9 8 0:1 / /elsewhere rw - ext4 x rw"):
        assert holder(PurePosixPath("/store"), parse(table)) is None
        assert ephemeral(Path("/store"), table=table) is None


def test_a_container_without_a_volume() -> None:
    found = ephemeral(Path("/srv/store"), table=DOCKER)
    assert found
    assert (found.kind, found.is_fatal) == ("overlay of a container", True)
    assert str(found).startswith(
        "/srv/store: the store lies on the overlay of a container and is gone after a restart."
    )
    assert str(found).endswith("Put a volume there, or set store.allow_ephemeral = true.")


def test_a_volume_and_an_ordinary_disk_last() -> None:
    assert ephemeral(Path("/var/lib/tlsproxy"), table=DOCKER) is None
    assert ephemeral(Path("/var/lib/tlsproxy"), table=HOST) is None


def test_on_kubernetes_it_is_a_warning() -> None:
    found = ephemeral(Path("/run/store"), table=HOST, is_kubernetes=True)
    assert found
    assert (found.kind, found.is_fatal) == ("tmpfs", False)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/run")
    assert ephemeral(tmp_path / "link" / "store-of-nobody", table=HOST)


def test_a_store_in_memory_does_not_last() -> None:
    found = ephemeral_store("memory:")
    assert found
    assert "keeps certificates and accounts in memory" in str(found)


def test_this_machine() -> None:
    """The kernel's own table: /dev/shm is in memory on every Linux, a volume is not needed to know that."""
    found = ephemeral_store("file:///dev/shm/tlsproxy-of-nobody")
    assert found
    assert found.kind == "tmpfs"
