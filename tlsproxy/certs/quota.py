"""The quota guard at work: asks the ledger before an order, and writes down what was used.

Knows: where ledgers lie, that all machines on one store share them. Does not know: the arithmetic (ledger.py), orders.
Rules: read, check, count, write happen in one `exclusive` of the store; a ledger that can't be read or written never
stops an order (the CA counts itself), it is logged; names that wait for the same limit come back one by one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from tlsproxy.certs.job import Job
from tlsproxy.certs.ledger import FOLDER, Ledger, Refusal, ledger_name
from tlsproxy.certs.limiter import OrderLimiter
from tlsproxy.certs.limits import limits_of
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.tools import Tools
from tlsproxy.errors import StoreError

logger = logging.getLogger(__name__)

OF_ALL = "orders"
"""The `type` of a refusal that any other name of the account would meet as well; the key of that bucket."""
_MISSED = timedelta(hours=1)  # who has not come back so long after its turn does not wait any more


class QuotaGuard:
    """All ledgers of one store, and the pace of this process. Keeps the contract of `Accounting`."""

    # Mutable: _pace (by directory and account), _waiting (by directory, account and bucket: the certificates that were
    # refused, and when they come back).

    def __init__(self, tools: Tools, quota: str = "auto", *, rnd: Callable[[], float] = random.random) -> None:
        self._tools, self._quota, self._rnd = tools, quota, rnd
        self._waiting: dict[tuple[str, str, str], dict[str, datetime]] = defaultdict(dict)
        self._pace: dict[tuple[str, str], OrderLimiter] = defaultdict(OrderLimiter)

    async def check(self, job: Job, account: str) -> None:
        """Raise AcmeFailure (QUOTA) for what `permit` would refuse."""
        if self._counts(job) and not job.force:
            ledger = await self._tools.in_store(self._read, job.directory, account)
            self._raise_for(_check(ledger, job, self._tools.now()), job, account)

    async def permit(self, job: Job, account: str) -> None:
        """Reserve an order and its certificate. Raises AcmeFailure (QUOTA) when there is none to be had."""
        if self._counts(job):
            self._raise_for(await self._tools.in_store(self._reserve, job, account), job, account)

    async def give_back(self, job: Job, account: str, *, is_ordered: bool) -> None:
        is_ari = bool(job.replaces)

        def count(ledger: Ledger, now: datetime) -> Ledger:
            return ledger.give_back(job.hosts, now, replaces=is_ari, renews=job.renews, is_ordered=is_ordered)

        await self._count(job, account, count)

    async def refused(self, job: Job, account: str, identifiers: Sequence[str]) -> None:
        def count(ledger: Ledger, now: datetime) -> Ledger:
            for name in identifiers:
                ledger = ledger.record_failed_authorization(name, now)
            return ledger

        await self._count(job, account, count)

    async def issued(self, job: Job, account: str, *, is_permitted: bool) -> None:
        def count(ledger: Ledger, now: datetime) -> Ledger:
            if is_permitted:
                return ledger.record_proof(job.hosts)
            return ledger.record_certificate(job.hosts, now, replaces=bool(job.replaces), renews=job.renews)

        await self._count(job, account, count)

    def permit_account(self, directory: str) -> None:
        """Count a new account; by address, not by account. Blocks. Raises AcmeFailure (QUOTA) if it is one too many."""
        ledger = self._read(directory, "")
        if refusal := ledger.check_account(self._tools.now()):
            raise AcmeFailure(
                FailureKind.QUOTA,
                detail=refusal.sentence,
                retry_at=refusal.possible_at,
                step="account",
                directory=directory,
            )
        if ledger.limits:
            self._write_or_log(directory, "", lambda it, now: it.record_account(now))

    async def keep_pace(self, job: Job, account: str) -> None:
        loop, limiter = asyncio.get_running_loop(), self._pace[job.directory, account]
        while (delay := limiter.delay(loop.time())) > 0:
            await asyncio.sleep(delay)
        limiter.took(loop.time())

    def _counts(self, job: Job) -> bool:
        return limits_of(job.directory, self._quota) is not None

    def _raise_for(self, refusal: Refusal | None, job: Job, account: str) -> None:
        if refusal:
            raise AcmeFailure(
                FailureKind.QUOTA,
                type=OF_ALL if refusal.bucket == OF_ALL else "",
                detail=refusal.sentence,
                retry_at=self._turn(refusal, job, account),
                identifier=job.hosts[0],
                step="order",
                directory=job.directory,
            )

    def _turn(self, refusal: Refusal, job: Job, account: str) -> datetime:
        """Return when to come back: somewhere in the time that the limit takes for all who wait for it."""
        now, line = self._tools.now(), self._waiting[job.directory, account, refusal.bucket]
        for name in [name for name, turn in line.items() if name == job.name or turn < now - _MISSED]:
            del line[name]
        turn = refusal.possible_at + refusal.interval * len(line) * self._rnd()
        line[job.name] = turn
        return turn

    def _reserve(self, job: Job, account: str) -> Refusal | None:
        """Check and count in one step. Blocks."""
        store, refusal = self._tools.store, None
        try:
            with store.exclusive():
                ledger, now = self._read(job.directory, account), self._tools.now()
                refusal = None if job.force else _check(ledger, job, now)
                if refusal is None:
                    ledger = ledger.reserve(job.hosts, now, replaces=bool(job.replaces), renews=job.renews)
                    store.put_record(FOLDER, ledger_name(job.directory, account), ledger.to_record())
        except StoreError as error:
            logger.warning("acme.ledger_not_written", extra={"directory": job.directory, "error": str(error)})
        return refusal

    async def _count(self, job: Job, account: str, count: Callable[[Ledger, datetime], Ledger]) -> None:
        if self._counts(job):
            await self._tools.in_store(self._write_or_log, job.directory, account, count)

    def _write_or_log(self, directory: str, account: str, count: Callable[[Ledger, datetime], Ledger]) -> None:
        try:
            self._write(directory, account, count)
        except StoreError as error:
            logger.warning("acme.ledger_not_written", extra={"directory": directory, "error": str(error)})

    def _write(self, directory: str, account: str, count: Callable[[Ledger, datetime], Ledger]) -> None:
        store, name = self._tools.store, ledger_name(directory, account)
        with store.exclusive():
            ledger = count(self._read(directory, account), self._tools.now())
            store.put_record(FOLDER, name, ledger.to_record())

    def _read(self, directory: str, account: str) -> Ledger:
        limits = limits_of(directory, self._quota)
        record = None
        if limits:
            try:
                record = self._tools.store.get_record(FOLDER, ledger_name(directory, account))
            except StoreError as error:
                logger.warning("acme.ledger_not_read", extra={"directory": directory, "error": str(error)})
        return Ledger.from_record(record, limits, directory, account)


def _check(ledger: Ledger, job: Job, now: datetime) -> Refusal | None:
    return ledger.check(job.hosts, now, replaces=bool(job.replaces), renews=job.renews)
