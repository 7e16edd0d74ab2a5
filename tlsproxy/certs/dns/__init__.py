"""dns-01: TXT records made by a provider, seen at the servers of their zone, and removed.

Knows: which settings make which provider. Does not know: challenges (challenges.py has the solver).
Rule: to make one neither fails nor asks anybody; what is wrong with the settings comes out at the first record.
"""

from __future__ import annotations

import asyncio

from tlsproxy.certs.dns.acme_dns import AcmeDnsProvider
from tlsproxy.certs.dns.base import DnsProvider
from tlsproxy.certs.dns.exec import ExecProvider
from tlsproxy.certs.dns.lexicon import LexiconProvider
from tlsproxy.certs.dns.lookup import Lookup, split_address
from tlsproxy.certs.dns.propagation import Timeouts
from tlsproxy.certs.dns.rfc2136 import Rfc2136Provider
from tlsproxy.settings.acme import Dns


def provider_of(dns: Dns) -> DnsProvider | None:
    """Return the provider that [acme.dns] names, None if it names none."""
    match dns.provider:
        case "exec":
            return ExecProvider(dns.exec.command)
        case "rfc2136":
            return _rfc2136(dns)
        case "acme-dns":
            return AcmeDnsProvider(dns.acme_dns.server, dns.acme_dns.credentials)
        case "lexicon":
            return _lexicon(dns)
        case _:
            return None


def lookup_of(dns: Dns) -> Lookup:
    return Lookup(dns.resolvers)


def timeouts_of(dns: Dns) -> Timeouts:
    return Timeouts(propagation=dns.propagation)


def _rfc2136(dns: Dns) -> DnsProvider:
    chosen = dns.rfc2136
    server, port = split_address(chosen.server)
    return Rfc2136Provider(
        server,
        port=port,
        key_name=chosen.key_name,
        key_secret=chosen.key_secret.get_secret_value(),
        key_algorithm=chosen.key_algorithm,
        zone=chosen.zone,
    )


def _lexicon(dns: Dns) -> DnsProvider:
    chosen, lookup = dns.lexicon, lookup_of(dns)
    options = {name: value.get_secret_value() for name, value in chosen.options.items()}

    def find_zone(name: str) -> str:
        return asyncio.run(lookup.zone_of(name))  # providers run in threads without a loop

    return LexiconProvider(chosen.provider, options, zone=chosen.zone, find_zone=find_zone)
