"""Everything about ACME certificates in one object: what the certifier process starts, asks and stops.

Knows: how the parts fit together. Does not know: what they do, control messages, processes. Rule: this is the one place
where the parts are made, so a test can put them together otherwise; it is imported only where a site wants a public CA.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from tlsproxy.certs.attempt import Attempts, ByHand, Outcome
from tlsproxy.certs.challenges import Dns01, Http01, Solver, TlsAlpn01
from tlsproxy.certs.dns import lookup_of, provider_of, timeouts_of
from tlsproxy.certs.events import Events
from tlsproxy.certs.issuer import AcmeIssuer
from tlsproxy.certs.keeper import Keeper
from tlsproxy.certs.login import LogIns, known_account
from tlsproxy.certs.progress import Progress
from tlsproxy.certs.quota import QuotaGuard
from tlsproxy.certs.reporting import Announce, Look, Reporter
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.tools import Clock, Tools, utc_now
from tlsproxy.certs.windows import Windows
from tlsproxy.certs.wishes import Wishes
from tlsproxy.errors import StoreError
from tlsproxy.settings import Settings
from tlsproxy.settings.acme import Acme
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.challenges import Challenges

logger = logging.getLogger(__name__)


class AcmeManager:
    """One per certifier that has something to do with a CA. `start`, then `stop`."""

    # Mutable: _running (the keeper's task).

    def __init__(
        self,
        settings: Settings,
        store: CertificateStore,
        *,
        announce: Announce,
        look: Look | None = None,
        now: Clock = utc_now,
    ) -> None:
        self._settings = settings
        self.tools = tools = Tools.make(store, now)
        self.events = Events(settings.events.command, settings.events.webhook.get_secret_value(), now=now)
        self.quota = QuotaGuard(tools, settings.acme.quota)
        self.logins = LogIns(tools, self.quota.permit_account)
        self.shelf = Shelf(tools)
        issuers = settings.acme.issuers()
        issuer = AcmeIssuer(tools, solvers_of(settings.acme, tools), self.quota, self.logins)
        attempts = Attempts(
            tools, self.shelf, issuer, issuers, key_type=settings.acme.key_type, accounts=self.logins.urls
        )
        self._windows = Windows(tools, self.shelf, issuers)
        self.keeper = Keeper(tools, self.shelf, attempts, self._windows, Reporter(announce, self.events, look))
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. Returns at once; no CA has been asked by then."""
        await self._learn_accounts()
        self.keeper.want(Wishes(self._settings.acme).of_sites(self._settings.sites))
        self._running = asyncio.create_task(self.keeper.run())

    async def stop(self, patience: float) -> None:
        """End within about `patience` seconds: orders that can't be finished are cleaned up and left for the next."""
        if self._running:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        await self.keeper.stop(patience)
        await self.events.close(min(patience, 1.0))
        self._windows.close()
        self.tools.close()

    async def obtain(self, name: str, by_hand: ByHand, progress: Progress) -> Outcome:
        return await self.keeper.obtain(name, by_hand, progress)

    async def _learn_accounts(self) -> None:
        """An order may name its predecessor only to the account that has it: that account has to be known."""
        for issuer in self._settings.acme.issuers():
            with contextlib.suppress(StoreError, ValueError):  # whoever needs the account says what is wrong with it
                account = await self.tools.in_store(known_account, self.tools, issuer)
                if account and account.url:
                    self.logins.urls[issuer.directory_url] = account.url


def solvers_of(acme: Acme, tools: Tools) -> Sequence[Solver]:
    """Return what can prove names under these settings, in order of preference."""
    challenges = Challenges(tools.store)
    provider = provider_of(acme.dns)
    made: dict[str, Solver] = {
        "http-01": Http01(challenges, tools.storing, now=tools.now),
        "tls-alpn-01": TlsAlpn01(challenges, tools.storing, now=tools.now),
    }
    if provider:
        made["dns-01"] = Dns01(provider, lookup_of(acme.dns), tools.requests, timeouts_of(acme.dns))
    return [made[kind] for kind in acme.challenges if kind in made]
