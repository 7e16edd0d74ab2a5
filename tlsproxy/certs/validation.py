"""Prove to the CA that the names of one order are ours: choose a challenge, answer, wait, clean up.

Knows: the authorizations of one order and the solvers there are. Does not know: how a solver does it, orders, stores.
Rules: all answers lie ready before the CA is asked to look at the first (two values under one DNS name need that); a
challenge that the CA has refused is not tried again in the same job, another kind is, in a new order (RFC 8555 7.1.6: a
failed challenge is the end of its authorization and order); whatever was presented is cleaned up, also when cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tlsproxy.certs.conversation import Conversation, Patience, finish_first
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step

if TYPE_CHECKING:
    from tlsproxy.certs.challenges import Solver
    from tlsproxy.certs.session import AcmeSession, Authorization, Challenge

logger = logging.getLogger(__name__)

ANSWER_LIFE = timedelta(minutes=15)
"""How long a stored answer counts if nobody cleans it up: longer than any validation, shorter than anyone's memory."""
VALIDATION_LIMIT = 90.0
DNS_VALIDATION_LIMIT = 180.0  # seconds; CAs look from several places, and some of these resolvers are slow


@dataclass
class Tried:
    """What a job has learned about challenges, over all its orders."""

    refused: dict[str, set[str]] = field(default_factory=dict)
    """By identifier: the kinds that a CA has looked at and refused, or that could not be presented."""
    winners: dict[str, str] = field(default_factory=dict)
    """By identifier: the kind that worked last."""

    def refuse(self, identifier: str, kind: str) -> None:
        self.refused.setdefault(identifier, set()).add(kind)


@dataclass(frozen=True, slots=True)
class Presented:
    """A challenge that is ready to be looked at."""

    name: str
    authorization: Authorization
    challenge: Challenge
    solver: Solver
    key_authorization: str


def name_of(authorization: Authorization) -> str:
    """Return the identifier as the user wrote it: an authorization for `*.x` carries `x` (RFC 8555 7.1.4)."""
    return f"*.{authorization.identifier}" if authorization.is_wildcard else authorization.identifier


class Validation:
    """The authorizations of one order. `run` once."""

    # Mutable: _presented, _waiting (presented, not judged), _open (pending at the CA, by URL), _refused (as they were
    # before the CA said no).

    def __init__(
        self,
        session: AcmeSession,
        talk: Conversation,
        solvers: Sequence[Solver],
        tried: Tried,
        progress: Progress,
        *,
        directory: str,
    ) -> None:
        self._session, self._talk, self._solvers, self._tried = session, talk, tuple(solvers), tried
        self._progress, self._directory = progress, directory
        self._presented: list[Presented] = []
        self._waiting: list[Presented] = []
        self._open: dict[str, Authorization] = {}
        self._refused: list[Authorization] = []

    async def run(self, urls: Iterable[str]) -> None:
        """Return when all are valid. Raises AcmeFailure; `Tried` then knows which kinds were refused for which name."""
        patience = Patience(VALIDATION_LIMIT, step="challenge", directory=self._directory)
        found = [await self._talk.insist(patience, self._session.fetch_authorization, url) for url in urls]
        self._open = {each.url: each for each in found if each.status == "pending"}
        self._check_alive(found)
        try:
            await self._present_all(list(self._open.values()))
            self._waiting = list(self._presented)
            for each in self._presented:
                await self._answer(each)
            await self._wait_for_all()
        finally:
            await finish_first(self._clean_up())

    @property
    def refused_names(self) -> list[str]:
        return [name_of(each) for each in self._refused]

    @property
    def pending_urls(self) -> list[str]:
        """The authorizations that the CA still waits for, as far as is known."""
        return list(self._open)

    def has_another_way(self) -> bool:
        """Tell whether a new order has a chance: each name that was refused has a kind that was not."""
        return bool(self._refused) and all(map(self._kinds, self._refused))

    def _check_alive(self, found: Sequence[Authorization]) -> None:
        """An order that is new has none of these; one that was taken up may have run out or failed meanwhile."""
        for each in found:
            if each.status not in ("pending", "valid"):
                reason = f": {each.failure.detail}" if each.failure else ""
                raise AcmeFailure(
                    FailureKind.BAD_ORDER,
                    detail=f"the authorization is {each.status}{reason}",
                    step="challenge",
                    directory=self._directory,
                    identifier=name_of(each),
                )

    async def _present_all(self, pending: Sequence[Authorization]) -> None:
        """Raises the first failure, once all others have ended too: what is half done could not be cleaned up."""
        outcomes = await asyncio.gather(*map(self._present, pending), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _present(self, authorization: Authorization) -> None:
        """Make ready the best kind of challenge there is; a kind that can't be made ready leaves it to the next."""
        name = name_of(authorization)
        while True:
            solver, challenge = self._choose(authorization)
            try:
                await self._present_with(solver, challenge, authorization)
            except AcmeFailure as failure:
                self._tried.refuse(name, solver.kind)
                if not self._kinds(authorization):
                    raise
                extra = {"host": name, "challenge": solver.kind, "error": str(failure)}
                logger.warning("certificate.challenge_not_ready", extra=extra)
            else:
                return

    async def _present_with(self, solver: Solver, challenge: Challenge, authorization: Authorization) -> None:
        answer = self._session.key_authorization(challenge.token)
        presented = Presented(name_of(authorization), authorization, challenge, solver, answer)
        # Before it is presented: what was half done when it failed or was cancelled is cleaned up as well.
        self._presented.append(presented)
        self._progress(Step("challenge", presented.name, f"making {solver.kind} ready"))
        expires = datetime.now(UTC) + ANSWER_LIFE
        try:
            await solver.present(authorization.identifier, challenge.token, answer, expires, self._progress)
        except AcmeFailure:
            self._presented.remove(presented)
            await finish_first(_clean(presented))
            raise

    def _choose(self, authorization: Authorization) -> tuple[Solver, Challenge]:
        usable = self._kinds(authorization)
        if not usable:
            raise self._no_way(authorization)
        solver = usable[0]
        return solver, next(each for each in authorization.challenges if each.type == solver.kind)

    def _kinds(self, authorization: Authorization) -> list[Solver]:
        """Return the solvers that can be used, the one that worked last time first."""
        name = name_of(authorization)
        offered = {each.type for each in authorization.challenges}
        refused, winner = self._tried.refused.get(name, set()), self._tried.winners.get(name)
        usable = [
            solver
            for solver in self._solvers
            if solver.kind in offered - refused
            and solver.can_solve(authorization.identifier, is_wildcard=authorization.is_wildcard)
        ]
        return sorted(usable, key=lambda solver: solver.kind != winner)

    async def _answer(self, presented: Presented) -> None:
        if presented.challenge.status not in ("pending", "processing"):
            return
        self._progress(Step("validation", presented.name, f"the CA looks at {presented.solver.kind}"))
        patience = Patience(VALIDATION_LIMIT, step="validation", directory=self._directory, identifier=presented.name)
        try:
            await self._talk.insist(patience, self._session.answer, presented.challenge)
        except AcmeFailure:
            if presented.challenge.status == "processing":
                return  # it was told before; telling it again asks for another look (RFC 8555 8.2), if it can do that
            # Of an order that was taken up, the CA may be done with the challenge meanwhile; then it takes no answer.
            url = presented.authorization.url
            if (await self._talk.insist(patience, self._session.fetch_authorization, url)).status == "pending":
                raise

    async def _wait_for_all(self) -> None:
        slow = any(each.solver.kind == "dns-01" for each in self._presented)
        limit = DNS_VALIDATION_LIMIT if slow else VALIDATION_LIMIT
        patience = Patience(limit, step="validation", directory=self._directory)
        failures: list[AcmeFailure] = []
        while self._waiting:
            asked_to_wait: list[float] = []
            for each in tuple(self._waiting):
                seen = await self._talk.insist(patience, self._session.fetch_authorization, each.authorization.url)
                if seen.status == "pending":
                    asked_to_wait += [seen.retry_after] if seen.retry_after is not None else []
                    continue
                self._waiting.remove(each)
                del self._open[each.authorization.url]
                failures += self._judge(each, seen)
            if self._waiting:
                await patience.pause(max(asked_to_wait, default=None))
        if failures:
            raise failures[0]

    def _judge(self, presented: Presented, seen: Authorization) -> list[AcmeFailure]:
        if seen.status == "valid":
            self._tried.winners[presented.name] = presented.solver.kind
            self._progress(Step("validation", presented.name, "valid"))
            return []
        self._refused.append(presented.authorization)
        self._tried.refuse(presented.name, presented.solver.kind)
        failure = self._refusal(seen, presented)
        extra = {"host": presented.name, "challenge": presented.solver.kind, "error": str(failure)}
        logger.warning("certificate.challenge_refused", extra=extra)
        self._progress(Step("validation", presented.name, f"{presented.solver.kind} was refused"))
        return [failure]

    def _refusal(self, seen: Authorization, presented: Presented) -> AcmeFailure:
        """Return the CA's own reason. One that gives none has refused all the same (acme 5 takes it for a success)."""
        if seen.failure:
            return seen.failure.about(presented.name, step="validation")
        return AcmeFailure(
            FailureKind.VALIDATION,
            detail=f"{presented.solver.kind} was refused ({seen.status}), the CA does not say why",
            step="validation",
            directory=self._directory,
            identifier=name_of(seen),
        )

    def _no_way(self, authorization: Authorization) -> AcmeFailure:
        offered = ", ".join(each.type for each in authorization.challenges) or "none"
        allowed = ", ".join(solver.kind for solver in self._solvers) or "none"
        return AcmeFailure(
            FailureKind.REFUSED,
            type="noChallenge",
            detail=f"the CA offers the challenges {offered}, and of {allowed} none can be used for this name",
            step="challenge",
            directory=self._directory,
            identifier=name_of(authorization),
        )

    async def _clean_up(self) -> None:
        await asyncio.gather(*map(_clean, self._presented))


async def _clean(presented: Presented) -> None:
    await presented.solver.clean_up(
        presented.authorization.identifier, presented.challenge.token, presented.key_authorization
    )
