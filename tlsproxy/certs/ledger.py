"""What was used of a CA's limits: orders, certificates, failed validations, accounts. PURE.

Knows: the arithmetic of token buckets as Let's Encrypt counts them, and for each bucket one instant: when it is full
again. Does not know: what is ordered why, stores. One ledger per directory and account, a record of the folder
"ledger"; full buckets are dropped from it, so it stays as small as the last days' work.

Rules: the last token of a bucket is never spent but with --force, so that a person has one left when it matters; what
the CA does not count is not counted here (renewals of the same names: no orders, no domain; with ARI: nothing).
Other machines and accounts may use up the same domain: the CA's own answer wins.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self

from tlsproxy.certs import records
from tlsproxy.certs.limits import Kind, Limit, Limits
from tlsproxy.certs.words import listing, moment
from tlsproxy.store.bundle import normal_host

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

FOLDER = "ledger"
RESERVE = 1
"""So many tokens of each bucket are left for a person who says --force."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not ordered now. `possible_at` is when it is without --force.

    `bucket` is the key of what is used up, for telling one from another; `interval` what one more of it takes.
    """

    sentence: str
    possible_at: datetime
    bucket: str = ""
    interval: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Budget:
    """One line of `admin certs why`: `used` of `of`; `refills_at` is when one more is free, None if all are."""

    limit: str
    used: int
    of: int
    refills_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Bucket:
    key: str
    limit: Limit
    subject: str = ""

    @property
    def words(self) -> str:
        return self.limit.words.format(subject=self.subject)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The use of one account at one CA. Without `limits` nothing is counted and nothing refused."""

    limits: Limits | None
    directory: str = ""
    account: str = ""
    full_at: Mapping[str, datetime] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Any, limits: Limits | None, directory: str = "", account: str = "") -> Self:
        """Rebuild from `to_record`, or begin with None. Never raises: what can't be understood was not used."""
        full_at = records.read(_Record, record).full_at
        return cls(limits, directory, account, full_at)

    def to_record(self) -> dict[str, Any]:
        return records.write(_Record(self.directory, self.account, self.full_at))

    def check(
        self, names: Sequence[str], now: datetime, *, replaces: bool = False, renews: bool = False
    ) -> Refusal | None:
        """Tell whether an order for `names` must not be made now.

        `replaces`: it carries an ARI id that the CA knows; it is exempt from everything. `renews`: exactly these names
        had a certificate of this CA before; exempt from the limits of orders and domains.
        """
        return None if replaces else self._refusal(self._order_buckets(names, renews=renews), now)

    def check_account(self, now: datetime) -> Refusal | None:
        """Tell whether a new account must not be made now. For the ledger of the directory, with no account."""
        return self._refusal(self._buckets("accounts"), now)

    def record_order(
        self, names: Sequence[str], now: datetime, *, replaces: bool = False, renews: bool = False
    ) -> Self:
        """Count an order that the CA has taken."""
        return self._spend([] if replaces or renews else self._buckets("orders"), now)

    def record_certificate(
        self, names: Sequence[str], now: datetime, *, replaces: bool = False, renews: bool = False
    ) -> Self:
        """Count a certificate. The set of names is counted even when the order was exempt, as the CA does."""
        spent = self._spend(self._certificate_buckets(names, is_exempt=replaces or renews), now)
        return spent.record_proof(names)

    def record_proof(self, names: Sequence[str]) -> Self:
        """Forget failures in a row."""
        proven = {f"paused {name}" for name in map(_identifier, names)}
        return replace(self, full_at={key: at for key, at in self.full_at.items() if key not in proven})

    def reserve(self, names: Sequence[str], now: datetime, *, replaces: bool = False, renews: bool = False) -> Self:
        """Count an order that is about to be made, and the certificate that it leads to."""
        is_exempt = replaces or renews
        certificate = self._certificate_buckets(names, is_exempt=is_exempt)
        orders = [] if is_exempt else self._buckets("orders")
        return self._spend([*orders, *certificate], now)

    def give_back(
        self, names: Sequence[str], now: datetime, *, replaces: bool = False, renews: bool = False, is_ordered: bool
    ) -> Self:
        """Undo `reserve`, but for the order if that was made."""
        is_exempt = replaces or renews
        orders = [] if is_ordered or is_exempt else self._buckets("orders")
        return self._refill([*orders, *self._certificate_buckets(names, is_exempt=is_exempt)], now)

    def record_failed_authorization(self, name: str, now: datetime) -> Self:
        """Count a validation that has failed for one identifier."""
        subjects = [_identifier(name)]
        return self._spend([*self._buckets("failed", subjects), *self._buckets("paused", subjects)], now)

    def record_account(self, now: datetime) -> Self:
        """Count a new account."""
        return self._spend(self._buckets("accounts"), now)

    def budget(self, names: Sequence[str], now: datetime) -> tuple[Budget, ...]:
        """Return what is used of each limit that an order for `names` has to do with, the scarcest first."""
        rows = [self._row(bucket, now) for bucket in self._order_buckets(names)]
        return tuple(sorted(rows, key=lambda row: row.used / row.of, reverse=True))

    def usage(self, now: datetime) -> tuple[Budget, ...]:
        """Return what is used of all limits, as far as anything is, the scarcest first."""
        if self.limits is None:
            return ()
        kinds = self.limits.table.items()
        rows = [self._row(bucket, now) for kind, limit in kinds for bucket in self._known_buckets(kind, limit)]
        return tuple(sorted((row for row in rows if row.used), key=lambda row: row.used / row.of, reverse=True))

    def _known_buckets(self, kind: Kind, limit: Limit) -> Iterator[_Bucket]:
        for key in self.full_at:
            if key.partition(" ")[0] == kind:
                subject = key.partition(" ")[2]
                yield _Bucket(key, limit, f"set {subject[:8]}" if kind == "set" else subject)

    def _order_buckets(self, names: Sequence[str], *, renews: bool = False) -> Iterator[_Bucket]:
        if not renews:
            yield from self._buckets("orders")
            yield from self._buckets("domain", registered_domains(names))
        yield from self._set_bucket(names)
        identifiers = list(dict.fromkeys(map(_identifier, names)))
        yield from self._buckets("failed", identifiers)
        yield from self._buckets("paused", identifiers)

    def _certificate_buckets(self, names: Sequence[str], *, is_exempt: bool) -> list[_Bucket]:
        domains = [] if is_exempt else self._buckets("domain", registered_domains(names))
        return [*domains, *self._set_bucket(names)]

    def _buckets(self, kind: Kind, subjects: Iterable[str] = ("",)) -> Iterator[_Bucket]:
        limit = self.limits.table.get(kind) if self.limits else None
        if limit:
            for subject in subjects:
                yield _Bucket(f"{kind} {subject}".rstrip(), limit, subject)

    def _set_bucket(self, names: Sequence[str]) -> Iterator[_Bucket]:
        limit = self.limits.table.get("set") if self.limits else None
        if limit:
            whole = sorted({normal_host(name) for name in names})
            yield _Bucket(f"set {sha256(' '.join(whole).encode()).hexdigest()[:32]}", limit, listing(whole))

    def _refusal(self, buckets: Iterable[_Bucket], now: datetime) -> Refusal | None:
        """Return the refusal that lasts longest."""
        short = [bucket for bucket in buckets if self._used(bucket, now) + 1 + RESERVE > bucket.limit.capacity]
        if not short or self.limits is None:
            return None
        worst = max(short, key=lambda bucket: self._free_at(bucket, now, 1 + RESERVE))
        possible_at, used = self._free_at(worst, now, 1 + RESERVE), self._used(worst, now)
        left = (
            "none is left. Wait"
            if used >= worst.limit.capacity
            else f"{used} of {worst.limit.capacity} are used, the last is kept for you. `--force` spends it, or wait"
        )
        sentence = f"{self.limits.ca} grants {worst.limit.capacity} {worst.words}; {left} until {moment(possible_at)}."
        return Refusal(sentence, possible_at, worst.key, worst.limit.interval)

    def _row(self, bucket: _Bucket, now: datetime) -> Budget:
        used = self._used(bucket, now)
        refills_at = self._free_at(bucket, now, bucket.limit.capacity - used + 1) if used else None
        return Budget(bucket.words, used, bucket.limit.capacity, refills_at)

    def _used(self, bucket: _Bucket, now: datetime) -> int:
        # A token that is almost refilled is still used; the subtraction takes the rounding of instants away.
        return math.ceil((self._full_at(bucket, now) - now) / bucket.limit.interval - 1e-6)

    def _free_at(self, bucket: _Bucket, now: datetime, tokens: int) -> datetime:
        """Return when so many tokens are in the bucket."""
        return max(now, self._full_at(bucket, now) - bucket.limit.interval * (bucket.limit.capacity - tokens))

    def _full_at(self, bucket: _Bucket, now: datetime) -> datetime:
        # Beyond its period no bucket can be: then the clock has been set back.
        return min(max(self.full_at.get(bucket.key, now), now), now + bucket.limit.period)

    def _spend(self, buckets: Iterable[_Bucket], now: datetime) -> Self:
        """Take one token of each, where there is one, and drop what is full."""
        full_at = {key: at for key, at in self.full_at.items() if at > now}
        for bucket in buckets:
            at = self._full_at(bucket, now) + bucket.limit.interval
            full_at[bucket.key] = min(at, now + bucket.limit.period)
        return replace(self, full_at=full_at)

    def _refill(self, buckets: Iterable[_Bucket], now: datetime) -> Self:
        """Put one token back into each."""
        full_at = dict(self.full_at)
        for bucket in buckets:
            full_at[bucket.key] = self._full_at(bucket, now) - bucket.limit.interval
        return replace(self, full_at={key: at for key, at in full_at.items() if at > now})


@dataclass(frozen=True, slots=True)
class _Record:
    """The shape in the store. Directory and account are there for people who read it."""

    directory: str = ""
    account: str = ""
    full_at: Mapping[str, datetime] = field(default_factory=dict)


def ledger_name(directory: str, account: str = "") -> str:
    """Return the name of the record; without an account: of what is counted by address (new accounts)."""
    return sha256(f"{directory} {account}".encode()).hexdigest()[:32]


def registered_domains(names: Iterable[str]) -> list[str]:
    """Return what a CA counts certificates by: the registered domains, IPv4 addresses and IPv6 /64 of the names."""
    return list(dict.fromkeys(registered_domain(name) for name in names))


def registered_domain(name: str) -> str:
    """Return e.g. "example.co.uk" for "*.a.example.co.uk"; a public suffix (github.io) stands for itself."""
    name = _identifier(name)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return _public_suffixes().privatesuffix(name) or name
    return name if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def _identifier(name: str) -> str:
    """Return what the CA validates: a wildcard name is validated by its parent."""
    return normal_host(name).removeprefix("*.")


@cache
def _public_suffixes() -> PublicSuffixList:
    # 40 ms and 4 MiB: only who counts pays.
    from publicsuffixlist import PublicSuffixList  # noqa: PLC0415

    return PublicSuffixList()
