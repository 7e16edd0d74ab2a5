"""The certificate authorities that have a name here: where their ACME directory is and what they ask of a client. Pure.

Knows words and URLs, nothing of accounts or orders. Rule: what is not in the table is told by its URL alone, and counts
as a production CA unless its host is one that only this machine or a private network can have.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from tlsproxy.settings.values import as_address


@dataclass(frozen=True, slots=True)
class KnownDirectory:
    """One CA. `staging`: the name of its rehearsal directory. `eab`: where its credentials are had, if it wants any."""

    url: str
    staging: str = ""
    is_staging: bool = False
    eab: str = ""


# letsencrypt.org/docs/acme-protocol-updates, zerossl.com/documentation/acme, cloud.google.com/certificate-manager.
KNOWN: dict[str, KnownDirectory] = {
    "letsencrypt": KnownDirectory(
        "https://acme-v02.api.letsencrypt.org/directory",
        staging="letsencrypt-staging",
    ),
    "letsencrypt-staging": KnownDirectory("https://acme-staging-v02.api.letsencrypt.org/directory", is_staging=True),
    "zerossl": KnownDirectory("https://acme.zerossl.com/v2/DV90", eab="app.zerossl.com/developer"),
    "google": KnownDirectory(
        "https://dv.acme-v02.api.pki.goog/directory", eab="`gcloud publicca external-account-keys create`"
    ),
}
_BY_URL = {known.url: known for known in KNOWN.values()}
# Names that no public CA certifies and that resolve in private networks only (RFC 6761, 6762, 8375, 9476).
PRIVATE_SUFFIXES = frozenset({"localhost", "test", "local", "internal", "lan", "invalid", "alt", "onion"})


def directory_url(directory: str) -> str:
    """Return the URL for a word of KNOWN; a URL stands for itself."""
    known = KNOWN.get(directory)
    return known.url if known else directory


def staging_url(directory: str) -> str:
    """Return the URL where a retry for this directory (word or URL) is rehearsed; "" if none is known."""
    known = find_known(directory)
    return KNOWN[known.staging].url if known and known.staging else ""


def find_known(directory: str) -> KnownDirectory | None:
    """Return what is known of a word or URL."""
    return KNOWN.get(directory) or _BY_URL.get(directory)


def is_letsencrypt(directory: str) -> bool:
    return find_known(directory) in (KNOWN["letsencrypt"], KNOWN["letsencrypt-staging"])


def is_production(directory: str) -> bool:
    """Tell whether orders there count: a lost store would burn limits of a CA that others share."""
    known = find_known(directory)
    if known is not None:
        return not known.is_staging
    return not is_private_name(urlsplit(directory).hostname or "")


def is_private_name(host: str) -> bool:
    """Tell whether no public CA could certify this normalised host: local, one label, special use, private address."""
    name = host.removeprefix("*.")
    address = as_address(name)
    if address is not None:
        return not address.is_global
    return "." not in name or name.rpartition(".")[2] in PRIVATE_SUFFIXES or name.endswith(".home.arpa")
