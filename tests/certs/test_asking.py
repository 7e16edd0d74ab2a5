"""The question to the application, against a real one and against sockets that misbehave."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.store.pki import issue, write_pair
from tests.system.running import Server, free_port
from tlsproxy.certs.asking import TEXT_LIMIT, Answer, Asker, Askers

PATH = "/may-have-certificate"


@pytest.fixture(scope="module", params=["http", "unix"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A FastAPI application behind uvicorn, as backends are named in the configuration."""
    folder = tmp_path_factory.mktemp("asked")
    port, path = free_port(), folder / "app.sock"
    place = ["--port", str(port)] if request.param == "http" else ["--uds", str(path)]
    address = f"http://127.0.0.1:{port}" if request.param == "http" else f"unix:{path}"
    options = ["--forwarded-allow-ips", "*", "--timeout-graceful-shutdown", "1"]
    command = [sys.executable, "-m", "uvicorn", "tests.certs.asked:app", *place, *options]
    server = Server(command, address, folder / "log")
    yield address
    server.stop()


@pytest.mark.system
def test_the_application_is_asked(backend: str) -> None:
    asker = Asker(PATH, backend)
    assert asker("shop.example.com", "192.0.2.7") == Answer(200, "")
    assert asker("other.example.com", "192.0.2.7") == Answer(404, "no customer of ours")
    assert asker("broken.example.com", "192.0.2.7") == Answer(500, "no database")
    assert asker("long.example.com", "192.0.2.7") == Answer(404, "x" * TEXT_LIMIT)


@pytest.mark.system
def test_the_question_tells_name_and_client(backend: str) -> None:
    answer = Asker(f"{PATH}?key=1", backend)("echo.example.com", "2001:db8::7")
    host = "localhost" if backend.startswith("unix") else backend.removeprefix("http://")
    assert answer == Answer(403, f"2001:db8::7 key=1&domain=echo.example.com&client_ip=2001%3Adb8%3A%3A7 {host}")


@pytest.mark.system
def test_no_redirect_is_followed(backend: str) -> None:
    assert Asker(PATH, backend)("moved.example.com", "192.0.2.7").status == 307


@pytest.mark.system
@pytest.mark.parametrize("backend", ["http"], indirect=True)
def test_a_url_is_asked_as_it_is(backend: str) -> None:
    # Without X-Forwarded-Proto this application redirects: a URL says itself how it wants to be asked.
    assert Asker(f"{backend}{PATH}")("shop.example.com", "192.0.2.7").status == 307


@pytest.mark.system
def test_who_does_not_answer(backend: str) -> None:
    assert Asker(PATH, backend, timeout=0.3)("slow.example.com", "192.0.2.7") == Answer(None, "no answer within 0.3 s")


# --- what is no application


@contextmanager
def saying(*parts: bytes, hold: bool = False) -> Iterator[str]:
    """A server that says this to its first client, and then closes or says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                for part in parts:
                    connection.sendall(part)
                if hold:
                    done.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        thread.join()


def ask(backend: str, timeout: float = 5.0) -> Answer:
    return Asker(PATH, backend, timeout=timeout)("shop.example.com", "192.0.2.7")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "the answer is not HTTP ("),
        ([b"HTTP/1.1 200 OK\r\nA: " + b"a" * 20_000], "the answer is not HTTP ("),
        ([], "the answer is not HTTP ("),
        ([b"HTTP/1.1 200"], "the answer is not HTTP ("),
    ],
)
def test_what_is_no_answer(parts: list[bytes], reason: str) -> None:
    with saying(*parts) as backend:
        answer = ask(backend)
    assert answer.status is None
    assert answer.text.startswith(reason)


def test_a_head_is_enough() -> None:
    head = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 99\r\n\r\nno "
    with saying(head, b"way", hold=True) as backend:
        assert ask(backend, timeout=0.3) == Answer(403, "no way")


def test_a_head_that_never_ends_has_a_deadline() -> None:
    with saying(b"HTTP/1.1 200 OK\r\nA: b", hold=True) as backend:
        assert ask(backend, timeout=0.3) == Answer(None, "no answer within 0.3 s")


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert ask(f"http://127.0.0.1:{closed.getsockname()[1]}") == Answer(None, "Connection refused")
    assert ask(f"unix:{tmp_path}/gone.sock") == Answer(None, "No such file or directory")
    assert ask("http://no-such-host.invalid:80").status is None


def test_a_certificate_of_nobody_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, issue("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        answer = Asker(f"https://localhost:{listener.getsockname()[1]}/ask")("shop.example.com", "192.0.2.7")
        thread.join()
    assert answer.status is None
    assert answer.text.startswith("its TLS certificate is not trusted (self-signed certificate")


def test_the_next_backend_is_asked_where_nobody_listens() -> None:
    down = [f"http://127.0.0.1:{free_port()}", "unix:/no/where"]
    with saying(b"HTTP/1.1 200 OK\r\n\r\n") as backend:
        assert Askers(PATH, [*down, backend])("shop.example.com", "192.0.2.7").status == 200
    answer = Askers(PATH, down)("shop.example.com", "192.0.2.7")
    assert (answer.status, answer.text) == (None, "No such file or directory")
    assert repr(Askers("https://app.example/ask", down)) == "<Askers [<Asker app.example/ask>]>"


def test_who_is_slow_or_says_no_is_not_passed_by() -> None:
    """Only who is certainly down: else an application that hangs would cost its timeout once for each backend."""
    nobody = f"http://127.0.0.1:{free_port()}"
    with saying(hold=True) as slow:
        assert Askers(PATH, [slow, nobody], timeout=0.2)("a.example.com", "192.0.2.7").text == "no answer within 0.2 s"
    with saying(b"HTTP/1.1 503 No\r\n\r\n") as broken:
        assert Askers(PATH, [broken, nobody])("a.example.com", "192.0.2.7").status == 503
