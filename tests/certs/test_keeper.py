"""What becomes of certificates over time: a keeper of real parts against fake CAs, with a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.certs.keeping import House, make_house, wanted_from
from tests.fakes.certificate_authority import CertificateAuthority
from tests.store.pki import issue
from tests.system.running import until
from tlsproxy.certs import leasing
from tlsproxy.certs.attempt import Asked, Elsewhere, Failed, NotNow, Obtained
from tlsproxy.certs.problems import FailureKind
from tlsproxy.certs.progress import Step, unwatched
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore, Lease
from tlsproxy.store.memory import MemoryRecords

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
NAME = "acme/a.test"


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.fixture
def house(ca: CertificateAuthority) -> Iterator[House]:
    with make_house(ca) as house:
        ca.now = house.desk.clock
        house.want("a.test")
        yield house


def test_what_is_missing_is_obtained_announced_and_left_alone(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        await house.look()
        await house.look(later=10 * DAY)

    asyncio.run(story())
    assert house.notes.changes == [NAME]
    assert [type(each) for each in house.notes.outcomes] == [Obtained]
    assert ca.count["order"] == 1
    assert house.state(NAME).winners == {"a.test": "tls-alpn-01"}
    assert house.store.list_records("orders") == ()


def test_a_clock_that_is_behind_costs_one_order(
    house: House, ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    ca.now = lambda: house.desk.clock() + timedelta(hours=2)

    async def story() -> None:
        for _ in range(8):
            await house.look(later=10 * MINUTE)

    asyncio.run(story())
    assert [type(each) for each in house.notes.outcomes] == [Obtained]
    assert ca.count["order"] == 1
    told = next(record for record in caplog.records if record.message == "certificate.clock_behind")
    assert "Set the clock" in vars(told)["problem"]


def test_a_renewal_names_its_predecessor_and_has_a_new_key(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        first = house.store.get(NAME)
        await house.look(later=65 * DAY)
        second = house.store.get(NAME)
        assert first
        assert second
        assert first.key_pem != second.key_pem
        assert ca.payloads["order"][-1]["replaces"] == first.ari_id

    asyncio.run(story())
    assert house.notes.changes == [NAME, NAME]
    assert ca.count["order"] == 2


def test_the_ca_is_asked_for_its_window_once_and_moves_the_renewal(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        assert ca.count["renewal-info"] == 1
        for _ in range(3):
            await house.look(later=MINUTE)
        assert ca.count["renewal-info"] == 1
        held = house.shelf.held(NAME)
        assert held
        now = house.desk.clock()
        ca.ari(held.ari_id, now - DAY, now - DAY / 2, explanation="https://ca.test/why")
        await house.look(later=7 * timedelta(hours=1))
        assert ca.count["renewal-info"] == 2
        await house.look(later=DAY)

    asyncio.run(story())
    assert len(house.notes.outcomes) == 2
    assert ca.payloads["order"][-1]["replaces"]


# --- failures


def test_a_failure_is_remembered_and_tried_again_when_it_is_time(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        ca.validation_fails("a.test", "connection", "192.0.2.1: Fetching http://a.test/x: Connection refused")
        await house.look()
        await house.look(later=MINUTE / 2)
        assert (house.state(NAME).attempts, ca.count["order"]) == (1, 2)
        await house.look(later=MINUTE)
        assert (house.state(NAME).attempts, ca.count["order"]) == (2, 4)
        ca.validation_fails("a.test")
        await house.look(later=11 * MINUTE)

    asyncio.run(story())
    assert [type(each) for each in house.notes.outcomes] == [Failed, Failed, Obtained]
    failure = house.notes.outcomes[0]
    assert isinstance(failure, Failed)
    assert "Connection refused" in str(failure.failure) or "refused" in str(failure.failure)
    assert house.state(NAME).attempts == 0


def test_a_restart_forgets_no_failure(house: House, ca: CertificateAuthority) -> None:
    ca.validation_fails("a.test", "dns", "NXDOMAIN looking up A for a.test")
    asyncio.run(house.look())
    with make_house(ca, store=house.store) as again:
        again.want("a.test")
        asyncio.run(again.look())
    assert ca.count["order"] == 2


def test_what_only_a_person_can_mend_is_parked(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        ca.next_order_fails("rejectedIdentifier", "policy forbids issuing for a.test", status=403)
        for _ in range(5):
            await house.look(later=10 * DAY)
        assert ca.count["order"] == 1
        house.want("a.test", fingerprint="another configuration")
        await house.look()

    asyncio.run(story())
    assert house.serial(NAME)


def test_a_person_overrides_what_is_parked(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        ca.next_order_fails("rejectedIdentifier", "policy forbids issuing for a.test", status=403)
        await house.look()
        outcome = await house.keeper.obtain(NAME, Asked(), unwatched)
        assert isinstance(outcome, Obtained)

    asyncio.run(story())


@pytest.mark.parametrize("force", [False, True])
def test_what_the_ca_asked_for_is_kept_unless_forced(house: House, ca: CertificateAuthority, force: bool) -> None:
    async def story() -> None:
        ca.next_order_fails("rateLimited", "too many", status=429, headers={"Retry-After": "7200"})
        await house.look()
        await house.look(later=100 * MINUTE)
        outcome = await house.keeper.obtain(NAME, Asked(force=force), unwatched)
        assert isinstance(outcome, Obtained if force else NotNow)
        await house.look(later=30 * MINUTE)

    asyncio.run(story())
    assert ca.count["order"] == 2
    assert house.serial(NAME)


def test_the_real_order_uses_what_the_rehearsal_has_learned(tmp_path: Path, ca: CertificateAuthority) -> None:
    (tmp_path / "staging").mkdir()
    with CertificateAuthority(tmp_path / "staging") as staging, make_house(ca, staging=staging) as house:
        share_roots(tmp_path / "both.pem", ca, staging)
        house.want("a.test")

        async def story() -> None:
            for each in (ca, staging):
                each.validation_fails("a.test", "connection", "192.0.2.1: Connection refused")
            await house.look()
            ca.validation_fails("a.test")
            staging.when("challenge", lambda: staging.validation_fails("a.test"), after=True)
            await house.look(later=2 * MINUTE)

        asyncio.run(story())
        assert house.state(NAME).winners == {"a.test": "http-01"}, "tls-alpn-01 was not tried again"


def test_another_ca_is_asked_when_the_first_fails(tmp_path: Path, ca: CertificateAuthority) -> None:
    (tmp_path / "second").mkdir()
    with CertificateAuthority(tmp_path / "second") as second, make_house(ca, second) as house:
        house.want("a.test")

        async def story() -> None:
            ca.validation_fails("a.test", "caa", "CAA record for a.test prevents issuance")
            for _ in range(4):
                await house.look(later=DAY)

        asyncio.run(story())
        bundle = house.store.get(NAME)
        assert bundle
        assert bundle.directory == second.directory


def test_a_retry_is_rehearsed_where_it_costs_nothing(tmp_path: Path, ca: CertificateAuthority) -> None:
    (tmp_path / "staging").mkdir()
    with CertificateAuthority(tmp_path / "staging") as staging, make_house(ca, staging=staging) as house:
        share_roots(tmp_path / "both.pem", ca, staging)
        house.want("a.test")

        async def story() -> None:
            for each in (ca, staging):
                each.validation_fails("a.test", "connection", "192.0.2.1: Connection refused")
            await house.look()
            assert (ca.count["order"], staging.count["order"]) == (2, 0)
            await house.look(later=2 * MINUTE)
            assert (ca.count["order"], staging.count["order"]) == (2, 2)
            for each in (ca, staging):
                each.validation_fails("a.test")
            await house.look(later=20 * MINUTE)

        asyncio.run(story())
        assert (ca.count["order"], staging.count["order"]) == (3, 3)
        bundle = house.store.get(NAME)
        assert bundle
        assert bundle.directory == ca.directory


# --- the store


def test_a_full_disk_is_found_before_a_ca_is_asked(ca: CertificateAuthority) -> None:
    records = FullRecords()
    with make_house(ca, store=CertificateStore(records)) as house:
        house.want("a.test")
        ca.now = house.desk.clock

        async def story() -> None:
            await house.look()
            first = house.serial(NAME)
            records.is_full = True
            await house.look(later=70 * DAY)
            assert (house.serial(NAME), ca.count["order"]) == (first, 1)
            failed = house.notes.outcomes[-1]
            assert isinstance(failed, Failed)
            assert (failed.failure.kind, failed.held) == (FailureKind.STORE, house.shelf.held(NAME))
            assert "the disk is full" in str(failed.failure)
            records.is_full = False
            await house.look(later=11 * MINUTE)

        asyncio.run(story())
    assert ca.count["order"] == 2


def test_a_store_that_can_not_be_written_is_no_reason_to_ask_every_second(ca: CertificateAuthority) -> None:
    """The question when to renew is due, and stays so."""

    class ReadOnly(MemoryRecords):
        is_read_only = False

        def acquire(self, name: str, seconds: float) -> Lease | None:
            if self.is_read_only:
                raise StoreError("it can only be read")
            return super().acquire(name, seconds)

    records = ReadOnly()
    with make_house(ca, store=CertificateStore(records)) as house:
        house.want("a.test")
        ca.now = house.desk.clock
        asyncio.run(house.look())
        asked = ca.count["renewal-info"]
        records.is_read_only = True
        asyncio.run(house.look(later=1 * DAY))
        again = house.keeper._agenda.when(NAME)
        assert again is not None
        assert again - house.desk.clock() > 9 * MINUTE
    assert ca.count["renewal-info"] == asked == 1


def test_a_certificate_that_could_not_be_stored_is_fetched_again(ca: CertificateAuthority) -> None:
    records = FullRecords()
    with make_house(ca, store=CertificateStore(records)) as house:
        house.want("a.test")
        ca.when("certificate", lambda: setattr(records, "is_full", True))

        async def story() -> None:
            await house.look()
            assert house.serial(NAME) == ""
            await house.look(later=11 * MINUTE)
            records.is_full = False
            await house.look(later=11 * MINUTE)

        asyncio.run(story())
        assert house.serial(NAME)
    assert (ca.count["order"], ca.count["finalize"]) == (1, 1)


def test_nothing_is_ordered_for_what_can_not_be_read(house: House, ca: CertificateAuthority) -> None:
    """A wrong key of the store must not have every certificate ordered anew."""

    class Sealed(MemoryRecords):
        def read(self, key: str) -> bytes | None:
            if key.startswith("certificates/"):
                raise StoreError("sealed with another key")
            return super().read(key)

    records = Sealed()
    records.write(f"certificates/{NAME}", b"x")
    with make_house(ca, store=CertificateStore(records)) as blind:
        blind.want("a.test")
        asyncio.run(blind.look())
        outcome = asyncio.run(blind.keeper.obtain(NAME, Asked(), unwatched))
    assert isinstance(outcome, Failed)
    assert outcome.failure.kind is FailureKind.STORE
    assert ca.count["order"] == 0


def test_a_damaged_record_is_replaced(house: House, ca: CertificateAuthority) -> None:
    house.store.records.write(f"certificates/{NAME}", b"{")
    asyncio.run(house.look())
    assert house.serial(NAME)


# --- others on the same store


def test_a_certificate_that_another_process_works_on_is_left_to_it(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        lease = house.store.acquire(NAME)
        assert lease
        assert isinstance(await house.keeper.obtain(NAME, Asked(), unwatched), Elsewhere)
        house.store.release(lease)
        await house.look()

    asyncio.run(story())
    assert ca.count["order"] == 1


def test_of_two_only_one_orders_and_both_announce(house: House, ca: CertificateAuthority) -> None:
    with make_house(ca, store=house.store) as other:
        other.want("a.test")

        async def story() -> None:
            await asyncio.gather(house.look(), other.look())
            await asyncio.gather(house.look(), other.look())

        asyncio.run(story())
        assert ca.count["order"] == 1
        assert (house.notes.changes, other.notes.changes) == ([NAME], [NAME])


def test_who_loses_the_lease_drops_the_certificate(
    house: House, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a long sleep: the lease ran out, somebody else has taken over, nobody told us."""
    monkeypatch.setattr(leasing, "LIFE", 0.2)
    ca.when("certificate", lambda: until(lambda: house.store.acquire(NAME, 60.0), "the lease runs out"))
    outcome = asyncio.run(house.keeper.obtain(NAME, Asked(), unwatched))
    assert isinstance(outcome, Elsewhere)
    assert house.serial(NAME) == ""
    assert house.notes.outcomes == []


def test_who_hears_of_it_stops_at_once(house: House, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "LIFE", 0.2)
    monkeypatch.setattr(leasing, "RENEWAL", 0.3)
    ca.processing_polls = -1
    ca.when("finalize", lambda: until(lambda: house.store.acquire(NAME, 60.0), "the lease runs out"))
    outcome = asyncio.run(house.keeper.obtain(NAME, Asked(), unwatched))
    assert isinstance(outcome, Elsewhere)
    assert [solver.present_now for solver in house.desk.solvers] == [set(), set()]


def test_what_another_process_has_put_there_is_announced(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        house.store.put(NAME, issue("a.test", days=(0, 50)).bundle())
        await house.look()

    asyncio.run(story())
    assert house.notes.changes == [NAME, NAME]
    assert ca.count["order"] == 1


@pytest.mark.parametrize(
    ("hosts", "days", "is_kept"),
    [(("a.test",), (0, 50), True), (("b.test",), (0, 50), False), (("a.test",), (-90, 9), False)],
    ids=["good", "other hosts", "due"],
)
def test_what_a_person_imports_while_another_is_ordered_stays_if_it_is_good(
    house: House, ca: CertificateAuthority, hosts: tuple[str, ...], days: tuple[int, int], is_kept: bool
) -> None:
    """By an import, which waits for no lease."""
    imported = issue(*hosts, days=days).bundle()

    async def story() -> None:
        ca.when("certificate", lambda: house.store.put(NAME, imported))
        outcome = await house.keeper.obtain(NAME, Asked(), unwatched)
        assert isinstance(outcome, NotNow if is_kept else Obtained)
        await house.look()
        await house.look(later=MINUTE)

    asyncio.run(story())
    assert (house.serial(NAME) == imported.serial) is is_kept
    assert house.state(NAME).history[-1].what == ("kept" if is_kept else "obtained")
    assert (ca.count["order"], house.store.list_records("orders"), house.notes.changes) == (1, (), [NAME])


def test_what_was_there_before_is_replaced_however_good_it_is(house: House, ca: CertificateAuthority) -> None:
    house.store.put(NAME, issue("a.test", days=(0, 50)).bundle())
    outcome = asyncio.run(house.keeper.obtain(NAME, Asked(reason="by hand"), unwatched))
    assert isinstance(outcome, Obtained)
    assert house.serial(NAME) == outcome.held.serial


# --- its life


def test_an_order_that_was_stopped_is_taken_up_by_the_next(house: House, ca: CertificateAuthority) -> None:
    async def stopped() -> None:
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        ca.when("finalize", lambda: loop.call_soon_threadsafe(reached.set), after=True)
        ca.processing_polls = 3
        await house.keeper.look()
        await reached.wait()
        await house.keeper.stop(0.2)

    asyncio.run(stopped())
    assert house.serial(NAME) == ""
    with make_house(ca, store=house.store) as again:
        again.want("a.test")
        asyncio.run(again.look())
    assert house.serial(NAME)
    assert (ca.count["order"], ca.count["finalize"]) == (1, 1)


def test_the_last_stop_invites_no_look_at_a_closed_port(house: House, ca: CertificateAuthority) -> None:
    """The workers have left: what the CA is told now it looks for in vain, and counts."""

    async def stopped() -> None:
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        ca.when("authorization", lambda: loop.call_soon_threadsafe(reached.set))
        await house.keeper.look()
        await reached.wait()
        await house.keeper.stop(20.0, is_last=True)

    asyncio.run(stopped())
    assert (ca.count["order"], ca.count["challenge"]) == (1, 0)
    with make_house(ca, store=house.store) as again:
        again.want("a.test")
        asyncio.run(again.look())
    assert house.serial(NAME)
    assert ca.count["order"] == 1


def test_a_stop_lets_end_what_ends_soon(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.keeper.look()
        await house.keeper.stop(20.0)

    asyncio.run(story())
    assert house.serial(NAME)


def test_it_runs_by_itself(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        ca.fails("order", "serverInternal", "oops", status=500)
        running = asyncio.create_task(house.keeper.run())
        while not house.notes.outcomes:
            await asyncio.sleep(0.01)
        house.desk.clock.ahead += 2 * MINUTE
        house.keeper.want([house.keeper.wanted(NAME)])  # type: ignore[list-item]
        while len(house.notes.outcomes) < 2:
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(asyncio.wait_for(story(), 20))
    assert house.serial(NAME)


def test_who_asks_twice_gets_one_order(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        steps: list[Step] = []
        both = (house.keeper.obtain(NAME, Asked(), progress) for progress in (unwatched, steps.append))
        first, second = await asyncio.gather(*both)
        assert first == second
        assert "order" in {step.kind for step in steps}

    asyncio.run(story())
    assert ca.count["order"] == 1


def test_a_good_certificate_is_renewed_by_hand_only_when_meant(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        assert isinstance(await house.keeper.obtain(NAME, Asked(), unwatched), NotNow)
        outcome = await house.keeper.obtain(NAME, Asked(reason="by hand"), unwatched)
        assert isinstance(outcome, Obtained)

    asyncio.run(story())
    assert ca.count["order"] == 2


def test_four_are_obtained_at_a_time_the_most_urgent_first(house: House, ca: CertificateAuthority) -> None:
    for days, letter in enumerate("fedcba"):
        house.store.put(f"acme/{letter}.test", issue(f"{letter}.test", days=(-80, days + 1)).bundle())
    house.keeper.want([wanted_from(house.issuers, f"{letter}.test") for letter in "abcdefg"])
    most = 0

    def note() -> None:
        nonlocal most
        most = max(most, len(house.keeper._work))
        ca.when("order", note)

    ca.when("order", note)
    asyncio.run(house.look())
    assert most == 4
    ordered = [each["identifiers"][0]["value"] for each in ca.payloads["order"]]
    assert set(ordered[:4]) == {"g.test", "f.test", "e.test", "d.test"}
    assert len(house.notes.outcomes) == 7


def test_a_renewal_gets_its_turn_while_new_names_come_in(house: House, ca: CertificateAuthority) -> None:
    """Five new names a minute, one more than can be obtained, and one renewal that was there first."""
    house.store.put("acme/old.test", issue("old.test", days=(-63, 27)).bundle())

    async def story() -> int:
        hosts = ["old.test"]
        for minute in range(120):
            house.keeper.want([wanted_from(house.issuers, host) for host in hosts])
            hosts += [f"new{minute}-{number}.test" for number in range(5)]
            house.keeper.want([wanted_from(house.issuers, host) for host in hosts])
            await house.shelf.refresh(house.keeper.names())
            for name in house.keeper.names():
                house.keeper._do_what_is_due(house.keeper._wanted[name])
            taken = [house.keeper._backlog.take_first() for _ in range(4)]
            if "acme/old.test" in taken:
                return minute
            house.desk.clock.ahead += timedelta(minutes=1)
        return -1

    assert 0 <= asyncio.run(story()) <= 60


def test_who_asks_does_not_wait_behind_what_hangs(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        house.keeper.want([wanted_from(house.issuers, f"{letter}.test") for letter in "bcdefga"])
        ca.hangs("order", 4)
        await house.keeper.look()
        while ca.count["order"] < 4:
            await asyncio.sleep(0.01)
        outcome = await house.keeper.obtain(NAME, Asked(), unwatched)
        assert isinstance(outcome, Obtained)
        await house.keeper.stop(0.1)

    asyncio.run(story())
    ca.stop()


def test_a_flaw_in_one_certificate_ends_nothing(
    house: House, ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    flawed, good = wanted_from(house.issuers, "a.test"), wanted_from(house.issuers, "b.test")
    house.keeper.want([replace(flawed, issuers=None), good])  # type: ignore[arg-type]
    asyncio.run(house.look())
    assert house.serial("acme/b.test")
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["certificate.plan_failed"]


def share_roots(path: Path, *cas: CertificateAuthority) -> None:
    """Let all of them be trusted by the bundle of each."""
    bundle = b"".join(ca.ca_bundle.read_bytes() for ca in cas)
    for ca in cas:
        ca.ca_bundle.write_bytes(bundle)


class FullRecords(MemoryRecords):
    """Records on a disk that can fill up."""

    is_full = False

    def write(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        if self.is_full:
            raise StoreError("the disk is full: make room")
        super().write(key, value, lease)
