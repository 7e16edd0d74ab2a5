"""Keeps the ACME certificates of all sites good, for as long as the certifier lives.

    settings ─ Wanted ─ plan ─ due? ─ Attempt (lease, order, put) ─ announce ─ served? ─ renewal window
                          │                                            └ workers load it, live connections stay
                          └ looked at every ten minutes, when something is due, and when somebody asks

Knows: when to look at what, what is under way, whom to tell. Does not know: how an order goes (attempt.py), control
messages. Rules: start-up never waits for a CA; one name is worked on once at a time, here by a task and elsewhere by a
lease; ten thousand names cost nothing while nothing is due (an agenda, no loop over names); a flaw in the work for one
name is logged and ends no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Protocol, assert_never

from tlsproxy.certs.agenda import Agenda
from tlsproxy.certs.ari import ari_due, ari_next_check
from tlsproxy.certs.attempt import PAUSE, Asked, Attempts, Elsewhere, Failed, NotNow, Obtained, Outcome
from tlsproxy.certs.limiter import PARALLEL
from tlsproxy.certs.outages import Outage
from tlsproxy.certs.plan import plan
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.wanted import Action, Held, Obtain, Park, Wait, Wanted
from tlsproxy.certs.windows import Windows
from tlsproxy.certs.work import Errand, Work
from tlsproxy.errors import StoreError

logger = logging.getLogger(__name__)

SCAN = timedelta(minutes=10)
"""Every plan is looked at so often, give or take a tenth, whatever the agenda says: clocks jump, machines sleep."""
ELSEWHERE = timedelta(seconds=30)
"""Until the next look at a name that another process works on."""
SOONEST = timedelta(seconds=1)
"""Between two attempts for one name, whatever a plan says: a flaw in it must not become a loop."""
SPREAD = timedelta(minutes=1)
"""Over so long ten thousand names come back that have waited for a CA, a hundred of them over a second."""
LETS_PASS = timedelta(hours=1)
"""A certificate with its whole life before it lets names pass that come in so much later; one at its end, none."""
_BREATH = 200  # names that are planned before the event loop gets a turn


class Audience(Protocol):
    """Who is told what becomes of the certificates. Never raises."""

    def changed(self, names: tuple[str, ...]) -> None:
        """The store holds other certificates under these names than before: they are to be loaded."""

    async def obtained(self, wanted: Wanted, outcome: Obtained, progress: Progress) -> None:
        """A new certificate is in the store and announced. Ends when it is known whether it is served."""

    def failed(self, wanted: Wanted, outcome: Failed) -> None: ...

    def seen(self, wanted: Wanted, held: Held | None, now: datetime) -> None:
        """A look at a certificate, every ten minutes: is it close to its end?"""


class Keeper:
    """One per certifier: `want` what the settings say, then `run` until cancelled, then `stop`."""

    # Mutable: _wanted (by name), _agenda, _backlog (names that are due, and wait for an order to end), _work (by name),
    # _is_stopping, _has_looked; _wake is set whenever there is something new.

    def __init__(
        self,
        tools: Tools,
        shelf: Shelf,
        attempts: Attempts,
        windows: Windows,
        audience: Audience,
        *,
        rnd: Callable[[], float] = random.random,
    ) -> None:
        self._tools, self._shelf, self._attempts, self._windows = tools, shelf, attempts, windows
        self._audience, self._rnd = audience, rnd
        self._wanted: dict[str, Wanted] = {}
        self._agenda = Agenda()
        self._backlog = Agenda()  # by when clients begin to notice
        self._work: dict[str, Work] = {}
        self._asked = asyncio.Semaphore(PARALLEL)
        self._questions = asyncio.Semaphore(PARALLEL)
        self._wake = asyncio.Event()
        self._is_stopping = self._has_looked = False

    def __repr__(self) -> str:
        return f"<Keeper {len(self._wanted)} wanted, {len(self._work)} under way>"

    def want(self, wanted: Iterable[Wanted]) -> None:
        """Take what is wanted from now on, in place of what was."""
        self._wanted = {each.name: each for each in wanted}
        self._wake.set()

    def add(self, wanted: Wanted) -> None:
        """Want one more: an on-demand name."""
        self._wanted[wanted.name] = wanted

    def drop(self, name: str) -> None:
        """Want it no more. What is under way goes on."""
        self._wanted.pop(name, None)
        self._agenda.drop(name)

    def wanted(self, name: str) -> Wanted | None:
        return self._wanted.get(name)

    def is_on_demand(self, name: str) -> bool:
        wanted = self._wanted.get(name)
        return wanted is not None and wanted.on_demand

    def step(self, name: str) -> Step | None:
        """Return what is being done now about a certificate, None if it is nothing."""
        work = self._work.get(name)
        return work.step if work else None

    def names(self) -> tuple[str, ...]:
        return tuple(self._wanted)

    @property
    def has_looked(self) -> bool:
        """Whether the store has been read: before that nobody knows what there is."""
        return self._has_looked

    def away(self) -> Mapping[str, Outage]:
        """Return the CAs that nobody asks now, by directory."""
        return self._attempts.outages.away()

    # --- by itself

    async def run(self) -> None:
        """Look, work, wait; for ever. A store that fails is tried again with the next look."""
        while True:
            next_scan = self._tools.now() + SCAN * (0.9 + 0.2 * self._rnd())
            try:
                await self.look()
            except StoreError as error:
                advice = f"certificates that are there stay in use; tried again every {SCAN.seconds // 60} minutes"
                logger.error("certificate.store_failed", extra={"error": str(error), "advice": advice})  # noqa: TRY400
            except Exception:
                logger.exception("certificate.scan_failed")
            await self._follow_agenda(next_scan)

    async def look(self) -> None:
        """Look at every plan afresh, with what others have written to the store meanwhile. Raises StoreError."""
        changed = await self._shelf.refresh(self._wanted)
        if changed and self._has_looked:  # at first all of them are new to us, and to nobody else
            self._audience.changed(tuple(sorted(changed)))
        self._has_looked = True
        self._agenda.clear()
        for number, wanted in enumerate(tuple(self._wanted.values())):
            if number % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            self._audience.seen(wanted, self._shelf.held(wanted.name), self._tools.now())
            self._attend(wanted.name)
        self._work_off()

    async def _follow_agenda(self, until: datetime) -> None:
        """Attend to what falls due, until it is time for the next scan. A clock set back ends the wait as well."""
        begun = self._tools.now()
        while begun <= (now := self._tools.now()) < until:
            for name in self._agenda.take_due(now):
                self._attend(name)
            self._work_off()
            due = min(self._agenda.next_due() or until, until)
            self._wake.clear()
            try:
                async with asyncio.timeout(max(0.0, (due - now).total_seconds())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _attend(self, name: str) -> None:
        """Put an order that is due into the backlog, or note when it will be. A flaw in one plan ends no other."""
        wanted = self._wanted.get(name)
        if wanted is None or name in self._work or self._is_stopping:
            return
        if problem := self._shelf.problem(name):
            logger.error("certificate.unreadable", extra={"certificate": name, "error": problem})
            return
        try:
            self._do_what_is_due(wanted)
        except Exception:
            logger.exception("certificate.plan_failed", extra={"certificate": name})

    def _do_what_is_due(self, wanted: Wanted) -> None:
        name = wanted.name
        if isinstance(self._plan(wanted), Obtain):
            if self._backlog.when(name) is None:
                self._backlog.put(name, self._turn_of(name))
        elif ari_due(self._shelf.state(name), self._shelf.held(name), self._tools.now()):
            self._begin(name, self._ask(wanted), Work(is_order=False, is_asked=False))
        else:
            self._note(wanted)

    def _work_off(self) -> None:
        """Begin the most urgent orders of those that are due, as long as few enough are under way."""
        running = sum(work.is_order and not work.is_asked for work in self._work.values())
        for _ in range(_BREATH):
            if running >= PARALLEL or self._is_stopping or (name := self._backlog.take_first()) is None:
                return
            wanted = self._wanted.get(name)
            if wanted is None or name in self._work:
                continue
            if isinstance(self._plan(wanted), Obtain):
                self._begin(name, self._order(wanted, None), Work(is_order=True, is_asked=False))
                running += 1
            else:
                self._note(wanted)  # a CA has gone away meanwhile
        asyncio.get_running_loop().call_soon(self._work_off)

    def _turn_of(self, name: str) -> datetime:
        """Return the place in the backlog: the less of its life is left, the earlier; but nobody waits for ever."""
        held, now = self._shelf.held(name), self._tools.now()
        return now + LETS_PASS * max(0.0, (held.not_after - now) / held.life) if held else now

    def _plan(self, wanted: Wanted) -> Action:
        """Return the plan. On-demand names are obtained and renewed when a client asks: demand.py asks for leave."""
        held, state, away = self._shelf.held(wanted.name), self._shelf.state(wanted.name), self.away()
        action = plan(wanted, held, state, self._tools.now(), away=away)
        return Park("a client has to ask for it") if wanted.on_demand and isinstance(action, Obtain) else action

    def _note(self, wanted: Wanted, *, not_before: datetime | None = None) -> None:
        """Put the name where it belongs in the agenda. A parked one is looked at with the next scan."""
        name, now = wanted.name, self._tools.now()
        held, state = self._shelf.held(name), self._shelf.state(name)
        action = self._plan(wanted)
        instants: list[datetime] = []
        if not isinstance(action, Park):
            instants.append(now if isinstance(action, Obtain) else action.until)
        if check := ari_next_check(state, held, now):
            instants.append(check)
        if instants and name in self._wanted:
            self._agenda.put(name, max(min(instants), not_before or now + SOONEST) + self._delay())
            self._wake.set()

    def _delay(self) -> timedelta:
        """Let those who wait for the same CA come back one by one."""
        return min(SPREAD, timedelta(milliseconds=10) * len(self._wanted)) * self._rnd() if self.away() else timedelta()

    # --- work

    async def run_errand(self, name: str, errand: Errand, progress: Progress) -> Outcome | None:
        """Do something about a certificate when nothing else is under way for it. What the errand raises, it raises."""
        while (work := self._work.get(name)) is not None and work.task is not None:
            progress(Step("wait", "", "something else is under way for this certificate"))
            if not await self._displace(work):
                await asyncio.wait([work.task])
        raised: list[Exception] = []

        async def guarded(work: Work) -> Outcome | None:
            try:
                return await errand(work)
            except Exception as error:  # noqa: BLE001 - it is raised again, to whom it concerns
                raised.append(error)
                return None

        outcome = await asyncio.shield(self._begin(name, guarded, Work(is_order=False, is_asked=True), progress))
        if raised:
            raise raised[0]
        return outcome

    def announce(self, name: str) -> None:
        """Have the workers load a certificate, again if need be."""
        self._audience.changed((name,))

    def look_again(self, name: str) -> None:
        """Somebody has changed something about this certificate."""
        self._attend(name)
        self._work_off()

    async def obtain(self, name: str, asked: Asked, progress: Progress) -> Outcome:
        """Obtain a certificate now because somebody asks, or follow what is under way for it. Raises KeyError."""
        wanted = self._wanted[name]
        while (work := self._work.get(name)) is not None and work.task is not None:
            if await self._displace(work):
                continue
            work.watch(progress)
            outcome = await asyncio.shield(work.task)
            if work.is_order and isinstance(outcome, Obtained | Failed):
                return outcome
        task = self._begin(name, self._order(wanted, asked), Work(is_order=True, is_asked=True), progress)
        return await asyncio.shield(task) or Elsewhere()

    async def _displace(self, work: Work) -> bool:
        """End a question to the CA (asked again later) and return True; all other work goes on."""
        if work.is_order or work.is_asked or work.task is None:
            return False
        await asyncio.sleep(0)  # one that is ended before it has begun would never leave _work
        work.task.cancel()
        await asyncio.wait([work.task])
        return True

    def _begin(
        self, name: str, errand: Errand, work: Work, watcher: Progress | None = None
    ) -> asyncio.Task[Outcome | None]:
        if watcher:
            work.watch(watcher)
        self._work[name] = work
        work.task = asyncio.create_task(self._do(name, errand, work))
        return work.task

    async def _do(self, name: str, errand: Errand, work: Work) -> Outcome | None:
        """Run an errand to its end and look at the name again. A flaw in one leaves the name to the next scan."""
        try:
            return await errand(work)
        except Exception:
            logger.exception("certificate.work_failed", extra={"certificate": name})
            return None
        finally:
            del self._work[name]
            self._work_off()

    def _order(self, wanted: Wanted, asked: Asked | None) -> Errand:
        async def errand(work: Work) -> Outcome:
            before = self._shelf.held(wanted.name)
            if asked and self._asked.locked():
                work.tell(Step("wait", "", f"{PARALLEL} other certificates are being obtained for people and clients"))
            async with self._asked if asked else contextlib.nullcontext():
                outcome = await self._attempts.make(wanted, work.tell, asked)
            try:
                await self._conclude(wanted, outcome, before, work.tell)
            except Exception:
                logger.exception("certificate.report_failed", extra={"certificate": wanted.name})
            return outcome

        return errand

    async def _conclude(self, wanted: Wanted, outcome: Outcome, before: Held | None, progress: Progress) -> None:
        """Tell whoever has to know, and note when to look again."""
        held = self._shelf.held(wanted.name)
        if held and held != before:
            self._audience.changed((wanted.name,))  # also when another process has obtained it
        now, pause = self._tools.now(), SOONEST
        match outcome:
            case Obtained():
                await self._audience.obtained(wanted, outcome, progress)
                if self._windows.is_free(held):  # else asked soon, by the agenda
                    await self._windows.fetch(wanted.name)
            case Failed(action=Wait(until=until)):
                self._audience.failed(wanted, outcome)
                pause = max(until - now, SOONEST)
            case Failed():
                self._audience.failed(wanted, outcome)
            case Elsewhere():
                pause = ELSEWHERE
            case NotNow(action=Wait(until=until)):
                pause = max(until - now, SOONEST)
            case NotNow():
                pass
            case _:
                assert_never(outcome)
        self._note(wanted, not_before=now + pause)

    def _ask(self, wanted: Wanted) -> Errand:
        async def errand(_: Work) -> None:
            async with self._questions:
                was_asked = await self._windows.fetch(wanted.name)
            # Else it is due still, and would be so in a second.
            self._note(wanted, not_before=None if was_asked else self._tools.now() + PAUSE)

        return errand

    async def settle(self, patience: float | None = None) -> None:
        """Return when nothing is under way, or after `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while tasks := [work.task for work in self._work.values() if work.task]:
                    await asyncio.wait(tasks)

    async def stop(self, patience: float, *, is_last: bool = False) -> None:
        """Begin nothing new, and be done with what is under way after `patience` seconds.

        For half of them it may end by itself, then it is cancelled: cleaned up, and taken up by the next certifier.
        `is_last`: cancelled at once. No worker answers the CA any more, and a look at a closed port is a failed
        validation, which the CA counts.
        """
        self._is_stopping = True
        tasks = [work.task for work in self._work.values() if work.task]
        if not tasks:
            return
        pending = set(tasks)
        if not is_last:
            _, pending = await asyncio.wait(tasks, timeout=patience / 2)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=patience / 2)
