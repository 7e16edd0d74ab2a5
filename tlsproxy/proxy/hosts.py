"""Which entry a host name belongs to: the one rule for contexts, which are chosen before the handshake, and routes.

Knows patterns and names, no sites. Rule: both sides ask here. Where one finds an entry and the other falls back to
something else, a request arrives at a site whose rules its connection was never held to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

T = TypeVar("T")

CATCH_ALL: Final = "*"
_LONGEST_NAME: Final = 253  # RFC 1035 2.3.4, without the length bytes
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*(?!\d+$){_LABEL}")


def find_host(entries: Mapping[str, T], host: str) -> T | None:
    """Return the entry of `host` (lower case, no port): exact, `*.` and its parent, or `*` for every name of the DNS.

    `*.` stands for one label (RFC 9525 6.3). `*` is for names that a CA could certify: no address, no single label.
    """
    entry = entries.get(host)
    if entry is not None:
        return entry
    _, dot, parent = host.partition(".")
    if not dot:
        return None
    entry = entries.get(f"*.{parent}")
    if entry is None and CATCH_ALL in entries and is_dns_name(host):
        return entries[CATCH_ALL]
    return entry


def is_dns_name(host: str) -> bool:
    """Tell whether a CA could certify it as a name: letters, digits, hyphens, and a last label that is no number."""
    return len(host) <= _LONGEST_NAME and _DNS_NAME.fullmatch(host) is not None
