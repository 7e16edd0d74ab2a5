"""Clients that leave, stall, dribble or talk nonsense to a running proxy (docs/faults.md): they cost nobody else."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import trustme

from tests.fakes.backend import Backend
from tests.fakes.peer import CUT, Peer
from tests.system.conftest import StartProxy
from tests.system.pressure import cpu_seconds, descriptors, resident, threads
from tests.system.running import CLIENT, PATIENCE, Proxy, until, write_pair

pytestmark = pytest.mark.system

GET = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1 << 20


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


@pytest.fixture
def start(start_proxy: StartProxy, tmp_path: object, authority: trustme.CA) -> Callable[..., Proxy]:
    def start(url: str, head: str = "") -> Proxy:
        pair = write_pair(tmp_path, authority, "localhost")  # type: ignore[arg-type]
        return start_proxy(
            f"""
            [[sites]]
            hosts = ["localhost"]
            certificate = {pair}
            backends = ["{url}"]
            """,
            head=head,
        )

    return start


def dial(proxy: Proxy) -> Peer:
    return Peer(socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, (CLIENT, 0)))


class TestLeaving:
    """Row 13."""

    COUNT = 40

    @pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
    def test_during_a_slow_call_stops_the_work_for_it(
        self, start: Callable[..., Proxy], backend: Backend, leave: Callable[[Peer], None]
    ) -> None:
        """The application sees its connection end at once; descriptors and threads are back where they were."""
        proxy = start(backend.url)
        (worker,) = proxy.workers()
        before = descriptors(worker), threads(worker)
        clients, calls = [], []
        for number in range(self.COUNT):
            clients.append(Peer(proxy.open()))
            clients[-1].send(GET % number)
            calls.append(backend.accept())
            calls[-1].message()
        assert descriptors(worker) >= before[0] + 2 * self.COUNT
        began = time.monotonic()
        for client in clients:
            leave(client)
        assert all(call.has_ended() for call in calls)
        took = time.monotonic() - began
        print(f"{self.COUNT} backends saw it within {took * 1000:.0f} ms")
        assert took < 1
        until(lambda: (descriptors(worker), threads(worker)) <= before, "everything is let go of")
        assert proxy.logged(path=f"/{self.COUNT - 1}")["status"] == 499

    def test_while_the_backend_is_being_connected_leaves_nothing(self, start: Callable[..., Proxy]) -> None:
        """The connects are given up too: long before connect_timeout their descriptors are free."""
        with socket.socket() as hole, contextlib.ExitStack() as stack:
            hole.bind(("127.0.0.1", 0))
            hole.listen(0)
            stack.enter_context(socket.create_connection(hole.getsockname()))
            url = f"http://127.0.0.1:{hole.getsockname()[1]}"
            proxy = start(url, 'limits = { connect_timeout = "60s" }')
            (worker,) = proxy.workers()
            before = descriptors(worker)
            clients = [Peer(proxy.open()) for _ in range(self.COUNT)]
            for number, client in enumerate(clients):
                client.send(GET % number)
            until(lambda: descriptors(worker) >= before + 2 * self.COUNT, "all are being connected")
            for client in clients:
                client.reset()
            until(lambda: descriptors(worker) <= before, "everything is let go of", 5)

    def test_in_the_middle_of_an_upload_never_looks_like_its_end(
        self, start: Callable[..., Proxy], backend: Backend
    ) -> None:
        proxy = start(backend.url)
        client = Peer(proxy.open())
        client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        call = backend.accept()
        call.until(b"half")
        client.close()
        with contextlib.suppress(*CUT):
            assert b"0\r\n" not in call.rest()


class TestStalling:
    """Rows 14 to 16, one client each; many of them are in test_load."""

    LIMITS = 'limits = { header_timeout = "1s", body_idle = "1s", write_idle = "1s", handshake_timeout = "1s" }'

    def test_in_the_handshake_and_in_the_head(self, start: Callable[..., Proxy], backend: Backend) -> None:
        proxy = start(backend.url, self.LIMITS)
        slow, client = dial(proxy), Peer(proxy.open())
        with contextlib.closing(slow), contextlib.closing(client):
            slow.send(b"\x16\x03\x01\x02\x00\x01")
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            assert client.message().status == 408
            assert self._ended_after(client) < 0.5
            assert self._ended_after(slow) < 1.5
        assert not backend.is_called(0)

    def test_in_the_body_gives_its_backend_free(self, start: Callable[..., Proxy], backend: Backend) -> None:
        proxy = start(backend.url, self.LIMITS)
        client = Peer(proxy.open())
        with contextlib.closing(client):
            client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
            call = backend.accept()
            call.until(b"half")
            assert client.message().status == 408
            assert call.has_ended()
        assert "body_idle" in proxy.logged(status=408)["error"]

    def test_in_reading_its_answer(self, start: Callable[..., Proxy], backend: Backend) -> None:
        """Memory holds a few buffers, the backend waits, and after write_idle both are let go of."""
        proxy = start(backend.url, self.LIMITS)
        (worker,) = proxy.workers()
        client = Peer(proxy.open())
        with contextlib.closing(client):
            client.send(GET % 1)
            call = backend.accept()
            call.message()
            before = resident(worker)
            call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
            sent = call.push(bytes(MIB), 64 * MIB)
            grown = resident(worker) - before
            print(f"stuck at {sent / MIB:.1f} MiB, grown by {grown / MIB:.1f} MiB")
            assert sent < 32 * MIB
            assert grown < 4 * MIB
            assert call.has_ended()
            raw = socket.socket(
                fileno=client.sock.detach()
            )  # below TLS, where a reset can't be taken for anything else
        with raw, pytest.raises(ConnectionResetError):
            self._drain(raw)

    @staticmethod
    def _drain(raw: socket.socket) -> None:
        while raw.recv(MIB):
            pass

    @staticmethod
    def _ended_after(client: Peer) -> float:
        began = time.monotonic()
        assert client.has_ended()
        return time.monotonic() - began


class TestNonsense:
    """Rows 42 and 43. Single cases, byte by byte, are in test_bad_inputs and tests/proxy/test_tls.py."""

    CASES = {  # noqa: RUF012
        "SSLv2 hello": (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), b"\x15\x03\x03\x00\x02\x02\x46"),
        "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x03\x00\x02\x02\x0a"),
        "zeros": (bytes(100), b"\x15\x03\x03\x00\x02\x02\x0a"),
        "plain HTTP": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
    }

    def test_is_answered_and_ends_there(self, start: Callable[..., Proxy], backend: Backend) -> None:
        proxy = start(backend.url)
        for what, (data, answer) in self.CASES.items():
            with contextlib.closing(dial(proxy)) as client:
                client.send(data)
                assert client.rest().startswith(answer), what

    def test_in_masses_fills_no_log(self, start: Callable[..., Proxy], backend: Backend) -> None:
        """300 of them in a moment: a few lines and a count, no trace of ours, and the next client is served."""
        proxy = start(backend.url)
        (worker,) = proxy.workers()
        before = descriptors(worker)
        began, spent = time.monotonic(), cpu_seconds(worker)
        for number in range(300):
            with contextlib.closing(dial(proxy)) as client:
                client.send(os.urandom(40) if number % 3 else bytes(40))
                with contextlib.suppress(*CUT):
                    client.sock.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        client.rest()
        took = time.monotonic() - began

        def counted() -> bool:
            more = sum(event["more"] for event in proxy.events if event["event"] == "tls.handshakes_failed")
            return bool(more + proxy.count("tls.handshake_failed") >= 290)

        until(counted, "all are counted")
        lines = proxy.count("tls.handshake_failed") + proxy.count("tls.handshakes_failed")
        print(f"300 in {took:.1f} s: {lines} lines, {(cpu_seconds(worker) - spent) * 1000:.0f} ms of CPU")
        assert lines <= 7 * (took / 0.5 + 3)
        until(lambda: descriptors(worker) <= before, "everything is let go of")
        client = Peer(proxy.open())
        with contextlib.closing(client):
            client.send(GET % 1)
            assert backend.accept().message().target == b"/1"

    @pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
    def test_openssl_is_told_why(self, start: Callable[..., Proxy], backend: Backend) -> None:
        proxy = start(backend.url)
        cases = {
            "unrecognized name": ["-servername", "other.test"],
            "protocol version": ["-servername", "localhost", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
            "handshake failure": ["-servername", "localhost", "-tls1_2", "-cipher", "AES128-SHA"],
            "no application protocol": ["-servername", "localhost", "-alpn", "spdy/3"],
        }
        for alert, options in cases.items():
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxy.port}", *options]
            said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
            assert alert in said.stderr
            assert "SSL alert number" in said.stderr
            assert "unexpected eof" not in said.stderr


def test_a_client_that_gives_up_and_comes_back_finds_everything_as_before(
    start: Callable[..., Proxy], backend: Backend
) -> None:
    """500 half requests, each dropped: neither memory nor descriptors tell of them afterwards."""
    proxy = start(backend.url)
    (worker,) = proxy.workers()

    def drop(count: int) -> None:
        for number in range(count):
            client = Peer(proxy.open())
            client.send((GET % number)[: 10 + number % 25])
            client.close() if number % 2 else client.reset()

    drop(200)
    before, memory = descriptors(worker), resident(worker)
    drop(500)
    until(lambda: descriptors(worker) <= before, "everything is let go of")
    print(f"grown by {(resident(worker) - memory) / 1024:.0f} KiB")
    assert resident(worker) - memory < 2 * MIB
    with contextlib.closing(http.client.HTTPConnection("localhost")) as client:
        client.sock = proxy.open()
        client.request("GET", "/")
        backend.accept().message()
