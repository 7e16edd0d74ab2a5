"""What a plan is made of: the certificate wanted, the one held, and the three things that can be done. PURE values.

Knows: names, CAs by their URL, dates. Does not know: settings, stores, when something is due (plan.py), what failed
(state.py). Rule: no key in here, so these values may go to a log or an answer of the admin API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Self

from tlsproxy.store.bundle import Bundle, normal_host


@dataclass(frozen=True, slots=True)
class IssuerId:
    """One CA to order from. `staging` is the directory where a retry is rehearsed, "" where there is none.

    `account` is the URL of our account there as far as it is known, else "": without it no order says `replaces`.
    """

    directory: str
    profile: str = ""
    staging: str = ""
    account: str = ""

    @property
    def label(self) -> str:
        """What tells two entries of a list apart: one CA may stand there twice, with two profiles."""
        return f"{self.directory} {self.profile}".rstrip()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate that the configuration asks for.

    `name` is its name in the store, `hosts` what it must cover, `issuers` the CAs in order of preference (never
    empty). `fingerprint` stands for everything in the configuration that could make a permanent error go away.
    """

    name: str
    hosts: tuple[str, ...]
    issuers: tuple[IssuerId, ...]
    fingerprint: str = ""
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """The certificate in the store, without its key. Fields as in Bundle."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    serial: str = ""
    fingerprint: str = ""
    issuer: str = ""
    directory: str = ""
    account: str = ""
    profile: str = ""
    ari_id: str = ""
    source: str = "acme"

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        return cls(
            names=bundle.names,
            not_before=bundle.not_before,
            not_after=bundle.not_after,
            serial=bundle.serial,
            fingerprint=bundle.fingerprint,
            issuer=bundle.issuer,
            directory=bundle.directory,
            account=bundle.account,
            profile=bundle.profile,
            ari_id=bundle.ari_id,
            source=bundle.source,
        )

    @property
    def life(self) -> timedelta:
        return self.not_after - self.not_before

    @property
    def point(self) -> float:
        """A number in [0, 1) that belongs to this certificate: the same on every machine and after every restart."""
        digest = sha256((self.ari_id or self.fingerprint or self.serial).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def is_valid(self, now: datetime) -> bool:
        return self.not_before <= now < self.not_after

    def covers(self, host: str) -> bool:
        """Tell whether a client accepts this certificate for `host`, or for a wildcard name if `host` is one."""
        host = normal_host(host)
        label, dot, parent = host.partition(".")
        return host in self.names or (bool(dot) and label != "*" and f"*.{parent}" in self.names)

    def missing(self, hosts: Iterable[str]) -> list[str]:
        return [host for host in hosts if not self.covers(host)]


@dataclass(frozen=True, slots=True)
class Obtain:
    """Order a certificate now, with a new key.

    `issuer` is the index in `Wanted.issuers`; `rehearse` means: at that issuer's staging directory, and what comes of
    it is thrown away; `replaces` is the ARI id for newOrder (RFC 9773 5), "" for none.
    """

    reason: str
    replaces: str = ""
    issuer: int = 0
    rehearse: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`; ask again then, and whenever the clock or the configuration has changed."""

    until: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Park:
    """Nothing to do until a person, or for an on-demand name a client, does something."""

    reason: str


Action = Obtain | Wait | Park
