"""Take away what nobody needs any more: answers to challenges, what is left of names long gone, of orders, in the DNS.

Knows: how long something is kept. Does not know: plans, CAs. Rules: only what has run out and is in no configuration is
removed, long after that; a lease guards each removal; what can't be removed is left for the next time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from tlsproxy.certs import state as states
from tlsproxy.certs.dns.leftovers import Leftovers
from tlsproxy.certs.inflight import FOLDER as ORDERS
from tlsproxy.certs.inflight import LONGEST_LIFE, OrdersInFlight
from tlsproxy.certs.leasing import holding
from tlsproxy.certs.shelf import read_held, read_state
from tlsproxy.certs.state import State
from tlsproxy.certs.tools import Tools
from tlsproxy.errors import StoreError
from tlsproxy.store.challenges import Challenges

logger = logging.getLogger(__name__)

KEPT_EXPIRED = timedelta(days=30)
"""A certificate that no site uses is kept this long after its end: a site may come back, and people look at it."""
INTERVAL = timedelta(hours=1)


class Housekeeping:
    """`tidy` now and then."""

    # Mutable: _done (when the whole was done last).

    def __init__(self, tools: Tools, leftovers: Leftovers | None = None) -> None:
        self._tools, self._leftovers = tools, leftovers
        self._done: datetime | None = None

    async def tidy(self, wanted: Collection[str]) -> None:
        """Remove what is due for it; the costly part once an hour. Never raises."""
        now = self._tools.now()
        try:
            await self._tools.in_store(Challenges(self._tools.store).sweep, now)
            if self._done is not None and self._done <= now < self._done + INTERVAL:
                return
            self._done = now
            for name in await self._tools.in_store(self._find_expired, frozenset(wanted), now):
                await self._remove(name, now)
            for name in await self._tools.in_store(self._find_forgotten, frozenset(wanted), now):
                await self._remove_record(states.FOLDER, name, self._is_forgotten, now)
            for name in await self._tools.in_store(self._find_dead_orders, now):
                await self._remove_record(ORDERS, name, self._is_dead, now)
            if self._leftovers:
                await self._tools.in_thread(self._leftovers.sweep)
        except StoreError as error:
            logger.warning("certificate.not_tidied", extra={"error": str(error)})

    def _find_expired(self, wanted: Collection[str], now: datetime) -> list[str]:
        store = self._tools.store
        unused = [name for name in store.list() if name.startswith("acme/") and name not in wanted]
        return [name for name in unused if self._is_over(name, now)]

    def _is_over(self, name: str, now: datetime) -> bool:
        held = read_held(self._tools.store, name)
        return held is not None and held.not_after + KEPT_EXPIRED < now

    async def _remove(self, name: str, now: datetime) -> None:
        store = self._tools.store
        async with holding(self._tools, name) as lease:
            if lease is None or not await self._tools.in_store(self._is_over, name, now):
                return
            await self._tools.in_store(store.delete, name, lease)
            await self._tools.in_store(store.delete_record, states.FOLDER, name, lease)
        logger.info(
            "certificate.removed", extra={"certificate": name, "reason": "it expired long ago, no site uses it"}
        )

    def _find_forgotten(self, wanted: Collection[str], now: datetime) -> list[str]:
        """Return names that no site has and nothing was ever obtained for, or not any more: clients made some up."""
        store = self._tools.store
        unused = set(store.list_records(states.FOLDER)).difference(wanted, store.list())
        return [name for name in sorted(unused) if self._is_forgotten(name, now)]

    def _is_forgotten(self, name: str, now: datetime) -> bool:
        store = self._tools.store
        if store.get(name) is not None:
            return False
        state = read_state(store, name) or State()
        events = (state.last_attempt, state.last_success, state.last_used, *(each.when for each in state.history))
        return all(when is None or when + KEPT_EXPIRED < now for when in events)

    def _find_dead_orders(self, now: datetime) -> list[str]:
        return [name for name in OrdersInFlight(self._tools.store).names() if self._is_dead(name, now)]

    def _is_dead(self, name: str, now: datetime) -> bool:
        left = OrdersInFlight(self._tools.store).find(name)
        return left is None or now - left.created > LONGEST_LIFE

    async def _remove_record(
        self, folder: str, name: str, is_over: Callable[[str, datetime], bool], now: datetime
    ) -> None:
        """Remove what is over still when nobody else can work on it."""
        async with holding(self._tools, name) as lease:
            if lease is not None and await self._tools.in_store(is_over, name, now):
                await self._tools.in_store(self._tools.store.delete_record, folder, name, lease)
