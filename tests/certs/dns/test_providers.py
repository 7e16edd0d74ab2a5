"""Settings become providers, without anybody being asked and without a secret in sight."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.named import KEY, Named, Primary
from tests.system.running import free_port
from tlsproxy.certs.dns import lookup_of, provider_of, timeouts_of
from tlsproxy.certs.dns.base import DnsProviderError
from tlsproxy.settings.acme import Dns

NAME, VALUE = "_acme-challenge.a.example.test", "x" * 43

RFC2136 = {"key_name": KEY.name, "key_secret": KEY.secret, "key_algorithm": KEY.algorithm}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"provider": ""}, "None"),
        ({"provider": "exec", "exec": {"command": ["/opt/hook", "-v"]}}, "<exec /opt/hook>"),
        ({"provider": "rfc2136", "rfc2136": {"server": "192.0.2.1", **RFC2136}}, "<rfc2136 192.0.2.1 port 53>"),
        ({"provider": "rfc2136", "rfc2136": {"server": "ns1.test:5353"}}, "<rfc2136 ns1.test port 5353>"),
        ({"provider": "rfc2136", "rfc2136": {"server": "[2001:db8::1]:54"}}, "<rfc2136 2001:db8::1 port 54>"),
        (
            {"provider": "acme-dns", "acme_dns": {"server": "https://auth.test", "credentials": "/etc/accounts"}},
            "<acme-dns https://auth.test>",
        ),
        (
            {"provider": "lexicon", "lexicon": {"provider": "cloudflare", "options": {"auth_token": "s3cret-token"}}},
            "<lexicon cloudflare>",
        ),
    ],
)
def test_the_provider_of_settings(settings: dict[str, Any], shown: str) -> None:
    assert repr(provider_of(Dns.model_validate(settings))) == shown


def test_patience_is_the_users() -> None:
    assert timeouts_of(Dns.model_validate({"propagation": "5m"})).propagation == 300.0


@pytest.mark.parametrize(
    "settings",
    [
        {"provider": "exec"},
        {"provider": "rfc2136", "rfc2136": {"server": "192.0.2.1", "key_name": "k", "key_secret": "no base64"}},
        {"provider": "acme-dns", "acme_dns": {"server": "http://127.0.0.1:1"}},
        {"provider": "lexicon", "lexicon": {"provider": "nonesuch", "zone": "example.test"}},
    ],
)
def test_what_is_wrong_comes_out_at_the_first_record(settings: dict[str, Any]) -> None:
    provider = provider_of(Dns.model_validate(settings))
    assert provider is not None
    with pytest.raises(DnsProviderError):
        provider.create(NAME, VALUE)


@pytest.mark.system
def test_settings_that_work(tmp_path: Path) -> None:
    with Named(tmp_path, port=free_port(), zones=[Primary("example.test")]) as server:
        rfc2136 = {"server": server.resolver, **RFC2136}
        dns = Dns.model_validate({"provider": "rfc2136", "resolvers": [server.resolver], "rfc2136": rfc2136})
        provider = provider_of(dns)
        assert provider is not None
        provider.create(NAME, VALUE)
        assert server.txt(NAME) == {VALUE}
        assert asyncio.run(lookup_of(dns).zone_of(NAME)) == "example.test"


@pytest.mark.system
def test_lexicon_finds_the_zone_with_the_resolvers_of_the_settings(tmp_path: Path) -> None:
    with Named(tmp_path, port=free_port(), zones=[Primary("example.test")]) as server:
        lexicon = {"provider": "nonesuch"}
        dns = Dns.model_validate({"provider": "lexicon", "resolvers": [server.resolver], "lexicon": lexicon})
        provider = provider_of(dns)
        assert provider is not None
        with pytest.raises(DnsProviderError, match="not supported by Lexicon"):
            provider.create(NAME, VALUE)
        with pytest.raises(DnsProviderError, match="no resolver answers"):
            provider.create("_acme-challenge.refused.test", VALUE)
