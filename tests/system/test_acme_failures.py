"""What people are told when a CA says no, what is tried next and where, and that a restart changes nothing of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, served, site, trusting
from tests.system.commands import admin, admin_json, row, tlsproxy
from tests.system.running import Proxy

pytestmark = pytest.mark.system

STRANGER = "127.0.0.8"  # somebody else's web server
NOBODY = "127.0.0.7"
ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def dns(tmp_path: Path) -> Iterator[ChallTestSrv]:
    """Names that lead to the proxy, to somebody else, to nobody, and to an address of IPv6 where nobody is."""
    with ChallTestSrv(tmp_path, ipv4="", ipv6="") as dns:
        for host, address in {"good": "127.0.0.1", "later": "127.0.0.1", "wrong": STRANGER, "closed": NOBODY}.items():
            dns.a(f"{host}.test", address)
        dns.aaaa("six.test", "::1")
        yield dns


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def stranger(ports: Ports) -> Iterator[None]:
    """Answer everything with 404."""
    with socket.create_server((STRANGER, ports.http)) as server:
        thread = threading.Thread(target=_refuse_all, args=(server,))
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _refuse_all(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(ANSWER)


@pytest.mark.usefixtures("stranger")
def test_looks_that_fail_are_explained_and_a_restart_changes_nothing(
    tmp_path: Path, dns: ChallTestSrv, ports: Ports
) -> None:
    sentences = {
        "closed.test": (
            f"closed.test: the CA could not reach http://closed.test:{ports.http}/.well-known/acme-challenge/… over "
            f"IPv4 (A {NOBODY}, connection refused). Open port {ports.http} there (firewall, port forwarding) or "
            "correct the A record."
        ),
        "six.test": (
            f"six.test: the CA could not reach http://six.test:{ports.http}/.well-known/acme-challenge/… over "
            f"IPv6 (AAAA ::1, connection refused). Remove the AAAA record or open port {ports.http} there."
        ),
        "wrong.test": (
            f"wrong.test: the CA asked for http://wrong.test:{ports.http}/.well-known/acme-challenge/… and got 404. "
            "Point the name's DNS records to this proxy; what stands before it must pass "
            "/.well-known/acme-challenge/ on."
        ),
    }
    sites = site("good.test") + "".join(map(site, sentences))
    with Pebble(tmp_path, dns=dns.address, http_port=ports.http) as ca:
        with running(tmp_path, ca, sites, ports=ports) as proxy:
            obtained(proxy, "good.test")
            for host, sentence in sentences.items():
                assert proxy.wait_for("certificate.failing", certificate=f"acme/{host}")["error"] == sentence
            check_listed(proxy, sentences)
        check_listed(tmp_path, sentences)  # while it is stopped
        check_explained(tmp_path, sentences)
        with running(tmp_path, ca, sites + site("later.test"), ports=ports) as proxy:
            obtained(proxy, "later.test")  # with the same look at all certificates the others would have been ordered
            assert ca.orders == 5
            check_listed(proxy, sentences)
            check_explained(proxy, sentences)
            dns.a("closed.test", "127.0.0.1")
            said = admin(proxy, "certs", "obtain", "closed.test")
            assert said.lines[-1].startswith("acme/closed.test: valid until ")
            assert row(proxy, "acme/closed.test")["last_error"] is None
            proxy.open("closed.test", trusting(ca.root())).close()


def obtained(proxy: Proxy, host: str) -> None:
    proxy.wait_for("certificate.obtained", certificate=f"acme/{host}")


def check_listed(where: Proxy | Path, sentences: dict[str, str]) -> None:
    """`list` says what went wrong and when the next attempt is, whether the proxy runs or not."""
    rows = {each["name"]: each for each in admin_json(where, "certs", "list")}
    assert rows["acme/good.test"]["status"] == "valid"
    for host, sentence in sentences.items():
        told = rows[f"acme/{host}"]
        assert (told["status"], told["attempts"], told["last_error"]) == ("failed", 1, sentence)
        left = datetime.fromisoformat(told["next_attempt"]) - datetime.now(UTC)
        assert left < timedelta(seconds=72)  # a minute, give or take a fifth


def check_explained(where: Proxy | Path, sentences: dict[str, str]) -> None:
    table = admin(where, "certs", "list").lines
    assert any(line.startswith("acme/six.test\tfailed\t") and line.endswith(sentences["six.test"]) for line in table)
    why = admin(where, "certs", "why", "wrong.test").lines
    assert why[0] == "acme/wrong.test: there is no certificate for wrong.test."
    assert why[1].startswith("It waits until ")
    assert ": there is no certificate yet, but 1 attempt failed; the next is on " in why[1]
    assert why[2].startswith("The attempt of ")
    assert why[2].endswith(f" failed: {sentences['wrong.test']}")


def test_a_host_that_fails_costs_those_before_it_nothing(tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> None:
    """A site gets a second host, which does not lead here."""
    with Pebble(tmp_path, dns=dns.address, http_port=ports.http) as ca:
        with running(tmp_path, ca, site("good.test"), ports=ports) as proxy:
            obtained(proxy, "good.test")
        with running(tmp_path, ca, site("good.test", "closed.test"), ports=ports) as proxy:
            proxy.wait_for("certificate.failing", certificate="acme/good.test")
            proxy.open("good.test", trusting(ca.root())).close()
            assert served(proxy, "closed.test") is None
            why = admin(proxy, "certs", "why", "closed.test").lines
            assert why[0].startswith("acme/good.test: the certificate for good.test, issued by CN=Pebble Intermediate")
            assert "it does not cover closed.test, but 1 attempt failed" in why[1]


def test_a_ca_that_is_away_is_told_while_it_is_tried(tmp_path: Path, ports: Ports) -> None:
    ca = CertificateAuthority(tmp_path)  # and nobody starts it
    with running(tmp_path, ca, site("good.test"), ports=ports) as proxy:
        away = proxy.wait_for("acme.waiting")["error"]
        assert away.startswith(f"CA 127.0.0.1:{ca.port}: the CA can't be reached (Connection refused). Check this")
        assert admin(proxy, "certs", "why", "good.test").lines == [
            "acme/good.test: there is no certificate for good.test.",
            f"Under way now: {away}",
        ]


def test_what_has_failed_is_rehearsed_first(tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> None:
    """The staging CA is asked until it says yes; the real one then gives the certificate."""
    with (
        Pebble(folder(tmp_path, "staging"), dns=dns.address, http_port=ports.http) as staging,
        Pebble(folder(tmp_path, "real"), dns=dns.address, http_port=ports.http) as ca,
    ):
        ca.ca_bundle.write_bytes(ca.ca_bundle.read_bytes() + staging.ca_bundle.read_bytes())
        more = f'staging = "{staging.directory}"'
        with running(tmp_path, ca, site("closed.test"), ports=ports, more=more) as proxy:
            proxy.wait_for("certificate.failing")
            assert (ca.orders, staging.orders) == (1, 0)
            said = tlsproxy(tmp_path, "admin", "certs", "obtain", "closed.test")
            assert said.code == 1
            assert f"A {NOBODY}, connection refused" in said.err
            assert (ca.orders, staging.orders) == (1, 1)
            why = admin(proxy, "certs", "why", "closed.test").out
            assert f"a rehearsal at {staging.directory}; if that goes well, a certificate is ordered from" in why
            dns.a("closed.test", "127.0.0.1")
            admin(proxy, "certs", "obtain", "closed.test")
            assert (ca.orders, staging.orders) == (2, 2)
            proxy.open("closed.test", trusting(ca.root())).close()


def test_another_ca_is_asked_when_the_first_is_away(tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> None:
    with (
        CertificateAuthority(folder(tmp_path, "first"), http_port=ports.http) as first,
        Pebble(folder(tmp_path, "second"), dns=dns.address, http_port=ports.http) as second,
    ):
        first.fails("order", status=503, body=b"<html>maintenance", headers={"Retry-After": "7200"}, times=9)
        more = f"""
            [[acme.fallback]]
            directory = "{second.directory}"
            ca_bundle = "{second.ca_bundle}"
        """
        with running(tmp_path, first, site("good.test"), ports=ports, more=more) as proxy:
            proxy.wait_for("certificate.failing")
            assert second.orders == 0
            why = admin(proxy, "certs", "why", "good.test").lines[1]
            assert why.endswith(f"a certificate is ordered from {second.directory}.")
            admin(proxy, "certs", "obtain", "good.test")
            assert (first.count["order"], second.orders) == (1, 1)
            proxy.open("good.test", trusting(second.root())).close()
            assert row(proxy, "acme/good.test")["issuer"].startswith("CN=Pebble Intermediate CA")


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made
