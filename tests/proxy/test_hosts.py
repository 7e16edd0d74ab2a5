"""One rule for hosts: where TLS falls to the default site, no request gets to a site whose rules were not applied."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.fakes.peer import Peer
from tests.fakes.stage import Json, Stage, issued
from tests.store.pki import issue as self_issue
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.hosts import find_host
from tlsproxy.proxy.router import Router, Site
from tlsproxy.proxy.sitetls import SiteTls

PATTERNS = ("a.test", "*.w.test", "x.w.test", "*", "10.0.0.1", "::1")
ODD_NAMES = ("foo_bar.example.com", "a.1", "1.2.3.4.5", "-x.example.com", f"{'a' * 64}.com", f"{'a.' * 127}com")
NAMES = {
    "a.test": "a.test",
    "y.w.test": "*.w.test",
    "y_.w.test": "*.w.test",
    "x.w.test": "x.w.test",
    "a.b.w.test": "*",
    "any.example.com": "*",
    "10.0.0.1": "10.0.0.1",
    "::1": "::1",
    "10.0.0.2": None,
    "2001:db8::1": None,
    "intranet": None,
    "": None,
    **dict.fromkeys(ODD_NAMES),
}


@pytest.mark.parametrize(("host", "pattern"), NAMES.items())
def test_exact_then_wildcard_then_all_that_could_be_certified(host: str, pattern: str | None) -> None:
    assert find_host({each: each for each in PATTERNS}, host) == pattern
    assert find_host({each: each for each in PATTERNS if each != "*"}, host) == (None if pattern == "*" else pattern)


@pytest.mark.parametrize("host", NAMES)
def test_routes_and_contexts_are_found_alike(host: str) -> None:
    router = Router([Site([pattern], []) for pattern in PATTERNS], may_share=lambda _info, _site: True)
    site = router.find(host)
    minimum = {pattern: SiteTls((pattern,), client_ca_pem=pattern) for pattern in PATTERNS}
    policy = ContextTable(minimum.values()).policy_for(host)
    assert policy == (minimum[site.name].policy if site else None)


def serve(stage: Stage, **rules: str) -> None:
    """Every name on demand under these rules, beside an open site that is the default."""
    backend = stage.backend()
    sites: list[Json] = [
        {"hosts": ["*"], "certificate": "on_demand", "backends": [backend.url], **rules},
        {"hosts": ["pub.test"], "backends": [backend.url]},
    ]
    stage.serve(sites=sites, on_demand={"ask": "/may"}, tls={"default_host": "pub.test"})


def visit(stage: Stage, sni: str, host: str) -> int:
    """What a client without a certificate, that trusts anybody, is answered."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(stage.dial(), server_hostname=sni) as sock:
        client = Peer(sock)
        client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
        return client.message().status


class TestTheSiteForAllNames:
    @pytest.mark.parametrize("host", ODD_NAMES[:3])
    @pytest.mark.parametrize("sni", ["", "pub.test"], ids=["same", "default"])
    def test_is_not_reached_past_its_client_certificates(
        self, stage: Stage, tmp_path: Path, sni: str, host: str
    ) -> None:
        (tmp_path / "clients.pem").write_bytes(self_issue(cn="clients", ca=True).pem)
        serve(stage, client_auth="require", client_ca=str(tmp_path / "clients.pem"))
        assert visit(stage, sni or host, host) == 421

    @pytest.mark.parametrize("host", [*ODD_NAMES[:3], "new.example.com"])
    def test_is_not_served_over_the_default_s_connection(self, stage: Stage, host: str) -> None:
        serve(stage)
        assert visit(stage, "pub.test" if host == "new.example.com" else host, host) == 421

    def test_is_served_over_its_own(self, stage: Stage) -> None:
        backend = stage.backend()
        site: Json = {"hosts": ["first.example.com", "*"], "certificate": "on_demand", "backends": [backend.url]}
        stage.serve(sites=[site], on_demand={"ask": "/may"})
        stage.store.put("acme/new.example.com", issued("new.example.com"))
        stage.connect("new.example.com").send(b"GET / HTTP/1.1\r\nHost: new.example.com\r\n\r\n")
        assert backend.accept().message().get("host") == b"new.example.com"
