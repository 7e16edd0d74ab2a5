"""From a configuration to a certificate of a CA that clients trust: `tlsproxy run` and Pebble, end to end."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pebble import ChallTestSrv, Pebble
from tests.system.running import free_port, running_proxy

pytestmark = pytest.mark.system


@pytest.fixture
def dns(tmp_path: Path) -> Iterator[ChallTestSrv]:
    with ChallTestSrv(tmp_path, ipv6="") as dns:
        yield dns


def trusting(ca: Pebble) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.root().decode())
    context.set_alpn_protocols(["http/1.1"])
    return context


def settings(ca: Pebble, *challenges: str) -> str:
    kinds = ", ".join(f'"{kind}"' for kind in challenges)
    return f"""
        acme.directory = "{ca.directory}"
        acme.ca_bundle = "{ca.ca_bundle}"
        acme.challenges = [{kinds}]
    """


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_site_gets_its_certificate(tmp_path: Path, dns: ChallTestSrv, app: str, kind: str) -> None:
    http, https = free_port(), free_port()
    sites = f"""
        [[sites]]
        hosts = ["a.test", "b.test"]
        certificate = "acme"
        backends = ["{app}"]
    """
    with Pebble(tmp_path, dns=dns.address, http_port=http, tls_port=https) as ca:
        ports = (f"127.0.0.1:{https}", f"127.0.0.1:{http}")
        with (
            running_proxy(
                tmp_path, trusting(ca), sites, head=settings(ca, kind), https=ports[0], http=ports[1]
            ) as proxy,
            proxy.client("b.test") as client,
        ):
            proxy.wait_for("certificate.obtained", certificate="acme/a.test")
            assert client.get("/hello").status_code == 200
