"""Accounts and stores are judged before anything starts; a drop is for good. Dropping needs root and a fork."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tlsproxy.runtime import privileges
from tlsproxy.runtime.privileges import Account, PrivilegeError, find_account, prepare_log, prepare_store

ME = pwd.getpwuid(os.geteuid()).pw_name
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
NOBODY = Account("nobody", 65534, 65534, (65534,))


def _only_closed_is(folder: Path) -> Callable[[Path], os.stat_result]:
    """Every folder is open but one: where the tests run must not matter."""

    def stat(path: Path) -> os.stat_result:
        mode = 0o40700 if path == folder else 0o40755
        return os.stat_result((mode, 0, 0, 1, 0, 0, 0, 0, 0, 0))

    return stat


def test_nobody_asked_for_or_already_there_is_nothing_to_do() -> None:
    assert find_account("") is None
    assert find_account(ME) is None


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(PrivilegeError, match='there is no user "no-such-user"'):
        find_account("no-such-user")


def test_only_root_can_become_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PrivilegeError, match='only root can become "root", this is uid 12345'):
        find_account("root")


@needs_root
def test_a_missing_store_is_made_for_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "store"
    prepare_store(f"file://{folder}", NOBODY)
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (NOBODY.uid, 0o700)
    prepare_store(f"file://{folder}", NOBODY)


@needs_root
def test_a_store_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(PrivilegeError, match=f"chown -R nobody {tmp_path}"):
        prepare_store(f"file://{tmp_path}", NOBODY)
    assert tmp_path.stat().st_uid == 0


def test_other_stores_are_not_directories() -> None:
    prepare_store("memory:", NOBODY)


def test_a_program_that_the_user_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(os, "__file__", str(closed / "python" / "os.py"))
    monkeypatch.setattr(Path, "stat", _only_closed_is(closed))
    with pytest.raises(PrivilegeError, match=f"because {closed} is closed"):
        privileges.check_interpreter(NOBODY)


@needs_root
def test_a_missing_log_is_made_for_the_user(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    prepare_log(str(log), NOBODY)
    assert log.stat().st_uid == NOBODY.uid
    prepare_log(str(log), NOBODY)
    prepare_log("-", NOBODY)
    with pytest.raises(PrivilegeError, match=r"log\.access: cannot create"):
        prepare_log(str(tmp_path / "missing" / "access.log"), NOBODY)


DROP_AND_REPORT = """
import os, sys
from tlsproxy.runtime.privileges import drop_privileges
drop_privileges(sys.argv[1])
status = open("/proc/self/status").read().splitlines()
for line in status:
    if line.split(":")[0] in ("Uid", "Gid", "Groups", "NoNewPrivs", "CapPrm", "CapEff"):
        print(" ".join(line.split()))
try:
    os.setresuid(0, 0, 0)
except PermissionError:
    print("stays")
"""


@needs_root
@pytest.mark.system
def test_a_drop_is_complete_and_for_good() -> None:
    report = subprocess.run(
        [sys.executable, "-c", DROP_AND_REPORT, "nobody"], capture_output=True, text=True, timeout=30, check=True
    ).stdout.splitlines()
    assert "Uid: 65534 65534 65534 65534" in report
    assert "Gid: 65534 65534 65534 65534" in report
    assert "Groups: 65534" in report
    assert "NoNewPrivs: 1" in report
    assert "CapPrm: 0000000000000000" in report
    assert "CapEff: 0000000000000000" in report
    assert report[-1] == "stays"


@needs_root
def test_a_drop_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "_become", lambda account: None)
    with pytest.raises(PrivilegeError, match="did not hold"):
        privileges.drop_privileges("nobody")
