"""From a configuration to a certificate of a CA that clients trust: `tlsproxy run` and Pebble, end to end."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, site, trusting
from tests.system.commands import admin, admin_json
from tests.system.running import Proxy
from tests.system.visitors import serial_of, staying, talking, visiting

pytestmark = pytest.mark.system


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def ca(tmp_path: Path, ports: Ports) -> Iterator[Pebble]:
    folder = tmp_path / "ca"
    folder.mkdir()
    with (
        ChallTestSrv(folder, ipv6="") as dns,
        Pebble(folder, dns=dns.address, http_port=ports.http, tls_port=ports.https) as ca,
    ):
        yield ca


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_site_gets_its_certificate(tmp_path: Path, ca: Pebble, ports: Ports, app: str, kind: str) -> None:
    with running(tmp_path, ca, site("a.test", "b.test", backend=app), ports=ports, challenges=[kind]) as proxy:
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        proxy.trust = trusting(ca.root())
        with proxy.client("b.test") as client:
            assert client.get("/hello").status_code == 200


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_renewal_disturbs_nobody(tmp_path: Path, ca: Pebble, ports: Ports, app: str, kind: str) -> None:
    """Every worker serves the new certificate when the command says so; connections and visitors never notice.

    With tls-alpn-01 a worker answers the CA under the very name that visitors ask for: they get the ordinary one.
    """
    with running(tmp_path, ca, site("a.test", backend=app), ports=ports, challenges=[kind], workers=2) as proxy:
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        trust = trusting(ca.root())
        before = serials(proxy, trust)
        assert len(set(before)) == 1
        with (
            visiting(proxy, "a.test", trust) as visits,
            staying(proxy, "a.test", trust),
            talking(proxy, "a.test", trust),
        ):
            said = admin(proxy, "certs", "renew", "a.test")
            after = serials(proxy, trust)
        (row,) = admin_json(proxy, "certs", "list")
        assert [f"{serial:x}" for serial in after] == [row["serial"]] * 2
        assert visits.serials[-1:] == after[:1]
        assert len(visits.serials) == 2
        for step in ("order:", "validation:", "finalize:", "served:"):
            assert step in said.out
        assert proxy.count("certificate.served_mismatch") == 0


def test_a_revoked_certificate_is_replaced_at_once(tmp_path: Path, ca: Pebble, ports: Ports, app: str) -> None:
    with running(tmp_path, ca, site("a.test", backend=app), ports=ports) as proxy:
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        before = serials(proxy, trusting(ca.root()))[0]
        admin(proxy, "certs", "revoke", "a.test", "--reason", "keyCompromise", "--yes")
        after = serials(proxy, trusting(ca.root()))[0]
        assert after != before
        assert ca.certificate_status(before)["Status"] == "Revoked"
        assert ca.certificate_status(after)["Status"] == "Valid"


def test_account_keys_roll_over_and_orders_go_on(tmp_path: Path, ca: Pebble, ports: Ports, app: str) -> None:
    with running(tmp_path, ca, site("a.test", backend=app), ports=ports) as proxy:
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        assert "has a new key" in admin(proxy, "accounts", "rollover").out
        admin(proxy, "certs", "renew", "a.test")
        assert proxy.count("acme.account_made") == 1


def serials(proxy: Proxy, trust: ssl.SSLContext) -> list[int]:
    """Return what each worker serves."""
    found = []
    for worker in proxy.workers():
        with proxy.alone(worker), proxy.open("a.test", trust) as client:
            found.append(serial_of(client))
    return found
