"""Each challenge against a real CA: Pebble looks at what our solvers have made ready, in BIND's zones and in the store.

What a worker of the proxy does with the answers in the store, two small servers do here, one thread each.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.named import KEY, LOOPBACK, Named, Primary, skip_without
from tests.pebble import Pebble
from tests.system.running import free_port
from tlsproxy.certs.challenges import Dns01, Http01, Solver, TlsAlpn01
from tlsproxy.certs.dns.base import DnsProvider
from tlsproxy.certs.dns.exec import ExecProvider
from tlsproxy.certs.dns.lookup import Lookup
from tlsproxy.certs.dns.propagation import Timeouts
from tlsproxy.certs.dns.rfc2136 import Rfc2136Provider
from tlsproxy.certs.issuer import AcmeIssuer
from tlsproxy.certs.job import Issued, Job
from tlsproxy.certs.login import LogIns
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Step
from tlsproxy.certs.quota import QuotaGuard
from tlsproxy.certs.tools import Tools
from tlsproxy.settings.acme import Issuer
from tlsproxy.store.base import open_store
from tlsproxy.store.challenges import Challenges

pytestmark = pytest.mark.system

ZONES = [
    Primary("example.test", ["api A 127.0.0.1", "_acme-challenge.api CNAME api.challenges.test."]),
    Primary("challenges.test"),
]
FAST = Timeouts(provider=10, propagation=10, period=0.05, silence=0.1)


@dataclass
class World:
    """A CA, the DNS that it asks, and what a certifier has."""

    ca: Pebble
    dns: Named
    tools: Tools
    challenges: Challenges
    steps: list[Step]

    def obtain(self, solver: Solver, *hosts: str) -> Issued:
        issuer = Issuer(
            directory_url=self.ca.directory,
            staging_url="",
            email="",
            ca_bundle=str(self.ca.ca_bundle),
            profile="",
            preferred_chain="",
            eab_kid="",
            eab_hmac_key=SecretStr(""),
        )
        guard = QuotaGuard(self.tools, "off")
        acme = AcmeIssuer(self.tools, [solver], guard, LogIns(self.tools, guard.permit_account))
        return asyncio.run(acme.obtain(Job(f"acme/{hosts[0]}", hosts, issuer), self.steps.append))

    def dns01(self, provider: DnsProvider) -> Dns01:
        lookup = Lookup([self.dns.resolver], port=self.dns.port)
        return Dns01(provider, lookup, self.tools.requests, FAST)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    tools = Tools.make(open_store("memory:"))
    with (
        Named(tmp_path / "named", port=free_port(), zones=ZONES) as dns,
        Named(tmp_path / "resolver", port=free_port(), recursor_of=(LOOPBACK, dns.port)) as resolver,
        Pebble(tmp_path, dns=resolver.resolver, http_port=free_port(), tls_port=free_port()) as ca,
    ):
        yield World(ca, dns, tools, Challenges(tools.store), [])
    tools.close()


def updates(world: World, tmp_path: Path) -> DnsProvider:
    return Rfc2136Provider(LOOPBACK, port=world.dns.port, key_name=KEY.name, key_secret=KEY.secret)


def hook(world: World, tmp_path: Path) -> DnsProvider:
    """A script as users write it, with our own updates instead of nsupdate."""
    script = tmp_path / "hook.py"
    script.write_text(
        "import sys\n"
        "from tlsproxy.certs.dns.rfc2136 import Rfc2136Provider\n"
        f"provider = Rfc2136Provider('{LOOPBACK}', port={world.dns.port},"
        f" key_name='{KEY.name}', key_secret='{KEY.secret}')\n"
        "{'present': provider.create, 'cleanup': provider.delete}[sys.argv[1]](*sys.argv[2:])\n"
    )
    return ExecProvider([sys.executable, str(script)])


@pytest.mark.parametrize("make", [updates, hook])
def test_a_name_its_wildcard_and_a_delegated_name_in_one_order(
    world: World, tmp_path: Path, make: Callable[[World, Path], DnsProvider]
) -> None:
    hosts = ("example.test", "*.example.test", "api.example.test")
    issued = world.obtain(world.dns01(make(world, tmp_path)), *hosts)
    assert issued.bundle.check_names(hosts) == []
    assert set(issued.winners.values()) == {"dns-01"}
    assert changes(world.dns, "_acme-challenge.example.test") == ["adding", "adding", "deleting", "deleting"]
    assert changes(world.dns, "api.challenges.test") == ["adding", "deleting"]
    assert world.dns.txt("_acme-challenge.example.test") == world.dns.txt("api.challenges.test") == set()


def changes(dns: Named, name: str) -> list[str]:
    """Return what was done with TXT records of a name, in order, as BIND has logged it."""
    return re.findall(rf": (adding|deleting) an RR at '?{re.escape(name)}'? TXT", dns.log)


def test_a_ca_that_finds_nothing_says_so_and_the_record_goes(world: World) -> None:
    """Its DNS is not the one that we write to."""
    with Named(world.dns.folder / "other", port=free_port(), zones=ZONES) as other:
        lookup = Lookup([other.resolver], port=other.port)
        provider = Rfc2136Provider(LOOPBACK, port=other.port, key_name=KEY.name, key_secret=KEY.secret)
        with pytest.raises(AcmeFailure) as caught:
            world.obtain(Dns01(provider, lookup, world.tools.requests, FAST), "example.test")
        assert changes(other, "_acme-challenge.example.test") == ["adding", "deleting"]
    assert caught.value.kind is FailureKind.VALIDATION
    assert caught.value.identifier == "example.test"


@pytest.mark.parametrize("host", ["api.example.test", "127.0.0.1"])
def test_http01(world: World, host: str) -> None:
    def answer(client: socket.socket) -> None:
        path = client.recv(4096).split(b" ")[1].decode()
        body = world.challenges.http(path.rpartition("/")[2], datetime.now(UTC)) or ""
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())

    solver = Http01(world.challenges, world.tools.storing)
    with served(world.ca.http_port, answer):
        issued = world.obtain(solver, host)
    assert issued.bundle.check_names([host]) == []
    assert world.tools.store.list_records("challenges") == ()


@pytest.mark.parametrize("host", ["api.example.test", "127.0.0.1", "::1"])
def test_tls_alpn01(world: World, tmp_path: Path, host: str) -> None:
    asked: list[str] = []
    address = "::1" if ":" in host else LOOPBACK
    skip_without(address)

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        asked.append(name or "")
        bundle = world.challenges.tls_alpn(name or "", datetime.now(UTC))
        assert bundle is not None
        (tmp_path / "pair.pem").write_bytes(bundle.key_pem + bundle.chain_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "pair.pem")
        context.set_alpn_protocols(["acme-tls/1"])
        connection.context = context

    def answer(client: socket.socket) -> None:
        first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        first.sni_callback = choose
        first.wrap_socket(client, server_side=True).close()

    solver = TlsAlpn01(world.challenges, world.tools.storing)
    with served(world.ca.tls_port, answer, address):
        issued = world.obtain(solver, host)
    assert issued.bundle.check_names([host]) == []
    assert world.tools.store.list_records("challenges") == ()
    assert set(asked) <= {"api.example.test", "1.0.0.127.in-addr.arpa", "1" + ".0" * 31 + ".ip6.arpa"}


@contextlib.contextmanager
def served(port: int, answer: Callable[[socket.socket], None], address: str = LOOPBACK) -> Iterator[None]:
    """Hand each connection to `answer`, one after the other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError, AssertionError):
                client.settimeout(5)
                answer(client)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(serve)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
