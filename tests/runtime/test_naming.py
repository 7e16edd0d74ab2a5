"""Whatever a person calls a certificate, it is the one that the site is served with."""

from __future__ import annotations

from typing import Any

import pytest

from tlsproxy.runtime.naming import Names
from tlsproxy.settings import Site


def site(*hosts: str, certificate: str = "acme") -> Site:
    values: dict[str, Any] = {"hosts": hosts, "certificate": certificate, "backends": ["127.0.0.1:8000"]}
    return Site.model_validate(values)


ACME = site("api.example.com", "www.example.com", "*.example.org")
INTERNAL = site("localhost", "a.test", certificate="internal")
FILES = Site.model_validate(
    {"hosts": ["files.test"], "certificate": {"chain": "/a.pem", "key": "/a.key"}, "backends": ["127.0.0.1:8000"]}
)
ON_DEMAND = site("*.shops.example", certificate="on_demand")
ANYBODY = site("*", certificate="on_demand")
NAMES = Names([ACME, INTERNAL, FILES, ON_DEMAND])


@pytest.mark.parametrize(
    ("given", "certificate", "of"),
    [
        ("api.example.com", "acme/api.example.com", ACME),
        ("WWW.Example.com.", "acme/api.example.com", ACME),
        ("*.example.org", "acme/api.example.com", ACME),
        ("a.example.org", "acme/api.example.com", ACME),
        ("acme/api.example.com", "acme/api.example.com", ACME),
        ("acme/www.example.com", "acme/www.example.com", None),
        ("a.test", "internal/localhost", INTERNAL),
        ("internal/localhost", "internal/localhost", INTERNAL),
        ("acme/localhost", "acme/localhost", None),
        ("files.test", "file/files.test", FILES),
        ("one.shops.example", "acme/one.shops.example", ON_DEMAND),
        ("acme/one.shops.example", "acme/one.shops.example", ON_DEMAND),
        ("internal/one.shops.example", "internal/one.shops.example", None),
        ("gone.example", "acme/gone.example", None),
        ("[::1]", "acme/::1", None),
        ("Bücher.shops.example", "acme/xn--bcher-kva.shops.example", ON_DEMAND),
        ("bücher.example", "acme/xn--bcher-kva.example", None),
        ("internal-ca", "internal-ca", None),
    ],
)
def test_a_name_means(given: str, certificate: str, of: Site | None) -> None:
    assert NAMES.certificate(given) == certificate
    assert NAMES.site(given) == of


def test_a_site_for_anybody_is_the_last_to_be_meant() -> None:
    names = Names([ACME, ANYBODY])
    assert names.site("stranger.example") == ANYBODY
    assert names.site("api.example.com") == ACME
    assert names.certificate("stranger.example") == "acme/stranger.example"
    assert repr(names) == "<Names of 4 hosts>"
