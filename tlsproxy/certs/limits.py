"""What CAs grant, as data: the published limits of those that publish them. PURE.

Knows: numbers and the words for them. Does not know: what was used (ledger.py), clocks. Rule: a limit that is not
published stands in no table; without a table nothing is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from tlsproxy.settings.directories import KNOWN, directory_url

Kind = Literal["orders", "domain", "set", "failed", "paused", "accounts"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket: `capacity` at once, refilled evenly within `period`. `words` follow a number, with {subject}."""

    words: str
    capacity: int
    period: timedelta

    @property
    def interval(self) -> timedelta:
        """The time after which one more is free."""
        return self.period / self.capacity


@dataclass(frozen=True, slots=True)
class Limits:
    """All that one CA grants. A kind that is missing is not limited."""

    ca: str
    table: Mapping[Kind, Limit]


_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_ORDERS = "orders within 3 hours from one account"
_FAILED = "failed validations within an hour for {subject}"

# letsencrypt.org/docs/rate-limits, as of 2026-08-05.
LETSENCRYPT = Limits(
    "Let's Encrypt",
    {
        "orders": Limit(_ORDERS, 300, 3 * _HOUR),
        "domain": Limit("certificates within 7 days for {subject} and the names below it", 50, 7 * _DAY),
        "set": Limit("certificates within 7 days for exactly these names ({subject})", 5, 7 * _DAY),
        "failed": Limit(_FAILED, 5, _HOUR),
        "paused": Limit("failed validations in a row for {subject}, one forgotten a day", 1152, 1152 * _DAY),
        "accounts": Limit("new accounts within 3 hours from one address", 10, 3 * _HOUR),
    },
)
# letsencrypt.org/docs/staging-environment: its other limits are beyond what one installation can reach.
STAGING = Limits(
    "Let's Encrypt's staging CA",
    {"orders": Limit(_ORDERS, 1500, 3 * _HOUR), "failed": Limit(_FAILED, 200, _HOUR)},
)
_TABLES = {KNOWN["letsencrypt"].url: LETSENCRYPT, KNOWN["letsencrypt-staging"].url: STAGING}


def limits_of(directory: str, quota: str = "auto") -> Limits | None:
    """Return what counts for a directory (word or URL) under the setting `acme.quota`; None if nothing is counted.

    auto is the published table of a known CA; letsencrypt is its table for any CA (one that runs the same software).
    """
    known = _TABLES.get(directory_url(directory))
    if quota == "off":
        return None
    return known or (LETSENCRYPT if quota == "letsencrypt" else None)
