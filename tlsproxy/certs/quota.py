"""The quota guard at work: asks the ledger before an order, and writes down what was used.

Knows: where ledgers lie, that all machines on one store share them. Does not know: the arithmetic (ledger.py), orders.
Rules: read, count, write happen in one `exclusive` of the store; a ledger that can't be read or written never stops an
order (the CA counts itself), it is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from tlsproxy.certs.job import Job
from tlsproxy.certs.ledger import FOLDER, Ledger, ledger_name
from tlsproxy.certs.limiter import OrderLimiter
from tlsproxy.certs.limits import limits_of
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.tools import Tools
from tlsproxy.errors import StoreError

logger = logging.getLogger(__name__)


class QuotaGuard:
    """All ledgers of one store, and the pace of this process. Keeps the contract of `Accounting`."""

    # Mutable: _pace (by directory and account).

    def __init__(self, tools: Tools, quota: str = "auto") -> None:
        self._tools, self._quota = tools, quota
        self._pace: dict[tuple[str, str], OrderLimiter] = defaultdict(OrderLimiter)

    async def permit(self, job: Job, account: str) -> None:
        """Return when an order may be made. Raises AcmeFailure (QUOTA) when not within seconds."""
        if not job.force:
            ledger = await self._tools.in_store(self._read, job.directory, account)
            refusal = ledger.check(job.hosts, self._tools.now(), replaces=bool(job.replaces), renews=job.renews)
            if refusal:
                raise AcmeFailure(
                    FailureKind.QUOTA,
                    detail=refusal.sentence,
                    retry_at=refusal.possible_at,
                    identifier=job.hosts[0],
                    step="order",
                    directory=job.directory,
                )
        await self._keep_pace(self._pace[job.directory, account])

    async def ordered(self, job: Job, account: str) -> None:
        is_ari = bool(job.replaces)
        await self._count(
            job, account, lambda it, now: it.record_order(job.hosts, now, replaces=is_ari, renews=job.renews)
        )

    async def refused(self, job: Job, account: str, identifiers: Sequence[str]) -> None:
        def count(ledger: Ledger, now: datetime) -> Ledger:
            for name in identifiers:
                ledger = ledger.record_failed_authorization(name, now)
            return ledger

        await self._count(job, account, count)

    async def issued(self, job: Job, account: str) -> None:
        is_ari = bool(job.replaces)
        await self._count(
            job, account, lambda it, now: it.record_certificate(job.hosts, now, replaces=is_ari, renews=job.renews)
        )

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

    async def _keep_pace(self, limiter: OrderLimiter) -> None:
        loop = asyncio.get_running_loop()
        while (delay := limiter.delay(loop.time())) > 0:
            await asyncio.sleep(delay)
        limiter.took(loop.time())

    async def _count(self, job: Job, account: str, count: Callable[[Ledger, datetime], Ledger]) -> None:
        if limits_of(job.directory, self._quota):
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
