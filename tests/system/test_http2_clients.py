"""The clients of HTTP/2 that people use, against one proxy before one FastAPI application: curl, h2load, nghttp, httpx.

What happens on one connection is asked of a client that shows it (`http2_client`); what the programs of others make of
it, of those.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import socketserver
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import requests
import trustme

from tests.system.apps.everything import varied_pieces
from tests.system.curl import Curl, needs_curl
from tests.system.http2_client import Http2Client
from tests.system.pressure import client_ports
from tests.system.running import CLIENT, PATIENCE, Proxy, offering, running_proxy, write_pair

pytestmark = pytest.mark.system

needs_h2load = pytest.mark.skipif(not shutil.which("h2load"), reason="h2load (nghttp2-client) is not installed")
needs_nghttp = pytest.mark.skipif(not shutil.which("nghttp"), reason="nghttp (nghttp2-client) is not installed")

MIB = 1 << 20
STREAMS = 100
OK = b"HTTP/1.1 200 OK\r\n"
SCRIPT = {
    b"/trailers": OK + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 532\r\n\r\n",
    b"/hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
    b"/early": b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!",
}


class Scripted(socketserver.StreamRequestHandler):
    """One connection to a backend that answers a head with the bytes of `SCRIPT` and takes whatever else comes."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            if answer := SCRIPT.get(line.split(b" ")[1] if line.endswith(b" HTTP/1.1\r\n") else b""):
                while self.rfile.readline() not in (b"\r\n", b""):
                    pass
                self.wfile.write(answer)


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Scripted) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    made = tmp_path_factory.mktemp("http2")
    authority.cert_pem.write_to_path(made / "ca.pem")
    return made


@pytest.fixture(scope="module")
def sites(folder: Path, authority: trustme.CA, app: str, scripted: str) -> str:
    both = write_pair(folder, authority, "localhost", "members.test", "beside.test")
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {both}
        backends = ["{app}"]
        [[sites.routes]]
        path = "/scripted"
        strip_prefix = true
        backends = ["{scripted}"]
        [[sites.routes]]
        path = "/small"
        strip_prefix = true
        max_body = "1KiB"
        backends = ["{app}"]
        [[sites]]
        hosts = ["beside.test"]
        certificate = {both}
        backends = ["{app}"]
        [[sites]]
        hosts = ["members.test"]
        certificate = {both}
        client_ca = "ca.pem"
        client_auth = "require"
        backends = ["{app}"]
    """


@pytest.fixture(scope="module")
def proxy(folder: Path, trust: ssl.SSLContext, sites: str) -> Iterator[Proxy]:
    with running_proxy(folder, trust, sites) as running:
        yield running


@pytest.fixture
def curl(proxy: Proxy) -> Curl:
    return Curl(proxy, "2")


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Http2Client]:
    with Http2Client(proxy) as made:
        yield made


def varied_digest(mib: int) -> str:
    made = hashlib.sha256()
    for piece in varied_pieces(mib):
        made.update(piece)
    return made.hexdigest()


class TestNegotiation:
    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [
            (("h2", "http/1.1"), "h2"),
            (("http/1.1", "h2"), "h2"),  # ours is the order that counts
            (("h2",), "h2"),
            (("http/1.1",), "http/1.1"),
            ((), None),
        ],
    )
    def test_the_version_is_the_best_that_the_client_has(
        self, proxy: Proxy, offered: tuple[str, ...], chosen: str | None
    ) -> None:
        with contextlib.closing(proxy.open(context=offering(proxy.trust, *offered))) as client:
            assert client.selected_alpn_protocol() == chosen

    def test_without_alpn_a_client_speaks_http_1_1(self, proxy: Proxy) -> None:
        with contextlib.closing(proxy.connection(context=offering(proxy.trust))) as client:
            client.request("GET", "/hello?without-alpn")
            assert client.getresponse().read() == b"hello"
        line = proxy.logged(query="without-alpn")
        assert (line["http"], line["alpn"]) == ("1.1", "")

    @needs_curl
    def test_it_can_be_switched_off(
        self, tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str
    ) -> None:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        pair = write_pair(tmp_path, authority, "localhost")
        site = f'[[sites]]\nhosts = ["localhost"]\ncertificate = {pair}\nbackends = ["{app}"]'
        with running_proxy(tmp_path, trust, site, listen="http2 = false") as running:
            said = Curl(running, "2").get("/hello", "-w", " %{http_version}")
            with contextlib.closing(running.open(context=offering(trust, "h2", "http/1.1"))) as client:
                chosen = client.selected_alpn_protocol()
        assert (said, chosen) == (b"hello 1.1", "http/1.1")


@needs_curl
class TestCurl:
    def test_keeps_one_connection(self, curl: Curl, proxy: Proxy) -> None:
        arguments = (curl.url("/hello"), curl.url("/hello?third"), "-w", " %{http_version} %{num_connects}\n")
        assert curl.get("/hello", *arguments) == b"hello 2 1\nhello 2 0\nhello 2 0\n"
        line = proxy.logged(query="third")
        assert (line["http"], line["alpn"], line["tls"]) == ("2", "h2", "TLSv1.3")

    def test_asks_for_many_things_at_once_on_one_connection(self, curl: Curl, tmp_path: Path) -> None:
        arguments = ("-Z", "--parallel-max", "50", "-o", f"{tmp_path}/#1", "-w", "%{http_code} %{num_connects}\n")
        said = curl.get("/bytes/20000?[1-50]", *arguments).decode().split()
        assert said[0::2] == ["200"] * 50
        assert sum(map(int, said[1::2])) == 1
        assert {path.stat().st_size for path in tmp_path.iterdir()} == {20_000}

    def test_head(self, curl: Curl) -> None:
        said = curl.get("/bytes/12345", "--head", curl.url("/bytes/7"), "-w", "%{num_connects}\n")
        assert said.startswith(b"HTTP/2 200 \r\n")
        assert b"content-length: 12345\r\n" in said
        assert said.endswith(b"\r\n\r\n0\n")

    def test_a_form_and_json(self, curl: Curl) -> None:
        assert json.loads(curl.get("/form", "-d", "name=a+%26+b", "-d", "count=3")) == {"name": "a & b", "count": 3}
        said = curl.get("/json", "-H", "Content-Type: application/json", "-d", '{"a": [1]}')
        assert json.loads(said) == {"a": [1]}

    def test_100_mib_up(self, curl: Curl, tmp_path: Path) -> None:
        with (tmp_path / "body").open("wb") as file:
            file.writelines(varied_pieces(100))
        said = json.loads(curl.get("/digest", "-T", str(tmp_path / "body")))
        assert said == {"bytes": 100 * MIB, "sha256": varied_digest(100)}

    def test_100_mib_down(self, curl: Curl, tmp_path: Path) -> None:
        curl.get("/varied/100", "-o", str(tmp_path / "body"))
        assert (tmp_path / "body").stat().st_size == 100 * MIB
        with (tmp_path / "body").open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == varied_digest(100)

    def test_an_upload_without_a_length(self, curl: Curl) -> None:
        body = os.urandom(3 * MIB)
        said = json.loads(curl.get("/raw", "-X", "POST", "-T", "-", sent=body))
        assert said["sha256"] == hashlib.sha256(body).hexdigest()
        assert said["headers"]["transfer-encoding"] == "chunked"
        assert "content-length" not in said["headers"]

    def test_an_upload_with_a_length_has_it_at_the_backend_too(self, curl: Curl) -> None:
        headers = json.loads(curl.get("/raw", "--data-binary", "x" * 1000))["headers"]
        assert headers["content-length"] == "1000"
        assert "transfer-encoding" not in headers

    def test_expect_100_continue(self, curl: Curl, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(os.urandom(2 * MIB))
        arguments = ("-H", "Expect: 100-continue", "--data-binary", f"@{tmp_path}/body", "-v", curl.url("/raw"))
        done = curl.run(*arguments, "--expect100-timeout", "20")
        digest = hashlib.sha256((tmp_path / "body").read_bytes()).hexdigest()
        assert digest.encode() in done.stdout
        assert b'"expect":"100-continue"' in done.stdout
        assert b"< HTTP/2 100" in done.stderr

    def test_trailers(self, curl: Curl) -> None:
        done = curl.run("-v", curl.url("/scripted/trailers"))
        assert done.stdout == b"hello"
        assert b"\n< x-sum: 532\r\n" in done.stderr
        assert b"\n< trailer: X-Sum\r\n" in done.stderr

    def test_early_hints(self, curl: Curl) -> None:
        said = curl.get("/scripted/hints", "-i")
        assert said.startswith(b"HTTP/2 103 \r\nlink: </a.css>\r\n\r\nHTTP/2 200 \r\n")
        assert said.endswith(b"\r\n\r\nhello")

    def test_an_answer_before_the_upload_is_over(self, curl: Curl, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(bytes(20 * MIB))
        arguments = ("-T", str(tmp_path / "body"), "-w", " %{http_code} %{http_version}\n")
        assert curl.get("/scripted/early", *arguments) == b"no! 413 2\n"

    @pytest.mark.parametrize(
        ("arguments", "path", "status"),
        [
            (("-H", "Host: elsewhere.test"), "/hello", 421),
            (("-H", f"X-Large: {'x' * 40_000}"), "/hello", 431),
            (("-d", "x" * 2000), "/small/raw", 413),
            ((), f"/{'x' * 20_000}", 414),
            (("-X", "TRACE"), "/hello", 405),
        ],
        ids=lambda value: str(value) if isinstance(value, int) else "",
    )
    def test_a_refusal_is_the_answer_to_that_request_alone(
        self, curl: Curl, arguments: tuple[str, ...], path: str, status: int
    ) -> None:
        counting = ("-w", "%{http_code} %{num_connects}\n", "-o", "/dev/null")
        said = curl.run(*counting, *arguments, curl.url(path), "--next", *curl.common, *counting, curl.url("/hello"))
        assert said.stdout.decode().splitlines() == [f"{status} 1", "200 0"]

    def test_tls_1_2_will_do(self, curl: Curl, proxy: Proxy) -> None:
        """With a cipher suite that RFC 9113 9.2.2 allows; curl gives up on others."""
        assert curl.get("/hello?older", "--tls-max", "1.2", "-w", " %{http_version}") == b"hello 2"
        line = proxy.logged(query="older")
        assert (line["tls"], line["cipher"][:6]) == ("TLSv1.2", "ECDHE-")

    def test_a_site_for_members(self, curl: Curl, proxy: Proxy, folder: Path, authority: trustme.CA) -> None:
        write_pair(folder, authority, "somebody", stem="somebody")
        identity = ("--cert", str(folder / "somebody.pem"), "--key", str(folder / "somebody.key"))
        there = ("--resolve", f"members.test:{proxy.port}:127.0.0.1", "-w", " %{http_version}")
        said = curl.run(*identity, *there, curl.url("/hello", "members.test")).stdout
        assert said == b"hello 2"

    def test_plain_http_2_is_not_spoken(self, proxy: Proxy) -> None:
        plain = ["curl", "--http2-prior-knowledge", "-sS", "-m", "10", f"http://localhost:{proxy.port}/hello"]
        done = subprocess.run([*plain, "-4", "--noproxy", "*"], capture_output=True, timeout=PATIENCE)
        assert done.returncode != 0
        assert done.stdout == b""


class TestOneConnection:
    """What the requests of one connection may do to each other: nothing."""

    def test_a_given_up_request_is_given_up_at_the_backend_and_nowhere_else(self, client: Http2Client) -> None:
        others = [client.request(f"/stream/cancel-{number}?count=2") for number in range(10)]
        held = client.request("/held/cancel")
        client.wait_until(lambda: all(other.body == b"piece 0\n" for other in others))
        client.reset(held)
        assert client.get("/given-up/cancel").body == b"1"
        for number, other in enumerate(others):
            client.get(f"/hello?{number}")
            for _ in range(2):
                client.wait(client.request(f"/go/cancel-{number}", "POST"))
            assert client.wait(other).body == b"piece 0\npiece 1\n"
        assert client.goaways == []

    def test_an_upload_that_nobody_wants_is_ended_and_the_others_go_on(self, client: Http2Client) -> None:
        upload = client.request("/scripted/early", "PUT", ended=False)
        client.send(upload, bytes(MIB))
        client.wait_until(lambda: upload.status == 413)
        client.wait(upload)
        assert (bytes(upload.body), upload.reset) in ((b"no!", None), (b"no!", 0))
        assert client.get("/hello").body == b"hello"

    def test_trailers_and_hints(self, client: Http2Client) -> None:
        assert client.get("/scripted/trailers").trailers == {"x-sum": "532"}
        hints = client.get("/scripted/hints")
        assert (hints.interim, hints.status, hints.trailers) == ([103], 200, None)

    def test_requests_for_other_hosts_of_the_same_certificate(self, client: Http2Client, proxy: Proxy) -> None:
        """Browsers coalesce them (RFC 9113 9.1.1); one that needs a client certificate is no such host."""
        seen = {}
        for host in ("beside.test", "members.test"):
            client.authority = f"{host}:{proxy.port}"
            seen[host] = client.get("/hello").status
        assert seen == {"beside.test": 200, "members.test": 421}

    def test_cookies_come_as_one_field(self, client: Http2Client) -> None:
        crumbs = [("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2")]
        seen = json.loads(client.wait(client.request("/whoami", headers=crumbs)).body)
        assert seen["headers"]["cookie"] == "a=1; b=2"
        assert (seen["scheme"], seen["client"]) == ("https", CLIENT)
        assert seen["headers"]["host"] == client.authority

    def test_its_session_is_resumed_by_the_next_connection(self, client: Http2Client, proxy: Proxy) -> None:
        client.get("/hello")
        session, context = client.socket.session, client.socket.context
        with contextlib.closing(proxy.open(context=context, session=session)) as again:
            assert (again.session_reused, again.selected_alpn_protocol()) == (True, "h2")

    def test_the_settings_are_the_documented_ones(self, client: Http2Client) -> None:
        client.get("/hello")
        names = {1: "header table", 3: "streams", 4: "window", 5: "frame", 6: "header list", 8: "connect", 9: "no tree"}
        seen = {names[key]: value for key, value in client.settings.items() if key in names}
        assert seen.items() >= {"streams": 100, "window": 65_536, "connect": 1, "no tree": 1}.items()
        assert seen["header list"] == 32 * 1024


@needs_h2load
class TestH2load:
    @pytest.mark.parametrize(("clients", "requests_"), [(1, 10_000), (20, 2_000)])
    def test_no_request_fails(self, proxy: Proxy, clients: int, requests_: int) -> None:
        counts = ("-n", str(requests_), "-c", str(clients), "-m", str(STREAMS))
        command = [
            "h2load",
            *counts,
            "--connect-to",
            f"127.0.0.1:{proxy.port}",
            f"https://localhost:{proxy.port}/hello",
        ]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        print(re.findall(r"finished in.*", said))
        assert f"{requests_} done, {requests_} succeeded, 0 failed, 0 errored, 0 timeout" in said
        assert f"status codes: {requests_} 2xx, 0 3xx, 0 4xx, 0 5xx" in said
        assert "Application protocol: h2" in said


@needs_nghttp
class TestNghttp:
    def ask(self, proxy: Proxy, *arguments: str) -> str:
        command = ["nghttp", "-nv", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)

    def test_settings_and_an_orderly_end(self, proxy: Proxy) -> None:
        said = self.ask(proxy, f"https://127.0.0.1:{proxy.port}/hello", "-H", f":authority: localhost:{proxy.port}")
        assert "The negotiated protocol: h2" in said
        for row in (
            "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):100",
            "SETTINGS_INITIAL_WINDOW_SIZE(0x04):65536",
            "SETTINGS_ENABLE_CONNECT_PROTOCOL(0x08):1",
        ):
            assert f"[{row}]" in said
        assert ":status: 200" in said
        assert "END_STREAM" in said.partition("recv DATA frame")[2]

    def test_a_tree_of_priorities_is_taken_without_complaint(self, proxy: Proxy) -> None:
        """nghttp 1.52 sends the priorities of RFC 7540, which RFC 9113 5.3 lets a server ignore."""
        urls = [f"https://localhost:{proxy.port}/bytes/200000?{number}" for number in range(5)]
        said = self.ask(proxy, *(f"-p{weight}" for weight in (1, 64, 256, 16, 32)), *urls)
        assert said.count(":status: 200") == 5
        assert "RST_STREAM" not in said


class TestHttpx:
    def test_one_after_the_other_on_one_connection(self, proxy: Proxy) -> None:
        with proxy.client(http2=True) as client:
            answers = [client.get("/hello") for _ in range(3)]
        assert {answer.http_version for answer in answers} == {"HTTP/2"}
        assert len({answer.extensions["network_stream"] for answer in answers}) == 1

    def test_it_streams_up_and_down_at_the_same_time(self, proxy: Proxy) -> None:
        with proxy.client(http2=True) as client:
            client.get("/hello")  # it makes one request at a time before it knows the server's settings

            def body() -> Iterator[bytes]:
                for number in range(1, 6):
                    yield b"x" * 10_000
                    assert client.get(f"/received/httpx-up?least={number * 10_000}").status_code == 200

            assert client.post("/receive/httpx-up", content=body()).json() == {"bytes": 50_000}
            with client.stream("GET", "/varied/8") as answer:
                made = hashlib.sha256()
                for piece in answer.iter_bytes():
                    made.update(piece)
        assert made.hexdigest() == varied_digest(8)

    def test_a_hundred_at_a_time_on_one_connection(self, proxy: Proxy) -> None:
        (worker,) = proxy.workers()
        before = client_ports(worker, proxy.port)

        async def run() -> set[str]:
            async with asynchronous(proxy) as client, asyncio.TaskGroup() as group:
                reached = asyncio.Barrier(STREAMS + 1)
                tasks = [group.create_task(one(client, f"httpx-{number}", reached)) for number in range(STREAMS)]
                async with asyncio.timeout(PATIENCE):
                    await reached.wait()  # now all of them are under way, and none can end before the word
                assert len(client_ports(worker, proxy.port) - before) == 1
                await asyncio.to_thread(release, proxy)
            return {task.result() for task in tasks}

        async def one(client: httpx.AsyncClient, name: str, reached: asyncio.Barrier) -> str:
            async with client.stream("GET", f"/stream/{name}?count=1") as answer:
                pieces = answer.aiter_text()
                first = await anext(pieces)
                await reached.wait()
                return first + "".join([piece async for piece in pieces])

        def release(proxy: Proxy) -> None:
            with proxy.client() as other:  # of HTTP/1.1, beside it
                for number in range(STREAMS):
                    other.post(f"/go/httpx-{number}")

        assert asyncio.run(run()) == {"piece 0\n"}

    def test_what_is_not_read_does_not_hold_up_the_others(self, proxy: Proxy) -> None:
        """It resets no stream: those it gives up go on until they fill what they may of its window of 16 MiB."""

        async def run() -> int:
            async with asynchronous(proxy) as client:
                for _ in range(10):
                    async with client.stream("GET", "/varied/1") as answer:
                        await anext(answer.aiter_raw())
                answers = await asyncio.gather(*(client.get(f"/bytes/300000?{number}") for number in range(20)))
                return sum(len(answer.content) for answer in answers)

        assert asyncio.run(run()) == 20 * 300_000

    def test_requests_of_http_1_1_are_served_beside_it(self, proxy: Proxy) -> None:
        with proxy.client(http2=True) as client, requests.Session() as session:
            session.verify, session.trust_env = str(proxy.folder / "ca.pem"), False
            for number in range(5):
                assert client.get("/hello").text == "hello"
                url = f"https://localhost:{proxy.port}/hello?beside-{number}"
                assert session.get(url, timeout=PATIENCE).text == "hello"
        assert proxy.logged(query="beside-4")["http"] == "1.1"


@contextlib.asynccontextmanager
async def asynchronous(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    """One connection of HTTP/2, whatever is asked of it."""
    limits = httpx.Limits(max_connections=1)
    transport = httpx.AsyncHTTPTransport(verify=offering(proxy.trust, "h2"), http2=True, limits=limits, trust_env=False)
    base = f"https://localhost:{proxy.port}"
    async with httpx.AsyncClient(transport=transport, base_url=base, timeout=PATIENCE, trust_env=False) as client:
        yield client
