"""The order at the CA: taken up where an earlier process left it, or placed anew and remembered at once.

Knows: what makes a left order usable, `replaces` and who does not take it, the key that goes with an order. Does not
know: challenges, what comes after. Rules: an order and its new key are in the store before anything is done for it; a
cancelled or killed process so costs no second order; one whose certificate is in the store already is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from tlsproxy.certs.conversation import PASSING, Conversation, Patience, finish_first
from tlsproxy.certs.identifiers import new_key
from tlsproxy.certs.inflight import OrderInFlight, OrdersInFlight
from tlsproxy.certs.job import Accounting, Job
from tlsproxy.certs.login import LogIn
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.resources import Order
from tlsproxy.certs.tools import Tools
from tlsproxy.store import pem
from tlsproxy.store.base import Lease

logger = logging.getLogger(__name__)

LOOK_LIMIT = 90.0
"""Seconds that a CA may be away when a left order is looked for; longer, and the attempt fails instead."""
_ALIVE = ("pending", "ready", "processing", "valid")
_REPLACES_REFUSED = frozenset({400, 401, 404, 409})  # acme.sh#7280, mod_md#406: CAs that know no such certificate


@dataclass(frozen=True, slots=True)
class Placed:
    """An order and the key that its certificate will be for."""

    order: Order
    key_pem: bytes = field(repr=False)


class Placing:
    """The orders of one job."""

    # Mutable: count (orders placed), _job (loses `replaces` when the CA does not take it), _permitted (what is counted
    # with our quota, for whom, and is not used up yet).

    def __init__(
        self,
        tools: Tools,
        accounting: Accounting,
        job: Job,
        talk: Conversation,
        progress: Progress,
        lease: Lease | None,
    ) -> None:
        self._tools, self._accounting, self._job, self._talk = tools, accounting, job, talk
        self._progress, self._lease = progress, lease
        self._left = OrdersInFlight(tools.store)
        self._permitted: tuple[Job, str] | None = None
        self.count = 0

    async def check(self, account: str) -> None:
        """Raise AcmeFailure (QUOTA) for an order that would not be permitted, before the CA is asked for anything."""
        if self._job.rehearsal or await self._tools.in_store(self._find, account) is None:
            await self._accounting.check(self._job, account)

    async def take_up(self, login: LogIn) -> Placed | None:
        """Return what an earlier process, or an earlier attempt, has left at the CA, if it still leads somewhere."""
        if self._job.rehearsal:
            return None
        left = await self._tools.in_store(self._find, login.account)
        if left is None:
            return None
        order = await self._look(login, left.url)
        if order is None or order.status not in _ALIVE:
            await self.forget()
            return None
        self._progress(
            Step("order", "", f"going on with the order of {left.created:%H:%M:%S}, which is {order.status}")
        )
        logger.info("certificate.order_taken_up", extra={"certificate": self._job.name, "status": order.status})
        return Placed(order, left.key_pem.encode())

    async def place(self, login: LogIn) -> Placed:
        """Order, as far as our own quota allows. Raises AcmeFailure. What it permits is to be released in the end."""
        self.count += 1
        await self._accounting.keep_pace(self._job, login.account)
        key = pem.key_pem(await self._tools.in_thread(new_key, self._job.key_type))
        self._progress(Step("order", "", f"ordering for {', '.join(self._job.hosts)} from {self._job.directory}"))
        return await finish_first(self._order_and_remember(login, key))

    async def issued(self, account: str) -> None:
        """Count the certificate of the order that was placed or taken up."""
        permitted, self._permitted = self._permitted, None
        await self._accounting.issued(self._job, account, is_permitted=permitted is not None)

    async def release(self, *, is_ordered: bool = True) -> None:
        """Give back what was permitted and led to no certificate."""
        permitted, self._permitted = self._permitted, None
        if permitted:
            await self._accounting.give_back(*permitted, is_ordered=is_ordered)

    async def forget(self) -> None:
        """The order is over: done with, or dead."""
        if not self._job.rehearsal:
            await self._tools.in_store(self._left.forget, self._job.name, self._lease)

    async def count_stall(self) -> bool:
        """Count an attempt that the CA did not get done with; tell whether the order has had its chances."""
        return not self._job.rehearsal and await self._tools.in_store(self._count_stall)

    def _count_stall(self) -> bool:
        """Blocks on the store."""
        left = self._left.find(self._job.name)
        if left is None:
            return False
        left = replace(left, stalls=left.stalls + 1)
        self._left.save(self._job.name, left, self._lease)
        return left.is_stuck

    def _find(self, account: str) -> OrderInFlight | None:
        """Blocks on the store."""
        left = self._left.find(self._job.name)
        if left is None:
            return None
        job, held = self._job, self._tools.store.get(self._job.name)
        is_over = held is not None and held.key_pem == left.key_pem.encode()
        is_ours = left.is_for(job.directory, account, job.issuer.profile, job.hosts, job.key_type)
        life = held.not_after - held.not_before if held else None
        if is_ours and not is_over and not left.is_stuck and left.is_young(self._tools.now(), life):
            return left
        self._left.forget(job.name, self._lease)
        return None

    async def _look(self, login: LogIn, url: str) -> Order | None:
        patience = Patience(LOOK_LIMIT, step="order", directory=self._job.directory)
        try:
            return await self._talk.insist(patience, login.session.fetch_order, url)
        except AcmeFailure as failure:
            if failure.kind in (*PASSING, FailureKind.RATE_LIMITED, FailureKind.ACCOUNT_GONE):
                raise
            return None  # the CA has forgotten it, or it is somebody else's

    async def _order_and_remember(self, login: LogIn, key_pem: bytes) -> Placed:
        """To be finished even when cancelled: an order that nobody remembers is lost, and counts all the same."""
        job = self._job
        await self._permit(login.account)
        try:
            order = await self._order(login)
        except AcmeFailure:
            await self.release(is_ordered=False)
            raise
        if not job.rehearsal:
            about = (order.url, job.directory, login.account, job.issuer.profile, job.hosts, job.key_type)
            remembered = OrderInFlight(*about, self._tools.now(), key_pem.decode())
            await self._tools.in_store(self._left.save, job.name, remembered, self._lease)
        return Placed(order, key_pem)

    async def _permit(self, account: str) -> None:
        await self.release()  # an earlier order of this job has led nowhere
        await self._accounting.permit(self._job, account)
        self._permitted = self._job, account

    async def _order(self, login: LogIn) -> Order:
        job = self._job
        order: Callable[..., Order] = partial(login.session.new_order, job.hosts, profile=job.issuer.profile)
        # RFC 9773 5: only to the CA and account that the predecessor came from; the plan sees to that.
        if not job.replaces:
            return await self._talk.ask(order)
        try:
            return await self._talk.ask(order, replaces=job.replaces)
        except AcmeFailure as failure:
            if not _blames_replaces(failure):
                raise
            logger.info("certificate.replaces_refused", extra={"certificate": job.name, "error": str(failure)})
        # Without it the order is no renewal that is exempt from the CA's limits.
        await self.release(is_ordered=False)
        self._job = replace(job, replaces="")
        await self._permit(login.account)
        return await self._talk.ask(order)


def _blames_replaces(failure: AcmeFailure) -> bool:
    if failure.kind is FailureKind.ALREADY_REPLACED:
        return True
    return failure.kind is not FailureKind.ACCOUNT_GONE and failure.status in _REPLACES_REFUSED
