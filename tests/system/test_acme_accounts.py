"""Whom a CA takes us for, and what it then does for us: bindings, keys, chains, revocation, and a CA that forgets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, served, site, store_of, trusting
from tests.system.commands import admin, tlsproxy
from tests.system.running import PATIENCE, Proxy, free_port

pytestmark = pytest.mark.system

KID, HMAC_KEY = "customer-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChallTestSrv]:
    with ChallTestSrv(tmp_path_factory.mktemp("dns"), ipv6="") as dns:
        yield dns


@pytest.fixture
def ports() -> Ports:
    return Ports()


def obtained(proxy: Proxy, host: str = "a.test") -> x509.Certificate:
    proxy.wait_for("certificate.obtained", certificate=f"acme/{host}")
    return seen(proxy, host)


def seen(proxy: Proxy, host: str = "a.test") -> x509.Certificate:
    """Return what clients are served."""
    found = served(proxy, host)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def binding_ca(tmp_path_factory: pytest.TempPathFactory, dns: ChallTestSrv) -> Iterator[Pebble]:
    with Pebble(tmp_path_factory.mktemp("ca"), dns=dns.address, http_port=free_port(), eab_keys={KID: HMAC_KEY}) as ca:
        yield ca


class TestBinding:
    """External account binding: the CA wants to know whose customer this is."""

    @pytest.fixture
    def ca(self, binding_ca: Pebble) -> Pebble:
        return binding_ca

    @pytest.fixture
    def ports(self, ca: Pebble) -> Ports:
        return Ports(http=ca.http_port)

    def test_of_the_right_key_is_accepted(self, tmp_path: Path, ca: Pebble, ports: Ports) -> None:
        (tmp_path / "hmac.key").write_text(f"{HMAC_KEY}\n")
        more = f'eab_kid = "{KID}"\neab_hmac_key_file = "hmac.key"'
        with running(tmp_path, ca, site("a.test"), ports=ports, more=more) as proxy:
            obtained(proxy)
            assert HMAC_KEY not in tlsproxy(tmp_path, "explain", "--json").out

    @pytest.mark.parametrize(
        ("more", "sentence"),
        [
            (
                "",
                "the CA wants to know whose customer this is (external account binding). "
                "Set acme.eab_kid and acme.eab_hmac_key; the CA's web site gives them.",
            ),
            (
                f'eab_kid = "{KID}"\neab_hmac_key = "{HMAC_KEY[::-1]}"',
                "the CA does not accept the external account binding (external account binding JWS verification error",
            ),
        ],
        ids=["missing", "wrong"],
    )
    def test_that_is_not_right_is_told(
        self, tmp_path: Path, ca: Pebble, ports: Ports, more: str, sentence: str
    ) -> None:
        with running(tmp_path, ca, site("a.test"), ports=ports, more=more) as proxy:
            failing = proxy.wait_for("certificate.failing", certificate="acme/a.test")
            assert failing["error"].startswith(f"CA 127.0.0.1:{ca.port}: {sentence}")
            why = admin(proxy, "certs", "why", "a.test").lines
            assert why[0] == "acme/a.test: there is no certificate for a.test."
            assert why[1].endswith(
                "the CA refuses until the configuration is changed, or it is asked for by hand. "
                "Next: nothing, until somebody changes the configuration, or asks for it by hand."
            )


@pytest.fixture
def ca(tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> Iterator[Pebble]:
    with Pebble(tmp_path, dns=dns.address, http_port=ports.http, bad_nonces=50, alternate_roots=1) as ca:
        yield ca


class TestKeys:
    """Pebble rejects half of all nonces meanwhile."""

    def test_a_revoked_certificate_is_replaced_under_a_new_key(self, tmp_path: Path, ca: Pebble, ports: Ports) -> None:
        with running(tmp_path, ca, site("a.test"), ports=ports, workers=2) as proxy:
            old = obtained(proxy)
            said = admin(proxy, "certs", "revoke", "a.test", "--reason", "keyCompromise", "--yes")
            assert "serial" in said.lines[-1]
            for worker in proxy.workers():
                with proxy.alone(worker):
                    new = seen(proxy)
                    assert new.serial_number != old.serial_number
                    assert new.public_key() != old.public_key()
            status = ca.certificate_status(old.serial_number)
            assert (status["Status"], status["Reason"]) == ("Revoked", 1)
            assert ca.certificate_status(new.serial_number)["Status"] == "Valid"
            proxy.wait_for("certificate.revoked", certificate="acme/a.test")

    def test_an_account_gets_a_new_key_and_goes_on(self, tmp_path: Path, ca: Pebble, ports: Ports) -> None:
        with running(tmp_path, ca, site("a.test"), ports=ports) as proxy:
            obtained(proxy)
            before = account_in(tmp_path)
            said = admin(proxy, "accounts", "rollover")
            after = account_in(tmp_path)
            assert said.lines == [f"{before['url']}: has a new key"]
            assert after["url"] == before["url"]
            assert after["key_pem"] != before["key_pem"]
            admin(proxy, "certs", "renew", "a.test")
            proxy.wait_for("certificate.renewed", certificate="acme/a.test")
            assert ca.accounts == 1


def account_in(folder: Path) -> dict[str, str]:
    store = store_of(folder)
    with contextlib.closing(store):
        (name,) = store.list_records("accounts")
        record = store.get_record("accounts", name)
        assert record is not None
        return record


def test_the_chain_to_the_root_that_is_preferred(tmp_path: Path, ca: Pebble, ports: Ports) -> None:
    usual, preferred = (x509.load_pem_x509_certificate(ca.root(number)) for number in (0, 1))
    name = preferred.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert usual.subject != preferred.subject
    with running(tmp_path, ca, site("a.test"), ports=ports, more=f'preferred_chain = "{name!s}"') as proxy:
        obtained(proxy)
        proxy.open("a.test", trusting(ca.root(1))).close()
        shown = admin(proxy, "certs", "show", "a.test").out
        assert f"issuer CN={name!s}" in shown


def test_a_ca_that_has_forgotten_us_in_the_middle_of_an_order(tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> None:
    """The CA is held at its look at the answer, killed, and comes back with nothing."""
    with (
        socket.create_server(("127.0.0.9", ports.http)) as silent,
        Pebble(tmp_path, dns=dns.address, http_port=ports.http) as ca,
    ):
        silent.settimeout(PATIENCE)
        dns.a("a.test", "127.0.0.9")
        with running(tmp_path, ca, site("a.test"), ports=ports) as proxy:
            with silent.accept()[0]:
                dns.a("a.test", "127.0.0.1")
                ca.restart()
            obtained(proxy)
            proxy.open("a.test", trusting(ca.root())).close()
            assert (ca.accounts, ca.orders) == (2, 2)
            assert proxy.count("certificate.failing") == 0
