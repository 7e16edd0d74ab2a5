"""What only a store in a directory has: modes, leftovers, damage, crashes, other processes."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.store.pki import issue
from tlsproxy.errors import StoreError
from tlsproxy.store import directory as directory_module
from tlsproxy.store.base import Lease
from tlsproxy.store.directory import examine
from tlsproxy.store.file import FileStore
from tlsproxy.store.folder import Folder

ONE = issue("one.test").bundle()
TWO = issue("two.test").bundle()
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as somebody else")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "store"


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[None]:
    """Be a user without rights; root may write into directories of any mode."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)
    os.setegid(0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_closed_to_others(directory: Path) -> None:
    FileStore(directory).put("internal/*.a.test", ONE)
    made = {str(path.relative_to(directory)): mode(path) for path in directory.rglob("*")}
    assert made == {
        "certificates": 0o700,
        "certificates/internal%2f%2a.a.test.json": 0o600,
        "lock": 0o600,
        "new": 0o700,
    }
    assert mode(directory) == 0o700


def test_a_record_is_one_json_object(directory: Path) -> None:
    FileStore(directory).put("a", ONE)
    record = json.loads((directory / "certificates/a.json").read_text())
    assert record["name"] == "a"
    assert record["key_pem"].encode() == ONE.key_pem


def test_an_open_directory_of_our_own_is_closed(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    FileStore(directory).put("a", ONE)
    directory.chmod(0o777)
    (directory / "certificates").chmod(0o777)
    assert FileStore(directory).get("a") == ONE
    assert (mode(directory), mode(directory / "certificates")) == (0o700, 0o700)


def test_all_that_we_put_there_is_known_to_be_ours(directory: Path) -> None:
    store = FileStore(directory)
    store.put("a", ONE)
    for folder in ("state", "challenges", "accounts", "ledger"):
        store.put_record(folder, "a", {})
    assert store.acquire("a")
    store.self_test()
    (directory / "admin.sock").touch()
    for path in (directory, *(path for path in directory.iterdir() if path.is_dir())):
        path.chmod(0o755)
    FileStore(directory)
    assert {mode(path) for path in (directory, *directory.rglob("*")) if path.is_dir()} == {0o700}


def test_an_open_directory_with_other_things_in_it_is_refused_and_left_alone(directory: Path) -> None:
    (directory / "other").mkdir(parents=True)
    directory.chmod(0o755)
    with pytest.raises(StoreError, match=r"other users can enter this directory \(mode 0755\).*Run: chmod 0700"):
        FileStore(directory)
    assert mode(directory) == 0o755


@as_root
@pytest.mark.usefixtures("nobody")
def test_an_open_directory_of_somebody_else_is_refused() -> None:
    with pytest.raises(StoreError, match="other users can enter this directory"):
        FileStore(Path("/usr"))


@as_root
def test_without_the_right_to_write_reading_goes_on(directory: Path, request: pytest.FixtureRequest) -> None:
    FileStore(directory).put("a", ONE)
    for path in (directory, directory / "certificates", directory / "certificates/a.json"):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o500)
    directory.parent.chmod(0o755)
    request.getfixturevalue("nobody")
    store = FileStore(directory)
    assert store.get("a") == ONE
    with pytest.raises(
        StoreError, match=r"can't be written \(Permission denied\)\. Give it to the user with uid 65534"
    ):
        store.put("a", TWO)
    assert store.get("a") == ONE


@as_root
def test_what_root_writes_belongs_to_the_owner_of_the_directory(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    store = FileStore(directory)
    store.put("a", ONE)
    assert store.acquire("a")
    owners = {path.stat().st_uid for path in (directory, *directory.rglob("*"))}
    assert owners == {NOBODY}


FOLDERS = ["certificates", "state", "new", "leases"]


def act_in(directory: Path) -> None:
    """Do whatever a command may do in a store, whatever is told of the one before."""
    with suppress(StoreError):
        store = FileStore(directory)
        acts: list[Callable[[], object]] = [
            lambda: store.put("a", ONE),
            lambda: store.put_record("state", "a", {}),
            lambda: store.release(store.acquire("b") or Lease("b", 1, "")),
            lambda: store.acquire("a"),
            lambda: store.delete_record("state", "a"),
            lambda: store.delete("a"),
            *(lambda folder=folder: store.list_records(folder) for folder in ("certificates", "state")),
        ]
        for act in acts:
            with suppress(StoreError):
                act()


def state_of(path: Path) -> list[tuple[str, int, int, bytes | None]]:
    """Return everything that somebody could have changed about a file, or a directory and all in it."""
    return sorted(
        (str(each), each.lstat().st_uid, each.lstat().st_mode, each.read_bytes() if each.is_file() else None)
        for each in (path, *path.rglob("*"))
    )


@pytest.fixture
def somebodys(directory: Path) -> Path:
    """A store that belongs to nobody, who has put whatever he likes into it; root is to work there."""
    directory.mkdir(parents=True, mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    return directory


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of root, closed and not empty."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "a.json").write_text("root's own")
    return victim


@as_root
@pytest.mark.parametrize("mode_of_victim", [0o700, 0o755])
@pytest.mark.parametrize("folder", FOLDERS)
def test_root_does_nothing_behind_a_link_to_a_folder(
    somebodys: Path, victim: Path, folder: str, mode_of_victim: int
) -> None:
    victim.chmod(mode_of_victim)
    before = state_of(victim)
    (somebodys / folder).symlink_to(victim)
    act_in(somebodys)
    assert state_of(victim) == before


@as_root
@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("folder", FOLDERS)
def test_root_gives_no_folder_away_that_it_has_not_made(
    somebodys: Path, victim: Path, folder: str, is_empty: bool
) -> None:
    """As when the owner of the store moves one of root's to that place."""
    if is_empty:
        (victim / "a.json").unlink()
    victim.rename(somebodys / folder)
    before = state_of(somebodys / folder)
    act_in(somebodys)
    assert state_of(somebodys / folder) == before


@as_root
@pytest.mark.parametrize(
    "place",
    ["lock", "certificates/a.json", "state/a.json", "leases/a.json", "leases/a.1.held", "leases/b.1.held"],
)
def test_root_gives_no_file_away_that_a_link_leads_to(somebodys: Path, victim: Path, place: str) -> None:
    before = state_of(victim)
    link = somebodys / place
    if link.parent != somebodys:
        link.parent.mkdir(mode=0o700)
        os.chown(link.parent, NOBODY, NOBODY)
    link.symlink_to(victim / "a.json")
    act_in(somebodys)
    assert state_of(victim) == before


@as_root
def test_root_gives_no_file_away_that_was_there(somebodys: Path) -> None:
    (somebodys / "lock").touch(mode=0o600)  # root's, moved there
    FileStore(somebodys).put("a", ONE)
    assert (somebodys / "lock").stat().st_uid == 0


@as_root
def test_a_folder_put_in_place_of_the_one_just_made_is_not_given_away(somebodys: Path, victim: Path) -> None:
    with Folder(victim) as folder:
        folder.bequeath(somebodys.stat())
    assert victim.stat().st_uid == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_link_in_the_store_is_named(directory: Path, tmp_path: Path, folder: str) -> None:
    store = FileStore(directory)
    (tmp_path / "elsewhere").mkdir()
    with suppress(FileNotFoundError):
        (directory / folder).rmdir()
    (directory / folder).symlink_to(tmp_path / "elsewhere")
    said = rf"store/{folder}: this is a symbolic link, and inside a certificate store none is followed\. Find out"
    with pytest.raises(StoreError, match=said):
        store.put("a", ONE) if folder == "certificates" else store.put_record("state", "a", {}, store.acquire("a"))
    with pytest.raises(StoreError, match=said):
        examine(directory)


def test_a_link_in_place_of_a_record_is_named(directory: Path) -> None:
    store = FileStore(directory)
    store.put("a", ONE)
    (directory / "certificates/b.json").symlink_to("a.json")
    with pytest.raises(StoreError, match=r"certificates/b\.json: this is a symbolic link"):
        store.get("b")
    store.put("b", TWO)
    assert (store.get("a"), store.get("b")) == (ONE, TWO)


def test_links_to_folders_are_no_folders(directory: Path) -> None:
    store = FileStore(directory)
    (directory / "more").symlink_to("certificates")
    assert store.records.folders() == ("certificates",)


def test_the_directory_itself_may_be_a_link(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    directory.parent.mkdir()
    directory.symlink_to(tmp_path / "elsewhere")
    store = FileStore(directory)
    store.put("a", ONE)
    assert store.acquire("a")
    assert (FileStore(directory).get("a"), mode(tmp_path / "elsewhere")) == (ONE, 0o700)


@as_root
def test_a_folder_of_somebody_else_is_named(directory: Path) -> None:
    store = FileStore(directory)
    store.put_record("state", "a", {})
    os.chown(directory / "state", NOBODY, NOBODY)
    said = r"store/state: this folder belongs to uid 65534, and the store that it is in to uid 0.*run: chown -R 0:0 "
    with pytest.raises(StoreError, match=said):
        store.put_record("state", "a", {})
    with pytest.raises(StoreError, match=said):
        examine(directory)


def test_a_pipe_in_place_of_a_record_stops_nobody(directory: Path) -> None:
    store = FileStore(directory)
    os.mkfifo(directory / "certificates" / "a.json")
    with pytest.raises(StoreError, match="damaged"):
        store.get("a")


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(StoreError, match=r"Change store\.url to a directory"):
            FileStore(path)


def test_a_full_disk_keeps_the_old_record(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(directory)
    store.put("a", ONE)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="The disk is full"):
        store.put("a", TWO)
    assert store.get("a") == ONE
    assert [path.name for path in (directory / "certificates").iterdir()] == ["a.json"]


def test_the_time_of_a_folder_only_grows(directory: Path) -> None:
    """It is the folder's version: neither two writes in one tick nor a clock that was set back may show an old one."""
    store = FileStore(directory)
    folder = directory / "certificates"
    later = folder.stat().st_mtime_ns + 10**15
    acts: list[Callable[[], None]] = [lambda: store.put("a", ONE), lambda: store.delete("a")]
    for act in acts:
        os.utime(folder, ns=(later, later))
        act()
        assert folder.stat().st_mtime_ns == later + 1
    with Folder(folder) as opened:
        opened.settle(later + 1)  # as when the kernel gave the same time twice
    assert folder.stat().st_mtime_ns == later + 2


@pytest.mark.parametrize("tick", [1, 100, 10**3, 10**6, 10**9, 2 * 10**9])
def test_where_times_are_coarse_the_time_of_a_folder_grows_too(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tick: int
) -> None:
    """ext4 keeps nanoseconds, NTFS 100 of them, others seconds, FAT two."""
    FileStore(directory).put("a", ONE)
    with Folder(directory / "certificates") as folder:
        before = (folder.status().st_mtime_ns // 10**10 + 1) * 10**10
        really = os.utime
        monkeypatch.setattr(os, "utime", lambda file, ns: really(file, ns=(ns[0], ns[1] // tick * tick)))
        os.utime(directory / "certificates", ns=(before, before))
        folder.settle(before)
        assert folder.status().st_mtime_ns == before + tick


def test_leftovers_of_killed_writers_go_with_the_next_write(directory: Path) -> None:
    store = FileStore(directory)
    left = directory / "new" / "abcdef"
    left.parent.mkdir()
    left.write_text("half a record")
    assert store.list() == ()
    store.put("a", ONE)
    assert not left.exists()


def test_a_name_too_long_for_a_file_name_stands_beside_its_record(directory: Path) -> None:
    store = FileStore(directory)
    store.put("x" * 512, ONE)
    record, label = sorted((directory / "certificates").iterdir())
    assert (record.suffix, label.suffix, label.read_text()) == (".json", ".name", "x" * 512)
    store.put("x" * 512, TWO)
    assert (store.get("x" * 512), store.list()) == (TWO, ("x" * 512,))
    label.write_text("y" * 512)
    assert store.list() == ()
    store.delete("x" * 512)
    assert list((directory / "certificates").iterdir()) == []


def test_files_that_are_no_records_are_left_alone(directory: Path) -> None:
    store = FileStore(directory)
    store.put("a", ONE)
    for name in ("README", "UPPER.json", ".hidden.json", "x~y.json", "a.json~", "%zz.json"):
        (directory / "certificates" / name).write_text("")
    assert store.list() == ("a",)


def test_a_record_of_an_earlier_release_is_read(directory: Path) -> None:
    """It said neither when it was written nor what only a public CA gives."""
    store = FileStore(directory)
    known = ("version", "names", "chain_pem", "key_pem", "not_before", "not_after", "serial", "issuer")
    record = {field: ONE.to_record()[field] for field in (*known, "fingerprint", "key_type", "source")}
    (directory / "certificates" / "internal%2fa.test.json").write_text(
        json.dumps({"name": "internal/a.test", **record})
    )
    assert (store.get("internal/a.test"), store.list()) == (ONE, ("internal/a.test",))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"name": "a"}', b"\xff\xfe", b'{"name": "b"}'])
def test_a_damaged_record_is_named_and_harms_no_other(directory: Path, damage: bytes) -> None:
    store = FileStore(directory)
    store.put("a", ONE)
    store.put("b", TWO)
    path = directory / "certificates" / "a.json"
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"certificates/a\.json: the certificate record is damaged"):
        store.get("a")
    assert (store.get("b"), store.list()) == (TWO, ("a", "b"))
    store.put("a", ONE)
    assert store.get("a") == ONE


def test_the_message_about_damage_repeats_no_key(directory: Path) -> None:
    store = FileStore(directory)
    store.put("a", ONE)
    path = directory / "certificates" / "a.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert "PRIVATE" not in str(caught.value)


def test_a_writer_that_never_ends_is_told_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "_LOCK_TIMEOUT", 0.0)
    first, second = FileStore(directory), FileStore(directory)
    with (
        first.exclusive(),
        pytest.raises(StoreError, match="another process has been writing"),
        second.exclusive(),
    ):
        pass
    second.put("a", ONE)


def test_no_child_inherits_a_lock(directory: Path) -> None:
    """It would hold it for as long as it lives: an events.command, or a worker that outlives its supervisor."""
    store = FileStore(directory)
    store.put("a", ONE)
    lock = directory_module.open_lock(directory)
    with Folder(directory) as folder:
        held = directory_module.open_held(folder, "x.held")
    assert held is not None
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    with child:
        for descriptor in (lock, held):
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
        os.close(directory_module.open_lock(directory))
        with Folder(directory) as folder:
            again = directory_module.open_held(folder, "x.held")
        child.communicate(timeout=20)
    assert again is not None
    os.close(again)


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from tlsproxy.store.base import Lease
from tlsproxy.store.directory import examine
from tlsproxy.store.file import FileStore
from tlsproxy.store.folder import Folder
store = FileStore(Path(sys.argv[1]))
one, two = store.get("one"), store.get("two")
print("ready", flush=True)
while True:
    store.put("a", one)
    store.put("a", two)
"""


@pytest.mark.system
def test_kill_9_in_the_middle_of_writing_leaves_a_whole_record(directory: Path) -> None:
    store = FileStore(directory)
    for name, bundle in {"one": ONE, "two": TWO, "a": ONE}.items():
        store.put(name, bundle)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(directory)], stdout=subprocess.PIPE)
        with writer:
            assert writer.stdout
            writer.stdout.readline()
            for _ in range(30):
                assert store.get("a") in (ONE, TWO)
            writer.send_signal(signal.SIGKILL)
        assert store.get("a") in (ONE, TWO)
        store.put("b", ONE)  # the kernel took the dead writer's lock back
        assert sorted(path.name for path in (directory / "certificates").iterdir()) == [
            "a.json",
            "b.json",
            "one.json",
            "two.json",
        ]


FILL_THE_DISK = """
import sys
from pathlib import Path
from tests.store.test_file import expect_store_error
from tlsproxy.store.base import open_store

folder = Path(sys.argv[1])
store = open_store(f"file://{folder}/store", sys.argv[2:])
store.self_test()
one = store.get("one") or open_store(f"file://{sys.argv[1]}-source").get("one")
store.put("one", one)
store.put_record("state", "one", {"n": 1})
lease = store.acquire("one")

filler = (folder / "filler").open("wb", buffering=0)
size = 1 << 20
while size:
    try:
        filler.write(bytes(size))
    except OSError:
        size //= 2

full = "The disk is full: make room"
expect_store_error(full, lambda: store.put("one", one, lease))
expect_store_error(full, lambda: store.put_record("state", "one", {"n": 2}))
expect_store_error(full, lambda: store.put("two", one))
expect_store_error(full, lambda: store.acquire("two"))
expect_store_error(full, lambda: store.renew(lease))
expect_store_error(full, store.self_test)
assert store.get("one") == one and store.get("two") is None
assert store.get_record("state", "one") == {"n": 1}
assert store.list() == ("one",) and list((folder / "store/new").iterdir()) == []

filler.truncate(filler.tell() - (32 << 10))
store.put("one", one, lease)
expect_store_error(full, store.self_test)

filler.truncate(0)
store.self_test()
store.renew(lease)
store.put("two", one, lease)
assert store.acquire("two").token == 1
print("done")
"""

OTHER_FILE_SYSTEM = """
import sys
from pathlib import Path
from tests.store.test_file import expect_store_error
from tlsproxy.store.file import FileRecords
records = FileRecords(Path(sys.argv[1]))
expect_store_error("must lie on one file system", lambda: records.write("state/a", b"1"))
print("done")
"""


def expect_store_error(said: str, act: Callable[[], object]) -> None:
    with pytest.raises(StoreError, match=said):
        act()


def run_with_small_disk(mount_at: Path, script: str, *arguments: str) -> None:
    """Run the script with a disk of 300 kB at a place, which is gone with the script. Needs the right to mount."""
    mount_at.mkdir(parents=True)
    mount = 'mount -t tmpfs -o size=300k,mode=0700 tmpfs "$0" || exit 77; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, str(mount_at), sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("no right to mount here")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@as_root
@pytest.mark.system
@pytest.mark.parametrize("keys", [[], ["0f" * 32]], ids=["plain", "sealed"])
def test_on_a_disk_that_is_really_full_nothing_is_lost(tmp_path: Path, keys: list[str]) -> None:
    FileStore(tmp_path / "disk-source").put("one", ONE)
    run_with_small_disk(tmp_path / "disk", FILL_THE_DISK, str(tmp_path / "disk"), *keys)


@as_root
@pytest.mark.system
def test_folders_on_two_file_systems_are_refused(tmp_path: Path) -> None:
    FileStore(tmp_path / "store").close()
    run_with_small_disk(tmp_path / "store" / "state", OTHER_FILE_SYSTEM, str(tmp_path / "store"))
