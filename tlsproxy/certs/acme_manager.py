"""Everything about ACME certificates in one object: what the certifier process starts, asks and stops.

Knows: how the parts fit together. Does not know: what they do, control messages, processes. Rule: this is the one place
where the parts are made, so a test can put them together otherwise; it is imported only where a site wants a public CA.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence

from tlsproxy.certs import accounts
from tlsproxy.certs.attempt import Asked, Attempts, Outcome
from tlsproxy.certs.challenges import Dns01, Http01, Solver, TlsAlpn01
from tlsproxy.certs.demand import Demand, Refused
from tlsproxy.certs.dns import lookup_of, provider_of, timeouts_of
from tlsproxy.certs.dns.leftovers import Leftovers
from tlsproxy.certs.events import EventKind, Events
from tlsproxy.certs.housekeeping import Housekeeping
from tlsproxy.certs.inflight import OrdersInFlight
from tlsproxy.certs.issuer import AcmeIssuer
from tlsproxy.certs.keeper import SCAN, Keeper
from tlsproxy.certs.leasing import holding
from tlsproxy.certs.login import LogIns, known_account, opener
from tlsproxy.certs.ondemand import OnDemand, is_public_suffix
from tlsproxy.certs.progress import Progress
from tlsproxy.certs.quota import QuotaGuard
from tlsproxy.certs.reporting import Announce, Reporter
from tlsproxy.certs.revoking import Busy, Revoker
from tlsproxy.certs.served import Result, check
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.tools import Clock, Tools, utc_now
from tlsproxy.certs.windows import Windows
from tlsproxy.certs.wishes import Wishes
from tlsproxy.certs.work import Work
from tlsproxy.errors import StoreError
from tlsproxy.settings import Listen, Settings
from tlsproxy.settings.acme import Acme
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.challenges import Challenges

logger = logging.getLogger(__name__)

ORDERS_END = 60.0
"""Seconds that a change of the account's key waits for orders under way to end."""


class AcmeManager:
    """One per certifier that has something to do with a CA. `start`, then `stop`."""

    # Mutable: _tasks (the keeper's and the housekeeping's).

    def __init__(
        self,
        settings: Settings,
        store: CertificateStore,
        *,
        announce: Announce,
        refuse: Refused,
        addresses: Sequence[str] = (),
        now: Clock = utc_now,
    ) -> None:
        """`addresses` are those of our https listeners, to look at what is served; none: nobody looks."""
        self._settings, self._addresses = settings, tuple(addresses)
        self.tools = tools = Tools.make(store, now)
        self.events = Events(settings.events.command, settings.events.webhook.get_secret_value(), now=now)
        self.quota = QuotaGuard(tools, settings.acme.quota)
        self.logins = LogIns(tools, self.quota.permit_account)
        self.shelf = Shelf(tools)
        self.issuers = settings.acme.issuers()
        self.wishes = Wishes(settings.acme)
        issuer = AcmeIssuer(tools, solvers_of(settings.acme, settings.listen, tools), self.quota, self.logins)
        attempts = Attempts(
            tools, self.shelf, issuer, self.issuers, key_type=settings.acme.key_type, accounts=self.logins.urls
        )
        self._windows = Windows(tools, self.shelf, self.issuers)
        self._reporter = Reporter(announce, self.events, self._look if addresses else None)
        self.keeper = Keeper(tools, self.shelf, attempts, self._windows, self._reporter)
        self._revoker = Revoker(tools, self.shelf, self.issuers)
        self._housekeeping = Housekeeping(tools, leftovers_of(settings.acme, tools))
        policy = OnDemand.make(settings.on_demand, settings.sites, now)
        self.demand = Demand(tools, self.shelf, self.keeper, policy, self.wishes, refuse=refuse) if policy else None
        on_demand = (site for site in settings.sites if site.certificate == "on_demand")
        self._patterns = frozenset(host for site in on_demand for host in site.hosts)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin. Returns at once; no CA has been asked by then."""
        await self._learn_accounts()
        self.keeper.want(self.wishes.of_sites(self._settings.sites))
        with contextlib.suppress(StoreError):  # the scan says what is wrong with the store
            await self._add_demanded()
        self._tasks = [asyncio.create_task(self.keeper.run()), asyncio.create_task(self._keep_house())]

    async def stop(self, patience: float, *, is_last: bool = False) -> None:
        """End within about `patience` seconds: orders that can't be finished are cleaned up and left for the next.

        `is_last`: no worker answers a CA any more.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.demand:
            await self.demand.close()
        await self.keeper.stop(patience, is_last=is_last)
        await self.events.close(min(patience, 1.0))
        self._windows.close()
        self.tools.close()

    # --- by hand

    async def obtain(self, name: str, asked: Asked, progress: Progress) -> Outcome:
        """Obtain a certificate, or follow what is under way for it. Raises KeyError for what nobody wants."""
        return await self.keeper.obtain(name, asked, progress)

    async def revoke(self, name: str, reason: str, progress: Progress) -> Outcome | None:
        """Revoke a certificate and have it replaced; None if no site wants it any more.

        Raises AcmeFailure, CertificateError, StoreError.
        """

        async def errand(work: Work) -> None:
            held = await self._revoker.revoke(name, reason, work.tell)
            self.events.emit(EventKind.REVOKED, name, names=held.names, serial=held.serial, reason=reason)

        await self.keeper.run_errand(name, errand, progress)
        if self.keeper.wanted(name) is None:
            return None
        return await self.keeper.obtain(name, Asked(), progress)

    def wants(self, name: str) -> bool:
        """Tell whether a site wants this certificate; any host of an on-demand site will do for a person."""
        kind, _, host = name.partition("/")
        if self.keeper.wanted(name) is None and kind == "acme" and self._may_demand(host):
            self.keeper.add(self.wishes.of_demand(host))
        return self.keeper.wanted(name) is not None

    async def notice(self, name: str) -> None:
        """Somebody else has put a certificate into the store. Raises StoreError."""
        await self.shelf.reread(name)
        self.keeper.look_again(name)

    async def remove(self, name: str, progress: Progress) -> None:
        """Remove a certificate and what is remembered of it; one that a site wants is obtained again. StoreError."""

        async def errand(_: Work) -> None:
            async with holding(self.tools, name) as lease:
                if lease is None:
                    raise Busy(f"{name}: another process works on this certificate now. Try again in a minute.")
                await self.shelf.remove(name, lease)
                await self.tools.in_store(OrdersInFlight(self.tools.store).forget, name, lease)

        await self.keeper.run_errand(name, errand, progress)
        if self.keeper.is_on_demand(name):
            self.keeper.drop(name)
        self.keeper.announce(name)  # a host on demand is served with it no longer
        self.keeper.look_again(name)

    async def roll_over(self, directory: str = "") -> list[tuple[str, str]]:
        """Replace the keys of our accounts, or of the one at `directory`; return directories and accounts' URLs.

        Raises AcmeFailure, StoreError.
        """
        # Answers to a CA carry the thumbprint of the key: with another one, its looks would fail and be counted.
        await self.keeper.settle(ORDERS_END)
        changed: list[tuple[str, str]] = []
        for issuer in self.issuers:
            account = await self.tools.in_store(known_account, self.tools, issuer)
            if account is None or not account.url or directory not in ("", issuer.directory_url):
                continue
            open_session = opener(issuer.directory_url, issuer.ca_bundle)
            after = await self.tools.in_thread(accounts.roll_over, self.tools.store, account, open_session)
            changed.append((issuer.directory_url, after.url))
        return changed

    # --- to look at

    def counts(self) -> dict[str, int]:
        """Return how many of the certificates wanted are valid, pending (never yet obtained) and failed."""
        counts, now = {"valid": 0, "pending": 0, "failed": 0}, self.tools.now()
        for name in self.keeper.names():
            held = self.shelf.held(name)
            is_good = held is not None and held.is_valid(now)
            failing = self.shelf.state(name).last_error is not None or held is not None
            counts["valid" if is_good else "failed" if failing else "pending"] += 1
        return counts

    def take_failures(self) -> Counter[tuple[str, str]]:
        """Return how many attempts have failed since the last call, by certificate and kind of failure."""
        failures, self._reporter.failures = self._reporter.failures, Counter()
        return failures

    def is_served(self, name: str) -> bool:
        """Tell whether our listeners serve the certificate, as far as is known."""
        return name not in self._reporter.mismatched

    async def _look(self, host: str, serial: str) -> Result:
        networks = self._settings.listen.proxy_protocol
        return await check(self._addresses, host, serial, networks, executor=self.tools.requests)

    # --- by itself

    async def _keep_house(self) -> None:
        while True:
            configured = [name for name in self.keeper.names() if not self.keeper.is_on_demand(name)]
            await self._housekeeping.tidy(configured)
            await asyncio.sleep(SCAN.total_seconds())
            with contextlib.suppress(StoreError):
                await self._add_demanded()

    async def _add_demanded(self) -> None:
        """On-demand names are known by their certificates alone: another process may have obtained some."""
        if self._patterns:
            for name in await self.tools.in_store(self.tools.store.list):
                self.wants(name)

    def _may_demand(self, host: str) -> bool:
        return not is_public_suffix(host) and not self._patterns.isdisjoint({host, f"*.{host.partition('.')[2]}", "*"})

    async def _learn_accounts(self) -> None:
        """An order may name its predecessor only to the account that has it: that account has to be known."""
        for issuer in self.issuers:
            with contextlib.suppress(StoreError, ValueError):  # whoever needs the account says what is wrong with it
                account = await self.tools.in_store(known_account, self.tools, issuer)
                if account and account.url:
                    self.logins.urls[issuer.directory_url] = account.url


def solvers_of(acme: Acme, listen: Listen, tools: Tools) -> Sequence[Solver]:
    """Return what can prove names under these settings, in order of preference.

    Without a listener nobody answers: the CA would refuse it, and count that.
    """
    challenges = Challenges(tools.store)
    provider = provider_of(acme.dns)
    made: dict[str, Solver] = {
        "http-01": Http01(challenges, tools.storing, now=tools.now),
        "tls-alpn-01": TlsAlpn01(challenges, tools.storing, now=tools.now),
    }
    if provider:
        made["dns-01"] = Dns01(
            provider, lookup_of(acme.dns), tools.requests, timeouts_of(acme.dns), leftovers_of(acme, tools)
        )
    answered = {"http-01": bool(listen.http), "tls-alpn-01": bool(listen.https)}
    return [made[kind] for kind in acme.challenges if kind in made and answered.get(kind, True)]


def leftovers_of(acme: Acme, tools: Tools) -> Leftovers | None:
    """Return what remembers the TXT records of our provider, None without one."""
    provider = provider_of(acme.dns)
    return Leftovers(tools.store, provider, acme.dns.provider, tools.now) if provider else None
