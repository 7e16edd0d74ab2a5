"""The three ways to show a CA that a name is ours: an answer over HTTP, in a TLS handshake, or in the DNS.

Knows: how each answer is made ready and taken away. Does not know: orders, the CA, who serves the answers (any worker
reads them from the store). Rules: `present` returns when the CA may look, so what was written is read back first, and a
TXT record is waited for; blocking calls run in the executor that is given; whatever was made is taken away again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from tlsproxy.certs import alpn
from tlsproxy.certs.dns.base import DnsProvider, DnsProviderError, challenge_name, txt_value
from tlsproxy.certs.dns.leftovers import Leftovers
from tlsproxy.certs.dns.lookup import Lookup, LookupFailed
from tlsproxy.certs.dns.propagation import NotVisible, Timeouts, wait_until_visible
from tlsproxy.certs.dns.record import TxtRecord
from tlsproxy.certs.identifiers import server_name
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.errors import StoreError
from tlsproxy.store.challenges import Challenges

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
DEFAULT_TIMEOUTS = Timeouts()

STEP = "challenge"
KINDS = ("http-01", "tls-alpn-01", "dns-01")


class Solver(Protocol):
    """Makes the answer to one kind of challenge ready, and takes it away.

    Contract of an implementer:

    * `identifier` is the name or address of the authorization: for `*.x` it is `x` (RFC 8555 7.1.4).
    * `present` returns when the CA may look, and raises AcmeFailure otherwise; several may run at the same time.
    * `clean_up` never raises, except when it is cancelled: it logs. It may be called for what was presented half, never
      or cleaned up already, and takes away nothing that another call has presented.
    """

    kind: str

    def can_solve(self, identifier: str, *, is_wildcard: bool) -> bool:
        """Tell whether this challenge can prove the name at all."""

    async def present(
        self, identifier: str, token: str, key_authorization: str, expires: datetime, progress: Progress
    ) -> None:
        """Make the answer ready; `expires` is when it counts no more if nobody takes it away."""

    async def clean_up(self, identifier: str, token: str, key_authorization: str) -> None:
        """Take the answer away."""


def is_solvable(kind: str, identifier: str, *, is_wildcard: bool) -> bool:
    """Tell whether a challenge of this kind can prove the name: wildcards only dns-01, addresses never (RFC 8738 7)."""
    if kind != "dns-01":
        return kind in KINDS and not is_wildcard
    try:
        challenge_name(identifier)
    except ValueError:
        return False
    return True


class Http01:
    """RFC 8555 8.3: the key authorization lies in the store, a worker serves it on port 80."""

    kind = "http-01"

    def __init__(self, challenges: Challenges, executor: Executor, *, now: Clock = lambda: datetime.now(UTC)) -> None:
        self._challenges, self._executor, self._now = challenges, executor, now

    def can_solve(self, identifier: str, *, is_wildcard: bool) -> bool:
        return is_solvable(self.kind, identifier, is_wildcard=is_wildcard)

    async def present(
        self, identifier: str, token: str, key_authorization: str, expires: datetime, progress: Progress
    ) -> None:
        await _store(self._executor, identifier, partial(self._put, token, key_authorization, expires))
        progress(Step("challenge", identifier, "the answer for http-01 lies in the store"))

    async def clean_up(self, identifier: str, token: str, key_authorization: str) -> None:
        await _forget(self._executor, self.kind, identifier, partial(self._challenges.remove_http, token))

    def _put(self, token: str, key_authorization: str, expires: datetime) -> bool:
        self._challenges.put_http(token, key_authorization, expires)
        return self._challenges.http(token, self._now()) == key_authorization


class TlsAlpn01:
    """RFC 8737: a certificate that lies in the store, served to whoever offers the protocol acme-tls/1 alone."""

    kind = "tls-alpn-01"

    def __init__(self, challenges: Challenges, executor: Executor, *, now: Clock = lambda: datetime.now(UTC)) -> None:
        self._challenges, self._executor, self._now = challenges, executor, now

    def can_solve(self, identifier: str, *, is_wildcard: bool) -> bool:
        return is_solvable(self.kind, identifier, is_wildcard=is_wildcard)

    async def present(
        self, identifier: str, token: str, key_authorization: str, expires: datetime, progress: Progress
    ) -> None:
        await _store(self._executor, identifier, partial(self._put, identifier, key_authorization, expires))
        progress(Step("challenge", identifier, "the certificate for tls-alpn-01 lies in the store"))

    async def clean_up(self, identifier: str, token: str, key_authorization: str) -> None:
        await _forget(self._executor, self.kind, identifier, partial(self._remove, identifier, key_authorization))

    def _put(self, identifier: str, key_authorization: str, expires: datetime) -> bool:
        name, answer = server_name(identifier), alpn.make_answer(identifier, key_authorization, self._now())
        self._challenges.put_tls_alpn(name, answer, expires)
        held = self._challenges.tls_alpn(name, self._now())
        return held is not None and held.fingerprint == answer.fingerprint

    def _remove(self, identifier: str, key_authorization: str) -> None:
        """Leave an answer that somebody else (another order for the same name) has put there since."""
        name = server_name(identifier)
        held = self._challenges.tls_alpn(name, self._now())
        if held is None or alpn.answers(held, key_authorization):
            self._challenges.remove_tls_alpn(name)


class Dns01:
    """RFC 8555 8.4: a TXT record, made by a provider where the CNAMEs of its name lead, and seen at all servers."""

    # Mutable: _records (token → the record and the thread's job that makes it; until it is cleaned up).

    kind = "dns-01"

    def __init__(
        self,
        provider: DnsProvider,
        lookup: Lookup,
        executor: Executor,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        leftovers: Leftovers | None = None,
    ) -> None:
        self._leftovers = leftovers
        self._provider, self._lookup, self._executor, self._timeouts = provider, lookup, executor, timeouts
        self._records: dict[str, tuple[TxtRecord, Future[None]]] = {}

    def can_solve(self, identifier: str, *, is_wildcard: bool) -> bool:
        return is_solvable(self.kind, identifier, is_wildcard=is_wildcard)

    async def present(
        self, identifier: str, token: str, key_authorization: str, expires: datetime, progress: Progress
    ) -> None:
        """Return when all servers of the zone show the record. Takes it away itself when that fails or is cancelled."""
        try:
            await self._present(identifier, token, txt_value(key_authorization), progress)
        except (DnsProviderError, LookupFailed, NotVisible, ValueError) as error:
            detail = f"dns-01 is not ready: {error}"
            raise AcmeFailure(FailureKind.VALIDATION, detail=detail, identifier=identifier, step=STEP) from error

    async def clean_up(self, identifier: str, token: str, key_authorization: str) -> None:
        record, job = self._records.pop(token, (None, None))
        if record is None or job is None:
            return
        # Submitted before the first await: whatever cancels us now, a thread removes the record.
        removal = self._executor.submit(record.delete) if record.give_up() else job
        over = asyncio.wrap_future(removal)
        over.add_done_callback(_take_notice)
        await asyncio.wait([over], timeout=self._timeouts.provider)

    async def _present(self, identifier: str, token: str, value: str, progress: Progress) -> None:
        asked = challenge_name(identifier)
        name = await self._lookup.follow(asked)
        servers = await self._lookup.servers_of(name)
        where = name if name == asked else f"{name}, where {asked} leads"
        progress(Step("challenge", identifier, f"making the TXT record {where}"))
        try:
            await self._create(token, TxtRecord(self._provider, name, value, self._leftovers))
            tell = partial(_tell, progress, identifier)
            await wait_until_visible(self._lookup, servers, name, value, self._timeouts, tell)
        except BaseException:
            await self.clean_up(identifier, token, "")
            raise
        progress(Step("challenge", identifier, "all name servers show the TXT record"))

    async def _create(self, token: str, record: TxtRecord) -> None:
        job = self._executor.submit(record.create)
        self._records[token] = (record, job)
        try:
            await asyncio.wait_for(asyncio.wrap_future(job), self._timeouts.provider)
        except TimeoutError as error:
            raise DnsProviderError(
                f"the DNS provider {self._provider!r} has not made {record.name} within {self._timeouts.provider:g} s. "
                "Look whether its API answers."
            ) from error


def _tell(progress: Progress, identifier: str, words: str) -> None:
    progress(Step("wait", identifier, words))


def _take_notice(over: asyncio.Future[None]) -> None:
    """See the exception of a job that was given up: asyncio reports those that nobody has seen."""
    if not over.cancelled():
        over.exception()


async def _store(executor: Executor, identifier: str, write: Callable[[], bool]) -> None:
    """Run `write`, which tells whether the answer can be read back. Raises AcmeFailure."""
    try:
        is_readable = await asyncio.get_running_loop().run_in_executor(executor, write)
    except StoreError as error:
        raise AcmeFailure(FailureKind.STORE, detail=str(error), identifier=identifier, step=STEP) from error
    except ValueError as error:
        detail = f"the CA's challenge can't be used ({error})"
        raise AcmeFailure(FailureKind.INTERNAL, detail=detail, identifier=identifier, step=STEP) from error
    if not is_readable:
        detail = "the answer to the challenge was written, but can't be read back. All processes must use one store."
        raise AcmeFailure(FailureKind.STORE, detail=detail, identifier=identifier, step=STEP)


async def _forget(executor: Executor, kind: str, identifier: str, remove: Callable[[], None]) -> None:
    try:
        await asyncio.get_running_loop().run_in_executor(executor, remove)
    except (StoreError, ValueError) as error:
        advice = "nothing to do: the answer runs out by itself"
        extra = {"host": identifier, "challenge": kind, "error": str(error), "advice": advice}
        logger.warning("challenge.cleanup_failed", extra=extra)
