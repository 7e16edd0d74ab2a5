"""The admin socket: nobody else may connect, a live one is never replaced, a dead one is, only ours is removed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tlsproxy.runtime import adminsocket
from tlsproxy.runtime.adminsocket import AdminSocket, AdminSocketError, connect_admin_socket, open_admin_socket


@contextlib.contextmanager
def opened(path: Path) -> Iterator[AdminSocket]:
    admin = asyncio.run(open_admin_socket(path))
    with admin.socket:
        yield admin
        admin.remove()


def answers(path: Path) -> bool:
    with contextlib.suppress(OSError):
        connect_admin_socket(path, 5).close()
        return True
    return False


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """What a proxy leaves behind that was killed."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


def test_it_is_for_its_user_alone_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    path = tmp_path / "admin.sock"
    bind = socket.socket.bind

    def look(self: socket.socket, name: str) -> None:
        bind(self, name)
        modes.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(socket.socket, "bind", look)
    before = os.umask(0)
    try:
        with opened(path):
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_it_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with opened(path) as admin:
        assert answers(path)
        assert repr(admin) == f"<AdminSocket {path}>"
    assert list(tmp_path.iterdir()) == []
    admin.remove()


@pytest.mark.parametrize(("user", "mode"), [(0, 0o755), (1000, 0o700)])
def test_its_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, mode: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with opened(tmp_path / "run" / "admin.sock"):
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == mode


@pytest.mark.parametrize("length", [107, 108, 250])
def test_a_path_may_be_long(tmp_path: Path, length: int) -> None:
    folder = tmp_path / ("f" * (length - len(str(tmp_path)) - len("//admin.sock")))
    path = folder / "admin.sock"
    assert len(str(path)) == length
    with opened(path):
        assert answers(path)
    assert list(folder.iterdir()) == []
    assert not answers(path)


def test_a_name_may_not(tmp_path: Path) -> None:
    with pytest.raises(AdminSocketError, match="the name is too long"):
        asyncio.run(open_admin_socket(tmp_path / ("s" * 120)))


def test_a_dead_one_is_replaced(dead: Path) -> None:
    assert not answers(dead)
    with opened(dead):
        assert answers(dead)


def test_a_dead_one_on_a_long_path_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("f" * 200) / "admin.sock"
    with opened(path) as admin:
        admin.socket.close()
        with opened(path):
            assert answers(path)


def test_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with opened(path):
        with pytest.raises(AdminSocketError, match="in use by another running proxy"):
            asyncio.run(open_admin_socket(path))
        assert answers(path)


def test_one_that_is_too_busy_to_answer_is_alive(dead: Path) -> None:
    dead.unlink()
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as waiting:
        busy.bind(str(dead))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10):
                waiting.enter_context(connect_admin_socket(dead, 0))
        with pytest.raises(AdminSocketError, match="in use"):
            asyncio.run(open_admin_socket(dead))


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "admin.sock"
    make(path)
    with pytest.raises(AdminSocketError, match="is no socket"):
        asyncio.run(open_admin_socket(path))
    assert path.exists()


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AdminSocketError, match="cannot be made there"):
        asyncio.run(open_admin_socket(tmp_path / "file" / "admin.sock"))


def test_one_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with opened(path) as admin:
        path.unlink()
        path.touch()
        admin.remove()
        assert path.exists()


def test_two_at_once_make_one(dead: Path) -> None:
    async def both() -> list[AdminSocket | BaseException]:
        return await asyncio.gather(*(open_admin_socket(dead) for _ in range(2)), return_exceptions=True)

    made = asyncio.run(both())
    (winner,) = (each for each in made if isinstance(each, AdminSocket))
    assert sum(isinstance(each, AdminSocketError) for each in made) == 1
    with winner.socket:
        assert answers(dead)


def test_a_folder_that_somebody_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adminsocket, "_LOCK_TIME", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(AdminSocketError, match="another process has locked the folder"):
            asyncio.run(open_admin_socket(tmp_path / "admin.sock"))
    finally:
        os.close(descriptor)
    with opened(tmp_path / "admin.sock"):
        pass
