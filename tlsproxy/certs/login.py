"""The way to a session: an account's key from the store, the CA's directory, an account that the CA knows.

Knows: that jobs of one process must not register the same key at once, that new accounts are counted. Does not know:
how an account lives (accounts.py), orders. Rule: a session belongs to one job, which closes it. `acme` is imported with
the first session, in a thread: it takes a quarter of a second, and a certifier that has nothing to do needs none of its
memory.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tlsproxy.certs import accounts
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.accounts import Account, Authority, OpenSession
from tlsproxy.certs.conversation import PASSING, Conversation, Patience
from tlsproxy.certs.job import Job
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.resources import Eab
from tlsproxy.certs.tools import Tools
from tlsproxy.settings.acme import Issuer

if TYPE_CHECKING:
    from tlsproxy.certs.session import AcmeSession

LIMIT = 60.0
"""Seconds that a CA may be away before an attempt that has not ordered anything yet fails."""

Permit = Callable[[str], None]
"""Told the directory, in a thread, before a new account is made there: counts it, or raises AcmeFailure (QUOTA)."""


@dataclass(frozen=True, slots=True)
class LogIn:
    """A session that is ready to order. `account` is the account's URL."""

    session: AcmeSession
    account: str


class LogIns:
    """All accounts of one store."""

    # Mutable: urls (our account's URL by directory, as far as this process has learned), _locks (by directory),
    # _failures (by directory: how often a log-in ended because of the CA).

    def __init__(self, tools: Tools, permit: Permit) -> None:
        self._tools, self._permit = tools, permit
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._failures: dict[str, int] = defaultdict(int)
        self.urls: dict[str, str] = {}

    async def log_in(self, job: Job, talk: Conversation, progress: Progress, *, gone: str = "") -> LogIn:
        """Return a session with an account that is registered; `gone` is the URL of one that the CA does not know.

        Raises AcmeFailure; CANCELLED if the CA has let down another job while this one waited for it.
        """
        progress(Step("account", "", f"asking {job.directory}"))
        log_in = partial(
            accounts.log_in,
            self._tools.store,
            authority_of(job.issuer, rehearsal=job.rehearsal),
            opener(job.directory, job.issuer.ca_bundle),
            permit=partial(self._permit, job.directory),
            gone=gone,
        )
        failures = self._failures[job.directory]
        async with self._locks[job.directory]:
            if self._failures[job.directory] != failures:
                detail = "the CA has let down another certificate a moment ago"
                raise AcmeFailure(FailureKind.CANCELLED, detail=detail, step="account", directory=job.directory)
            account, session = await self._insist(job, talk, log_in)
        if not job.rehearsal:
            self.urls[job.directory] = account.url
        return LogIn(session, account.url)

    async def _insist(
        self, job: Job, talk: Conversation, log_in: Callable[[], tuple[Account, AcmeSession]]
    ) -> tuple[Account, AcmeSession]:
        patience = Patience(LIMIT, step="account", directory=job.directory)
        try:
            return await talk.insist(patience, log_in)
        except AcmeFailure as failure:
            if failure.kind in (*PASSING, FailureKind.RATE_LIMITED, FailureKind.QUOTA):
                self._failures[job.directory] += 1
            raise


def authority_of(issuer: Issuer, *, rehearsal: bool = False) -> Authority:
    """Return as whom we come to this CA. The staging CA of one that wants a binding knows nothing of it."""
    if rehearsal:
        return Authority(issuer.staging_url, issuer.email)
    eab = Eab(issuer.eab_kid, issuer.eab_hmac_key.get_secret_value()) if issuer.eab_kid else None
    return Authority(issuer.directory_url, issuer.email, eab)


def known_account(tools: Tools, issuer: Issuer) -> Account | None:
    """Return the account that the store has for this CA. Blocks; raises StoreError."""
    return accounts.load(tools.store, issuer.directory_url, issuer.eab_kid)


def opener(directory: str, ca_bundle: str) -> OpenSession:
    """Return what makes sessions with one CA."""

    def open_session(key: AccountKey, account: str) -> AcmeSession:
        from tlsproxy.certs.session import AcmeSession  # noqa: PLC0415 - see the top of this file

        return AcmeSession(directory, key, account=account, ca_bundle=ca_bundle)

    return open_session
