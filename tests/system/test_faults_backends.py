"""Backends that die, hang, vanish and come back behind a running proxy (docs/faults.md).

Real uvicorn where it is about servers that are killed; sockets that do what the test says where it is about bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from tests.fakes.backend import OK, Backend
from tests.fakes.peer import Peer
from tests.system.conftest import StartProxy
from tests.system.pressure import Application, Load, descriptors, resident, stopped
from tests.system.running import CLIENT, PATIENCE, Proxy, free_port, running_proxy, until, write_pair

pytestmark = pytest.mark.system

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1 << 20
StartSite = Callable[..., Proxy]


@pytest.fixture
def start(start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA) -> StartSite:
    """Start a proxy with one site whose one route has these backends."""

    def start(*urls: str, route: str = "", head: str = "", workers: int = 1) -> Proxy:
        pair = write_pair(tmp_path, authority, "localhost")
        return start_proxy(site_of(pair, *urls, route=route), head=head, workers=workers)

    return start


def site_of(pair: str, *urls: str, route: str = "") -> str:
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {pair}
        [[sites.routes]]
        backends = [{", ".join(f'"{url}"' for url in urls)}]
        {route}
    """


@pytest.fixture
def make_application(tmp_path: Path) -> Iterator[Callable[[], Application]]:
    with contextlib.ExitStack() as stack:

        def make() -> Application:
            application = Application(tmp_path)
            stack.callback(application.kill)
            return application

        yield make


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def closed_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


def ask(client: http.client.HTTPConnection, method: str = "GET", path: str = "/pid", body: bytes | None = None) -> int:
    client.request(method, path, body)
    response = client.getresponse()
    response.read()
    return response.status


def lines_of(proxy: Proxy, path: str, count: int) -> list[dict[str, Any]]:
    """Return the access log's lines for a path, or nothing while there are fewer than `count`."""
    lines = [line for line in proxy.request_lines() if line["path"] == path]
    return lines if len(lines) >= count else []


class TestRefused:
    """Row 6."""

    def test_alone_it_is_502_at_once(self, start: StartSite) -> None:
        proxy = start(closed_port())
        with contextlib.closing(proxy.connection()) as client:
            took = []
            for _ in range(10):
                began = time.monotonic()
                assert ask(client) == 502
                took.append(time.monotonic() - began)
        print(f"502 after {sorted(took)[5] * 1000:.1f} ms, slowest {max(took) * 1000:.1f} ms")
        assert sorted(took)[5] < 0.1

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_another_one_takes_every_request(self, start: StartSite, backend: Backend, method: str) -> None:
        """Also one that may not be repeated: nothing of it was sent."""
        proxy = start(closed_port(), backend.url, route='balance = "round_robin"')
        with contextlib.closing(proxy.connection()) as client:
            upstream: Peer | None = None
            for number in range(6):
                client.request(method, f"/{number}", b"body" if method == "POST" else None)
                upstream = upstream or backend.accept()
                assert upstream.message().target == b"/%d" % number
                upstream.send(OK)
                response = client.getresponse()
                assert (response.status, response.read()) == (200, b"ok")
        assert proxy.count("backend.left_alone") == 1


class Blackhole:
    """A listening socket with a full queue: the kernel drops what comes, and a connect hangs."""

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.bind(("127.0.0.1", 0))
        self._sock.listen(0)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._queued: list[socket.socket] = []
        while self._fill():
            pass

    def _fill(self) -> bool:
        """Queue one more connection; False if it has to wait for room."""
        sock = socket.socket()
        self._queued.append(sock)
        sock.settimeout(0.2)
        try:
            sock.connect(self._sock.getsockname())
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        for sock in (*self._queued, self._sock):
            sock.close()


class TestBlackhole:
    """Row 7."""

    LIMIT = 'limits = { connect_timeout = "300ms" }'

    @pytest.fixture
    def hole(self) -> Iterator[Blackhole]:
        hole = Blackhole()
        yield hole
        hole.close()

    def test_alone_it_is_504_after_connect_timeout(self, start: StartSite, hole: Blackhole) -> None:
        proxy = start(hole.url, head=self.LIMIT)
        (worker,) = proxy.workers()
        before = descriptors(worker)
        with contextlib.closing(proxy.connection()) as client:
            for _ in range(3):
                began = time.monotonic()
                assert ask(client) == 504
                assert 0.25 < time.monotonic() - began < 2
        until(lambda: descriptors(worker) == before, "no descriptor is left over")

    def test_another_one_takes_over_and_its_pool_stays_good(
        self, start: StartSite, hole: Blackhole, backend: Backend
    ) -> None:
        proxy = start(hole.url, backend.url, route='balance = "round_robin"', head=self.LIMIT)
        with contextlib.closing(proxy.connection()) as client:
            upstream: Peer | None = None
            for number in range(8):
                client.request("POST", f"/{number}", b"body")
                upstream = upstream or backend.accept()
                assert upstream.message().target == b"/%d" % number
                upstream.send(OK)
                assert client.getresponse().read() == b"ok"
        assert proxy.wait_for("backend.left_alone")["backend"] == hole.url
        assert not backend.is_called()

    def test_packets_that_are_dropped_on_the_way(self, tmp_path: Path, authority: trustme.CA, trust: object) -> None:
        """In a network namespace of its own, where iptables drops what goes to one port."""
        need = [tool for tool in ("ip", "iptables", "unshare") if not shutil.which(tool)]
        if need or os.geteuid() != 0:
            pytest.skip(f"needs root and {', '.join(need) or 'nothing else'}")
        name = f"tlsproxy-{os.getpid()}"
        if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
            pytest.skip("network namespaces are not permitted here")
        try:
            inside = ["ip", "netns", "exec", name]
            subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
            drop = ["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9999", "-j", "DROP"]
            if subprocess.run([*inside, *drop], capture_output=True).returncode:
                pytest.skip("iptables does not work here")
            self._ask_inside(inside, tmp_path, authority)
        finally:
            subprocess.run(["ip", "netns", "del", name], check=True)

    def _ask_inside(self, inside: list[str], folder: Path, authority: trustme.CA) -> None:
        """A unix socket is in the file system, so the backend that works needs not be in there."""
        authority.cert_pem.write_to_path(folder / "ca.pem")
        pair = write_pair(folder, authority, "localhost")
        with (
            Backend(folder / "app.sock") as works,
            running_proxy(
                folder,
                None,  # type: ignore[arg-type]  # nobody here can connect to it
                site_of(pair, "http://127.0.0.1:9999", works.url, route='balance = "round_robin"'),
                head=self.LIMIT,
                before=inside,
            ) as proxy,
        ):
            url = f"https://localhost:{proxy.port}/"
            curl = [*inside, "curl", "-sS", "--noproxy", "*", "--cacert", str(folder / "ca.pem"), "-4"]
            curl += ["-w", " %{http_code} %{time_total}\n", "-d", "body", url, url, url, url]
            said = self._answered(works, curl, 4)
            print(said)
            answers = [line.split() for line in said.splitlines()]
            assert [answer[:2] for answer in answers] == [["ok", "200"]] * 4
            assert max(float(answer[2]) for answer in answers) > 0.25
            proxy.logged(retries=1)

    @staticmethod
    def _answered(works: Backend, curl: list[str], count: int) -> str:
        """Answer so many requests of curl, and return what it wrote."""
        process = subprocess.Popen(curl, stdout=subprocess.PIPE, text=True)
        try:
            upstream = works.accept()
            for _ in range(count):
                upstream.message()
                upstream.send(OK)
            return process.communicate(timeout=PATIENCE)[0]
        finally:
            process.kill()
            process.communicate()


class TestCutAnswers:
    """Row 8: what the clients that people use make of it."""

    FRAMINGS = (b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n2710\r\n")

    def test_no_client_takes_it_for_whole(self, start: StartSite, backend: Backend) -> None:
        proxy = start(backend.url)
        for framing, die in itertools.product(self.FRAMINGS, (Peer.reset, Peer.close)):
            self._try_clients(proxy, backend, framing, die)
        assert "in the middle" in proxy.logged(status=200)["error"]

    def _try_clients(self, proxy: Proxy, backend: Backend, framing: bytes, die: Callable[[Peer], None]) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + framing + b"x" * 9000
        with proxy.client() as client, pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            self._answer(backend, head, die, lambda: client.get("/"))
        with contextlib.closing(proxy.connection()) as plain:

            def read() -> None:
                plain.request("GET", "/")
                plain.getresponse().read()

            with pytest.raises((http.client.IncompleteRead, ConnectionError, OSError)):
                self._answer(backend, head, die, read)
        if shutil.which("curl"):
            curl = ["curl", "-sS", "-k", "--noproxy", "*", f"https://localhost:{proxy.port}/", "-4", "-o", "/dev/null"]
            codes: list[int] = []
            self._answer(backend, head, die, lambda: codes.append(subprocess.run(curl, capture_output=True).returncode))
            assert codes != [0]

    def _answer(self, backend: Backend, head: bytes, die: Callable[[Peer], None], read: Callable[[], object]) -> None:
        def serve() -> None:
            peer = backend.accept()
            peer.message()
            peer.send(head)
            arrived.wait(0.2)  # what is in the proxy's receive queue when a reset comes is lost to it: not the matter
            die(peer)

        arrived = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            read()
        finally:
            thread.join(PATIENCE)


class TestSilence:
    """Row 9: `response_timeout` is from the request to the head, whatever trickles in meanwhile."""

    def test_one_that_says_nothing(self, start: StartSite, backend: Backend) -> None:
        proxy = start(backend.url, route='response_timeout = "1s"')
        with contextlib.closing(proxy.connection()) as client:
            began = time.monotonic()
            assert ask(client) == 504
            took = time.monotonic() - began
        print(f"504 after {took:.2f} s of 1 s")
        assert 1 <= took < 2.5
        peer = backend.accept()
        peer.message()
        assert peer.has_ended()

    def test_one_that_dribbles_its_head(self, start: StartSite, backend: Backend) -> None:
        proxy = start(backend.url, route='response_timeout = "1s"')

        def dribble() -> None:
            peer = backend.accept()
            peer.message()
            with contextlib.suppress(OSError):
                peer.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not over.wait(0.05):
                    peer.send(b"a")

        over = threading.Event()
        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            with contextlib.closing(proxy.connection()) as client:
                began = time.monotonic()
                assert ask(client) == 504
                took = time.monotonic() - began
        finally:
            over.set()
            thread.join(PATIENCE)
        print(f"504 after {took:.2f} s of 1 s")
        assert 1 <= took < 2.5


def _died_with_it(proxy: Proxy) -> int:
    """How many requests a dying server took with it.

    What a connection fresh from it did not answer may have been done and is not asked again; what it had begun to
    answer can't be taken back.
    """
    lines = proxy.request_lines()
    return sum(
        (line["status"] == 502 and not line["reused"]) or "in the middle" in line.get("error", "") for line in lines
    )


class TestRestarts:
    """Rows 10 to 12, with uvicorn."""

    def test_pooled_connections_of_a_killed_server_cost_no_get(
        self, start: StartSite, make_application: Callable[[], Application]
    ) -> None:
        """The worker is held still from before the death until after the requests: it learns both at the same time."""
        application = make_application()
        proxy = start(application.url)
        (worker,) = proxy.workers()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(contextlib.closing(proxy.connection())) for _ in range(12)]
            for client in clients:
                client.request("GET", "/wait/100")
            assert [client.getresponse().read().isdigit() for client in clients] == [True] * 12
            with stopped(worker):
                application.kill()
                application.start()
                for client in clients:
                    client.request("GET", "/pid")
            assert [client.getresponse().status for client in clients] == [200] * 12
        lines = until(lambda: lines_of(proxy, "/pid", 12), "the requests are logged")
        print(f"{sum(line['retries'] for line in lines)} of {len(lines)} were sent a second time")

    def test_an_order_is_never_placed_twice(
        self, start: StartSite, make_application: Callable[[], Application]
    ) -> None:
        """The application dies with the order in hand, on connections new and old; the client hears 502."""
        first, second = make_application(), make_application()
        proxy = start(first.url, second.url)
        with contextlib.closing(proxy.connection()) as client:
            for number in range(3):
                for _ in range(4):
                    ask(client)  # both have pooled connections
                assert ask(client, "POST", "/order", b"%d" % number) == 502
                for each in (first, second):
                    until(lambda each=each: each.restart_if_dead(), "it lives")  # type: ignore[misc]
        placed = [path.read_text().split() for path in (first.orders, second.orders) if path.exists()]
        assert sorted(order for orders in placed for order in orders) == ["0", "1", "2"]

    def test_one_of_two_dies_under_load_and_comes_back(
        self, start: StartSite, make_application: Callable[[], Application]
    ) -> None:
        stays, dies = make_application(), make_application()
        proxy = start(stays.url, dies.url, workers=2)
        with Load(proxy, 8, "/pid") as load:
            for _ in range(2):
                victim = b"%d" % dies.pid
                until(lambda victim=victim: load.bodies[victim] > 20, "both answer")  # type: ignore[misc]
                dies.kill()
                load.more(200)
                dies.start()
                fresh = b"%d" % dies.pid
                until(lambda fresh=fresh: load.bodies[fresh] > 20, "it is asked again")  # type: ignore[misc]
        print(f"{load.answered} answered, slowest {load.slowest * 1000:.0f} ms; failed: {load.failed}")
        assert len(load.failed) <= 4
        until(lambda: _died_with_it(proxy) == len(load.failed), "the log tells of each, and of no more")
        assert proxy.count("backend.left_alone", backend=dies.url) >= 1
        assert proxy.count("backend.recovered", backend=dies.url) >= 1
        assert proxy.count("backend.left_alone", backend=stays.url) == 0

    def test_when_all_are_dead_clients_are_told_when_to_come_again_and_it_recovers(
        self, start: StartSite, make_application: Callable[[], Application]
    ) -> None:
        both = make_application(), make_application()
        proxy = start(*(each.url for each in both))
        with contextlib.closing(proxy.connection()) as client:
            assert ask(client) == 200
            for each in both:
                each.kill()

            def told() -> str | None:
                client.request("GET", "/pid")
                response = client.getresponse()
                response.read()
                assert response.status in (502, 503)
                return response.getheader("Retry-After") if response.status == 503 else None

            assert until(told, "503") == "5"
            both[0].start()
            began = time.monotonic()
            until(lambda: ask(client) == 200, "it is found")
            print(f"served again {time.monotonic() - began:.1f} s after its start")
            assert [ask(client) for _ in range(5)] == [200] * 5


class TestNames:
    """Row 35, with /etc/hosts of a mount namespace as the name server."""

    def test_one_that_moves_and_one_that_is_lost(self, tmp_path: Path, authority: trustme.CA, trust: object) -> None:
        hosts = tmp_path / "hosts"
        hosts.write_text("")
        mount = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
        if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
            pytest.skip("mount namespaces are not permitted here")
        port = free_port()
        pair = write_pair(tmp_path, authority, "localhost")
        site = site_of(pair, f"http://app.invalid:{port}")
        with (
            running_proxy(tmp_path, trust, site, before=mount) as proxy,  # type: ignore[arg-type]
            contextlib.closing(proxy.connection()) as client,
        ):
            assert ask(client) == 502
            assert "does not resolve" in proxy.logged(status=502)["error"]
            for address in ("127.0.0.5", "127.0.0.6"):
                hosts.write_text(f"{address} app.invalid\n")
                assert self._asked(client, address, port) == 200
            hosts.write_text("")
            assert self._asked(client, "127.0.0.6", port) == 200
            assert proxy.wait_for("backend.name_unresolved")["used"] == ["127.0.0.6"]

    def _asked(self, client: http.client.HTTPConnection, address: str, port: int) -> int:
        """Return the status of a request that this address answers, on a connection that it then closes."""
        with socket.create_server((address, port)) as server:
            server.settimeout(PATIENCE)
            client.request("GET", "/")
            with contextlib.closing(Peer(server.accept()[0])) as peer:
                peer.message()
                peer.send(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
                response = client.getresponse()
                response.read()
                return response.status


class TestWebSocket:
    """Row 38."""

    @staticmethod
    def _open(proxy: Proxy) -> ClientConnection:
        raw = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, (CLIENT, 0))
        url = f"wss://localhost:{proxy.port}/ws"
        return connect(url, sock=raw, ssl=proxy.trust, open_timeout=PATIENCE, proxy=None)

    def test_its_server_dies(self, start: StartSite, make_application: Callable[[], Application]) -> None:
        """1006 is what a client calls an end without a close frame (RFC 6455 7.1.5)."""
        application = make_application()
        proxy = start(application.url)
        with self._open(proxy) as client:
            assert client.recv(PATIENCE) == str(application.pid)
            application.kill()
            began = time.monotonic()
            with pytest.raises(ConnectionClosedError) as caught:
                client.recv(PATIENCE)
            assert time.monotonic() - began < 1
        assert (caught.value.rcvd, client.close_code) == (None, 1006)
        assert proxy.logged(path="/ws")["status"] == 101

    def test_it_is_silent_too_long(self, start: StartSite, make_application: Callable[[], Application]) -> None:
        proxy = start(make_application().url, head='limits = { tunnel_idle = "1s" }')
        (worker,) = proxy.workers()
        before = descriptors(worker)
        with self._open(proxy) as client:
            client.recv(PATIENCE)
            began = time.monotonic()
            with pytest.raises(ConnectionClosedError):
                client.recv(PATIENCE)
            took = time.monotonic() - began
        print(f"closed after {took:.2f} s of silence")
        assert 0.9 < took < 2.5
        until(lambda: descriptors(worker) <= before, "nothing is left over")

    @pytest.mark.parametrize("direction", ["down", "up"])
    def test_a_slow_reader_bounds_what_is_held(self, start: StartSite, backend: Backend, direction: str) -> None:
        """A frame of 64 MiB, to a peer that reads nothing: the sender is stuck with most of it."""
        proxy = start(backend.url)
        (worker,) = proxy.workers()
        client = Peer(proxy.open())
        with contextlib.closing(client):
            client.send(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            upstream = backend.accept()
            upstream.message()
            upstream.send(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            assert client.message().status == 101
            before = resident(worker)
            sender, mask = (upstream, b"") if direction == "down" else (client, bytes(4))
            sender.send(bytes((0x82, 0x7F | (0x80 if mask else 0))) + (64 * MIB).to_bytes(8, "big") + mask)
            sent = sender.push(bytes(MIB), 64 * MIB)
            grown = resident(worker) - before
        print(f"{direction}: stuck at {sent / MIB:.1f} MiB, the worker grew by {grown / MIB:.1f} MiB")
        assert sent < 32 * MIB
        assert grown < 4 * MIB
