"""What keeps a start from succeeding is found before it, and named by file and line; nothing is made by looking."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.store.pki import issue, write_pair
from tlsproxy.errors import ConfigError
from tlsproxy.runtime import preflight, privileges
from tlsproxy.settings import load

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have the rights of somebody else")
NOBODY = privileges.Account("nobody", 65534, 65534, (65534,))

Inspect = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that every user can enter."""
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    return tmp_path


@pytest.fixture
def inspect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """Return what preflight has against this configuration. Where Python lies on this machine must not matter."""
    monkeypatch.setattr(privileges, "check_interpreter", lambda account: None)

    def inspect(
        *,
        access: str = "off",
        user: str = "",
        store: str = "store",
        certificate: str = "internal",
        acting_as: AbstractContextManager[None] | None = None,
    ) -> list[str]:
        lines = [
            f'log.access = "{access}"',
            f'server.user = "{user}"',
            f'store.url = "file:{store}"',
            "[[sites]]",
            'hosts = ["a.test"]',
            'backends = ["127.0.0.1:8000"]',
            f"certificate = {certificate if certificate[0] == '{' else repr(certificate)}",
        ]
        config = folder / "t.toml"
        config.write_text("\n".join(lines))
        loaded = load(config, {}, {})
        try:
            with acting_as or nullcontext():
                preflight.inspect(loaded)
        except ConfigError as error:
            return str(error).replace(f"{folder}/", "").splitlines()
        return []

    return inspect


def test_nothing_is_made_by_looking(inspect: Inspect, folder: Path) -> None:
    assert inspect(access="access.log", store="some/where") == []
    assert [path.name for path in folder.iterdir()] == ["t.toml"]


def test_a_log_that_is_there_is_left_as_it_is(inspect: Inspect, folder: Path) -> None:
    (folder / "access.log").write_text("before")
    assert inspect(access="access.log") == []
    assert (folder / "access.log").read_text() == "before"


@pytest.mark.parametrize(
    ("access", "said"),
    [
        ("gone/access.log", "there is no folder gone; create it (mkdir -p gone), or write"),
        (".", "is a directory; name a file in it"),
        ("t.toml/access.log", "t.toml/access.log can't be opened (Not a directory)"),
        ("", 'write "-" for stdout, a path, or "off"'),
        ("/dev/full", ""),
        ("-", ""),
    ],
)
def test_the_access_log_is_tried(inspect: Inspect, access: str, said: str) -> None:
    problems = inspect(access=access)
    assert len(problems) == bool(said)
    assert not said or (problems[0].startswith("t.toml:1: log.access: ") and said in problems[0])


def test_a_pipe_that_nobody_reads_yet_is_a_log(inspect: Inspect, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert inspect(access="pipe") == []


def test_a_store_that_can_not_be_one(inspect: Inspect, folder: Path) -> None:
    (problem,) = inspect(store="t.toml")
    assert problem.startswith("t.toml:3: store.url: t.toml: the certificate store can't be opened (Not a directory).")
    (folder / "open").mkdir()
    (folder / "open" / "mine").touch()
    (problem,) = inspect(store="open")
    assert "other users can enter this directory" in problem


def test_a_user_that_is_not_there(inspect: Inspect) -> None:
    (problem,) = inspect(user="no-such-user")
    assert problem.startswith('t.toml:2: server.user: there is no user "no-such-user"')


def test_a_user_that_only_root_can_become(inspect: Inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (problem,) = inspect(user="root")
    assert problem.startswith('t.toml:2: server.user: only root can become "root"')


@needs_root
def test_files_are_tried_with_the_rights_of_the_user(inspect: Inspect, folder: Path) -> None:
    write_pair(folder, issue("a.test"))
    (folder / "chain.pem").chmod(0o644)
    (folder / "access.log").touch(0o600)
    (folder / "store").mkdir(mode=0o700)
    log, key, store = inspect(
        access="access.log", user="nobody", certificate='{ chain = "chain.pem", key = "key.pem" }'
    )[:3]
    assert log.startswith("t.toml:3: store.url: store cannot be written by server.user. Run: chown -R nobody ")
    assert key.startswith("t.toml:1: log.access: user nobody may not write access.log; give the file")
    assert store.startswith("t.toml:7: sites.0.certificate: key.pem: user nobody may not read it (mode 0600")
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert (folder / "access.log").stat().st_uid == (folder / "store").stat().st_uid == 0


@needs_root
def test_what_root_will_make_for_the_user_is_no_problem(inspect: Inspect, folder: Path) -> None:
    assert inspect(user="nobody", access="access.log", store="some/where") == []
    (folder / "closed").mkdir(mode=0o700)
    store, log = inspect(user="nobody", access="closed/access.log", store="closed/store")
    assert "t.toml:3: store.url: closed/store: the certificate store can't be opened (Permission denied)" in store
    assert "t.toml:1: log.access: user nobody may not write closed/access.log" in log


@needs_root
def test_a_python_that_the_user_can_not_read(inspect: Inspect, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(account: privileges.Account) -> None:
        raise privileges.PrivilegeError(f"server.user: {account.name} cannot read the program")

    monkeypatch.setattr(privileges, "check_interpreter", refuse)
    assert inspect(user="nobody") == ["t.toml:2: server.user: nobody cannot read the program"]


@needs_root
def test_the_rights_of_somebody_else_are_given_back_after_a_failure() -> None:
    before = os.getgroups(), os.getegid(), os.geteuid()
    with pytest.raises(FileNotFoundError, match=r"gone-65534-65534-\[65534\]"), privileges.acting_as(NOBODY):
        Path(f"/gone-{os.geteuid()}-{os.getegid()}-{os.getgroups()}").stat()
    assert (os.getgroups(), os.getegid(), os.geteuid()) == before


def test_a_folder_of_somebody_else(inspect: Inspect) -> None:
    """As an ordinary user: root would be allowed everything."""
    nobody = privileges.acting_as(NOBODY) if os.geteuid() == 0 else None
    (store, log) = inspect(access="/access.log", store="/store", acting_as=nobody)
    assert "t.toml:3: store.url: /store: the certificate store can't be opened (Permission denied)" in store
    assert log.startswith("t.toml:1: log.access: user ")
