"""Certificates that are obtained during a handshake: who may have one, who waits, who does not, how often anybody asks.

The application is a real one behind uvicorn, which counts how often it is asked.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, site, trusting
from tests.system.commands import admin, admin_json
from tests.system.running import PATIENCE, Proxy, Server, free_port, until
from tests.system.visitors import serial_of, visiting

pytestmark = pytest.mark.system

CLIENTS = 20


@pytest.fixture
def app(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.system.apps.customers:app", "--port", str(port)]
    server = Server(command, f"http://127.0.0.1:{port}", tmp_path / "app.log")
    yield server.address
    server.stop()


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def ca(tmp_path: Path, ports: Ports) -> Iterator[Pebble]:
    with (
        ChallTestSrv(tmp_path, ipv6="") as dns,
        Pebble(tmp_path, dns=dns.address, http_port=ports.http, tls_port=ports.https) as ca,
    ):
        yield ca


def on_demand(app: str, *hosts: str) -> str:
    names = ", ".join(f'"{host}"' for host in hosts)
    return f"""
        [[sites]]
        hosts = [{names}]
        certificate = "on_demand"
        backends = ["{app}"]
    """


def asked(app: str) -> list[list[str]]:
    found: list[list[str]] = httpx.get(f"{app}/asked", trust_env=False).json()
    return found


def greet(proxy: Proxy, host: str, trust: ssl.SSLContext, client: str = "127.0.0.2") -> int:
    """Have a client (its address) of this host say hello; return the serial number of what it was shown."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, (client, 0))
    with raw, trust.wrap_socket(raw, server_hostname=host) as connection:
        connection.sendall(f"GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.endswith(b"\r\n\r\nhello"), answer
        return serial_of(connection)


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Expect the alert that says that the name is not known here, and at once."""
    begin = time.monotonic()
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        yield
    assert time.monotonic() - begin < 5


class TestByPath:
    """The application's own backend is asked, at a path of it."""

    ASK = '[on_demand]\nask = "/may-have-certificate"'

    def test_one_order_for_all_clients_of_a_name(self, tmp_path: Path, ca: Pebble, ports: Ports, app: str) -> None:
        sites = on_demand(app, "*") + site("a.test", backend=app)
        trust = trusting(ca.root())
        with running(tmp_path, ca, sites, ports=ports, workers=2, more=self.ASK) as proxy:
            proxy.wait_for("certificate.obtained", certificate="acme/a.test")
            # From as many networks: each may have ten clients wait.
            clients = [f"127.0.{number}.1" for number in range(1, CLIENTS + 1)]
            with visiting(proxy, "a.test", trust) as visits, ThreadPoolExecutor(CLIENTS) as pool:
                serials = set(pool.map(lambda client: greet(proxy, "one.shop.test", trust, client), clients))
            assert len(serials) == 1
            assert visits.good > 0
            assert ca.orders == 2
            ((name, client),) = asked(app)
            assert name == "one.shop.test"
            assert client in clients
            for _ in range(CLIENTS):
                with refused():
                    greet(proxy, "stranger.test", trust)
            assert [name for name, _ in asked(app)] == ["one.shop.test", "stranger.test"]
            assert "acme/one.shop.test" in {row["name"] for row in admin_json(proxy, "certs", "list")}
        with running(tmp_path, ca, sites, ports=ports, workers=2, more=self.ASK) as proxy:
            assert {greet(proxy, "one.shop.test", trust) for _ in range(CLIENTS)} == serials
            assert ca.orders == 2
            assert len(asked(app)) == 2
            admin(proxy, "certs", "remove", "one.shop.test", "--yes")
            until(lambda: greet(proxy, "one.shop.test", trust) not in serials, "another one is obtained")
            assert asked(app)[2:] == [["one.shop.test", "127.0.0.2"]]

    def test_who_waits_holds_up_nobody_else(self, tmp_path: Path, ports: Ports, app: str) -> None:
        """The CA is held before it signs. One worker serves both clients."""
        sites = on_demand(app, "*.shop.test") + site("a.test", backend=app)
        with (
            CertificateAuthority(tmp_path, http_port=ports.http) as ca,
            running(tmp_path, ca, sites, ports=ports, more=self.ASK) as proxy,
            ThreadPoolExecutor(1) as pool,
        ):
            proxy.wait_for("certificate.obtained", certificate="acme/a.test")
            trust, gate = trusting(ca.root), ca.gate("finalize")
            waiting = pool.submit(greet, proxy, "one.shop.test", trust)
            gate.wait()
            assert not waiting.done()
            greet(proxy, "a.test", trust)
            with refused():
                greet(proxy, "two.stranger.test", trust)
            assert not waiting.done()
            gate.open()
            assert waiting.result(PATIENCE)


class TestLimits:
    """Asked at a URL, by tls-alpn-01."""

    def test_of_one_domain_and_of_one_client(self, tmp_path: Path, ca: Pebble, ports: Ports, app: str) -> None:
        more = f"""
            [on_demand]
            ask = "{app}/may-have-certificate?from=proxy"
            per_domain = "1/1h"
            per_client = "2/1h"
        """
        trust = trusting(ca.root())
        with running(tmp_path, ca, on_demand(app, "*"), ports=ports, challenges=("tls-alpn-01",), more=more) as proxy:
            greet(proxy, "a.shop1.test", trust, "127.0.1.1")
            with refused():  # the domain has had its name
                greet(proxy, "b.shop1.test", trust, "127.0.1.1")
            with refused():  # the client has had two; it is not even asked for
                greet(proxy, "a.shop2.test", trust, "127.0.1.9")
            greet(proxy, "a.shop3.test", trust, "127.0.2.1")
            greet(proxy, "a.shop1.test", trust, "127.0.1.1")  # what is there costs nothing
            assert asked(app) == [
                ["a.shop1.test", "127.0.1.1"],
                ["b.shop1.test", "127.0.1.1"],
                ["a.shop3.test", "127.0.2.1"],
            ]
            assert ca.orders == 2
            reason = proxy.wait_for("on_demand.refused", host="b.shop1.test")["reason"]
            assert reason.startswith("shop1.test has had too many new names; the next in ")
