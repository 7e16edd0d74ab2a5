"""What a DNS provider promises, and the names and values of dns-01 (RFC 8555 8.4).

Knows: which TXT record proves a name. Does not know: who can make it (exec.py, rfc2136.py, acme_dns.py, lexicon.py),
how it is seen (lookup.py, propagation.py). Rule: a value is added and removed by itself; what else lies under the same
name belongs to somebody else, as one order may prove `x` and `*.x` there, and a second proxy may do so at this moment.
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from tlsproxy.certs.account_key import b64url
from tlsproxy.certs.identifiers import ip_address
from tlsproxy.errors import TlsproxyError

TTL = 60
"""Seconds. Short, because nobody needs the record for longer; the least that most providers take."""

LABEL = "_acme-challenge."
_LONGEST_NAME = 253
# Narrower than the DNS: names go to programs of others as arguments, and the owner of a name may not be ours.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


class DnsProviderError(TlsproxyError):
    """A TXT record could not be made or removed: what was refused, why, and what to do. Holds no secret."""


class DnsProvider(Protocol):
    """Makes and removes TXT records. The plug point for further ways to do that.

    Contract of an implementer:

    * `name` is absolute, without the dot at the end, after all CNAMEs; `value` is 43 characters of base64url.
    * `create` adds the value to those that are there; a value that is there already is no error.
    * `delete` removes this value and nothing else; one that is not there is no error.
    * Both block, end within a deadline of their own, may be called from several threads at once, and raise
      DnsProviderError for everything that a configuration, a network or a server can do wrong.
    * `repr` and errors never contain a secret.
    """

    def create(self, name: str, value: str) -> None:
        """Add a TXT record. Return when the provider has taken it; it may not be visible yet."""

    def delete(self, name: str, value: str) -> None:
        """Remove the TXT record with exactly this value."""


def challenge_name(identifier: str) -> str:
    """Return the name of the TXT record that proves `identifier`; a wildcard shares that of its parent.

    Raises ValueError for what has none: an address, or a name that leaves no room (253 octets, RFC 1035 3.1).
    """
    host = identifier.lower().removeprefix("*.").removesuffix(".")
    if ip_address(host) or not is_host_name(LABEL + host):
        raise ValueError(f"{identifier[:300]!r} can't be proven by a TXT record")
    return LABEL + host


def txt_value(key_authorization: str) -> str:
    """Return the value of the record: base64url of the SHA-256, 43 characters."""
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    return b64url(digest)


def is_host_name(name: str) -> bool:
    """Tell whether a name, in lower case and without the dot at the end, is one that a record may be made under."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None
