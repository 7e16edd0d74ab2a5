"""The way to a CA: calls that end in time whatever the other side does, and errors that say what is wrong."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs import transport
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.session import AcmeSession

pytestmark = pytest.mark.system  # no process, but it moves much and waits long

LIMIT = 0.3
SLACK = 1.5
"""Seconds beyond the limit that a busy machine may take to notice. A rule that counts per packet would take minutes."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Talk = Callable[[socket.socket, threading.Event], None]


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as running:
        yield running


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[trustme.CA, str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    return authority, str(tmp_path / "root.pem")


def failing(directory: str, ca_bundle: str = "", timeout: float = LIMIT) -> AcmeFailure:
    """Return the failure of a call that must end in time."""
    session = AcmeSession(directory, AccountKey.generate(), ca_bundle=ca_bundle, timeout=timeout)
    begun = time.monotonic()
    with pytest.raises(AcmeFailure) as caught:
        session.connect()
    assert time.monotonic() - begun < timeout + SLACK
    session.close()
    assert (caught.value.kind, caught.value.step) == (FailureKind.UNREACHABLE, "directory")
    return caught.value


@contextmanager
def server(talk: Talk, authority: trustme.CA | None = None, names: tuple[str, ...] = ("127.0.0.1",)) -> Iterator[str]:
    """Run `talk` for one connection, under TLS if there is an authority; yield the URL."""
    ended = threading.Event()
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if authority else None
        if authority and context:
            authority.issue_cert(*names).configure_cert(context)

        def serve() -> None:
            try:
                client, _ = listening.accept()
                with client, context.wrap_socket(client, server_side=True) if context else client as wrapped:
                    talk(wrapped, ended)
            except OSError:
                pass  # the client has gone, as it should

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listening.getsockname()[1]}/directory"
        finally:
            ended.set()
            socket.socket.shutdown(listening, socket.SHUT_RDWR)
            thread.join(10)


def in_drops(first: bytes, drop: bytes) -> Talk:
    """Return a server that sends something every 50 ms, for ever."""

    def talk(client: socket.socket, ended: threading.Event) -> None:
        client.recv(10_000)
        client.sendall(first)
        while not ended.wait(0.05):
            client.sendall(drop)

    return talk


def silence(client: socket.socket, ended: threading.Event) -> None:
    ended.wait(30)


# --- time


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(silence, id="nothing at all"),
        pytest.param(in_drops(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), id="headers in drops"),
        pytest.param(in_drops(HEAD + b"Content-Length: 100000\r\n\r\n", b" "), id="body in drops"),
        pytest.param(in_drops(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), id="chunks in drops"),
        pytest.param(in_drops(HEAD + b"Connection: close\r\n\r\n", b" "), id="a body without an end"),
    ],
)
def test_a_call_ends_in_time_however_slowly_the_ca_answers(bundle: tuple[trustme.CA, str], talk: Talk) -> None:
    authority, path = bundle
    with server(talk, authority) as url:
        failure = failing(url, path)
    assert failure.type == "caTimeout"
    assert "does not answer in time" in str(failure)


def test_a_call_ends_in_time_without_a_handshake() -> None:
    with server(silence) as url:
        assert failing(url).type == "caTimeout"


def test_an_answer_without_an_end_is_not_kept(bundle: tuple[trustme.CA, str]) -> None:
    def pour(client: socket.socket, ended: threading.Event) -> None:
        client.recv(10_000)
        client.sendall(HEAD + b"Connection: close\r\n\r\n")
        while not ended.is_set():
            client.sendall(b" " * 65536)

    authority, path = bundle
    with server(pour, authority) as url:
        failure = failing(url, path, timeout=20)
    assert failure.type == "caUnreachable"
    assert f"longer than {transport.LARGEST_ANSWER} bytes" in str(failure)


def test_nonces_and_their_retries_count_into_the_time_of_the_call(ca: CertificateAuthority) -> None:
    """Each of them is quick enough: together they are not."""
    session = AcmeSession(ca.directory, AccountKey.generate(), ca_bundle=str(ca.ca_bundle), timeout=0.5)
    session.connect()
    ca.hangs("nonce")
    begun = time.monotonic()
    with pytest.raises(AcmeFailure) as caught:
        session.register("")
    assert time.monotonic() - begun < 0.5 + SLACK
    assert (caught.value.type, caught.value.step) == ("caTimeout", "account")


def test_a_dead_address_leaves_time_for_the_next(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an AAAA record that leads nowhere. The dead one is a port whose queue is full: Linux drops the SYN."""
    real = socket.getaddrinfo

    def two_addresses(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        hosts = ("127.0.0.2", "127.0.0.1") if host == "localhost" else (host,)
        return [entry for each in hosts for entry in real(each, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    session = AcmeSession(
        f"https://localhost:{ca.port}/directory", AccountKey.generate(), ca_bundle=str(ca.ca_bundle), timeout=1
    )
    with _dead("127.0.0.2", ca.port):
        session.connect()
        begun = time.monotonic()
        assert failing(f"https://127.0.0.2:{ca.port}/", str(ca.ca_bundle)).type == "caTimeout"
        assert time.monotonic() - begun >= LIMIT
    session.close()


@contextmanager
def _dead(address: str, port: int) -> Iterator[None]:
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((address, port))
        full.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


def test_a_session_outlives_a_ca_that_was_away(ca: CertificateAuthority) -> None:
    session = AcmeSession(ca.directory, AccountKey.generate(), ca_bundle=str(ca.ca_bundle), timeout=5)
    session.connect()
    session.register("")
    ca.stop()
    with pytest.raises(AcmeFailure) as caught:
        session.new_order(["a.test"])
    assert caught.value.type == "caUnreachable"
    ca.start()
    session.new_order(["a.test"])
    session.close()
    session.close()


# --- what is wrong


def test_a_refused_connection_says_so(ca: CertificateAuthority) -> None:
    ca.stop()
    failure = failing(ca.directory, str(ca.ca_bundle))
    assert failure.type == "caUnreachable"
    assert str(failure) == (
        f"CA 127.0.0.1:{ca.port}: the CA can't be reached (Connection refused). Check this machine's way to the "
        "internet (firewall, proxy), and acme.directory. It is tried again by itself."
    )


def test_a_connection_that_is_closed_says_so(ca: CertificateAuthority) -> None:
    ca.drops("directory")
    assert failing(ca.directory, str(ca.ca_bundle)).type == "caUnreachable"


@pytest.mark.parametrize("host", ["no-such-ca.invalid", "x" * 64 + ".test"])
def test_a_name_that_is_none_says_so(host: str) -> None:
    failure = failing(f"https://{host}/directory", timeout=20)
    assert failure.type == "caNameUnknown"
    assert f"CA {host}: the name of the CA can't be resolved" in str(failure)


def test_an_untrusted_ca_says_where_its_root_belongs(ca: CertificateAuthority) -> None:
    failure = failing(ca.directory, timeout=5)
    assert failure.type == "caCertificate"
    assert "unable to get local issuer certificate" in failure.detail
    assert "acme.ca_bundle" in str(failure)


def test_a_certificate_of_another_name_says_so(bundle: tuple[trustme.CA, str]) -> None:
    authority, path = bundle
    with server(silence, authority, ("other.test",)) as url:
        failure = failing(url, path)
    assert failure.type == "caCertificate"
    assert "127.0.0.1" in failure.detail


@pytest.mark.parametrize(
    "content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_bundle_that_is_none_says_so(ca: CertificateAuthority, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)
    failure = failing(ca.directory, str(path), timeout=5)
    assert failure.type == "caBundle"
    assert str(path) in str(failure)


@pytest.mark.parametrize("url", ["https://", "ftp://ca.test/", "no url", "https://127.0.0.1:99999/"])
def test_a_url_that_is_none_is_a_failure(url: str) -> None:
    assert "acme.directory" in str(failing(url, timeout=5))


def test_plain_http_on_the_port_is_a_failure() -> None:
    def speak_plainly(client: socket.socket, ended: threading.Event) -> None:
        client.recv(10_000)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with server(speak_plainly) as url:
        assert failing(url, timeout=5).type == "caUnreachable"


def test_a_directory_may_redirect_and_a_signed_request_may_not(ca: CertificateAuthority) -> None:
    """The signature names its URL (RFC 8555 6.4): elsewhere it is worth nothing."""
    ca.fails("directory", status=302, body=b"", headers={"Location": ca.directory})
    session = AcmeSession(ca.directory, AccountKey.generate(), ca_bundle=str(ca.ca_bundle), timeout=5)
    session.connect()
    ca.fails("account", status=307, body=b"", headers={"Location": ca.directory})
    with pytest.raises(AcmeFailure) as caught:
        session.register("")
    assert (caught.value.kind, caught.value.status) == (FailureKind.UNREACHABLE, 307)
    assert ca.count["account"] == 1
    ca.fails("directory", status=302, body=b"", headers={"Location": ca.directory}, times=10)
    assert "redirects" in failing(ca.directory, str(ca.ca_bundle), timeout=5).detail
    session.close()


def test_a_ca_is_reached_through_a_proxy_and_in_time(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def tunnel(client: socket.socket, ended: threading.Event) -> None:
        asked.append(client.recv(10_000).split(b" HTTP/")[0])
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(("127.0.0.1", ca.port)) as behind:
            back = threading.Thread(target=_copy, args=(behind, client))
            back.start()
            _copy(client, behind)
            back.join(10)

    with server(tunnel) as url:
        monkeypatch.setenv("HTTPS_PROXY", url.replace("https:", "http:").removesuffix("/directory"))
        session = AcmeSession(ca.directory, AccountKey.generate(), ca_bundle=str(ca.ca_bundle), timeout=LIMIT)
        session.connect()
        ca.hangs("account")
        begun = time.monotonic()
        with pytest.raises(AcmeFailure) as caught:
            session.register("")
        assert time.monotonic() - begun < LIMIT + SLACK
        assert caught.value.type == "caTimeout"
        session.close()
        ca.stop()
    assert asked == [b"CONNECT 127.0.0.1:%d" % ca.port]


def _copy(source: socket.socket, target: socket.socket) -> None:
    while content := source.recv(65536):
        target.sendall(content)
    target.shutdown(socket.SHUT_WR)
