"""What stands around the keeper: wishes of clients, revocations, reports, tidying."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.certs.keeping import House, make_house, wanted_from
from tests.fakes.certificate_authority import CertificateAuthority
from tests.store.pki import issue
from tlsproxy.certs.asking import Answer
from tlsproxy.certs.attempt import Asked, Failed, Obtained
from tlsproxy.certs.demand import Demand
from tlsproxy.certs.events import EventKind, Events
from tlsproxy.certs.housekeeping import Housekeeping
from tlsproxy.certs.inflight import FOLDER as ORDERS
from tlsproxy.certs.inflight import OrderInFlight
from tlsproxy.certs.ondemand import OnDemand, Policy
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Step, unwatched
from tlsproxy.certs.reporting import Reporter
from tlsproxy.certs.revoking import Revoker
from tlsproxy.certs.served import Mismatch, Result, Served, Unreachable
from tlsproxy.certs.state import State
from tlsproxy.certs.wanted import Held, Wait
from tlsproxy.certs.wishes import Wishes
from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.settings import Acme, Rate
from tlsproxy.store.challenges import Challenges

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
NAME = "acme/a.test"
PLENTY = Rate(100, 1.0)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.fixture
def house(ca: CertificateAuthority) -> Iterator[House]:
    with make_house(ca) as house:
        ca.now = house.desk.clock
        yield house


# --- wishes


@dataclass
class Counter:
    """An on-demand site's certifier, and an application that answers what it is told to."""

    house: House
    demand: Demand
    status: int = 200
    asked: list[str] = field(default_factory=list)
    refused: list[tuple[str, str, float]] = field(default_factory=list)

    async def wish(self, *hosts: str) -> None:
        for host in hosts:
            self.demand.want(host, "192.0.2.1")
        while self.demand._tasks:
            await asyncio.wait(self.demand._tasks)


def counter(house: House, ca: CertificateAuthority, per_client: Rate = PLENTY) -> Counter:
    def ask(host: str, client: str) -> Answer:
        made.asked.append(host)
        return Answer(made.status, "")

    def refuse(host: str, reason: str, seconds: float) -> None:
        made.refused.append((host, reason, seconds))

    policy = OnDemand(Policy(["*.a.test"], PLENTY, per_client), ask, now=house.desk.clock)
    wishes = Wishes(Acme.model_validate({"directory": ca.directory}))
    demand = Demand(house.desk.tools, house.shelf, house.keeper, policy, wishes, refuse=refuse)
    made = Counter(house, demand)
    return made


def test_a_wish_that_is_allowed_is_granted(house: House, ca: CertificateAuthority) -> None:
    async def story() -> Counter:
        made = counter(house, ca)
        await made.wish("x.a.test", "x.a.test")
        await made.demand.close()
        return made

    made = asyncio.run(story())
    assert set(made.asked) == {"x.a.test"}
    assert made.refused == []
    assert ca.count["order"] == 1
    assert set(house.notes.changes) == {"acme/x.a.test"}


def test_a_wish_that_is_not_allowed_orders_nothing(house: House, ca: CertificateAuthority) -> None:
    async def story() -> Counter:
        made = counter(house, ca)
        made.status = 404
        await made.wish("x.a.test")
        await made.demand.close()
        return made

    made = asyncio.run(story())
    ((host, reason, seconds),) = made.refused
    assert (host, "not allowed" in reason, seconds > 60) == ("x.a.test", True, True)
    assert ca.count["order"] == 0


def test_names_that_strangers_make_up_are_not_remembered(house: House, ca: CertificateAuthority) -> None:
    async def story() -> Counter:
        made = counter(house, ca)
        made.status = 404
        await made.wish(*(f"x{number}.a.test" for number in range(20)))
        made.status = 200
        ca.validation_fails("y.a.test", "dns", "NXDOMAIN looking up A for y.a.test")
        await made.wish("y.a.test", "y.a.test")
        await made.demand.close()
        return made

    made = asyncio.run(story())
    assert len(made.asked) > 20
    assert house.keeper.names() == ()
    assert set(house.shelf._states) <= {"acme/y.a.test"}


def test_who_waits_hears_of_a_failure_and_for_how_long(house: House, ca: CertificateAuthority) -> None:
    async def story() -> Counter:
        made = counter(house, ca)
        ca.validation_fails("x.a.test", "dns", "NXDOMAIN looking up A for x.a.test")
        await made.wish("x.a.test")
        await made.wish("x.a.test")
        await made.demand.close()
        return made

    made = asyncio.run(story())
    assert len(made.refused) == 2
    assert all(40 < seconds < 80 for _, _, seconds in made.refused)
    assert ca.count["order"] == 2  # one for each kind of challenge, and none for the second wish
    assert house.keeper.wanted("acme/x.a.test") is None  # it is tried again when a client asks again


def test_a_certificate_in_use_is_renewed_with_leave_only(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        made = counter(house, ca)
        await made.wish("x.a.test")
        house.desk.clock.ahead += 50 * DAY
        await made.wish("x.a.test")  # a worker says that it is in use
        assert (len(made.asked), ca.count["order"]) == (1, 1)
        await house.look(later=15 * DAY)
        assert ca.count["order"] == 1  # not by itself
        made.status = 403
        await made.wish("x.a.test")
        assert (ca.count["order"], len(made.refused)) == (1, 1)
        made.status = 200
        house.desk.clock.ahead += 20 * MINUTE
        await made.wish("x.a.test")
        await made.demand.close()

    asyncio.run(story())
    assert ca.count["order"] == 2
    assert house.state("acme/x.a.test").last_used


def test_one_client_s_limit_sends_nobody_else_away(house: House, ca: CertificateAuthority) -> None:
    async def story() -> Counter:
        made = counter(house, ca, per_client=Rate(1, 3600.0))
        await made.wish("x.a.test")
        made.demand.want("y.a.test", "192.0.2.1")  # has had its share
        made.demand.want("y.a.test", "198.51.100.1")
        await made.wish()
        assert (made.asked, made.refused) == (["x.a.test", "y.a.test"], [])
        await made.wish("z.a.test")
        await made.demand.close()
        return made

    made = asyncio.run(story())
    assert ca.count["order"] == 2
    ((host, reason, seconds),) = made.refused
    assert (host, seconds) == ("z.a.test", 0.0), "whoever comes next may ask at once"
    assert "192.0.2.0/24" in reason


# --- revocation


def test_a_revoked_certificate_is_replaced(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        house.want("a.test")
        await house.look()
        revoker = Revoker(house.desk.tools, house.shelf, house.issuers)
        held = await revoker.revoke(NAME, "keyCompromise", unwatched)
        assert ca.revoked == {int(held.serial, 16): 1}
        await house.look()
        assert house.serial(NAME) != held.serial

    asyncio.run(story())


def test_a_revocation_that_is_broken_off_leads_to_a_successor(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        house.want("a.test")
        await house.look()
        before = house.store.get(NAME)
        gate = ca.gate("revoke", after=True)
        revoker = Revoker(house.desk.tools, house.shelf, house.issuers)
        task = asyncio.create_task(revoker.revoke(NAME, "keyCompromise", unwatched))
        await asyncio.to_thread(gate.wait)
        assert before
        assert house.state(NAME).replace_now == before.fingerprint  # a kill now costs nothing
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [each.what for each in house.state(NAME).history][-1] == "revoked"
        await house.look()
        assert house.serial(NAME) != before.serial

    asyncio.run(story())


@pytest.mark.parametrize(("lost", "is_replaced"), [(False, False), (True, True)])
def test_what_was_refused_stays_and_what_nobody_knows_is_replaced(
    house: House, ca: CertificateAuthority, lost: bool, is_replaced: bool
) -> None:
    async def story() -> str:
        house.want("a.test")
        await house.look()
        before = house.serial(NAME)
        if lost:
            ca.drops("revoke", after=True)
        else:
            ca.fails("revoke", "badRevocationReason")
        with pytest.raises(AcmeFailure):
            await Revoker(house.desk.tools, house.shelf, house.issuers).revoke(NAME, "superseded", unwatched)
        await house.look()
        return before

    before = asyncio.run(story())
    assert (house.serial(NAME) != before) is is_replaced


def test_what_the_store_can_not_remember_is_not_revoked(
    house: House, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    async def story() -> None:
        house.want("a.test")
        await house.look()
        monkeypatch.setattr(house.store, "put_record", full)
        with pytest.raises(StoreError, match=r"was not revoked.*disk is full.*Mend the store"):
            await Revoker(house.desk.tools, house.shelf, house.issuers).revoke(NAME, "superseded", unwatched)

    asyncio.run(story())
    assert ca.revoked == {}


def test_without_the_account_the_certificate_s_own_key_revokes(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        house.want("a.test")
        await house.look()
        for name in house.store.list_records("accounts"):
            house.store.delete_record("accounts", name)
        await Revoker(house.desk.tools, house.shelf, house.issuers).revoke(NAME, "superseded", unwatched)

    asyncio.run(story())
    assert list(ca.revoked.values()) == [4]


def test_what_no_ca_is_known_for_is_not_revoked(house: House) -> None:
    house.store.put(NAME, issue("a.test").bundle())
    revoker = Revoker(house.desk.tools, house.shelf, house.issuers)
    with pytest.raises(CertificateError, match="imported"):
        asyncio.run(revoker.revoke(NAME, "unspecified", unwatched))
    with pytest.raises(CertificateError, match="no certificate of that name"):
        asyncio.run(revoker.revoke("acme/b.test", "unspecified", unwatched))


# --- reports


@dataclass
class Report:
    """A reporter whose events and announcements are written down; `looks` is what is seen, one after the other."""

    looks: list[Result] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    announced: list[tuple[str, ...]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    def reporter(self) -> Reporter:
        async def look(host: str, serial: str) -> Result:
            self.looked_at.append(host)
            return self.looks.pop(0)

        events = Events()
        events.emit = lambda kind, name, **more: self.events.append((str(kind), more))  # type: ignore[method-assign]
        return Reporter(self.announced.append, events, look)


def obtained(house: House, before: Held | None = None) -> tuple[Any, Obtained]:
    held = Held.of(issue("a.test").bundle())
    return wanted_from(house.issuers, "a.test"), Obtained(held, before)


def test_a_certificate_that_is_served_is_good_news(house: House) -> None:
    report = Report([Served("127.0.0.1:443")])
    wanted, outcome = obtained(house)
    asyncio.run(report.reporter().obtained(wanted, outcome, report.steps.append))
    assert [kind for kind, _ in report.events] == [EventKind.OBTAINED]
    assert [step.kind for step in report.steps] == ["served"]
    assert report.announced == []


def test_a_limit_of_all_names_is_told_once_an_hour_and_not_by_each(house: House) -> None:
    report, now = Report(), datetime(2026, 1, 1, tzinfo=UTC)
    reporter, wanted = report.reporter(), wanted_from(house.issuers, "a.test")

    def fail(minutes: float, kind: str, directory: str = "one") -> None:
        failure = AcmeFailure(FailureKind.QUOTA, type=kind, directory=directory)
        when = now + timedelta(minutes=minutes)
        reporter.failed(wanted, Failed(failure, None, State(last_attempt=when), Wait(when)))

    for minutes in range(0, 121, 10):
        fail(minutes, "orders")
    assert len(report.events) == 3
    fail(121, "orders", "two")
    fail(121, "")
    fail(121, "")
    assert len(report.events) == 6


def test_our_own_refusal_to_renew_what_is_good_is_no_alarm(house: House) -> None:
    report, now = Report(), datetime.now(UTC)
    wanted, outcome = obtained(house)
    held = outcome.held
    failure = AcmeFailure(FailureKind.QUOTA, type="exact set", directory="one")
    for when in (now, held.not_after - timedelta(hours=1)):
        report.reporter().failed(wanted, Failed(failure, held, State(last_attempt=when), Wait(when)))
    assert [kind for kind, _ in report.events] == [EventKind.FAILING]  # of the second alone: its end is near


def test_one_that_is_not_served_is_announced_again(house: House) -> None:
    report = Report([Mismatch("127.0.0.1:443", "ff"), Served("127.0.0.1:443")])
    wanted, outcome = obtained(house)
    asyncio.run(report.reporter().obtained(wanted, replace(outcome, before=outcome.held), report.steps.append))
    assert [kind for kind, _ in report.events] == [EventKind.RENEWED]
    assert report.announced == [(NAME,)]


def test_one_that_is_still_not_served_is_an_alarm(house: House) -> None:
    report = Report([Mismatch("127.0.0.1:443", "ff"), Mismatch("127.0.0.1:443", "ff")])
    wanted, outcome = obtained(house)
    reporter = report.reporter()
    asyncio.run(reporter.obtained(wanted, outcome, report.steps.append))
    assert [kind for kind, _ in report.events] == [EventKind.OBTAINED, EventKind.SERVED_MISMATCH]
    assert reporter.mismatched == {NAME}
    report.looks.append(Served("127.0.0.1:443"))
    asyncio.run(reporter.obtained(wanted, outcome, report.steps.append))
    assert reporter.mismatched == set()


@pytest.mark.parametrize(
    ("hosts", "looked_at", "text"),
    [
        (("a.test",), ["a.test"], ""),
        (("a.test", "*.b.test"), ["a.test", "*.b.test"], " for all hosts"),
        (("192.0.2.1", "a.test", "::1"), ["a.test"], " for a.test"),
        (("192.0.2.1",), ["192.0.2.1"], ""),
        (tuple(f"{n}.test" for n in range(30)), [f"{n}.test" for n in range(10)], " for 0.test, 1.test, "),
    ],
)
def test_every_host_is_looked_at_within_reason(
    house: House, hosts: tuple[str, ...], looked_at: list[str], text: str
) -> None:
    report = Report([Served("127.0.0.1:443")] * len(looked_at))
    _, outcome = obtained(house)
    asyncio.run(report.reporter().obtained(wanted_from(house.issuers, *hosts), outcome, report.steps.append))
    assert report.looked_at == looked_at
    (step,) = report.steps
    assert step.text.startswith(f"the new certificate is served{text}")


def test_a_host_that_is_served_with_another_certificate_is_named(house: House) -> None:
    served, other = Served("127.0.0.1:443"), Mismatch("127.0.0.1:443", "ff")
    report = Report([served, other, served, other])
    _, outcome = obtained(house)
    wanted = wanted_from(house.issuers, "a.test", "b.test", "c.test")
    asyncio.run(report.reporter().obtained(wanted, outcome, report.steps.append))
    assert report.looked_at == ["a.test", "b.test", "a.test", "b.test"]
    assert report.announced == [(NAME,)]
    kind, fields = report.events[-1]
    assert kind == EventKind.SERVED_MISMATCH
    assert "still serves b.test with serial ff" in fields["error"]


def test_one_that_can_not_be_seen_is_no_alarm(house: House) -> None:
    report = Report([Unreachable("127.0.0.1:443: the handshake failed")])
    wanted, outcome = obtained(house)
    asyncio.run(report.reporter().obtained(wanted, outcome, report.steps.append))
    assert [kind for kind, _ in report.events] == [EventKind.OBTAINED]


def test_a_failure_is_told_with_what_comes_next(house: House) -> None:
    report, until = Report(), house.desk.clock() + DAY
    wanted, outcome = obtained(house)
    failure = AcmeFailure(FailureKind.VALIDATION, detail="no", identifier="a.test", directory="https://ca.test/dir")
    report.reporter().failed(wanted, Failed(failure, outcome.held, State(attempts=3), Wait(until)))
    ((kind, told),) = report.events
    assert (kind, told["attempts"], told["next_attempt"]) == (EventKind.FAILING, 3, until)
    assert told["error"] == str(failure)


def test_an_end_that_comes_close_is_told(house: House) -> None:
    report = Report()
    wanted, outcome = obtained(house)
    reporter = report.reporter()
    held, now = outcome.held, house.desk.clock()
    reporter.seen(wanted, held, now)
    reporter.seen(wanted, None, now)
    assert report.events == []
    reporter.seen(wanted, held, held.not_after - timedelta(hours=1))
    assert [kind for kind, _ in report.events] == [EventKind.EXPIRING]


# --- tidying


def test_what_nobody_needs_is_removed(house: House) -> None:
    tools, store, now = house.desk.tools, house.store, house.desk.clock()
    for name, end in (("acme/old.test", -31), ("acme/used.test", -31), ("acme/late.test", -29), ("acme/good.test", 9)):
        store.put(name, issue(name.partition("/")[2], days=(-90, end)).bundle())
        store.put_record("state", name, State(attempts=1).to_record())
    store.put("internal/localhost", issue("localhost", days=(-90, -60)).bundle())
    Challenges(store).put_http("token", "token.thumb", now - MINUTE)
    Challenges(store).put_http("young", "young.thumb", now + MINUTE)
    for name, age in (("acme/dead.test", 8), ("acme/live.test", 1)):
        order = OrderInFlight(
            "https://ca/1", "https://ca", "https://ca/a", "", ("a",), "ecdsa-p256", now - age * DAY, ""
        )
        store.put_record(ORDERS, name, order.to_record())
    asyncio.run(Housekeeping(tools).tidy(["acme/used.test"]))
    left = ("acme/good.test", "acme/late.test", "acme/used.test")
    assert store.list() == (*left, "internal/localhost")
    assert store.list_records("state") == left
    assert store.list_records(ORDERS) == ("acme/live.test",)
    assert Challenges(store).http("young", now)
    assert len(store.list_records("challenges")) == 1


def test_what_is_remembered_of_names_that_came_to_nothing_is_forgotten(house: House) -> None:
    store, now = house.store, house.desk.clock()
    for label, age in (("made-up", 31), ("lately", 29), ("wanted", 31), ("busy", 31), ("held", 31)):
        store.put_record("state", f"acme/{label}.test", State(attempts=3, last_attempt=now - age * DAY).to_record())
    store.put_record("state", "acme/nothing.test", {})
    store.put("acme/held.test", issue("held.test").bundle())
    store.acquire("acme/busy.test")
    order = OrderInFlight("https://ca/1", "https://ca", "", "", ("a",), "", now - 8 * DAY, "")
    store.put_record(ORDERS, "acme/busy.test", order.to_record())
    asyncio.run(Housekeeping(house.desk.tools).tidy(["acme/wanted.test"]))
    left = ("acme/busy.test", "acme/held.test", "acme/lately.test", "acme/wanted.test")
    assert store.list_records("state") == left
    assert store.list_records(ORDERS) == ("acme/busy.test",)


def test_what_somebody_works_on_is_left_alone(house: House) -> None:
    house.store.put(NAME, issue("a.test", days=(-90, -40)).bundle())
    house.store.acquire(NAME)
    asyncio.run(Housekeeping(house.desk.tools).tidy([]))
    assert house.store.list() == (NAME,)


def test_the_costly_part_is_done_once_an_hour(house: House) -> None:
    async def story() -> None:
        keeping = Housekeeping(house.desk.tools)
        await keeping.tidy([])
        house.store.put(NAME, issue("a.test", days=(-90, -40)).bundle())
        await keeping.tidy([])
        assert house.store.list() == (NAME,)
        house.desk.clock.ahead += 61 * MINUTE
        await keeping.tidy([])

    asyncio.run(story())
    assert house.store.list() == ()


# --- windows


def test_a_ca_without_windows_is_asked_for_its_directory_only(house: House, ca: CertificateAuthority) -> None:
    ca.has_renewal_info = False

    async def story() -> None:
        house.keeper.want([wanted_from(house.issuers, "a.test"), wanted_from(house.issuers, "b.test")])
        await house.look()
        asked = ca.count["directory"]
        await house.look(later=10 * MINUTE)
        assert ca.count["directory"] == asked

    asyncio.run(story())
    assert ca.count["renewal-info"] == 0
    assert [type(each) for each in house.notes.outcomes] == [Obtained, Obtained]


def test_a_ca_that_is_away_is_asked_by_one(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        house.keeper.want([wanted_from(house.issuers, f"{letter}.test") for letter in "abcd"])
        ca.has_renewal_info = False
        await house.look()
        ca.has_renewal_info = True
        ca.fails("directory", status=503, body=b"away", times=100)
        asked = ca.count["directory"]
        await house.look(later=DAY)
        assert ca.count["directory"] == asked + 1

    asyncio.run(story())


def test_a_person_may_renew_what_the_window_leaves_alone(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        house.want("a.test")
        await house.look()
        assert isinstance(await house.keeper.obtain(NAME, Asked(reason="by hand"), unwatched), Obtained)

    asyncio.run(story())
    assert ca.count["renewal-info"] == 2
