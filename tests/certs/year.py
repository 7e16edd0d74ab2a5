"""400 days in a second: a CA that counts, a machine that sleeps, and a keeper that does what the plan says.

The keeper here is the rule-abiding minimum: it carries the state through its record every few steps, as restarts
would, asks the ledger, and does nothing that plan() does not say. The CA knows nothing of our arithmetic: its limits
are token buckets of its own, and it refuses what exceeds them.
"""

import heapq
import json
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from tests.certs.plans import ACCOUNT, BORN, CA, DAY, HOUR, MINUTE, STAGING
from tlsproxy.certs.ari import after_ari_failure, ari_due, ari_next_check, with_ari
from tlsproxy.certs.ledger import Ledger, Refusal
from tlsproxy.certs.limits import LETSENCRYPT
from tlsproxy.certs.plan import plan
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.state import State, after_failure, after_rehearsal, after_success
from tlsproxy.certs.wanted import Held, IssuerId, Obtain, Park, Wanted

NEVER = BORN - MINUTE
STEPS_A_LIFE = 7  # of the process that keeps the certificates
Span = tuple[datetime, datetime]


def during(spans: Sequence[Span], when: datetime) -> bool:
    """Tell whether `when` lies in one of the spans, which are sorted and do not overlap."""
    index = bisect_right(spans, when, key=itemgetter(0)) - 1
    return index >= 0 and when < spans[index][1]


def merged(spans: Iterable[Span], longer_by: timedelta) -> list[Span]:
    """Sort spans, each prolonged, and join those that overlap."""
    whole: list[Span] = []
    for start, end in sorted(spans):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], end + longer_by))
        else:
            whole.append((start, end + longer_by))
    return whole


@dataclass
class Bucket:
    """A token bucket as one would explain it: so many tokens, so many more per second, never beyond the brim."""

    capacity: float
    per_second: float
    tokens: float = -1.0
    touched: datetime = BORN

    def has_one(self, now: datetime) -> bool:
        gained = (now - self.touched).total_seconds() * self.per_second
        self.tokens = self.capacity if self.tokens < 0 else min(self.capacity, self.tokens + gained)
        self.touched = now
        return self.tokens >= 1 - 1e-9

    def take(self, now: datetime) -> None:
        if self.has_one(now):
            self.tokens -= 1


class LetsEncrypt:
    """The published limits, kept in the CA's own way."""

    def __init__(self) -> None:
        self._orders = Bucket(300, 300 / (3 * 3600))
        self._domain = Bucket(50, 50 / (7 * 86400))
        self._sets: dict[frozenset[str], Bucket] = defaultdict(lambda: Bucket(5, 5 / (7 * 86400)))
        self._failed: dict[str, Bucket] = defaultdict(lambda: Bucket(5, 5 / 3600))
        self._seen: set[frozenset[str]] = set()

    def allows(self, names: frozenset[str], now: datetime, *, exempt: bool) -> bool:
        if exempt:
            return True
        buckets = [self._sets[names], *(self._failed[name] for name in names)]
        if names not in self._seen:
            buckets += [self._orders, self._domain]
        allowed = all(bucket.has_one(now) for bucket in buckets)
        if allowed and names not in self._seen:
            self._orders.take(now)
        return allowed

    def issued(self, names: frozenset[str], now: datetime, *, exempt: bool) -> None:
        if not exempt and names not in self._seen:
            self._domain.take(now)
        self._sets[names].take(now)
        self._seen.add(names)

    def failed(self, name: str, now: datetime) -> None:
        self._failed[name].take(now)


@dataclass
class World:
    """What happens in these 400 days. Spans are of true time; `clock` is how far the machine's clock is off."""

    life: timedelta
    names: tuple[tuple[str, ...], ...] = (("a.example.com",), ("b.example.com", "*.b.example.com"))
    has_ari: bool = True
    down: tuple[Span, ...] = ()
    busy: tuple[Span, ...] = ()
    broken_dns: tuple[Span, ...] = ()
    failure_rate: float = 0.0
    staging_is_broken: bool = False
    asleep: tuple[Span, ...] = ()
    clock: Callable[[datetime], timedelta] = lambda _: timedelta()
    window: Callable[[Held, datetime], Span] | None = None
    ari_failure_rate: float = 0.0
    loses_records: tuple[datetime, ...] = ()
    days: float = 400
    polls: timedelta = DAY
    seed: int = 1

    def __post_init__(self) -> None:
        self.asleep = tuple(merged(self.asleep, timedelta()))

    def trouble(self, patience: timedelta) -> list[Span]:
        """Return when something does not work, or has not worked again for so long."""
        begin = (BORN - DAY, BORN)
        return merged((begin, *self.down, *self.busy, *self.broken_dns, *self.asleep), patience)


@dataclass
class Year:
    """Runs it and keeps the score."""

    world: World
    issued: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    over_limit: int = 0
    failed: dict[str, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    outages: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    exempt: int = 0
    most_at_once: int = 0
    window_fetches: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.world.seed)
        self._limits = LetsEncrypt()
        self._issuer = IssuerId(CA, staging=STAGING, account=ACCOUNT)
        self._wanted = {
            f"acme/{hosts[0]}": Wanted(f"acme/{hosts[0]}", hosts, (self._issuer,)) for hosts in self.world.names
        }
        self._held: dict[str, Held] = {}
        self._expires: dict[str, datetime] = dict.fromkeys(self._wanted, NEVER)
        self._replaced: set[str] = set()
        self._states: dict[str, State] = {}
        self._kept = 0
        self._ledger: dict[str, Any] = {}

    def run(self) -> "Year":
        queue = [(BORN + n * MINUTE, name) for n, name in enumerate(self._wanted)]
        losses, end = list(self.world.loses_records), BORN + self.world.days * DAY
        while queue and queue[0][0] < end:
            when, name = heapq.heappop(queue)
            when = self._awake(when)
            if losses and when >= losses[0]:
                losses.pop(0)
                self._held.clear()
                queue = [(when, other) for other in self._wanted if other != name]
                heapq.heapify(queue)
            heapq.heappush(queue, (max(self._step(name, when), when + MINUTE), name))
        for name in self._wanted:
            self._note_outage(name, end)
        return self

    def unserved(self, patience: timedelta) -> list[tuple[str, datetime]]:
        """The moments at which a name had no valid certificate although everything had worked for so long."""
        trouble = self.world.trouble(patience)
        found = []
        for name, start, end in self.outages:
            while during(trouble, start):
                start = trouble[bisect_right(trouble, start, key=itemgetter(0)) - 1][1]  # noqa: PLW2901
            if start < end:
                found.append((name, start))
        return found

    def _awake(self, when: datetime) -> datetime:
        asleep = self.world.asleep
        return asleep[bisect_right(asleep, when, key=itemgetter(0)) - 1][1] if during(asleep, when) else when

    def _step(self, name: str, true: datetime) -> datetime:
        """Do what is due for one certificate; return when to look again, in true time."""
        wanted, offset = self._wanted[name], self.world.clock(true)
        now = true + offset
        for count in range(1, 10):
            held, state = self._held.get(name), self._state(name)
            if held and self.world.has_ari and ari_due(state, held, now):
                state = self._fetch_window(state, held, true, now)
                self._keep(name, state)
            action = plan(wanted, held, state, now)
            if not isinstance(action, Obtain):
                break
            self.most_at_once = max(self.most_at_once, count)
            self._keep(name, self._attempt(action, wanted, held, state, true, now))
        assert not isinstance(action, Park | Obtain), f"{name} on {now}: {action}"
        checks = [action.until, now + 12 * HOUR] if self.world.clock(true) or self.world.asleep else [action.until]
        if self.world.has_ari and (when := ari_next_check(self._state(name), self._held.get(name), now)):
            checks.append(when)
        return min(checks) - offset

    def _attempt(
        self, action: Obtain, wanted: Wanted, held: Held | None, state: State, true: datetime, now: datetime
    ) -> State:
        exempt = bool(action.replaces)
        renews = held is not None and set(held.names) == set(wanted.hosts)
        ledger = Ledger.from_record(json.loads(json.dumps(self._ledger)), LETSENCRYPT, CA, ACCOUNT)
        try:
            if action.rehearse:
                self._rehearse(wanted, true)
                return after_rehearsal(state, now)
            permit(ledger.check(wanted.hosts, now, replaces=exempt, renews=renews))
            new = self._order(action, wanted, true, exempt=exempt)
            ledger = ledger.record_order(wanted.hosts, now, replaces=exempt, renews=renews)
            ledger = ledger.record_certificate(wanted.hosts, now, replaces=exempt, renews=renews)
            self._held[wanted.name] = new
            return after_success(state, wanted, new, now)
        except AcmeFailure as failure:
            if failure.kind is FailureKind.VALIDATION and not action.rehearse:
                ledger = ledger.record_failed_authorization(failure.identifier, now)
            rnd = self._random.random()
            return after_failure(state, failure, action=action, wanted=wanted, held=held, now=now, rnd=rnd)
        finally:
            self._ledger = ledger.to_record()

    # --- the CA

    def _order(self, action: Obtain, wanted: Wanted, true: datetime, *, exempt: bool) -> Held:
        names = frozenset(name.removeprefix("*.") if name.startswith("*.") else name for name in wanted.hosts)
        if action.replaces in self._replaced:
            raise AcmeFailure(FailureKind.ALREADY_REPLACED, step="order")
        self.orders[wanted.name] += 1
        if during(self.world.down, true):
            raise AcmeFailure(FailureKind.UNREACHABLE)
        if during(self.world.busy, true):
            raise AcmeFailure(FailureKind.BUSY, status=503, retry_at=true + HOUR)
        if not self._limits.allows(names, true, exempt=exempt):
            self.over_limit += 1
            raise AcmeFailure(FailureKind.RATE_LIMITED, retry_at=true + 12 * HOUR)
        try:
            self._validate(wanted, true)
        except AcmeFailure as failure:
            self._limits.failed(failure.identifier, true)
            self.failed[failure.identifier].append(true)
            raise
        self._limits.issued(names, true, exempt=exempt)
        self.exempt += exempt
        self._replaced |= {action.replaces} - {""}
        return self._certificate(wanted, true)

    def _validate(self, wanted: Wanted, true: datetime) -> None:
        if during(self.world.down, true):
            raise AcmeFailure(FailureKind.UNREACHABLE)
        if during(self.world.broken_dns, true) or self._random.random() < self.world.failure_rate:
            raise AcmeFailure(FailureKind.VALIDATION, identifier=wanted.hosts[0].removeprefix("*."))

    def _rehearse(self, wanted: Wanted, true: datetime) -> None:
        if self.world.staging_is_broken:
            raise AcmeFailure(FailureKind.VALIDATION, identifier=wanted.hosts[0].removeprefix("*."))
        self._validate(wanted, true)

    def _certificate(self, wanted: Wanted, true: datetime) -> Held:
        self._note_outage(wanted.name, true)
        self.issued[wanted.name] += 1
        serial = f"{wanted.hosts[0]}-{self.issued[wanted.name]}"
        begin = true - HOUR  # CAs backdate
        self._expires[wanted.name] = begin + self.world.life
        return Held(
            wanted.hosts,
            begin,
            begin + self.world.life,
            serial=serial,
            fingerprint=serial,
            directory=CA,
            account=ACCOUNT,
            ari_id=f"aki.{serial}",
        )

    def _fetch_window(self, state: State, held: Held, true: datetime, now: datetime) -> State:
        self.window_fetches += 1
        if during(self.world.down, true) or self._random.random() < self.world.ari_failure_rate:
            return after_ari_failure(state, held, now=now, rnd=self._random.random())
        start, end = self.world.window(held, true) if self.world.window else usual_window(held, true)
        return with_ari(state, held, start, end, retry_after=self.world.polls.total_seconds(), now=now)

    # --- the score

    def _note_outage(self, name: str, until: datetime) -> None:
        if self._expires[name] < until:
            self.outages.append((name, self._expires[name], until))

    # --- the store

    def _state(self, name: str) -> State:
        return self._states.get(name, State())

    def _keep(self, name: str, state: State) -> None:
        """Remember; at each restart nothing but what the record brings back."""
        self._kept += 1
        restarts = self._kept % STEPS_A_LIFE == 0
        self._states[name] = State.from_record(json.loads(json.dumps(state.to_record()))) if restarts else state


def permit(refusal: Refusal | None) -> None:
    if refusal:
        raise AcmeFailure(FailureKind.QUOTA, retry_at=refusal.possible_at)


def usual_window(held: Held, _: datetime) -> Span:
    """Let's Encrypt's: 2 % of the life around two thirds, half for short-lived."""
    middle = held.not_before + held.life * (1 / 2 if held.life < 10 * DAY else 2 / 3)
    return middle - held.life / 100, middle + held.life / 100


def regular(first: float, every: float, length: timedelta) -> tuple[Span, ...]:
    """Spans that begin on the `first` day and again `every` so many days."""
    starts = (BORN + (first + n * every) * DAY for n in range(int((400 - first) / every) + 1))
    return tuple((start, start + length) for start in starts)
