"""What can't succeed is told before a CA is asked, each fault at its key and with the line to write."""

from typing import Any

import pytest
from pydantic import ValidationError

from tlsproxy.settings import Settings, certificate_rules
from tlsproxy.settings.acme import Acme

KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
BINDING = {"eab_kid": "kid-1", "eab_hmac_key": KEY}
RFC2136 = {"server": "192.0.2.53", "key_name": "acme.", "key_secret": "c2VjcmV0"}
DNS = {"challenges": ["dns-01"], "dns": {"provider": "rfc2136", "rfc2136": RFC2136}}
PRIVATE_CA = {"directory": "https://ca.example.net/acme/directory"}


def site(*hosts: str, **keys: Any) -> dict[str, Any]:
    return {"hosts": list(hosts), "backends": ["127.0.0.1:8000"], **keys}


def faults(*sites: dict[str, Any], **sections: Any) -> dict[str, str]:
    try:
        Settings.model_validate({"sites": list(sites), **sections})
    except ValidationError as error:
        return {".".join(map(str, each["loc"])): each["msg"] for each in error.errors()}
    return {}


def test_the_defaults_are_those_of_the_models() -> None:
    assert Acme().challenges == certificate_rules.DEFAULT_CHALLENGES


def test_an_ordinary_site_needs_nothing_more() -> None:
    assert faults(site("www.example.com", "example.com")) == {}
    assert faults(site("a.example.com", certificate="acme"), acme={"directory": "letsencrypt-staging"}) == {}
    assert faults(site("a.example.com"), acme=BINDING | {"directory": "zerossl"}) == {}


# --- CAs


@pytest.mark.parametrize("directory", ["zerossl", "google", "https://acme.zerossl.com/v2/DV90", "ZeroSSL"])
def test_some_cas_want_an_account_binding(directory: str) -> None:
    found = faults(acme={"directory": directory})
    assert "wants an external account binding: write eab_kid and eab_hmac_key, from " in found["acme.directory"]
    found = faults(acme={"fallback": [{"directory": directory}]})
    assert "wants an external account binding" in found["acme.fallback.0.directory"]


def test_a_binding_is_a_pair() -> None:
    assert faults(acme={"eab_kid": "k"}) == {
        "acme.eab_kid": "needs eab_hmac_key (or eab_hmac_key_file), which the CA gives with it"
    }
    assert faults(acme={"eab_hmac_key": KEY}) == {
        "acme.eab_hmac_key": "needs eab_kid, the key id that the CA gives with it"
    }
    assert list(faults(acme={"fallback": [{**PRIVATE_CA, "eab_kid": "k"}]})) == ["acme.fallback.0.eab_kid"]


def test_no_ca_is_asked_twice() -> None:
    again = {"directory": "https://acme-v02.api.letsencrypt.org/directory"}
    assert list(faults(acme={"fallback": [again]})) == ["acme.fallback.0.directory"]
    assert faults(acme={"fallback": [{"directory": "letsencrypt-staging"}, PRIVATE_CA]}) == {}


# --- challenges


def test_a_challenge_needs_its_listener() -> None:
    public = site("a.example.com")
    found = faults(public, acme={"challenges": ["http-01"]}, listen={"http": []})
    assert found == {
        "acme.challenges": 'no challenge is left: http-01 needs an address in [listen]; write http = [":80"]'
    }
    found = faults(public, acme={"challenges": ["tls-alpn-01"]}, listen={"https": []})
    assert 'write https = [":443"]' in found["acme.challenges"]
    assert faults(public, listen={"http": []}) == {}
    assert faults(site("localhost"), acme={"challenges": ["http-01"]}, listen={"http": []}) == {}
    assert faults(public, acme=DNS, listen={"http": []}) == {}


def test_challenges_are_listed_once() -> None:
    assert list(faults(acme={"challenges": ["http-01", "http-01"]})) == ["acme.challenges.1"]
    assert list(faults(acme={"challenges": []})) == ["acme.challenges"]


def test_dns_needs_a_provider() -> None:
    found = faults(acme={"challenges": ["http-01", "dns-01"]})
    assert 'write provider = … in [acme.dns], one of "exec", "rfc2136"' in found["acme.challenges.1"]
    found = faults(acme={"dns": DNS["dns"]})
    assert 'write challenges = ["dns-01"] in [acme]' in found["acme.dns.provider"]


@pytest.mark.parametrize(
    ("provider", "missing"),
    [
        ("exec", ["exec.command"]),
        ("rfc2136", ["rfc2136.server", "rfc2136.key_name", "rfc2136.key_secret"]),
        ("acme-dns", ["acme_dns.server", "acme_dns.credentials"]),
        ("lexicon", ["lexicon.provider"]),
    ],
)
def test_a_provider_needs_its_table(provider: str, missing: list[str]) -> None:
    found = faults(acme={"challenges": ["dns-01"], "dns": {"provider": provider}})
    assert list(found) == [f"acme.dns.{key}" for key in missing]
    table, _, key = missing[0].partition(".")
    assert found[f"acme.dns.{missing[0]}"] == (
        f'is required by provider = "{provider}"; write {key} = … in [acme.dns.{table}]'
    )


# --- hosts


def test_wildcards_need_dns() -> None:
    found = faults(site("*.example.com", "example.com"))
    assert list(found) == ["sites.0.hosts.0"]
    assert 'write challenges = ["dns-01"] in [acme] and a provider in [acme.dns]' in found["sites.0.hosts.0"]
    assert faults(site("*.example.com", "example.com"), acme=DNS) == {}


def test_addresses_need_another_challenge_than_dns() -> None:
    found = faults(site("8.8.8.8"), acme={**DNS, **PRIVATE_CA})
    assert 'add "http-01" or "tls-alpn-01" to challenges' in found["sites.0.hosts.0"]
    assert faults(site("8.8.8.8"), acme=PRIVATE_CA) == {}


def test_addresses_need_a_short_life_at_lets_encrypt() -> None:
    found = faults(site("2001:4860:4860::8888"))
    assert 'write profile = "shortlived" in [acme]' in found["sites.0.hosts.0"]
    assert faults(site("2001:4860:4860::8888"), acme={"profile": "shortlived"}) == {}


@pytest.mark.parametrize(
    "host", ["localhost", "a.test", "10.0.0.1", "127.0.0.1", "intranet", "nas.local", "x.home.arpa"]
)
def test_what_no_public_ca_certifies(host: str) -> None:
    acme = {"profile": "shortlived"}
    assert faults(site(host, certificate="acme"), acme=acme) == {
        "sites.0.hosts.0": f'{host}: no public CA certifies this name; write certificate = "internal"'
    }
    found = faults(site("a.example.com", host), acme=acme)
    assert "put it into a site of its own and write" in found["sites.0.hosts.1"]
    assert faults(site(host, certificate="acme"), acme=PRIVATE_CA) == {}


def test_a_certificate_holds_so_many_names() -> None:
    many = [f"a{number}.example.com" for number in range(101)]
    assert "at most 100; make several sites" in faults(site(*many))["sites.0.hosts"]
    assert "at most 25;" in faults(site(*many[:26]), acme={"profile": "shortlived"})["sites.0.hosts"]
    assert faults(site(*many[:100])) == {}
    assert faults(site(*many), acme=PRIVATE_CA) == {}
    assert faults(site(*many, certificate="on_demand"), on_demand={"ask": "/ask"}) == {}


# --- on demand


def test_on_demand_needs_leave() -> None:
    found = faults(site("*", certificate="on_demand"))
    assert list(found) == ["sites.0.certificate"]
    assert 'write in [on_demand] ask = "/may-have-certificate"' in found["sites.0.certificate"]
    assert faults(site("*", certificate="on_demand"), on_demand={"ask": "/ask"}) == {}
    assert faults(site("*.shop.example.com", certificate="on_demand"), on_demand={"ask": "https://x.example/ask"}) == {}


def test_a_path_is_asked_on_one_backend() -> None:
    sites = [site("*", certificate="on_demand"), site("*.a.example.com", certificate="on_demand")]
    found = faults(*sites, on_demand={"ask": "/ask"})
    assert found == {
        "on_demand.ask": "is a path, and more than one site is on demand: whose backend is meant? Write a URL"
    }
    assert faults(*sites, on_demand={"ask": "http://127.0.0.1:9000/ask"}) == {}


@pytest.mark.parametrize("places", [{"backends": ["h2c://a:1"]}, {"routes": [{"backends": ["b:1", "h2c+unix:/a"]}]}])
def test_a_path_is_not_asked_of_a_backend_that_speaks_http_2(places: dict[str, Any]) -> None:
    on_demand = {"hosts": ["*.example.com"], "certificate": "on_demand", **places}
    found = faults(on_demand, on_demand={"ask": "/ask"})
    assert list(found) == ["on_demand.ask"]
    assert "is asked for by HTTP/1.1, and h2c" in found["on_demand.ask"]
    assert faults(on_demand, on_demand={"ask": "http://127.0.0.1:9000/ask"}) == {}


def test_nobody_asks_for_an_address_by_name() -> None:
    found = faults(site("8.8.8.8", certificate="on_demand"), on_demand={"ask": "/ask"})
    assert 'write certificate = "acme"' in found["sites.0.hosts.0"]


# --- the store


def test_encryption_keys() -> None:
    keys = ["kP0zq3nYH3Sw1vVvN9y8aJm4o5Q2x7Lr", "0f4b2c6d8e1a3957bcd0e2f4a6c8b1d3"]
    assert faults(store={"encryption_keys": keys}) == {}
    assert list(faults(store={"encryption_keys": [*keys, keys[0]]})) == ["store.encryption_keys.2"]
    for weak in ("hunter2", "a" * 64, ""):
        assert "openssl rand -base64 32" in faults(store={"encryption_keys": [weak]})["store.encryption_keys.0"]


def test_nothing_strange_breaks_the_rules() -> None:
    strange: list[Any] = [None, 1, "x", [1], {"a": []}, [{"directory": []}], {"hosts": {}}]
    for odd in strange:
        faults(acme=odd, on_demand=odd, store=odd, events=odd, admin=odd)
        faults({"hosts": ["a.example.com"], "certificate": odd}, acme={"dns": odd, "fallback": odd, "challenges": odd})
        acme = {"directory": odd, "profile": odd, "eab_kid": odd, "eab_hmac_key": odd, "dns": {"provider": odd}}
        faults(site("*.example.com", "8.8.8.8"), acme=acme, on_demand={"ask": odd})
        faults(site("a.example.com"), acme={"dns": {"provider": "rfc2136", "rfc2136": odd}}, listen=odd)
