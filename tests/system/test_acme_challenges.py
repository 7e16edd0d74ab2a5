"""Each challenge from a configuration to what clients are served: a real proxy, Pebble, and the DNS that it asks.

dns-01 needs name servers where everybody looks for them, on port 53 of the loopback: its tests are skipped where that
port may not be used, or is taken.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.named import KEY, LOOPBACK, Named, Primary
from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, site, store_of, trusting
from tests.system.commands import admin, following
from tests.system.running import PATIENCE, Proxy, free_port, until
from tests.system.visitors import certificate_of, visiting

pytestmark = pytest.mark.system

HOOK_SERVER = "127.53.0.2"


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports()


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChallTestSrv]:
    with ChallTestSrv(tmp_path_factory.mktemp("dns"), ipv6="") as dns:
        yield dns


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory, dns: ChallTestSrv, ports: Ports) -> Iterator[Pebble]:
    with Pebble(tmp_path_factory.mktemp("ca"), dns=dns.address, http_port=ports.http, tls_port=ports.https) as ca:
        yield ca


def names_of(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def obtained(proxy: Proxy, *hosts: str) -> None:
    for host in hosts:
        proxy.wait_for("certificate.obtained", certificate=f"acme/{host}")


def challenges_in(folder: Path) -> int:
    store = store_of(folder)
    with contextlib.closing(store):
        return len(store.list_records("challenges"))


class TestOverTls:
    """tls-alpn-01: the CA has a handshake of its own on the port where the clients are."""

    def test_clients_of_the_name_notice_nothing(self, tmp_path: Path, ca: Pebble, ports: Ports, app: str) -> None:
        with running(
            tmp_path, ca, site("a.test", backend=app), ports=ports, challenges=("tls-alpn-01",), workers=2
        ) as proxy:
            obtained(proxy, "a.test")
            trust = trusting(ca.root())
            with visiting(proxy, "a.test", trust) as first, visiting(proxy, "a.test", trust) as second:
                for _ in range(3):
                    admin(proxy, "certs", "renew", "a.test")
            until(lambda: proxy.count("certificate.renewed", certificate="acme/a.test") == 3, "all are told")
            assert proxy.count("certificate.served_mismatch") == 0
            assert min(first.good, second.good) > 10
            assert len(first.serials) > 1
            assert challenges_in(tmp_path) == 0


@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
class TestAddresses:
    """Certificates for addresses (RFC 8738): clients of those send no name."""

    def test_are_served_to_clients_without_a_name(
        self, tmp_path: Path, ca: Pebble, ports: Ports, app: str, challenge: str
    ) -> None:
        skip_without_ipv6()
        sites = site("127.0.0.1", backend=app) + site("::1", backend=app)
        with running(tmp_path, ca, sites, ports=ports, challenges=(challenge,), before=on_both(ports)) as proxy:
            obtained(proxy, "127.0.0.1", "::1")
            for address in ("127.0.0.1", "::1"):
                raw = socket.create_connection((address, ports.https), PATIENCE)
                # Python sends no SNI for an address, and looks for it in the certificate.
                with raw, trusting(ca.root()).wrap_socket(raw, server_hostname=address) as client:
                    assert names_of(certificate_of(client)) == {address}


def skip_without_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no address ::1 ({error.strerror})")


def on_both(ports: Ports) -> tuple[str, ...]:
    """Return what makes a proxy listen on both loopback addresses."""
    https, http = (f"127.0.0.1:{port},[::1]:{port}" for port in (ports.https, ports.http))
    return "env", f"TLSPROXY_LISTEN__HTTPS={https}", f"TLSPROXY_LISTEN__HTTP={http}"


class TestFailOver:
    def test_the_challenge_that_worked_is_tried_first(self, tmp_path: Path, dns: ChallTestSrv) -> None:
        ports, kinds = Ports(), ("http-01", "tls-alpn-01")
        with (
            Pebble(tmp_path, dns=dns.address, http_port=free_port(), tls_port=ports.https) as ca,
            running(tmp_path, ca, site("a.test"), ports=ports, challenges=kinds) as proxy,
        ):
            obtained(proxy, "a.test")
            assert ca.orders == 2  # the first ended with the challenge that nobody answers
            with following(proxy, "certs", "renew", "a.test") as lines:
                steps = [line for line in lines if line.startswith("challenge")]
            assert "challenge: a.test: making tls-alpn-01 ready" in steps
            assert not [step for step in steps if "http-01" in step]
            assert ca.orders == 3

    def test_a_challenge_that_nobody_listens_for_is_not_tried(self, tmp_path: Path, dns: ChallTestSrv) -> None:
        ports, kinds = Ports(), ("http-01", "tls-alpn-01")
        closed = ("env", "TLSPROXY_LISTEN__HTTP=")
        with (
            Pebble(tmp_path, dns=dns.address, http_port=ports.http, tls_port=ports.https) as ca,
            running(tmp_path, ca, site("a.test"), ports=ports, challenges=kinds, before=closed) as proxy,
        ):
            obtained(proxy, "a.test")
            assert ca.orders == 1


HOOK = """
import json, sys, urllib.request
verb, name, value = sys.argv[1:]
with open({log!r}, "a") as log:
    print(verb, name, file=log)
action = {{"present": "set-txt", "cleanup": "clear-txt"}}[verb]
body = json.dumps({{"host": name + ".", "value": value}}).encode()
urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:{port}/" + action, body, method="POST")).close()
"""


class TestOverDns:
    """dns-01 for x and *.x in one order: two values under one name."""

    @pytest.fixture
    def zones(self, tmp_path: Path) -> Iterator[Named]:
        """Two zones that take updates, and one whose own server is pebble-challtestsrv."""
        zones = [
            Primary("a.test"),
            Primary("b.test", ["_acme-challenge CNAME b.proofs.test."]),
            Primary("proofs.test"),
            Primary("hook.test", ["@ NS ns", f"ns A {HOOK_SERVER}"], servers=0),
        ]
        skip_without_port_53()
        with Named(tmp_path / "named", port=53, zones=zones) as named:
            yield named

    def test_by_a_program(self, tmp_path: Path, zones: Named, app: str) -> None:
        ports, log = Ports(), tmp_path / "hook.log"
        with ChallTestSrv(tmp_path, ipv6="", host=HOOK_SERVER, port=53) as dns, Pebble(tmp_path, dns=dns.address) as ca:
            hook = tmp_path / "hook.py"
            hook.write_text(HOOK.format(log=str(log), port=dns.management_port))
            command = f'["{sys.executable}", "{hook}"]'
            more = f"""
                [acme.dns]
                provider = "exec"
                resolvers = ["{LOOPBACK}"]
                exec = {{ command = {command} }}
            """
            sites = site("hook.test", "*.hook.test", backend=app)
            with running(tmp_path, ca, sites, ports=ports, challenges=("dns-01",), more=more) as proxy:
                obtained(proxy, "hook.test")
                trust = trusting(ca.root())
                for host in ("hook.test", "one.hook.test", "two.hook.test"):
                    assert says_hello(proxy, host, trust)
        done = log.read_text().splitlines()
        assert sorted(done[:2]) == ["present _acme-challenge.hook.test"] * 2
        assert sorted(done[2:]) == ["cleanup _acme-challenge.hook.test"] * 2

    def test_by_updates_where_a_cname_leads(self, tmp_path: Path, zones: Named, app: str) -> None:
        ports = Ports()
        more = f"""
            [acme.dns]
            provider = "rfc2136"
            resolvers = ["{LOOPBACK}"]
            rfc2136 = {{ server = "{LOOPBACK}", key_name = "{KEY.name}", key_secret = "{KEY.secret}" }}
        """
        sites = site("a.test", "*.a.test", "b.test", "*.b.test", backend=app)
        with (
            Named(tmp_path / "resolver", port=free_port(), recursor_of=(LOOPBACK, 53)) as resolver,
            Pebble(tmp_path, dns=resolver.resolver) as ca,
            running(tmp_path, ca, sites, ports=ports, challenges=("dns-01",), more=more) as proxy,
        ):
            obtained(proxy, "a.test")
            trust = trusting(ca.root())
            for host in ("a.test", "x.a.test", "b.test", "y.b.test"):
                assert says_hello(proxy, host, trust)
            assert zones.txt("_acme-challenge.a.test") == zones.txt("b.proofs.test") == set()
            assert zones.log.count("adding an RR at 'b.proofs.test' TXT") == 2


def skip_without_port_53() -> None:
    for address in (LOOPBACK, HOOK_SERVER):
        try:
            socket.create_server((address, 53)).close()
        except OSError as error:
            pytest.skip(f"no DNS server may listen on {address}:53 ({error.strerror})")


def says_hello(proxy: Proxy, host: str, trust: ssl.SSLContext) -> bool:
    with contextlib.closing(proxy.connection(host, trust)) as client:
        client.request("GET", "/hello")
        return client.getresponse().read() == b"hello"
