"""A keeper of real parts for tests: a store in memory, fake CAs, a clock that jumps, an audience that writes down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.certs.ordering import Desk, issuer_of, make_desk
from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs.attempt import Attempts, Failed, Obtained
from tlsproxy.certs.keeper import Keeper
from tlsproxy.certs.progress import Progress
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.state import State
from tlsproxy.certs.wanted import Held, IssuerId, Wanted
from tlsproxy.certs.windows import Windows
from tlsproxy.settings.acme import Issuer
from tlsproxy.store.base import CertificateStore


@dataclass
class Notes:
    """Keeps the contract of Audience by writing down what it hears."""

    changes: list[str] = field(default_factory=list)
    outcomes: list[Obtained | Failed] = field(default_factory=list)

    def changed(self, names: tuple[str, ...]) -> None:
        self.changes += names

    async def obtained(self, wanted: Wanted, outcome: Obtained, progress: Progress) -> None:
        self.outcomes.append(outcome)

    def failed(self, wanted: Wanted, outcome: Failed) -> None:
        self.outcomes.append(outcome)

    def seen(self, wanted: Wanted, held: Held | None, now: datetime) -> None:
        pass


@dataclass
class House:
    """A keeper and everything around it. `look` does what a scan does, and waits for what comes of it."""

    desk: Desk
    shelf: Shelf
    keeper: Keeper
    notes: Notes
    issuers: tuple[Issuer, ...]

    @property
    def store(self) -> CertificateStore:
        return self.desk.store

    async def look(self, *, later: timedelta = timedelta()) -> None:
        self.desk.clock.ahead += later
        await self.keeper.look()
        await self.keeper.settle()

    def want(self, *hosts: str, fingerprint: str = "") -> str:
        wanted = wanted_from(self.issuers, *hosts, fingerprint=fingerprint)
        self.keeper.want([wanted])
        return wanted.name

    def state(self, name: str) -> State:
        """As the store has it."""
        return State.from_record(self.store.get_record("state", name))

    def serial(self, name: str) -> str:
        bundle = self.store.get(name)
        return bundle.serial if bundle else ""


@contextlib.contextmanager
def make_house(
    *cas: CertificateAuthority, store: CertificateStore | None = None, staging: CertificateAuthority | None = None
) -> Iterator[House]:
    """Keep certificates of these CAs, in order of preference; all have one bundle of roots."""
    with make_desk(store) as desk:
        issuers = tuple(issuer_of(ca, staging=staging) for ca in cas)
        shelf, notes = Shelf(desk.tools), Notes()
        attempts = Attempts(
            desk.tools, shelf, desk.issuer, issuers, key_type="ecdsa-p256", accounts=desk.logins.urls, rnd=lambda: 0.5
        )
        windows = Windows(desk.tools, shelf, issuers, rnd=lambda: 0.5)
        keeper = Keeper(desk.tools, shelf, attempts, windows, notes, rnd=lambda: 0.5)
        try:
            yield House(desk, shelf, keeper, notes, issuers)
        finally:
            windows.close()


def wanted_from(issuers: tuple[Issuer, ...], *hosts: str, fingerprint: str = "") -> Wanted:
    ids = tuple(IssuerId(each.directory_url, each.profile, each.staging_url) for each in issuers)
    return Wanted(f"acme/{hosts[0]}", hosts, ids, fingerprint)
