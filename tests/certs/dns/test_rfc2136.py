"""Dynamic updates against a real BIND: records come and go one by one, and each refusal says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.named import KEY, LOOPBACK, Named, Primary, TsigKey
from tests.system.running import free_port
from tlsproxy.certs.dns.base import DnsProviderError
from tlsproxy.certs.dns.rfc2136 import Rfc2136Provider

pytestmark = pytest.mark.system

NAME = "_acme-challenge.a.example.test"
ONE, TWO = "1" * 43, "-" * 43
MD5 = TsigKey("old-key", KEY.secret, "hmac-md5")
STRANGER = TsigKey("stranger")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    zones = [
        Primary("example.test"),
        Primary("locked.test", key=None),
        Primary("sub.example.test", txt_only=True),
        Primary("old.test", key=MD5),
    ]
    with Named(tmp_path_factory.mktemp("named"), port=free_port(), zones=zones, keys=[KEY, MD5, STRANGER]) as named:
        yield named


def provider(server: Named, key: TsigKey = KEY, *, zone: str = "", port: int = 0) -> Rfc2136Provider:
    return Rfc2136Provider(
        LOOPBACK,
        port=port or server.port,
        key_name=key.name,
        key_secret=key.secret,
        key_algorithm=key.algorithm,
        zone=zone,
        timeout=5,
    )


@pytest.mark.parametrize("zone", ["", "example.test", "example.test."])
def test_two_values_under_one_name_come_and_go_by_themselves(server: Named, zone: str) -> None:
    ours = provider(server, zone=zone)
    ours.create(NAME, ONE)
    ours.create(NAME, TWO)
    ours.create(NAME, TWO)
    assert server.txt(NAME) == {ONE, TWO}
    ours.delete(NAME, ONE)
    assert server.txt(NAME) == {TWO}
    ours.delete(NAME, ONE)
    ours.delete(NAME, TWO)
    assert server.txt(NAME) == set()


def test_values_of_others_under_the_name_stay(server: Named) -> None:
    server.update("example.test", '_acme-challenge.b 60 TXT "of somebody else"')
    provider(server).create("_acme-challenge.b.example.test", ONE)
    provider(server).delete("_acme-challenge.b.example.test", ONE)
    assert server.txt("_acme-challenge.b.example.test") == {"of somebody else"}


def test_the_nearest_zone_is_found(server: Named) -> None:
    provider(server).create("_acme-challenge.sub.example.test", ONE)
    assert server.txt("_acme-challenge.sub.example.test") == {ONE}
    provider(server).delete("_acme-challenge.sub.example.test", ONE)


def test_the_record_may_be_the_zone_itself(server: Named) -> None:
    """A CNAME may lead to the top of a zone that is there for challenges only."""
    provider(server).create("example.test", ONE)
    assert server.txt("example.test") == {ONE}
    provider(server).delete("example.test", ONE)
    assert server.txt("example.test") == set()


def test_an_old_algorithm(server: Named) -> None:
    provider(server, MD5).create("_acme-challenge.old.test", ONE)
    assert server.txt("_acme-challenge.old.test") == {ONE}


@pytest.mark.parametrize(
    ("key", "zone", "name", "reason"),
    [
        (TsigKey("nobody"), "", NAME, "PeerBadKey.*does not know the TSIG key"),
        (TsigKey(secret="d3Jvbmcgc2VjcmV0IG9mIHRoZSBrZXk="), "", NAME, r"the signature is wrong \(BADSIG\)"),
        (TsigKey(algorithm="hmac-sha512"), "", NAME, "PeerBadKey.*name and algorithm"),
        (STRANGER, "", NAME, "REFUSED.*Allow it to this key"),
        (KEY, "", "_acme-challenge.locked.test", "REFUSED.*Allow it to this key"),
        (KEY, "elsewhere.test", "_acme-challenge.elsewhere.test", "NOTAUTH.*not authoritative"),
        (KEY, "", "_acme-challenge.elsewhere.test", "REFUSED|knows no zone"),
        (KEY, "example.test", "_acme-challenge.other.test", "does not lie in the zone example.test"),
        (KEY, "example.test", "_acme-challenge.notexample.test", "does not lie in the zone example.test"),
    ],
)
def test_each_refusal_says_what_to_change(server: Named, key: TsigKey, zone: str, name: str, reason: str) -> None:
    with pytest.raises(DnsProviderError, match=reason) as caught:
        provider(server, key, zone=zone).create(name, ONE)
    assert key.secret not in str(caught.value)


def test_clocks_that_differ(server: Named, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 1_000_000_000.0)
        with pytest.raises(DnsProviderError, match=r"its clock and ours differ too much \(BADTIME\)"):
            provider(server).create(NAME, ONE)


def test_no_key_is_an_unsigned_update(server: Named) -> None:
    with pytest.raises(DnsProviderError, match="REFUSED"):
        Rfc2136Provider(LOOPBACK, port=server.port).create(NAME, ONE)


def test_nobody_there(server: Named) -> None:
    with pytest.raises(DnsProviderError, match=r"port \d+\) can't be asked .* \(Connection refused\)"):
        provider(server, port=free_port()).create(NAME, ONE)


def test_a_server_whose_name_is_none(tmp_path: Path) -> None:
    with pytest.raises(DnsProviderError, match=r"ns1\.invalid.* can't be asked"):
        Rfc2136Provider("ns1.invalid").create(NAME, ONE)


@pytest.mark.parametrize("secret", ["no base64!", "YWJjZA", "ü"])
def test_a_secret_that_is_none_is_not_repeated(secret: str) -> None:
    with pytest.raises(DnsProviderError, match="the TSIG key 'k' can't be used") as caught:
        Rfc2136Provider(LOOPBACK, key_name="k", key_secret=secret).create(NAME, ONE)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
