"""After a rotation root makes the log's file for the user, and only where that user decides nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlsproxy.runtime.rotation import LogMaker
from tlsproxy.settings import Settings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Root's, below a folder where everybody may write."""
    with tempfile.TemporaryDirectory(prefix="tlsproxy-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def maker(access: Path | str, user: str = "nobody") -> LogMaker:
    return LogMaker(Settings.model_validate({"log": {"access": str(access)}, "server": {"user": user}}))


def test_a_missing_file_is_made_for_the_user_and_one_that_is_there_left_alone(folder: Path) -> None:
    log = folder / "access.log"
    making = maker(log)
    making.make()
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (NOBODY, 0o640)
    log.write_text("a line")
    making.make()
    assert log.read_text() == "a line"


def test_what_is_no_file_or_nobody_else_s_is_not_made(folder: Path) -> None:
    for making in (maker("-"), maker("off"), maker(folder / "access.log", user="")):
        making.make()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o555])
def test_nothing_is_made_where_the_user_decides(folder: Path, mode: int) -> None:
    """The folder could be a link to another one in the next moment."""
    own = folder / "own"
    (own / "logs").mkdir(parents=True)
    own.chmod(mode)
    os.chown(own, NOBODY, NOBODY)
    maker(own / "logs" / "access.log").make()
    assert list((own / "logs").iterdir()) == []


def test_a_folder_for_everybody_is_the_user_s_too(folder: Path) -> None:
    folder.chmod(0o1777)
    maker(folder / "access.log").make()
    assert list(folder.iterdir()) == []


def test_a_link_that_came_later_leads_nowhere(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    (folder / "logs").symlink_to("one")
    making = maker(folder / "logs" / "access.log")
    (folder / "logs").unlink()
    (folder / "logs").symlink_to("two")
    making.make()
    assert [path.name for path in folder.rglob("access.log")] == ["access.log"]
    assert (folder / "one" / "access.log").exists()


def test_a_folder_that_is_gone_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    maker(folder / "gone" / "access.log").make()
    [record] = caplog.records
    assert record.message == "access_log.not_made"
