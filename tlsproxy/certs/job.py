"""What an issuer is asked for and what it gives back. Values, and whom it tells what it costs.

Knows: one CA and one certificate. Does not know: how it is obtained, stores, the plan. Rule: a Job says all that
counts, so that two jobs that are equal lead to the same certificate; its one secret (a binding key) never shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tlsproxy.settings.acme import Issuer
from tlsproxy.store.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Job:
    """What is wanted from whom.

    `hosts` as configured; `replaces` is an ARI id or ""; `winners` the kind of challenge that worked last, by
    identifier. `renews`: the same names had a certificate before, which counts less with a CA. `rehearsal`: at the
    staging directory, with a result that nobody keeps. `force`: against our own quota.
    """

    name: str
    hosts: tuple[str, ...]
    issuer: Issuer
    key_type: str = "ecdsa-p256"
    replaces: str = ""
    winners: Mapping[str, str] = field(default_factory=dict)
    renews: bool = False
    rehearsal: bool = False
    force: bool = False

    @property
    def directory(self) -> str:
        return self.issuer.staging_url if self.rehearsal else self.issuer.directory_url


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that may be served. `winners` as in Job, after this order."""

    bundle: Bundle
    winners: Mapping[str, str]


class Accounting(Protocol):
    """Keeps count of what a job costs at a CA, by its account there.

    `check` and `permit` raise AcmeFailure (QUOTA), before anything is ordered; the others never fail an order that goes
    on. What is permitted is counted at once, an order and a certificate, so that others can't count on it as well; who
    does not get that far gives it back.
    """

    async def check(self, job: Job, account: str) -> None:
        """Tell whether `permit` would refuse, without a request to anybody."""

    async def keep_pace(self, job: Job, account: str) -> None:
        """Return when an order is not too soon after the others, within seconds."""

    async def permit(self, job: Job, account: str) -> None: ...

    async def give_back(self, job: Job, account: str, *, is_ordered: bool) -> None:
        """There will be no certificate; `is_ordered`: the order was made, and counts."""

    async def refused(self, job: Job, account: str, identifiers: Sequence[str]) -> None: ...

    async def issued(self, job: Job, account: str, *, is_permitted: bool) -> None:
        """There is a certificate; without `is_permitted` it comes from the order of an earlier job."""
