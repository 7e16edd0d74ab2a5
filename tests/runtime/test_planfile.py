"""The file that keeps what operators have said: there whole or not at all, of its owner, and not believed blindly."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tlsproxy.errors import StoreError
from tlsproxy.runtime import planfile
from tlsproxy.runtime.messages import BackendPlan
from tlsproxy.runtime.planfile import PlanFile, decode, encode
from tlsproxy.store.base import open_store

STATE = BackendPlan(
    drained=("unix:/run/a.sock",),
    swapped={"a.test /": ("http://10.0.0.2:80",)},
    paused={"a.test": 1000.5},
    key="00ff",
    instead_of={"a.test /": ("http://10.0.0.1:80",)},
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A store, as the certifier has made it."""
    path = tmp_path / "store"
    open_store(f"file://{path}", []).close()
    return path


def file_in(directory: Path) -> PlanFile:
    return PlanFile(f"file://{directory}")


def test_what_was_saved_is_read_again_by_the_next_one(directory: Path) -> None:
    file_in(directory).save(STATE)
    assert file_in(directory).load() == STATE
    file_in(directory).save(BackendPlan())
    assert file_in(directory).load() == BackendPlan()


def test_only_its_owner_can_read_it(directory: Path) -> None:
    """The key in it makes cookies."""
    file_in(directory).save(STATE)
    path = directory / "plan" / "backends.json"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)


def test_the_store_is_one_still(directory: Path) -> None:
    file_in(directory).save(STATE)
    open_store(f"file://{directory}", []).close()


def test_no_store_and_no_file_are_no_state(tmp_path: Path, directory: Path) -> None:
    assert file_in(tmp_path / "none").load() == BackendPlan()
    assert file_in(directory).load() == BackendPlan()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"form": 2}',
        b'{"form": 1}',
        encode(STATE)[:100],
        encode(STATE).replace(b"http://10.0.0.2:80", b"ftp://10.0.0.2"),
        encode(STATE).replace(b"unix:/run/a.sock", b"https://a.test"),
        encode(STATE).replace(b'"00ff"', b'"secret"'),
        encode(STATE).replace(b"1000.5", b'"soon"'),
        b"[" * 100_000,
    ],
)
def test_what_is_no_state_is_said_and_ignored(
    content: bytes, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file_in(directory).save(STATE)
    (directory / "plan" / "backends.json").write_bytes(content)
    assert file_in(directory).load() == BackendPlan()
    assert [record.message for record in caplog.records] == ["backends.state_unreadable"]
    assert "secret" not in str(vars(caplog.records[0]))


def test_a_file_without_end_does_not_fill_the_memory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planfile, "MOST", 100_000)
    file_in(directory).save(STATE)
    with (directory / "plan" / "backends.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert file_in(directory).load() == BackendPlan()


def test_no_link_is_followed_to_read_or_to_write(directory: Path, tmp_path: Path) -> None:
    """Whoever owns the store could have root read, or overwrite, what is root's."""
    victim = tmp_path / "victim"
    victim.write_bytes(encode(STATE))
    file_in(directory).save(BackendPlan())
    link = directory / "plan" / "backends.json"
    link.unlink()
    link.symlink_to(victim)
    assert file_in(directory).load() == BackendPlan()
    file_in(directory).save(BackendPlan(key="11"))
    assert victim.read_bytes() == encode(STATE)
    assert not link.is_symlink()


def test_a_linked_folder_is_refused(directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (directory / "plan").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="symbolic link"):
        file_in(directory).save(STATE)
    assert list(elsewhere.iterdir()) == []


def test_who_dies_while_writing_leaves_the_old_state(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_in(directory).save(STATE)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        file_in(directory).save(BackendPlan())
    monkeypatch.undo()
    assert file_in(directory).load() == STATE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_leaves_the_file_to_the_owner_of_the_store(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        os.chown(path, 12345, 12345)
    file_in(directory).save(STATE)
    for path in (directory / "plan", directory / "plan" / "backends.json", directory / "lock"):
        assert path.stat().st_uid == 12345, path
    assert file_in(directory).load() == STATE


def test_a_store_that_keeps_nothing_says_so() -> None:
    file = PlanFile("memory:")
    assert (file.load(), file.path) == (BackendPlan(), None)
    with pytest.raises(StoreError, match="forgotten when the proxy ends"):
        file.save(STATE)


def test_a_store_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        file_in(tmp_path / "none").save(STATE)


def test_the_form_is_for_people_too() -> None:
    assert json.loads(encode(STATE))["swapped"] == {"a.test /": ["http://10.0.0.2:80"]}
    assert decode(encode(STATE)) == STATE
