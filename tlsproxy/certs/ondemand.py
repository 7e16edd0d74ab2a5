"""Certificates on demand: whether a name that a client has asked for may have one.

`Policy` is the pure core: names, memory of refusals, limits; time is an argument. `OnDemand` drives it: one question
per name at a time, a few at once, each in a thread. Rules: nothing is ordered that the application has not allowed;
what one client has used up is never held against another; a yes is good for one order and is not kept.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from tlsproxy.certs.asking import Answer, Askers
from tlsproxy.certs.buckets import Buckets
from tlsproxy.certs.ledger import registered_domain
from tlsproxy.certs.tools import Clock, utc_now
from tlsproxy.settings import OnDemand as Section
from tlsproxy.settings import Rate, Site
from tlsproxy.settings.values import parse_host

logger = logging.getLogger(__name__)

MOST_LABELS = 10
REFUSED_FOR = timedelta(minutes=10)
"""How long a no is remembered."""
FAILED_FOR = timedelta(seconds=10)
"""How long nobody is asked again after a question that nobody answered."""
PARALLEL = 8
WAITING = 64
"""Questions at the same time, and names that wait for theirs."""
PENDING = 100
"""Names that were allowed and are being ordered; further ones are refused until some are done."""

_MOST_REFUSALS = 20_000


@dataclass(frozen=True, slots=True)
class Allow:
    """Order it. The yes is good until `OnDemand.done`."""

    host: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """No certificate; before `until` nobody need ask again (now: somebody else may at once)."""

    host: str
    reason: str
    until: datetime


Decision: TypeAlias = Allow | Refuse


class Policy:
    """What is decided without asking anybody, and what follows from an answer."""

    # Mutable: _refusals (by host, oldest first), _clients and _domains (token buckets).

    def __init__(self, patterns: Iterable[str], per_domain: Rate, per_client: Rate) -> None:
        """`patterns` are the hosts of the on-demand sites."""
        self._patterns = frozenset(patterns)
        self._domains, self._clients = Buckets(per_domain), Buckets(per_client)
        self._refusals: dict[str, Refuse] = {}

    def examine(self, host: str, client: str, now: datetime) -> Refuse | None:
        """Return why not even to ask, or None; then it counts as asked by the client."""
        if reason := self._name_problem(host):
            return Refuse(host, reason, now + REFUSED_FOR)
        known = self._refusals.get(host)
        if known is not None and now < known.until <= now + REFUSED_FOR:
            return known
        if wait := self._clients.take(client_network(client), now):
            reason = f"{client_network(client)} has asked for too many new names; the next in {wait:.0f} s"
            return Refuse(host, reason, now)
        return None

    def conclude(self, host: str, answer: Answer, now: datetime) -> Decision:
        """Return what an answer means, and remember a no."""
        match answer.status:
            case 200:
                wait = self._domains.take(registered_domain(host), now)
                if not wait:
                    return Allow(host)
                reason = f"{registered_domain(host)} has had too many new names; the next in {wait:.0f} s"
                return Refuse(host, reason, now + timedelta(seconds=wait))
            case None:
                return self._refuse(host, f"nobody could be asked: {answer.text}", now + FAILED_FOR)
            case status if status >= 500:
                return self._refuse(host, f"who was asked has failed with status {status}", now + FAILED_FOR)
            case status:
                return self._refuse(host, f"not allowed, status {status}", now + REFUSED_FOR)

    def _refuse(self, host: str, reason: str, until: datetime) -> Refuse:
        self._refusals.pop(host, None)
        self._refusals[host] = refusal = Refuse(host, reason, until)
        if len(self._refusals) > _MOST_REFUSALS:
            del self._refusals[next(iter(self._refusals))]
        return refusal

    def _name_problem(self, host: str) -> str:
        try:
            is_normal = parse_host(host) == host
        except ValueError:
            is_normal = False
        if not is_normal or host.startswith("*") or _is_address(host):
            return "this is no host name"
        if host.count(".") >= MOST_LABELS:
            return f"more than {MOST_LABELS} labels"
        if is_public_suffix(host):
            return "a public suffix belongs to nobody"
        if not {host, f"*.{host.partition('.')[2]}", "*"} & self._patterns:
            return "no on-demand site has this host"
        return ""


class OnDemand:
    """One per certifier. Made and used on the event loop; `close` ends it."""

    # Mutable: _asking (the question by host), _allowed (hosts that are being ordered), _complained (when).

    def __init__(self, policy: Policy, ask: Callable[[str, str], Answer], *, now: Clock = utc_now) -> None:
        """`ask` is called with host and client address in a thread; it must not raise."""
        self._policy, self._ask, self._now = policy, ask, now
        self._asking: dict[str, asyncio.Task[Decision]] = {}
        self._allowed: set[str] = set()
        self._slots = asyncio.Semaphore(PARALLEL)
        self._threads = ThreadPoolExecutor(PARALLEL, "ask")
        self._complained: datetime | None = None

    @classmethod
    def make(cls, section: Section, sites: Sequence[Site], now: Clock = utc_now) -> OnDemand | None:
        """Return what the settings ask for; None without a site on demand."""
        sites = [site for site in sites if site.certificate == "on_demand"]
        if not sites:
            return None
        policy = Policy((host for site in sites for host in site.hosts), section.per_domain, section.per_client)
        # The settings see to it that where `ask` is a path there is one such site.
        return cls(policy, Askers(section.ask, sites[0].routes[0].backends, timeout=section.timeout), now=now)

    async def decide(self, host: str, client: str) -> Decision:
        """Return whether to order a certificate for a host that a client (an address) has asked for.

        Whoever gets Allow calls `done` when the order has ended, however it does.
        """
        if host in self._allowed:
            return Allow(host)
        question = self._asking.get(host)
        if question is None:
            refusal = self._policy.examine(host, client, self._now()) or self._busy(host)
            if refusal is not None:
                logger.debug("on_demand.refused", extra={"host": host, "client": client, "reason": refusal.reason})
                return refusal
            question = self._asking[host] = asyncio.create_task(self._question(host, client))
        # Others wait for the same answer: one that gives up must not end it.
        decision = await asyncio.shield(question)
        if isinstance(decision, Allow):
            self._allowed.add(host)
        return decision

    def done(self, host: str) -> None:
        """The order for an allowed host has ended, well or not: the next one needs leave again."""
        self._allowed.discard(host)

    async def close(self) -> None:
        """End all questions."""
        for question in self._asking.values():
            question.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _busy(self, host: str) -> Refuse | None:
        if len(self._asking) >= WAITING or len(self._asking) + len(self._allowed) >= PENDING:
            return Refuse(host, "too many new names at once, try again in a moment", self._now())
        return None

    async def _question(self, host: str, client: str) -> Decision:
        try:
            async with self._slots:
                answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, host, client)
            decision = self._policy.conclude(host, answer, self._now())
            self._tell(decision, client, answer)
            return decision
        finally:
            del self._asking[host]

    def _tell(self, decision: Decision, client: str, answer: Answer) -> None:
        if isinstance(decision, Allow):
            logger.info("on_demand.allowed", extra={"host": decision.host, "client": client})
            return
        told = {"host": decision.host, "client": client, "reason": decision.reason, "answer": answer.text}
        logger.info("on_demand.refused", extra=told)
        now = self._now()
        is_failure = answer.status is None or answer.status >= 500
        if is_failure and (self._complained is None or not self._complained <= now < self._complained + REFUSED_FOR):
            self._complained = now
            advice = "no new name gets a certificate until it answers; see on_demand.ask"
            logger.warning("on_demand.ask_failed", extra={"reason": decision.reason, "advice": advice})

    def __repr__(self) -> str:
        return f"<OnDemand {len(self._asking)} asking, {len(self._allowed)} allowed>"


def is_public_suffix(host: str) -> bool:
    """Tell whether others register names right below it (com, co.uk, github.io): what is there belongs to them."""
    return registered_domain(f"x.{host}") == f"x.{host}"


def client_network(client: str) -> str:
    """Return what one customer of a provider usually has: /24 of IPv4, /56 of IPv6."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client[:64]
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 56), strict=False))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
