"""Which certificate a person means by a name, without a look into the store: to see that two names mean one. PURE.

Knows the sites. Rule: a name that no site has is one of an on-demand site or of an earlier configuration; whether there
is such a certificate is for whoever knows the store to say.
"""

from __future__ import annotations

from collections.abc import Iterable

from tlsproxy.settings import Site
from tlsproxy.store.sources import ROOT_NAME, acme_name, certificate_name, host_meant


class Names:
    """The hosts of a configuration and the certificates they are served with."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = {host: site for site in sites for host in site.hosts}

    def __repr__(self) -> str:
        return f"<Names of {len(self._sites)} hosts>"

    def certificate(self, given: str) -> str:
        """Return the name in the store: `acme/a.test` for `a.test`, for `B.test` beside it, and for `acme/a.test`."""
        if "/" in given or given == ROOT_NAME:
            return given
        host = host_meant(given)
        site = self._serving(host)
        return acme_name(host) if site is None or _has_many(site) else certificate_name(site)

    def site(self, given: str) -> Site | None:
        """Return the site that has this host, or that is served with the certificate of this name."""
        kind, slash, rest = given.partition("/")
        if not slash:
            return self._serving(host_meant(given))
        site = self._serving(rest)
        belongs = site is not None and (kind == "acme" if _has_many(site) else certificate_name(site) == given)
        return site if belongs else None

    def _serving(self, host: str) -> Site | None:
        parent = host.partition(".")[2]
        return self._sites.get(host) or self._sites.get(f"*.{parent}") or self._sites.get("*")


def _has_many(site: Site) -> bool:
    """Whether the site has one certificate for each host, and none for itself."""
    return site.certificate == "on_demand"
