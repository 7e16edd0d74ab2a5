"""dns-lexicon for real: its provider for dynamic updates against BIND, and what goes wrong before it comes to that."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.named import KEY, LOOPBACK, Named, Primary
from tests.system.running import free_port
from tlsproxy.certs.dns.base import DnsProviderError
from tlsproxy.certs.dns.lexicon import LexiconProvider
from tlsproxy.certs.dns.lookup import Lookup

pytestmark = pytest.mark.system

ZONE = "deep.zone.example.test"
NAME = f"_acme-challenge.a.{ZONE}"
ONE, TWO = "1" * 43, "2" * 43
OPTIONS = {"auth_token": f"{KEY.algorithm}:{KEY.name}:{KEY.secret}", "ddns_server": LOOPBACK}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    """Run BIND on port 53: dns-lexicon's `ddns` knows no other."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, 53))
            except OSError as error:
                pytest.skip(f"port 53 of {LOOPBACK} is not to be had ({error.strerror})")
    with Named(tmp_path_factory.mktemp("named"), port=53, zones=[Primary(ZONE), Primary("example.test")]) as named:
        yield named


@pytest.fixture
def suffix_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tldextract would keep the list that it fetches from the internet, or says that it could not."""
    monkeypatch.setenv("TLDEXTRACT_CACHE_PATH", str(tmp_path / "suffixes"))
    return tmp_path / "suffixes"


def test_two_values_under_one_name_come_and_go_by_themselves(server: Named, suffix_lists: Path) -> None:
    provider = LexiconProvider("ddns", OPTIONS, zone=ZONE)
    provider.create(NAME, ONE)
    provider.create(NAME, TWO)
    assert server.txt(NAME) == {ONE, TWO}
    provider.delete(NAME, ONE)
    assert server.txt(NAME) == {TWO}
    provider.delete(NAME, ONE)
    provider.delete(NAME, TWO)
    assert server.txt(NAME) == set()
    assert not suffix_lists.exists()


def test_the_zone_is_found_in_the_dns(server: Named) -> None:
    lookup = Lookup([server.resolver])
    provider = LexiconProvider("ddns", OPTIONS, find_zone=lambda name: asyncio.run(lookup.zone_of(name)))
    provider.create(f"_acme-challenge.{ZONE}", ONE)
    assert server.txt(f"_acme-challenge.{ZONE}") == {ONE}
    with pytest.raises(DnsProviderError, match=r"no resolver answers .* Or set acme\.dns\.lexicon\.zone"):
        provider.create("_acme-challenge.refused.test", ONE)


def test_a_wrong_key(server: Named) -> None:
    options = OPTIONS | {"auth_token": "hmac-sha256:stranger:c2VjcmV0LW9mLWEtc3RyYW5nZXI="}
    with pytest.raises(DnsProviderError, match=f"dns-lexicon's ddns failed for {NAME}: PeerBadKey") as caught:
        LexiconProvider("ddns", options, zone=ZONE).create(NAME, ONE)
    assert "c2VjcmV0" not in str(caught.value)


def test_what_the_provider_says_comes_without_our_options() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    options = {"auth_token": "token-of-the-user", "pdns_server": url, "pdns_server_id": "id%2Fof+the%2Fserver"}
    provider = LexiconProvider("powerdns", options, zone="example.test")
    with pytest.raises(DnsProviderError, match=r"ConnectionError: .*Connection refused.*") as caught:
        provider.create("_acme-challenge.example.test", ONE)
    assert "/servers/***/zones" in str(caught.value)
    assert "id-of-the-server" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "token" not in repr(provider)


@pytest.mark.parametrize(
    ("provider", "options", "zone", "reason"),
    [
        ("nonesuch", {}, "example.test", r"This provider \(nonesuch\) is not supported by Lexicon"),
        ("route53", {}, "example.test", r"pip install dns-lexicon\[route53\]"),
        ("ddns", {}, "example.test", "dns-lexicon's ddns failed"),
        ("ddns", OPTIONS, "", r"acme\.dns\.lexicon\.zone is empty"),
        ("ddns", OPTIONS, "ample.test", r"does not lie in the zone ample\.test"),
    ],
)
def test_what_is_configured_wrong(provider: str, options: dict[str, str], zone: str, reason: str) -> None:
    with pytest.raises(DnsProviderError, match=reason):
        LexiconProvider(provider, options, zone=zone).create("_acme-challenge.example.test", ONE)


def test_the_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lexicon.client", None)
    with pytest.raises(DnsProviderError, match=r"dns-lexicon is not installed .* pip install 'tlsproxy\[dns\]'"):
        LexiconProvider("ddns", OPTIONS, zone=ZONE).create(NAME, ONE)


def test_the_ttl_is_the_users(server: Named) -> None:
    provider = LexiconProvider("ddns", OPTIONS | {"ttl": "77"}, zone=ZONE)
    provider.create(NAME, ONE)
    assert server.ask(NAME, "TXT").answer[0].ttl == 77
    provider.delete(NAME, ONE)
