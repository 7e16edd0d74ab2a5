"""What both ends of an upgrade agree on: how the new supervisor finds the old one, and what a site's digest is.

    old                                          new
     │ ── exec, one descriptor of a socketpair ──▶│
     │ ◀───────────────────────────────── Hello ──│   I speak this protocol
     │ ── Handover ──────────────────────────────▶│   listeners, ticket secret, plan, metrics …
     │ ◀──────────────────────────── Prepared ────│   all my children are ready (or Failed: why not)
     │ ── TakeOver ──────────────────────────────▶│   serves, answers on the admin socket
     │ ◀─────────────────────────────── Ready ────│
     │    drains                                  │
     │ ── Serve ─────────────────────────────────▶│   all know that you are the proxy
     │ ◀─────────────────── ReopenLogs, Drain ────│   rotate there too; leave within this time
     │ ── Totals ────────────────────────────────▶│   the last of the metrics
     ╳                                            │

Until Ready the old one is the proxy, and its end of the socket closing ends the new one. Rule: what is secret goes
over the socket alone; the environment has the number of a descriptor and the arguments are those of the first start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from tlsproxy.errors import TlsproxyError
from tlsproxy.settings import Site

PROTOCOL = 1
"""To be raised when an older supervisor could not go on with a newer one; new optional fields need no new number."""

VARIABLE = "_TLSPROXY_PREDECESSOR_FD"
"""No name of the configuration (TLSPROXY_…), whose unknown names are refused."""


class UpgradeFailed(TlsproxyError):
    """There is no new supervisor. The message says why; the old one has gone on serving."""


def digests(sites: Iterable[Site]) -> dict[str, str]:
    """Return what tells whether a site is the same in two versions, by its first host."""
    # Without defaults: a key that only the newer version has changes nothing where it is not used.
    return {
        site.hosts[0]: hashlib.sha256(site.model_dump_json(exclude_defaults=True).encode()).hexdigest()
        for site in sites
    }


def unchanged(before: dict[str, str], after: dict[str, str]) -> tuple[str, ...]:
    """Return the sites, by their first hosts, that are the same in both."""
    return tuple(sorted(host for host, digest in before.items() if after.get(host) == digest))
