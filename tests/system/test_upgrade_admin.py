"""What is asked of the proxy while it changes hands: over connections that are older than who answers, and where."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trustme
from websockets.sync.client import connect

from tests.system.commands import Said, tlsproxy
from tests.system.running import PATIENCE, Proxy, free_port, running_proxy, write_pair

CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""Just as it asked: what every client of a kept connection has to expect (RFC 9112 9.5)."""

pytestmark = pytest.mark.system


@pytest.fixture
def sites(app: str, tmp_path: Path, authority: trustme.CA) -> str:
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(tmp_path, authority, "localhost")}
        backends = ["{app}", "http://127.0.0.1:9"]
    """


@contextmanager
def running(folder: Path, trust: ssl.SSLContext, sites: str, *environment: str) -> Iterator[Proxy]:
    before = ("env", "TLSPROXY_SERVER__DRAIN_STREAMS=15s", *environment)
    with running_proxy(folder, trust, sites, drain="2s", before=before) as proxy:
        yield proxy


@contextmanager
def lingering(proxy: Proxy) -> Iterator[None]:
    """Have the old supervisor stay after an upgrade: somebody talks to a worker of its."""
    url = f"ws://localhost:{proxy.port}/ws/echo"
    with connect(url, sock=proxy.open(), proxy=None, open_timeout=PATIENCE) as words:
        words.recv(PATIENCE)
        yield
        words.send("still there")
        assert words.recv(PATIENCE) == "still there"


def upgrade(folder: Path, name: str = "admin.sock") -> Said:
    return tlsproxy(folder, "admin", "upgrade", "--socket", str(folder / name))


def admin_api(folder: Path, name: str = "admin.sock") -> httpx.Client:
    """A client that keeps its connection, and connects anew only where it was told to, or was closed."""
    transport = httpx.HTTPTransport(uds=str(folder / name), limits=httpx.Limits(max_connections=1))
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE)


def status(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/status")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_kept_connections_lead_to_the_new_proxy(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    """A client that never stops asking: nothing keeps it with the one that is leaving."""
    port = free_port()
    with (
        running(tmp_path, trust, sites, f"TLSPROXY_ADMIN__METRICS=127.0.0.1:{port}") as proxy,
        lingering(proxy),
        admin_api(tmp_path) as kept,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as scraper,
        ThreadPoolExecutor() as pool,
    ):
        assert status(kept)["generation"] == 1
        upgraded = pool.submit(upgrade, tmp_path)
        while not upgraded.done():
            for client, target in ((kept, "/healthz"), (scraper, "/metrics")):
                with suppress(*CLOSED):
                    assert client.get(target).status_code == 200
        assert upgraded.result().code == 0, upgraded.result()
        assert proxy.count("proxy.left") == 0
        assert status(kept)["generation"] == 2
        assert "\ntlsproxy_generation 2.0\n" in scraper.get("/metrics").text
        drained = kept.post(f"/backends/{quote('http://127.0.0.1:9', safe='')}/drain")
        assert drained.status_code == 200, drained.text
        with admin_api(tmp_path) as another:
            states = {row["url"]: row["state"] for row in another.get("/backends").json()}
        assert states["http://127.0.0.1:9"] == "draining"


# --- another place to ask at


def move(proxy: Proxy, wanted: Path | str, *more: str) -> None:
    """Have the configuration want another admin socket, and `more` in that section."""
    config = proxy.folder / "tlsproxy.toml"
    before, after = f'socket = "{proxy.folder / "admin.sock"}"', ", ".join((f'socket = "{wanted}"', *more))
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))


def test_a_socket_that_cannot_be_made_fails_an_upgrade_as_it_does_a_reload(
    tmp_path: Path, trust: ssl.SSLContext, sites: str
) -> None:
    with running(tmp_path, trust, sites) as proxy:
        move(proxy, "/proc/nowhere/a.sock")
        upgraded = upgrade(tmp_path)
        reloaded = tlsproxy(tmp_path, "admin", "reload", "--socket", str(tmp_path / "admin.sock"))
        sentence = "/proc/nowhere/a.sock: the admin socket cannot be made there"
        assert (upgraded.code, reloaded.code) == (1, 1)
        assert sentence in upgraded.err.splitlines()[-1]
        assert upgraded.err.splitlines()[-1] in reloaded.err.splitlines()
        with admin_api(tmp_path) as client:
            assert status(client)["generation"] == 1


def test_a_socket_moves_with_an_upgrade(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    with running(tmp_path, trust, sites) as proxy:
        move(proxy, tmp_path / "moved.sock")
        assert upgrade(tmp_path).code == 0
        assert not (tmp_path / "admin.sock").exists()
        with admin_api(tmp_path, "moved.sock") as client:
            assert status(client)["generation"] == 2
        assert upgrade(tmp_path, "moved.sock").code == 0
        with admin_api(tmp_path, "moved.sock") as client:
            assert status(client)["generation"] == 3


def test_a_socket_goes_with_an_upgrade(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    with running(tmp_path, trust, sites) as proxy:
        move(proxy, "off")
        assert upgrade(tmp_path).code == 0
        assert not (tmp_path / "admin.sock").exists()
        with proxy.client() as client:
            assert client.get("/hello").text == "hello"


def test_what_was_opened_for_an_upgrade_that_fails_is_gone(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    """It fails by the port of metrics, which is next: that reason is told too."""
    with running(tmp_path, trust, sites) as proxy, socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        move(proxy, tmp_path / "moved.sock", f'metrics = "{address}"')
        said = upgrade(tmp_path)
        assert (said.code, f"admin.metrics: cannot listen on {address}: " in said.err) == (1, True), said
        assert not (tmp_path / "moved.sock").exists()
        with admin_api(tmp_path) as client:
            assert status(client)["generation"] == 1
