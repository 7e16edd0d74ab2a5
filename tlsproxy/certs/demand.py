"""A client waits for a certificate of its own: allow, obtain, tell.

Knows: the way from a wish to an answer for the workers. Does not know: who allows (ondemand.py), how an order goes.
Rules: every wish gets an answer, and whoever waits hears of it at once; nothing is obtained or remembered without
leave; what is in the store already needs none.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from tlsproxy.certs import state as states
from tlsproxy.certs.attempt import Asked, Elsewhere, Failed, NotNow, Outcome
from tlsproxy.certs.keeper import Keeper
from tlsproxy.certs.ondemand import OnDemand, Refuse
from tlsproxy.certs.plan import plan
from tlsproxy.certs.progress import unwatched
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.wanted import Obtain, Wait
from tlsproxy.certs.wishes import Wishes
from tlsproxy.errors import StoreError
from tlsproxy.store.sources import acme_name

logger = logging.getLogger(__name__)

Refused = Callable[[str, str, float], None]
"""(host, reason, seconds): nobody need wait for this host, nor ask again for so long."""

_LOOK = 1.0  # seconds between looks at a certificate that another machine obtains
_LOOKS = 60
_FAILED = 60.0


class Demand:
    """Answers wishes; each in a task of its own, ended by `close`."""

    # Mutable: _tasks (wishes without an answer), _asking (how many of them there are by host).

    def __init__(
        self, tools: Tools, shelf: Shelf, keeper: Keeper, policy: OnDemand, wishes: Wishes, *, refuse: Refused
    ) -> None:
        self._tools, self._shelf, self._keeper, self._policy = tools, shelf, keeper, policy
        self._wishes, self._refuse = wishes, refuse
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: Counter[str] = Counter()

    def want(self, host: str, client: str) -> None:
        """Take a wish of a client (an address) for a host."""
        task = asyncio.create_task(self._answer(host, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._policy.close()

    async def _answer(self, host: str, client: str) -> None:
        self._asking[host] += 1
        try:
            await self._grant(host, client)
        except StoreError as error:
            logger.warning("on_demand.store_failed", extra={"host": host, "error": str(error)})
            self._refuse(host, "the store can't be read", _LOOK)
        except Exception:
            logger.exception("on_demand.failed", extra={"host": host})
            self._refuse(host, "something went wrong, see the log", _FAILED)
        finally:
            self._asking[host] -= 1
            if not self._asking[host]:
                del self._asking[host]

    async def _grant(self, host: str, client: str) -> None:
        """Workers also wish for what they serve, every few hours of its second half: so we know what is in use."""
        if await self._is_good(host):
            self._keeper.add(self._wishes.of_demand(host))
            self._keeper.announce(acme_name(host))
            await self._keeper.obtain(acme_name(host), Asked(by_client=True), unwatched)  # notes that it is in use
            return
        decision = await self._policy.decide(host, client)
        if isinstance(decision, Refuse):
            seconds = self._seconds_until(decision.until)
            if not seconds and self._asking[host] > 1:
                return  # it is about this client alone: the answer to another one's wish is for all who wait
            self._refuse(host, decision.reason, seconds)
            return
        try:
            await self._obtain(host)
        finally:
            self._policy.done(host)

    async def _obtain(self, host: str) -> None:
        name = acme_name(host)
        outcome: Outcome = Elsewhere()
        for _ in range(_LOOKS):
            self._keeper.add(self._wishes.of_demand(host))  # another wish for it may have ended in vain meanwhile
            outcome = await self._keeper.obtain(name, Asked(by_client=True), unwatched)
            if await self._is_there(host):
                self._keeper.announce(name)  # once more: it may have been there before this wish
                return
            if not isinstance(outcome, Elsewhere):
                break
            await asyncio.sleep(_LOOK)
        if self._shelf.held(name) is None:
            self._keeper.drop(name)  # strangers choose these names: what came to nothing is not remembered
        self._refuse(host, _reason(outcome), self._pause(outcome))

    async def _is_good(self, host: str) -> bool:
        """Tell whether the store has it, and it need not be renewed now: nobody has to be asked for leave."""
        if not await self._is_there(host):
            return False
        name, now = acme_name(host), self._tools.now()
        state = states.used(self._shelf.state(name), now)
        return not isinstance(plan(self._wishes.of_demand(host), self._shelf.held(name), state, now), Obtain)

    async def _is_there(self, host: str) -> bool:
        held, _ = await self._shelf.reread(acme_name(host))
        return held is not None and held.is_valid(self._tools.now()) and held.covers(host)

    def _pause(self, outcome: Outcome) -> float:
        action = outcome.action if isinstance(outcome, Failed | NotNow) else None
        return max(_LOOK, self._seconds_until(action.until)) if isinstance(action, Wait) else _FAILED

    def _seconds_until(self, when: datetime) -> float:
        return max(0.0, (when - self._tools.now()).total_seconds())


def _reason(outcome: Outcome) -> str:
    match outcome:
        case Failed(failure=failure):
            return str(failure)
        case NotNow(action=action):
            return action.reason
        case _:
            return "another machine has not obtained it within a minute"
