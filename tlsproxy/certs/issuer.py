"""One certificate from one ACME CA: account, order, challenges, finalize, download, hand-over.

    job ─ account ─ order ─ authorizations ─ finalize ─ download ─ bundle
            │         │           │              └ with a new key, in the store before the CA hears of it
            │         │           └ Validation: next kind of challenge, at most one new order for each
            │         └ Placing: taken up again if a process died in the middle of it
            └ made at first, made again if the CA has forgotten it

Knows: the steps and what a failure of each leads to within the same job. Does not know: when a certificate is due, what
is served, how often to try. Rules: asyncio only, each blocking call one HTTP request in a thread; every wait has a
deadline; whatever is left at the CA or in the store is cleaned up; the caller stores the result, then calls `forget`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from tlsproxy.certs import accounts
from tlsproxy.certs.conversation import PASSING, Conversation, Patience, finish_first
from tlsproxy.certs.handover import accept, clock_problem
from tlsproxy.certs.identifiers import CertificateKey, signing_request
from tlsproxy.certs.inflight import OrdersInFlight
from tlsproxy.certs.job import Accounting, Issued, Job
from tlsproxy.certs.login import LogIn, LogIns, authority_of
from tlsproxy.certs.placing import Placed, Placing
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.resources import Order
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.validation import Tried, Validation
from tlsproxy.errors import CertificateError
from tlsproxy.store import pem
from tlsproxy.store.base import Lease

if TYPE_CHECKING:
    from tlsproxy.certs.challenges import Solver

logger = logging.getLogger(__name__)

FINALIZE_LIMIT = 90.0
"""Seconds for the CA to sign. An order that takes longer stays remembered: the next attempt asks for its result."""
MOST_ORDERS = 4
"""Orders of one job: each kind of challenge once, and one for an order that was lost."""
ABANDON_LIMIT = 10.0
_KEPT = (FailureKind.RATE_LIMITED, FailureKind.STORE, FailureKind.CANCELLED, FailureKind.QUOTA)


def known_account(tools: Tools, job: Job) -> str:
    """Return the URL of our account at the CA of this job, "" if there is none yet. Blocks; raises StoreError."""
    authority = authority_of(job.issuer, rehearsal=job.rehearsal)
    account = accounts.load(tools.store, authority.directory, authority.kid)
    return account.url if account else ""


class AcmeIssuer:
    """Carries out jobs, any number at the same time."""

    def __init__(self, tools: Tools, solvers: Sequence[Solver], accounting: Accounting, logins: LogIns) -> None:
        """`solvers` in order of preference."""
        self.tools, self.solvers, self.accounting, self.logins = tools, tuple(solvers), accounting, logins

    async def obtain(self, job: Job, progress: Progress, lease: Lease | None = None) -> Issued:
        """Return a new certificate that may be served. Raises AcmeFailure, LeaseLost, StoreError.

        The order stays remembered until `forget`: call it when the bundle is in the store.
        """
        run = _Run(self, job, progress, lease)
        try:
            return await run.obtain()
        except AcmeFailure as failure:
            raise replace(failure, directory=failure.directory or job.directory) from failure
        finally:
            run.close()
            await finish_first(run.release())

    async def forget(self, name: str, lease: Lease | None = None) -> None:
        """Drop what is remembered of the order for this certificate."""
        await self.tools.in_store(OrdersInFlight(self.tools.store).forget, name, lease)


class _Run:
    """One job, from the account to the bundle."""

    # Mutable: _login (of the account at hand), _tried (grows with each order), _is_signed (the CA has done its part).

    def __init__(self, issuer: AcmeIssuer, job: Job, progress: Progress, lease: Lease | None) -> None:
        self._issuer, self._job, self._progress = issuer, job, progress
        self._tools, self._accounting = issuer.tools, issuer.accounting
        self._talk = Conversation(issuer.tools, progress)
        self._placing = Placing(issuer.tools, issuer.accounting, job, self._talk, progress, lease)
        self._tried = Tried(winners=dict(job.winners))
        self._login: LogIn | None = None
        self._is_signed = False

    def close(self) -> None:
        if self._login is not None:
            self._login.session.close()

    async def release(self) -> None:
        """Give back what our quota has permitted and what led to nothing."""
        await self._placing.release()

    async def obtain(self) -> Issued:
        """Log in, order; once more with a new account if the CA does not know the one that we have."""
        if account := await self._tools.in_store(known_account, self._tools, self._job):
            await self._placing.check(account)
        login = self._login = await self._issuer.logins.log_in(self._job, self._talk, self._progress)
        try:
            return await self._order(login)
        except AcmeFailure as failure:
            if failure.kind is not FailureKind.ACCOUNT_GONE:
                raise
            logger.warning("acme.account_gone", extra={"directory": self._job.directory, "error": str(failure)})
        self.close()
        login = self._login = await self._issuer.logins.log_in(
            self._job, self._talk, self._progress, gone=login.account
        )
        return await self._order(login)

    async def _order(self, login: LogIn) -> Issued:
        """Order until there is a certificate or no other way to get one."""
        placed = await self._placing.take_up(login) or await self._placing.place(login)
        while True:
            validation = Validation(
                login.session,
                self._talk,
                self._issuer.solvers,
                self._tried,
                self._progress,
                directory=self._job.directory,
            )
            try:
                return await self._fulfil(login, placed, validation)
            except AcmeFailure as failure:
                await finish_first(self._abandon(login, failure, validation))
                if not self._may_order_again(failure, validation):
                    raise
                logger.info("certificate.ordered_again", extra={"certificate": self._job.name, "error": str(failure)})
            placed = await self._placing.place(login)

    async def _fulfil(self, login: LogIn, placed: Placed, validation: Validation) -> Issued:
        if placed.order.status == "pending":
            await validation.run(placed.order.authorizations)
        order = await self._sign(login, placed)
        self._is_signed = True
        await self._placing.issued(login.account)
        self._progress(Step("download", "", "downloading the certificate"))
        patience = Patience(FINALIZE_LIMIT, step="download", directory=self._job.directory)
        chain = await self._talk.insist(patience, login.session.fetch_chain, order, self._job.issuer.preferred_chain)
        return self._hand_over(login, chain, placed.key_pem)

    async def _sign(self, login: LogIn, placed: Placed) -> Order:
        """Drive the order to "valid", whatever state it is in. An answer that got lost is found by looking again."""
        order, patience = placed.order, Patience(FINALIZE_LIMIT, step="finalize", directory=self._job.directory)
        key = cast("CertificateKey", pem.private_key(placed.key_pem, "the new key"))
        request = signing_request(self._job.hosts, key)
        while order.status != "valid":
            if order.failure:
                raise order.failure.about(self._job.hosts[0], step="finalize")
            if order.status == "ready":
                self._progress(Step("finalize", "", "asking for the signature"))
                order = await self._finalize(login, order, request, patience)
            else:
                order = await self._talk.insist(patience, login.session.fetch_order, order.url)
            if order.status not in ("valid", "invalid", "ready"):
                await patience.pause(order.retry_after)
        return order

    async def _finalize(self, login: LogIn, order: Order, request: bytes, patience: Patience) -> Order:
        try:
            return await self._talk.ask(login.session.finalize, order, request)
        except AcmeFailure as failure:
            if failure.kind not in PASSING and failure.type != "orderNotReady":
                raise
            await patience.pause()
        return await self._talk.insist(patience, login.session.fetch_order, order.url)

    def _hand_over(self, login: LogIn, chain: bytes, key_pem: bytes) -> Issued:
        try:
            bundle = accept(chain, key_pem, self._job.hosts, self._tools.now())
        except CertificateError as error:
            raise self._failure(FailureKind.INTERNAL, "download", str(error)) from error
        job = self._job
        if problem := clock_problem(bundle, self._tools.now()):
            logger.warning("certificate.clock_behind", extra={"certificate": job.name, "problem": problem})
        bundle = replace(bundle, directory=job.directory, account=login.account, profile=job.issuer.profile)
        return Issued(bundle, dict(self._tried.winners))

    def _may_order_again(self, failure: AcmeFailure, validation: Validation) -> bool:
        if self._placing.count >= MOST_ORDERS:
            return False
        if failure.kind is FailureKind.BAD_ORDER:
            return self._placing.count < 2
        return failure.kind is FailureKind.VALIDATION and validation.has_another_way()

    async def _abandon(self, login: LogIn, failure: AcmeFailure, validation: Validation) -> None:
        """Count what was refused. Forget an order that is dead; one that only waits for better times is taken up."""
        await self._accounting.refused(self._job, login.account, validation.refused_names)
        if failure.kind in _KEPT or (failure.kind in PASSING and not await self._is_stuck()):
            return
        await self._placing.forget()
        if failure.kind is FailureKind.ACCOUNT_GONE:
            return
        # Left pending they count against a limit of the account (letsencrypt.org/docs/rate-limits).
        with contextlib.suppress(AcmeFailure, TimeoutError):
            async with asyncio.timeout(ABANDON_LIMIT):
                for url in validation.pending_urls:
                    await self._talk.ask(login.session.deactivate_authorization, url)

    async def _is_stuck(self) -> bool:
        """Tell whether to give up waiting for the CA. What it has signed is only to be fetched: that costs nothing."""
        return not self._is_signed and await self._placing.count_stall()

    def _failure(self, kind: FailureKind, step: str, detail: str) -> AcmeFailure:
        return AcmeFailure(kind, detail=detail, step=step, directory=self._job.directory, identifier=self._job.hosts[0])
