"""What the commands are told when nobody, a stranger or half a proxy is at the other end of the admin socket."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlsproxy.errors import NotRunning
from tlsproxy.runtime import adminclient
from tlsproxy.runtime.adminclient import AdminClient, AdminError, Done, NoAccess, Progress

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


@contextlib.contextmanager
def someone_who_says(answer: bytes, path: Path, *, then_waits: bool = False) -> Iterator[AdminClient]:
    """Listen at `path`, answer one request with these bytes and close (or keep silent)."""
    asked: list[bytes] = []
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(20)

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                asked.append(client.recv(65536))
                client.sendall(answer)
                if then_waits:
                    done.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield AdminClient(path, patience=0.2 if then_waits else 20)
        finally:
            done.set()
            thread.join(20)
    assert asked[0].startswith((b"GET ", b"POST "))


def whole(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


def test_nobody_is_there(path: Path) -> None:
    with pytest.raises(NotRunning, match=f"there is no admin socket at {path}.*tlsproxy run") as caught:
        AdminClient(path).get("status")
    assert caught.value.exit_code == 3


def test_nobody_is_there_any_more(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning, match=f"nobody listens at {path}"):
        list(AdminClient(path).work("certs", "a.test", "renew"))


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotRunning, match="there is no admin socket"):
        AdminClient(tmp_path / "file" / "admin.sock").get("status")


def test_who_may_not_is_told_how(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, timeout: float) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(adminclient, "connect_admin_socket", refuse)
    with pytest.raises(NoAccess, match=f"{path}: this user may not .*sudo") as caught:
        AdminClient(path).get("status")
    assert caught.value.exit_code == 3


def test_a_name_is_one_segment(path: Path) -> None:
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                asked.append(client.recv(65536))
                client.sendall(whole(200, b"{}"))

        thread = threading.Thread(target=serve)
        thread.start()
        assert AdminClient(path, patience=20).get("certs", "acme/*.ü.test?x#y") == {}
        thread.join(20)
    assert asked[0].startswith(b"GET /certs/acme%2F%2A.%C3%BC.test%3Fx%23y HTTP/1.1\r\nHost: localhost\r\n")


def test_an_error_is_its_sentence(path: Path) -> None:
    with (
        someone_who_says(whole(409, b'{"error": "it is being renewed"}'), path) as client,
        pytest.raises(AdminError, match=r"^it is being renewed$") as caught,
    ):
        client.get("status")
    assert (caught.value.status, caught.value.exit_code) == (409, 1)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"error": ""}'])
def test_an_error_without_one_has_a_sentence_too(path: Path, body: bytes) -> None:
    with someone_who_says(whole(500, body), path) as client, pytest.raises(AdminError, match="refused with status 500"):
        client.get("status")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", whole(200, b"<html>"), b""])
def test_a_stranger_is_told_from_a_proxy(path: Path, answer: bytes) -> None:
    with someone_who_says(answer, path) as client, pytest.raises(AdminError, match="does not speak as the proxy does"):
        client.get("status")


def test_one_who_says_nothing_is_given_up(path: Path) -> None:
    with (
        someone_who_says(b"", path, then_waits=True) as client,
        pytest.raises(AdminError, match=r"has said nothing for 0 s"),
    ):
        client.get("status")


def test_one_who_stops_in_the_middle(path: Path) -> None:
    with someone_who_says(whole(200, b"{}")[:-1], path) as client, pytest.raises(AdminError, match="the proxy ended"):
        client.get("status")


def test_an_answer_has_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adminclient, "MAX_ANSWER", 10)
    with (
        someone_who_says(whole(200, b" " * 11), path) as client,
        pytest.raises(AdminError, match="longer than 10"),
    ):
        client.get("status")


def test_lines_come_one_by_one_however_they_are_cut(path: Path) -> None:
    text = b'{"step":"order","host":"a.test","text":"one"}\n\n{"status":200,"result":{"serial":"0f"}}\n'
    cut = b"".join(chunk(text[start : start + 7]) for start in range(0, len(text), 7))
    with someone_who_says(HEAD + cut + b"0\r\n\r\n", path) as client:
        seen = list(client.work("certs", "a.test", "renew"))
    assert seen == [Progress("order", "a.test", "one"), Done({"serial": "0f"})]


def test_an_error_may_be_the_last_line(path: Path) -> None:
    answer = HEAD + chunk(b'{"status":502,"error":"the CA is busy"}\n') + b"0\r\n\r\n"
    with someone_who_says(answer, path) as client, pytest.raises(AdminError, match="the CA is busy") as caught:
        list(client.work("certs", "a.test", "renew"))
    assert caught.value.status == 502


@pytest.mark.parametrize(("status", "code"), [(400, 2), (422, 2), (409, 1), (500, 1), (503, 1)])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_mistake_is_told_from_bad_luck(path: Path, status: int, code: int, is_stream: bool) -> None:
    """However late the error comes: reloads tell what they read before they know what is wrong with it."""
    body = b'{"status":%d,"error":"no"}\n' % status
    answer = HEAD + chunk(body) + b"0\r\n\r\n" if is_stream else whole(status, body)
    with someone_who_says(answer, path) as client, pytest.raises(AdminError, match=r"^no$") as caught:
        list(client.work("reload"))
    assert (caught.value.status, caught.value.exit_code) == (status, code)


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n", chunk(b'{"st') + b"0\r\n\r\n"])
def test_lines_that_break_off_are_no_success(path: Path, end: bytes) -> None:
    answer = HEAD + chunk(b'{"step":"order","host":"a.test","text":"one"}\n') + end
    with someone_who_says(answer, path) as client, pytest.raises(AdminError, match="the proxy ended"):
        list(client.work("certs", "a.test", "renew"))


def test_its_repr_names_the_path(path: Path) -> None:
    assert repr(AdminClient(path)) == f"<AdminClient {path}>"
