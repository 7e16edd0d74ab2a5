"""Which certificate a person means by a name, without a look into the store: to see that two names mean one. PURE.

Knows the sites. Rule: a name that no site has is one of an on-demand site or of an earlier configuration; whether there
is such a certificate is for whoever knows the store to say.
"""

from __future__ import annotations

from collections.abc import Iterable

from tlsproxy.settings import Site
from tlsproxy.store.bundle import normal_host
from tlsproxy.store.sources import acme_name, certificate_name


class Names:
    """The hosts of a configuration and the certificates they are served with."""

    def __init__(self, sites: Iterable[Site]) -> None:
        # An on-demand site has one certificate for each host, and so none for the site.
        self._names = {host: certificate_name(site) for site in sites for host in site.hosts if _has_one(site)}

    def __repr__(self) -> str:
        return f"<Names of {len(self._names)} hosts>"

    def certificate(self, given: str) -> str:
        """Return the name in the store: `acme/a.test` for `a.test`, for `B.test` beside it, and for `acme/a.test`."""
        host = normal_host(given)
        return given if "/" in given else self._names.get(host) or self._by_wildcard(host) or acme_name(host)

    def _by_wildcard(self, host: str) -> str | None:
        return self._names.get(f"*.{host.partition('.')[2]}")


def _has_one(site: Site) -> bool:
    return site.certificate != "on_demand"
