"""The clients that people use, against one proxy before one FastAPI application: curl, httpx, requests, openssl.

They speak HTTP/1.1 here; `test_http2_clients` has those of HTTP/2.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests
import trustme

from tests.system.curl import Curl, needs_curl
from tests.system.running import PATIENCE, Proxy, running_proxy, write_pair

pytestmark = pytest.mark.system

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    made = tmp_path_factory.mktemp("clients")
    authority.cert_pem.write_to_path(made / "ca.pem")
    return made


@pytest.fixture(scope="module")
def proxy(folder: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str) -> Iterator[Proxy]:
    sites = f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(folder, authority, "localhost")}
        backends = ["{app}"]
        [[sites]]
        hosts = ["members.test"]
        certificate = {write_pair(folder, authority, "members.test", stem="members")}
        client_ca = "ca.pem"
        client_auth = "require"
        backends = ["{app}"]
    """
    with running_proxy(folder, trust, sites, http="127.0.0.1:0") as running:
        yield running


@pytest.fixture
def curl(proxy: Proxy) -> Curl:
    return Curl(proxy, "1.1")


@needs_curl
class TestCurl:
    def test_keeps_one_connection(self, curl: Curl) -> None:
        said = curl.get("/hello", curl.url("/hello"), curl.url("/hello"), "-w", " %{http_version} %{num_connects}\n")
        assert said == b"hello 1.1 1\nhello 1.1 0\nhello 1.1 0\n"

    def test_http_1_0(self, curl: Curl) -> None:
        said = curl.get("/hello", "--http1.0", "-i", curl.url("/bytes/5"), "-w", "\n%{num_connects}\n")
        assert said.count(b"200 OK\r\n") == 2
        assert said.count(b"Connection: close") == said.count(b"\n1\n") == 2
        assert b"Transfer-Encoding" not in said

    def test_http_1_0_gets_a_stream_to_its_end(self, curl: Curl, proxy: Proxy) -> None:
        with proxy.client() as other:
            for _ in range(3):
                other.post("/go/curl-1.0")
        said = curl.get("/stream/curl-1.0?count=3", "--http1.0", "-i")
        assert said.endswith(b"\r\n\r\npiece 0\npiece 1\npiece 2\n")
        assert b"chunked" not in said

    def test_head(self, curl: Curl) -> None:
        said = curl.get("/bytes/12345", "--head", curl.url("/bytes/7"), "-w", "%{num_connects}\n")
        assert b"Content-Length: 12345\r\n" in said.replace(b"content-length", b"Content-Length")
        assert said.endswith(b"\r\n\r\n0\n")

    def test_expect_100_continue(self, curl: Curl, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(os.urandom(2 << 20))
        arguments = (
            "-H",
            "Expect: 100-continue",
            "--data-binary",
            f"@{tmp_path}/body",
            "-v",
            "--expect100-timeout",
            "20",
        )
        done = curl.run(*arguments, curl.url("/raw"))
        assert b"< HTTP/1.1 100 Continue" in done.stderr
        digest = hashlib.sha256((tmp_path / "body").read_bytes()).hexdigest()
        assert digest.encode() in done.stdout
        assert b'"expect":"100-continue"' in done.stdout

    def test_a_refusal_instead_of_100_spares_the_body(self, curl: Curl, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(bytes(2 << 20))
        arguments = ("-H", "Expect: 100-continue", "--data-binary", f"@{tmp_path}/body", "--expect100-timeout", "20")
        said = curl.get("/no-such-path", *arguments, "-w", " %{http_code} %{size_upload}")
        assert said.endswith(b" 404 0")

    def test_chunked_upload(self, curl: Curl) -> None:
        body = os.urandom(3 << 20)
        said = curl.get("/raw", "-X", "POST", "-T", "-", sent=body)
        assert hashlib.sha256(body).hexdigest().encode() in said
        assert b'"transfer-encoding":"chunked"' in said
        assert b"content-length" not in said

    def test_resumes_its_session(self, curl: Curl, proxy: Proxy) -> None:
        curl.run("-H", "Connection: close", curl.url("/hello?first"), curl.url("/hello?then"))
        assert proxy.logged(query="first")["resumed"] is False
        line = proxy.logged(query="then")
        assert (line["resumed"], line["tls"], line["alpn"]) == (True, "TLSv1.3", "http/1.1")

    def test_plain_http_is_redirected(self, curl: Curl, proxy: Proxy) -> None:
        url = f"http://localhost:{proxy.http_port}/items/?a=%2F"
        said = curl.run("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", url).stdout.decode()
        code, location = said.split()
        assert (code, location.partition("localhost")[0]) == ("308", "https://")
        assert location.endswith("/items/?a=%2F")

    def test_plain_http_on_the_tls_port_is_told(self, curl: Curl, proxy: Proxy) -> None:
        said = curl.run("-i", f"http://localhost:{proxy.port}/").stdout
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"https://" in said.partition(b"\r\n\r\n")[2]


class TestHttpx:
    def test_keeps_its_connection(self, proxy: Proxy) -> None:
        with proxy.client() as client:
            streams = {client.get("/hello").extensions["network_stream"].get_extra_info("socket") for _ in range(3)}
        assert len(streams) == 1

    def test_a_generator_is_sent_in_chunks(self, proxy: Proxy) -> None:
        with proxy.client() as client:
            seen = client.post("/raw", content=(bytes([n]) * 70_000 for n in range(20))).json()
        assert (seen["bytes"], seen["headers"]["transfer-encoding"]) == (1_400_000, "chunked")

    def test_errors_of_the_proxy_are_problems_for_programs(self, proxy: Proxy) -> None:
        with proxy.client() as client:
            client.event_hooks["request"].append(lambda request: request.headers.update({"Host": "elsewhere.test"}))
            answer = client.get("/hello")
        assert (answer.status_code, answer.headers["Content-Type"]) == (421, "application/problem+json")
        assert answer.json()["status"] == 421

    async def _many(self, proxy: Proxy) -> list[int]:
        async with httpx.AsyncClient(verify=proxy.trust, trust_env=False) as client:
            return [(await client.get(f"https://localhost:{proxy.port}/bytes/100000")).num_bytes_downloaded]

    def test_asynchronous(self, proxy: Proxy) -> None:
        import asyncio

        assert asyncio.run(self._many(proxy)) == [100_000]


class TestRequests:
    @pytest.fixture
    def session(self, proxy: Proxy) -> Iterator[requests.Session]:
        with requests.Session() as made:
            made.verify = str(proxy.folder / "ca.pem")
            made.trust_env = False
            yield made

    def test_everyday_use(self, session: requests.Session, proxy: Proxy) -> None:
        base = f"https://localhost:{proxy.port}"
        assert session.post(f"{base}/json", json={"a": [1]}, timeout=PATIENCE).json() == {"a": [1]}
        assert session.get(f"{base}/items", timeout=PATIENCE).json() == ["apple"]  # through FastAPI's redirect
        uploaded = session.post(f"{base}/upload", files={"file": ("f", bytes(1 << 20))}, timeout=PATIENCE)
        assert uploaded.json()["bytes"] == 1 << 20
        with session.get(f"{base}/bytes/3000000", stream=True, timeout=PATIENCE) as answer:
            assert sum(map(len, answer.iter_content(65_536))) == 3_000_000

    def test_another_authority_is_refused(self, proxy: Proxy, tmp_path: Path) -> None:
        trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"https://localhost:{proxy.port}/", verify=str(tmp_path / "other.pem"), timeout=PATIENCE)


@needs_openssl
class TestOpenssl:
    def s_client(self, proxy: Proxy, *arguments: str, name: str = "localhost") -> str:
        """Return all that s_client says when it sends one request and reads to the end."""
        naming = ("-servername", name) if name else ("-noservername",)
        command = [
            "openssl",
            "s_client",
            "-connect",
            f"127.0.0.1:{proxy.port}",
            "-CAfile",
            str(proxy.folder / "ca.pem"),
        ]
        sent = f"GET /hello HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
        done = subprocess.run(
            [*command, *naming, "-ign_eof", *arguments], input=sent, capture_output=True, timeout=PATIENCE, check=False
        )
        return (done.stdout + done.stderr).decode(errors="replace")

    @pytest.mark.parametrize("version", ["1.2", "1.3"])
    def test_serves_and_says_goodbye(self, proxy: Proxy, version: str) -> None:
        said = self.s_client(proxy, f"-tls{version.replace('.', '_')}", "-msg", "-verify_return_error")
        assert "Verify return code: 0 (ok)" in said
        assert f"Protocol  : TLSv{version}" in said or f"New, TLSv{version}" in said
        assert "HTTP/1.1 200 OK\r\n" in said
        farewell = said.rpartition("hello")[2]  # of the body; the messages of TLS are written with a capital
        assert "warning close_notify" in farewell.partition(">>>")[0]
        assert "unexpected eof" not in said

    @pytest.mark.parametrize("version", ["1.2", "1.3"])
    def test_resumes_its_session(self, proxy: Proxy, version: str, tmp_path: Path) -> None:
        arguments = (f"-tls{version.replace('.', '_')}", "-sess_out", str(tmp_path / "session"))
        assert "\nNew, TLSv" in self.s_client(proxy, *arguments)
        said = self.s_client(proxy, *arguments, "-sess_in", str(tmp_path / "session"))
        assert f"\nReused, TLSv{version}" in said

    @pytest.mark.parametrize(
        ("arguments", "name", "alert"),
        [
            ((), "elsewhere.test", "unrecognized name"),
            ((), "", "unrecognized name"),
            (("-tls1_1", "-cipher", "ALL@SECLEVEL=0"), "localhost", "protocol version"),
            (("-tls1_2", "-cipher", "AES128-SHA256"), "localhost", "handshake failure"),
            (("-tls1_3", "-groups", "X448"), "localhost", "handshake failure"),
            (("-tls1_2",), "members.test", "handshake failure"),
            (("-tls1_3",), "members.test", "certificate required"),
            (("-alpn", "foo"), "localhost", "no application protocol"),
        ],
    )
    def test_a_failure_is_an_alert(self, proxy: Proxy, arguments: tuple[str, ...], name: str, alert: str) -> None:
        said = self.s_client(proxy, *arguments, name=name)
        assert f"alert {alert}" in said or f"{alert}:" in said, said
        assert "unexpected eof" not in said
        assert "hello" not in said.partition("---\n")[2].partition("HTTP/1.1")[2]

    def test_garbage_is_answered_with_an_alert(self, proxy: Proxy) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as raw:
            raw.sendall(b"\x00\x01\x02\x03 this is not TLS")
            assert raw.recv(100) == b"\x15\x03\x03\x00\x02\x02\x0a"
            raw.shutdown(socket.SHUT_WR)
            assert raw.recv(100) == b""
