"""An application with TLSProxyMiddleware on every server, none of which was told whom to believe.

The servers run with the options that people forget; what the application sees is right all the same, and whoever asks
it without the secret is believed nothing.
"""

from __future__ import annotations

import itertools
import json
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.sync.client import connect

from tests.system.running import CLIENT, PATIENCE, Proxy, Server, client_context, free_port, running_proxy, write_pair

pytestmark = pytest.mark.system

SECRET = "a-secret-that-nobody-may-ever-see"
APP = "tests.system.apps.proven:app"
members = trustme.CA()
numbers = itertools.count(1)
FORGED = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Real-IP": "6.6.6.6",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.test",
    "X-Forwarded-Prefix": "/evil",
    "Forwarded": "for=6.6.6.6;proto=https;host=evil.test",
    "Client-Cert": ":Zm9yZ2Vk:",
    "X-Tlsproxy-Tls": "version=772",
}


@dataclass(frozen=True)
class Kind:
    name: str
    command: tuple[str, ...]
    unix: bool = False
    scheme: str = "http"
    names_websockets: bool = True  # granian passes no header of a WebSocket's acceptance on

    def start(self, address: str, log: Path, **environment: str) -> Server:
        server, rest = self.command[0], address.removeprefix("unix:").rpartition("//")[2]
        match server, self.unix:
            case ("uvicorn" | "granian", True):
                bind = ("--uds", rest)
            case ("uvicorn" | "granian", False):
                bind = ("--port", rest.rpartition(":")[2])
            case _:
                bind = ("--bind", address if self.unix else rest)
        binary = str(Path(sys.executable).with_name(server))
        return Server((binary, *self.command[1:], *bind), address.replace("h2c:", "http:"), log, environment)


UVICORN = ("uvicorn", APP, "--log-level", "warning")
KINDS = (
    Kind("uvicorn", (*UVICORN, "--no-proxy-headers")),
    Kind("uvicorn-unix", UVICORN, unix=True),
    Kind("hypercorn", ("hypercorn", APP)),
    Kind("hypercorn-h2c", ("hypercorn", APP), scheme="h2c"),
    Kind("granian", ("granian", "--interface", "asgi", "--log-level", "warning", APP), names_websockets=False),
    Kind("gunicorn", ("gunicorn", APP, "-k", "asgi", "--log-level", "warning", "--forwarded-allow-ips", "10.9.9.9")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("middleware")


@pytest.fixture(scope="module")
def addresses(folder: Path) -> dict[str, str]:
    return {
        kind.name: f"unix:{folder}/{kind.name}.sock" if kind.unix else f"{kind.scheme}://127.0.0.1:{free_port()}"
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def proxy(folder: Path, addresses: dict[str, str], authority: trustme.CA, trust: ssl.SSLContext) -> Iterator[Proxy]:
    members.cert_pem.write_to_path(folder / "members.pem")
    pair = write_pair(folder, authority, *(f"{kind.name}.test" for kind in KINDS))
    sites = "".join(
        f"""
        [[sites]]
        hosts = ["{kind.name}.test"]
        certificate = {pair}
        client_ca = "members.pem"
        client_auth = "request"
          [[sites.routes]]
          path = "/"
          backends = ["{addresses[kind.name]}"]
          [[sites.routes]]
          path = "/api/v1"
          strip_prefix = true
          backends = ["{addresses[kind.name]}"]
        """
        for kind in KINDS
    )
    before = ("env", f"TLSPROXY_SERVER__BACKEND_SECRET={SECRET}")
    with running_proxy(folder, trust, sites, before=before) as running:
        yield running
    everything = "".join(running.lines) + (folder / "access.log").read_text()
    assert SECRET not in everything


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest, folder: Path, addresses: dict[str, str]) -> Iterator[Kind]:
    chosen: Kind = request.param
    server = chosen.start(addresses[chosen.name], folder / f"{chosen.name}.log", SECRET=SECRET)
    yield chosen
    server.stop()


@pytest.fixture
def client(proxy: Proxy, kind: Kind) -> Iterator[httpx.Client]:
    """Every second server is asked by HTTP/2: what it hears is the same."""
    with proxy.client(f"{kind.name}.test", http2=KINDS.index(kind) % 2 == 1) as made:
        yield made


def template_of(proxy: Proxy, path: str) -> str | None:
    template: str | None = proxy.logged(path=path).get("template")
    return template


def fresh(path: str) -> str:
    return f"{path}{next(numbers)}"


def test_the_application_sees_the_client(proxy: Proxy, kind: Kind, client: httpx.Client) -> None:
    path = fresh("/scope/")
    seen = client.get(path, headers=FORGED).json()
    assert seen["url"] == f"https://{kind.name}.test:{proxy.port}{path}"
    assert (seen["client"], seen["server"]) == (CLIENT, [f"{kind.name}.test", proxy.port])
    assert (seen["root_path"], seen["tls"]["tls_version"]) == ("", 0x0304)
    assert seen["tls"]["client_cert_chain"] == []
    assert "6.6.6.6" not in seen["text"]
    assert SECRET not in seen["text"]
    assert not [name for name in seen["headers"] if "tlsproxy" in name]
    assert template_of(proxy, path) == "/scope/{word}"


def test_redirects_and_urls_are_https(proxy: Proxy, kind: Kind, client: httpx.Client) -> None:
    base = f"https://{kind.name}.test:{proxy.port}"
    assert client.get("/items").headers["location"] == f"{base}/items/"
    assert client.get("/items/").json() == f"{base}/items/"


def test_a_stripped_prefix_is_the_root_path(proxy: Proxy, kind: Kind, client: httpx.Client) -> None:
    base = f"https://{kind.name}.test:{proxy.port}/api/v1"
    path = fresh("/api/v1/scope/")
    seen = client.get(path).json()
    assert (seen["root_path"], seen["url"]) == ("/api/v1", f"https://{kind.name}.test:{proxy.port}{path}")
    assert template_of(proxy, path) == "/api/v1/scope/{word}"
    assert client.get("/api/v1/items").headers["location"] == f"{base}/items/"
    assert client.get("/api/v1/items/").json() == f"{base}/items/"
    assert client.get("/api/v1/openapi.json").json()["servers"] == [{"url": "/api/v1"}]


def test_mounted_applications(proxy: Proxy, kind: Kind, client: httpx.Client) -> None:
    for prefix in ("", "/api/v1"):
        path = fresh(f"{prefix}/mounted/acme/scope/")
        seen = client.get(path).json()
        assert seen["root_path"] == f"{prefix}/mounted/acme"
        assert template_of(proxy, path) == f"{prefix}/mounted/{{tenant}}/scope/{{word}}"


def test_what_no_route_takes_is_other(proxy: Proxy, kind: Kind, client: httpx.Client) -> None:
    path = fresh("/nothing/")
    assert client.get(path).status_code == 404
    assert template_of(proxy, path) == "other"


def test_the_secret_never_comes_back(kind: Kind, client: httpx.Client) -> None:
    answer = client.get("/echo", headers={"X-Own": "1"})
    assert answer.headers["x-own"] == "1"
    assert SECRET not in answer.text + repr(answer.headers)
    assert not [name for name in answer.headers if "tlsproxy" in name]


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_a_websocket(proxy: Proxy, kind: Kind, trust: ssl.SSLContext, prefix: str) -> None:
    path = fresh(f"{prefix}/ws/")
    url = f"wss://{kind.name}.test:{proxy.port}{path}"
    sock = proxy._dial()
    with connect(url, sock=sock, ssl=trust, proxy=None, additional_headers=FORGED, open_timeout=PATIENCE) as websocket:
        seen = json.loads(websocket.recv(PATIENCE))
        assert not [name for name in websocket.response.headers if "tlsproxy" in name.lower()]  # type: ignore[union-attr]
    assert (seen["url"], seen["client"], seen["root_path"]) == (url, CLIENT, prefix)
    assert SECRET not in seen["text"]
    assert template_of(proxy, path) == (f"{prefix}/ws/{{room}}" if kind.names_websockets else None)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_clients_certificate(proxy: Proxy, kind: Kind, authority: trustme.CA, version: str) -> None:
    """Also on a resumed session, which knows the client's own certificate only."""
    context = client_context(authority, version=version)
    leaf = members.issue_cert("client@example.test", common_name="Jürgen, Client")
    leaf.configure_cert(context)
    session = None
    for resumed in (False, True):
        with proxy.open(f"{kind.name}.test", context, session) as sock:
            seen = ask(sock, f"{kind.name}.test")
            session = sock.session
            assert sock.session_reused is resumed
        assert seen["tls"]["client_cert_chain"] == [leaf.cert_chain_pems[0].bytes().decode()]
        assert "CN=Jürgen\\, Client" in seen["tls"]["client_cert_name"]
        assert seen["tls"]["tls_version"] == {"1.2": 0x0303, "1.3": 0x0304}[version]
        assert "client-cert" in seen["headers"]


def ask(sock: ssl.SSLSocket, host: str) -> Any:
    sock.sendall(f"GET /scope/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    with sock.makefile("rb") as lines:
        head, _, body = lines.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return json.loads(body)


@pytest.mark.parametrize("secret", [None, "wrong", SECRET[:-1], f"{SECRET}, {SECRET}"])
def test_who_asks_without_the_secret_is_believed_nothing(
    kind: Kind, addresses: dict[str, str], secret: str | None
) -> None:
    """Straight to the server, past the proxy, with all that the proxy could say."""
    address = addresses[kind.name]
    transport = httpx.HTTPTransport(uds=address.removeprefix("unix:")) if kind.unix else None
    base = "http://app.test" if kind.unix else address.replace("h2c://", "http://")
    headers = FORGED | ({"X-Tlsproxy-Secret": secret} if secret else {})
    with httpx.Client(transport=transport, base_url=base, timeout=PATIENCE, trust_env=False) as client:
        answer = client.get("/scope/x", headers=headers)
    seen = answer.json()
    assert (seen["url"], seen["root_path"], seen["tls"]) == (f"{base}/scope/x", "", None)
    assert seen["client"] in (None, "127.0.0.1", "")
    assert "6.6.6.6" not in seen["text"]
    assert set(seen["headers"]) <= {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert "x-tlsproxy-route" not in answer.headers


def test_a_server_that_trusts_its_neighbours_does_not_make_it_believe(folder: Path) -> None:
    """uvicorn believes 127.0.0.1 by default, before the middleware is asked."""
    kind = Kind("trusting", UVICORN)
    address = f"http://127.0.0.1:{free_port()}"
    server = kind.start(address, folder / "trusting.log", SECRET=SECRET)
    try:
        seen = httpx.get(f"{address}/scope/x", headers=FORGED, trust_env=False).json()
        assert (seen["url"], seen["client"]) == (f"{address}/scope/x", None)
        assert "6.6.6.6" not in seen["text"]
    finally:
        server.stop()


def test_an_application_that_wants_nobody_else(folder: Path) -> None:
    kind = Kind("rejecting", UVICORN)
    address = f"http://127.0.0.1:{free_port()}"
    server = kind.start(address, folder / "rejecting.log", SECRET=SECRET, REJECT="1")
    try:
        assert httpx.get(f"{address}/scope/x", trust_env=False).status_code == 403
        proven = {"X-Tlsproxy-Secret": SECRET}
        assert httpx.get(f"{address}/scope/x", headers=proven, trust_env=False).status_code == 200
        with pytest.raises(Exception, match="403"):
            connect(f"ws{address.removeprefix('http')}/ws/x", proxy=None, open_timeout=PATIENCE)
    finally:
        server.stop()
