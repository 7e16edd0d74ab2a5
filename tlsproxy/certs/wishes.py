"""What the settings ask of ACME CAs, as Wanted: one certificate per site, one per host of an on-demand site. PURE.

Knows: sites and [acme]. Does not know: what is held, stores. Rule: two processes with the same configuration make equal
values, and whatever of it could make a CA change its mind is in the fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256

from tlsproxy.certs.wanted import IssuerId, Wanted
from tlsproxy.settings import Acme, Site
from tlsproxy.store.sources import acme_name


class Wishes:
    """Makes Wanted of one configuration. `accounts`: URL of our account by directory, as far as there is one."""

    def __init__(self, acme: Acme, accounts: Mapping[str, str] | None = None) -> None:
        self._acme = acme
        self._accounts = dict(accounts or {})

    def of_sites(self, sites: Sequence[Site]) -> tuple[Wanted, ...]:
        """Return what the sites with `certificate = "acme"` want; on-demand names come from the store and clients."""
        return tuple(self.of_hosts(site.hosts) for site in sites if site.certificate == "acme")

    def of_hosts(self, hosts: Sequence[str]) -> Wanted:
        """Return the certificate wanted for all hosts of a site."""
        return Wanted(acme_name(hosts[0]), tuple(hosts), self.issuers, self._fingerprint(hosts))

    def of_demand(self, host: str) -> Wanted:
        """Return the certificate wanted for a host that a client has asked for."""
        return Wanted(acme_name(host), (host,), self.issuers, self._fingerprint([host]), on_demand=True)

    @cached_property
    def issuers(self) -> tuple[IssuerId, ...]:
        """The CAs in order of preference."""
        return tuple(
            IssuerId(each.directory_url, each.profile, each.staging_url, self._accounts.get(each.directory_url, ""))
            for each in self._acme.issuers()
        )

    @cached_property
    def _section(self) -> bytes:
        # Secrets too: a wrong binding key is a permanent error that a right one ends. Only the hash is kept.
        return sha256(self._acme.model_dump_json().encode()).digest()

    def _fingerprint(self, hosts: Sequence[str]) -> str:
        return sha256(self._section + " ".join(sorted(hosts)).encode()).hexdigest()[:16]
