"""One FastAPI application behind the proxy on every server that people run it with.

Each server is started the way docs/fastapi.md says; what is asserted here is what that document promises, and it is the
same for clients of HTTP/1.1 and of HTTP/2.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.system.apps.everything import varied_pieces
from tests.system.http2_client import Closed, Http2Client, WebSocket
from tests.system.running import CLIENT, PATIENCE, Proxy, Server, free_port, running_proxy, write_pair

pytestmark = pytest.mark.system

APP, WRAPPED = "tests.system.apps.everything:app", "tests.system.apps.wrapped:wrapped"
UVICORN = ("uvicorn", APP, "--log-level", "warning")
GUNICORN = ("gunicorn", WRAPPED, "-k", "asgi", "--log-level", "warning")
names = (f"run-{number}" for number in itertools.count())


@dataclass(frozen=True)
class Kind:
    """How a server is started. `prefixed` are the options with which it lives under /api/v1 of a route that strips, or
    not; APP_ROOT_PATH is what the application then says of itself.
    """

    name: str
    command: tuple[str, ...]
    unix: bool = False
    prefixed: tuple[str, ...] = ()
    strips: bool = False
    app_root_path: str = ""
    http2: bool = False  # it is a backend of HTTP/2, asked by many requests on one connection
    websocket: bool = True
    # hypercorn's own ways, with or without a proxy before it: its middleware calls the scheme of a WebSocket "https",
    # and the application never hears the client's close code.
    websocket_scheme: str = "wss"
    heard_close_code: int = 3007

    @property
    def id(self) -> str:
        return f"{self.name}-{'unix' if self.unix else 'tcp'}"

    def named(self, address: str) -> str:
        """Its address as the configuration writes it."""
        return address.replace("http://", "h2c://") if self.http2 else address

    @property
    def host(self) -> str:
        return f"{self.id}.test"

    def bind(self, address: str) -> tuple[str, ...]:
        server = self.command[0]
        path, port = address.removeprefix("unix:"), address.rpartition(":")[2]
        match server, self.unix:
            case ("uvicorn", True):
                return ("--uds", path, "--forwarded-allow-ips", "*")
            case ("hypercorn" | "gunicorn", True):
                return ("--bind", f"unix:{path}")
            case ("granian", True):
                return ("--uds", path)
            case ("hypercorn" | "gunicorn", False):
                return ("--bind", f"127.0.0.1:{port}")
            case _:
                return ("--port", port)

    def start(self, address: str, folder: Path, *, prefixed: bool = False) -> Server:
        binary = str(Path(sys.executable).with_name(self.command[0]))
        options = self.prefixed if prefixed else ()
        environment = {"SERVER": self.command[0], "APP_ROOT_PATH": self.app_root_path if prefixed else ""}
        log = folder / f"{self.id}{'-prefixed' * prefixed}.log"
        return Server((binary, *self.command[1:], *self.bind(address), *options), address, log, environment)


def _kinds() -> Iterator[Kind]:
    for parser in ("h11", "httptools"):
        command = (*UVICORN, "--http", parser)
        yield Kind(f"uvicorn-{parser}", command, False, ("--root-path", "/api/v1"), True)
        yield Kind(f"uvicorn-{parser}", command, True)
    hypercorn = ("hypercorn", WRAPPED)
    for suffix, http2 in (("", False), ("-h2c", True)):
        prefixed = () if http2 else ("--root-path", "/api/v1")
        yield Kind(
            f"hypercorn{suffix}",
            hypercorn,
            prefixed=prefixed,
            http2=http2,
            websocket_scheme="https",
            heard_close_code=1006,
        )
    granian = ("granian", "--interface", "asgi", "--log-level", "warning", WRAPPED)
    yield Kind("granian", granian, False, app_root_path="/api/v1")
    yield Kind("granian-h2c", granian, http2=True, websocket=False)
    yield Kind("gunicorn", GUNICORN, False, ("--root-path", "/api/v1"))
    yield Kind("gunicorn", GUNICORN, True)
    cleartext = ("--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge")
    yield Kind("gunicorn-h2c", (*GUNICORN, *cleartext), http2=True, websocket=False)


KINDS = tuple(_kinds())
TALKATIVE = tuple(kind for kind in KINDS if kind.websocket)
with_websocket = pytest.mark.parametrize("kind", TALKATIVE, indirect=True, ids=lambda kind: kind.id)
PREFIXED = tuple(kind for kind in KINDS if kind.prefixed or kind.app_root_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def addresses(folder: Path) -> dict[tuple[str, bool], str]:
    """Where every server will listen, by its id and whether it lives under a prefix."""
    found = {(kind.id, False): f"unix:{folder}/{kind.id}.sock" if kind.unix else _tcp() for kind in KINDS}
    return found | {(kind.id, True): _tcp() for kind in PREFIXED}


def _tcp() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def proxy(
    folder: Path, addresses: dict[tuple[str, bool], str], authority: trustme.CA, trust: ssl.SSLContext
) -> Iterator[Proxy]:
    pair = write_pair(folder, authority, *(kind.host for kind in KINDS))
    sites = "".join(_site(kind, addresses, pair) for kind in KINDS)
    with running_proxy(folder, trust, sites) as running:
        yield running


def _site(kind: Kind, addresses: dict[tuple[str, bool], str], pair: str) -> str:
    site = f"""
        [[sites]]
        hosts = ["{kind.host}"]
        certificate = {pair}
        backends = ["{kind.named(addresses[kind.id, False])}"]
    """
    if kind in PREFIXED:
        site += f"""
        [[sites.routes]]
        path = "/api/v1"
        strip_prefix = {str(kind.strips).lower()}
        backends = ["{kind.named(addresses[kind.id, True])}"]
        """
    return site


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest, folder: Path, addresses: dict[tuple[str, bool], str]) -> Iterator[Kind]:
    chosen: Kind = request.param
    server = chosen.start(addresses[chosen.id, False], folder)
    yield chosen
    server.stop()


@pytest.fixture(params=["1.1", "2"], ids=lambda version: f"http/{version}")
def version(request: pytest.FixtureRequest) -> str:
    """What the client speaks; the server hears HTTP/1.1 from the proxy."""
    return str(request.param)


@pytest.fixture
def client(proxy: Proxy, kind: Kind, version: str) -> Iterator[httpx.Client]:
    with proxy.client(kind.host, http2=version == "2") as made:
        # httpx sends one request at a time before it has read the settings of an HTTP/2 connection.
        assert made.get("/hello").http_version == f"HTTP/{version}"
        yield made


@pytest.fixture
def other(proxy: Proxy, kind: Kind, version: str, client: httpx.Client) -> Iterator[httpx.Client]:
    """For what happens while a request is under way: HTTP/1.1 needs another client, HTTP/2 not even a connection."""
    if version == "2":
        yield client
    else:
        with proxy.client(kind.host) as made:
            yield made


def test_json_and_a_form(client: httpx.Client) -> None:
    value = {"text": "Grüße ☂", "list": [1, 2.5, None], "deep": {"a": {"b": "c"}}}
    assert client.post("/json", json=value).json() == value
    assert client.post("/form", data={"name": "a & b=c", "count": "3"}).json() == {"name": "a & b=c", "count": 3}
    answer = client.post("/form", data={"name": "no count"})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "count"])


def test_what_a_browser_asks_for_first(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "/openapi.json" in page.text
    assert client.get("/openapi.json").json()["info"]["title"] == "everything"
    missing = client.get("/favicon.ico")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})


def test_a_download_of_several_mib(client: httpx.Client) -> None:
    wanted = hashlib.sha256(b"".join(varied_pieces(5))).hexdigest()
    assert hashlib.sha256(client.get("/varied/5").content).hexdigest() == wanted
    answer = client.head("/bytes/1000000")
    assert (answer.headers["content-length"], answer.content) == ("1000000", b"")


def test_a_file_upload_of_several_mib(client: httpx.Client) -> None:
    content = os.urandom(6 << 20)
    answer = client.post("/upload", files={"file": ("data.bin", content)})
    expected = {"name": "data.bin", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert answer.json() == expected


def test_an_upload_reaches_the_application_while_it_is_sent(client: httpx.Client, other: httpx.Client) -> None:
    run = next(names)
    piece = b"x" * 10_000

    def body() -> Iterator[bytes]:
        for number in range(1, 6):
            yield piece
            assert other.get(f"/received/{run}?least={number * len(piece)}").status_code == 200

    assert client.post(f"/receive/{run}", content=body()).json() == {"bytes": 50_000}


@pytest.mark.parametrize(("path", "form"), [("stream", "piece {}\n"), ("events", "data: {}\n\n")])
def test_every_piece_arrives_before_the_next_is_sent(
    client: httpx.Client,
    other: httpx.Client,
    path: str,
    form: str,
    kind: Kind,
) -> None:
    run = next(names)
    waited = []
    with client.stream("GET", f"/{path}/{run}?count=10") as answer:
        pieces = answer.iter_text()
        assert next(pieces) == form.format(0)
        for number in range(1, 10):
            began = time.perf_counter()
            assert other.post(f"/go/{run}").status_code == 200
            assert next(pieces) == form.format(number)
            waited.append(time.perf_counter() - began)
        other.post(f"/go/{run}")
        assert list(pieces) == []
    print(f"{kind.id}: median {sorted(waited)[len(waited) // 2] * 1000:.1f} ms, slowest {max(waited) * 1000:.1f} ms")
    # The word travels to the application and the piece back: two passes through the proxy on a shared machine.
    assert sorted(waited)[len(waited) // 2] < 0.25


@contextlib.contextmanager
def websocket(proxy: Proxy, kind: Kind, path: str) -> Iterator[ClientConnection]:
    raw = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, (CLIENT, 0))
    url = f"wss://{kind.host}:{proxy.port}{path}"
    # Random bytes grow when they are compressed, so a message of 1 MiB is a larger frame than the client's usual limit.
    with connect(url, sock=raw, ssl=proxy.trust, max_size=4 << 20, open_timeout=PATIENCE, proxy=None) as made:
        yield made


@with_websocket
def test_websocket_messages(proxy: Proxy, kind: Kind) -> None:
    with websocket(proxy, kind, "/ws/echo") as made:
        about = json.loads(made.recv(PATIENCE))
        assert about == {"scheme": kind.websocket_scheme, "client": CLIENT, "path": "/ws/echo"}
        for message in ("text ☂", b"\x00binary\xff", "", os.urandom(1 << 20), "t" * (1 << 20)):
            made.send(message)
            assert made.recv(PATIENCE) == message
        assert made.ping().wait(PATIENCE)


@with_websocket
def test_websocket_close_codes(proxy: Proxy, kind: Kind, client: httpx.Client) -> None:
    with websocket(proxy, kind, "/ws/close") as made, pytest.raises(ConnectionClosed) as caught:
        made.recv(PATIENCE)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "enough")
    run = next(names)
    with websocket(proxy, kind, f"/ws/wait/{run}") as made:
        made.close(3007, "bye")
    assert client.get(f"/closed/{run}").json() == kind.heard_close_code
    assert proxy.logged(path="/ws/close")["status"] == 101


@with_websocket
def test_websockets_on_a_connection_of_http_2(proxy: Proxy, kind: Kind) -> None:
    run = next(names)
    with Http2Client(proxy, kind.host) as client:
        first, second = WebSocket(client, "/ws/echo"), WebSocket(client, f"/ws/wait/{run}")
        about = json.loads(first.receive())
        assert about == {"scheme": kind.websocket_scheme, "client": CLIENT, "path": "/ws/echo"}
        for message in ("text ☂", b"\x00binary\xff", "", os.urandom(1 << 20), "t" * (1 << 20)):
            first.send(message)
            assert first.receive() == message
        first.ping()
        second.close(3007, "bye")
        assert json.loads(client.get(f"/closed/{run}").body) == kind.heard_close_code
        with pytest.raises(Closed) as caught:
            WebSocket(client, "/ws/close").receive()
        assert (caught.value.code, caught.value.reason) == (4001, "enough")
        first.close(1000)
        assert (first.stream.status, client.goaways) == (200, [])
    line = proxy.logged(path="/ws/echo", host=kind.host, http="2")
    assert (line["status"], line["method"]) == (101, "GET")


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.websocket], indirect=True, ids=lambda kind: kind.id
)
def test_a_server_without_websockets_is_said_to_be_one(proxy: Proxy, kind: Kind) -> None:
    with Http2Client(proxy, kind.host) as client:
        assert WebSocket(client, "/ws/echo").stream.status == 502
    assert "WebSocket" in proxy.logged(path="/ws/echo", host=kind.host)["error"]


def test_scheme_address_and_redirects(client: httpx.Client, proxy: Proxy, kind: Kind) -> None:
    seen = client.get("/whoami", headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}).json()
    here = f"https://{kind.host}:{proxy.port}"
    assert (seen["scheme"], seen["client"]) == ("https", CLIENT)
    assert (seen["url"], seen["made_url"]) == (f"{here}/whoami", f"{here}/items/")
    headers = seen["headers"]
    assert headers["x-forwarded-for"] == headers["x-real-ip"] == CLIENT
    assert headers["x-forwarded-host"] == f"{kind.host}:{proxy.port}"
    assert headers["x-forwarded-port"] == str(proxy.port)
    redirect = client.get("/items?a=1")
    assert (redirect.status_code, redirect.headers["Location"]) == (307, f"{here}/items/?a=1")


def test_connections_to_the_server_are_reused(client: httpx.Client, proxy: Proxy) -> None:
    for _ in range(3):
        answer = client.get("/hello")
        assert answer.text == "hello"
    line = proxy.logged(request_id=client.get("/whoami").json()["headers"]["x-request-id"])
    assert line["reused"] is True


@pytest.mark.parametrize("kind", PREFIXED, ids=lambda kind: f"{kind.id}-{'stripped' if kind.strips else 'whole'}")
def test_under_a_prefix(proxy: Proxy, kind: Kind, folder: Path, addresses: dict[tuple[str, bool], str]) -> None:
    """The server is started once, so both versions are asked of here."""
    server = kind.start(addresses[kind.id, True], folder, prefixed=True)
    here = f"https://{kind.host}:{proxy.port}/api/v1"
    try:
        for http2 in (False, True):
            with proxy.client(kind.host, http2=http2) as client:
                _look_around(client, here, "/api/v1" if kind.strips else None)
    finally:
        server.stop()


def _look_around(client: httpx.Client, here: str, prefix: str | None) -> None:
    seen = client.get("/api/v1/whoami").json()
    assert (seen["root_path"], seen["url"]) == ("/api/v1", f"{here}/whoami")
    assert seen["headers"].get("x-forwarded-prefix") == prefix
    assert client.get("/api/v1/items").headers["Location"] == f"{here}/items/"
    assert client.get("/api/v1/openapi.json").json()["servers"] == [{"url": "/api/v1"}]
    assert '"/api/v1/openapi.json"' in client.get("/api/v1/docs").text.replace("'", '"')
