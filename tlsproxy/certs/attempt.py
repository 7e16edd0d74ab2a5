"""One attempt at one certificate: lease, re-read, plan, order, put, remember.

Knows: the order of these steps, which of them end an attempt. Does not know: when attempts are made, who watches, what
is served. Rules: what is decided is decided on what the store says under the lease; nothing is ordered while the store
can't be written; a certificate goes to the store before anything else happens; every outcome is remembered before the
lease is given back; who has lost the lease drops what it has.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tlsproxy.certs import state as states
from tlsproxy.certs.conversation import PASSING, finish_first
from tlsproxy.certs.issuer import AcmeIssuer
from tlsproxy.certs.job import Issued, Job
from tlsproxy.certs.leasing import holding
from tlsproxy.certs.outages import SHORTEST, Outage, Outages
from tlsproxy.certs.plan import plan, renewal_time
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.state import State
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.wanted import Action, Held, Obtain, Park, Wait, Wanted
from tlsproxy.errors import StoreError
from tlsproxy.settings.acme import Issuer
from tlsproxy.store.base import Lease, LeaseLost
from tlsproxy.store.bundle import normal_host

logger = logging.getLogger(__name__)

MOST_STEPS = 5
"""Orders that one attempt may lead to without a pause: a rehearsal, the real one, one without `replaces`."""
PAUSE = timedelta(minutes=10)
"""Until the next look after the store has failed: no CA is asked meanwhile, so there is nothing to spare."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody wants it now.

    A person: parked and waiting are over, `reason` if it is to be renewed before it is due, `force` against our own
    quota and what the CA asked to wait for. A client (`by_client`) who asks for an on-demand name: it is in use.
    """

    reason: str = ""
    force: bool = False
    by_client: bool = False


@dataclass(frozen=True, slots=True)
class Obtained:
    """There is a new certificate in the store."""

    held: Held
    before: Held | None


@dataclass(frozen=True, slots=True)
class NotNow:
    """Nothing was ordered; `action` says why, and until when."""

    action: Wait | Park
    held: Held | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The CA, or something on the way to it, said no. `action` is what comes next."""

    failure: AcmeFailure
    held: Held | None
    state: State
    action: Action


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another process or machine is at it, or has taken it over."""


Outcome = Obtained | NotNow | Failed | Elsewhere


class Attempts:
    """Makes attempts; any number of names at the same time. `outages` is what they have found out about the CAs."""

    def __init__(
        self,
        tools: Tools,
        shelf: Shelf,
        issuer: AcmeIssuer,
        issuers: Sequence[Issuer],
        *,
        key_type: str,
        accounts: Mapping[str, str],
        rnd: Callable[[], float] = random.random,
    ) -> None:
        """`issuers` as in every Wanted, with what is needed to talk to them; `accounts` as LogIns learns them."""
        self._tools, self._shelf, self._issuer, self._issuers = tools, shelf, issuer, tuple(issuers)
        self._key_type, self._accounts, self._rnd = key_type, accounts, rnd
        self.outages = Outages(tools.now, rnd)

    async def make(self, wanted: Wanted, progress: Progress, asked: Asked | None = None) -> Outcome:
        """Do what the plan says about one certificate, now. Never raises but when cancelled."""
        try:
            async with holding(self._tools, wanted.name) as lease:
                if lease is None:
                    return Elsewhere()
                return await self._make(wanted, progress, asked, lease)
        except LeaseLost as error:
            logger.warning("certificate.lease_lost", extra={"certificate": wanted.name, "error": str(error)})
            return Elsewhere()
        except StoreError as error:
            return self._store_failed(wanted, error)

    async def _make(self, wanted: Wanted, progress: Progress, asked: Asked | None, lease: Lease) -> Outcome:
        wanted = self._with_accounts(wanted)
        held, state = await self._shelf.reread(wanted.name)
        forced, force = (asked.reason, asked.force) if asked else ("", False)
        state = self._as_asked(state, asked, wanted)
        action = plan(wanted, held, state, self._tools.now(), forced=forced, away=self._away(wanted, asked))
        if not isinstance(action, Obtain):
            if asked and asked.by_client:
                await self._shelf.save(wanted.name, state, lease)
            return NotNow(action, held)
        for _ in range(MOST_STEPS):
            done = await self._step(wanted, held, state, action, progress, lease, force=force)
            if isinstance(done, Obtained | NotNow):
                return done
            state = done if isinstance(done, State) else done.state
            await self._shelf.save(wanted.name, state, lease)
            action = plan(wanted, held, state, self._tools.now(), forced=forced, away=self._away(wanted, asked))
            if not isinstance(action, Obtain):
                return replace(done, action=action) if isinstance(done, Failed) else NotNow(action, held)
        return NotNow(Wait(self._tools.now() + PAUSE, f"{MOST_STEPS} orders in a row led nowhere"), held)

    async def _step(
        self,
        wanted: Wanted,
        held: Held | None,
        state: State,
        action: Obtain,
        progress: Progress,
        lease: Lease,
        *,
        force: bool,
    ) -> Obtained | Failed | NotNow | State:
        """Carry out one action. A State is that of a rehearsal that went well: the real order is next."""
        job = self._job(wanted, held, state, action, force=force)
        _log_order(job, action)
        try:
            with self.outages.asking(job.directory, wanted.name):
                issued = await self._obtain(job, progress, lease)
            if not action.rehearse:
                return await finish_first(self._keep(wanted, held, state, issued, lease))
        except AcmeFailure as failure:
            if failure.kind is FailureKind.CANCELLED:
                return NotNow(self._wait(wanted, held, state, failure), held)
            after = self._after_failure(state, failure, action, wanted, held)
            return Failed(failure, held, after, Wait(self._tools.now() + PAUSE))
        return states.after_rehearsal(state, self._tools.now(), issued.winners)

    def _away(self, wanted: Wanted, asked: Asked | None) -> Mapping[str, Outage]:
        is_by_hand = asked is not None and not asked.by_client
        return self.outages.away(
            wanted.name, by_hand=is_by_hand, force=is_by_hand and asked is not None and asked.force
        )

    def _wait(self, wanted: Wanted, held: Held | None, state: State, failure: AcmeFailure) -> Wait | Park:
        """Say why nothing was asked for this name: another one has just found out how the CA is."""
        now = self._tools.now()
        action = plan(wanted, held, state, now, away=self.outages.away(wanted.name))
        return action if not isinstance(action, Obtain) else Wait(now + SHORTEST, failure.detail)

    def _as_asked(self, state: State, asked: Asked | None, wanted: Wanted) -> State:
        if asked is None:
            return state
        now = self._tools.now()
        state = state if asked.by_client else states.by_hand(state, wanted, now, force=asked.force)
        return states.used(state, now) if wanted.on_demand else state

    def _with_accounts(self, wanted: Wanted) -> Wanted:
        """An order may name its predecessor only to the account that has it (RFC 9773 5)."""
        known = tuple(replace(each, account=self._accounts.get(each.directory, "")) for each in wanted.issuers)
        return replace(wanted, issuers=known)

    def _job(self, wanted: Wanted, held: Held | None, state: State, action: Obtain, *, force: bool) -> Job:
        renews = held is not None and held.directory == wanted.issuers[action.issuer].directory
        return Job(
            name=wanted.name,
            hosts=wanted.hosts,
            issuer=self._issuers[action.issuer],
            key_type=self._key_type,
            replaces=action.replaces,
            winners=state.winners,
            renews=renews and held is not None and set(held.names) == set(map(normal_host, wanted.hosts)),
            rehearsal=action.rehearse,
            force=force,
        )

    async def _obtain(self, job: Job, progress: Progress, lease: Lease) -> Issued:
        """Order, if the store can keep what comes of it. Raises AcmeFailure, LeaseLost."""
        progress(Step("store", "", "trying the store"))
        try:
            await self._tools.in_store(self._tools.store.self_test)
            return await self._issuer.obtain(job, progress, lease)
        except LeaseLost:
            raise
        except StoreError as error:
            raise _store_failure(error, job.hosts) from error

    async def _keep(
        self, wanted: Wanted, before: Held | None, state: State, issued: Issued, lease: Lease
    ) -> Obtained | NotNow:
        """Store the certificate, then all else. If that fails, the order stays remembered and is taken up again."""

        def is_imported(present: Held) -> bool:
            known = {before.fingerprint if before else "", issued.bundle.fingerprint}
            return present.fingerprint not in known and _is_good(present, wanted, self._tools.now())

        try:
            held = await self._shelf.put(wanted.name, issued.bundle, lease, is_imported)
        except LeaseLost:
            raise
        except StoreError as error:
            raise _store_failure(error, wanted.hosts) from error
        is_dropped = held.fingerprint != issued.bundle.fingerprint
        remember = states.after_kept if is_dropped else states.after_success
        await self._shelf.save(wanted.name, remember(state, wanted, held, self._tools.now(), issued.winners), lease)
        await self._forget_order(wanted.name, lease)
        if not is_dropped:
            return Obtained(held, before)
        logger.info("certificate.dropped", extra={"certificate": wanted.name, "serial": issued.bundle.serial})
        return NotNow(Wait(renewal_time(held), "somebody has put another certificate there meanwhile"), held)

    async def _forget_order(self, name: str, lease: Lease) -> None:
        try:
            await self._issuer.forget(name, lease)
        except StoreError as error:
            # Harmless: an order whose certificate is in the store is never taken up.
            logger.warning("certificate.order_not_forgotten", extra={"certificate": name, "error": str(error)})

    def _after_failure(
        self, state: State, failure: AcmeFailure, action: Obtain, wanted: Wanted, held: Held | None
    ) -> State:
        now = self._tools.now()
        after = states.after_failure(state, failure, action=action, wanted=wanted, held=held, now=now, rnd=self._rnd())
        outage = self.outages.away().get(failure.directory)
        if outage and failure.kind in PASSING and after.next_attempt:
            # It was the CA, not the name: who has found that out comes back as soon as those who wait for it.
            return replace(after, next_attempt=min(after.next_attempt, outage.until))
        if failure.kind is not FailureKind.STORE:
            return after
        # Nothing was asked of the CA, or what it gave still lies there: no back-off, and no rehearsal of it.
        return replace(after, attempts=max(1, state.attempts), next_attempt=now + PAUSE, rehearsed=True)

    def _store_failed(self, wanted: Wanted, error: StoreError) -> Failed:
        """The store could not even be read, so nothing can be remembered in it."""
        name, until = wanted.name, self._tools.now() + PAUSE
        failure = _store_failure(error, wanted.hosts)
        return Failed(failure, self._shelf.held(name), self._shelf.state(name), Wait(until, str(error)))


def _is_good(held: Held, wanted: Wanted, now: datetime) -> bool:
    return held.is_valid(now) and not held.missing(wanted.hosts) and now < renewal_time(held)


def _store_failure(error: StoreError, hosts: Sequence[str]) -> AcmeFailure:
    return AcmeFailure(FailureKind.STORE, detail=str(error), step="store", identifier=hosts[0])


def _log_order(job: Job, action: Obtain) -> None:
    extra = {"certificate": job.name, "reason": action.reason, "directory": job.directory, "rehearsal": job.rehearsal}
    logger.info("certificate.ordering", extra=extra)
