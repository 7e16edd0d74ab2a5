"""Many certificates and a CA that is away: a keeper of real parts, few requests, and failures of those who asked."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.certs.keeping import House, make_house, wanted_from
from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs import login
from tlsproxy.certs.attempt import Asked, Failed, NotNow, Obtained
from tlsproxy.certs.plan import plan
from tlsproxy.certs.progress import unwatched
from tlsproxy.certs.wanted import Wait

MINUTE = timedelta(minutes=1)
HOSTS = [f"h{number:03}.test" for number in range(200)]
FEW = HOSTS[:9]  # our own pace is ten orders in ten seconds
ACCOUNT_LIMIT = "too many new orders (300) from this account in the last 3h0m0s"
FOR_EVER = 1_000_000


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt insists for a minute."""
    monkeypatch.setattr(login, "LIMIT", 0.0)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.fixture
def house(ca: CertificateAuthority) -> Iterator[House]:
    with make_house(ca) as house:
        ca.now = house.desk.clock
        yield house


def want(house: House, hosts: list[str]) -> None:
    house.keeper.want([wanted_from(house.issuers, host) for host in hosts])


def requests(ca: CertificateAuthority) -> int:
    return sum(ca.count.values())


def failures(house: House) -> int:
    return sum(isinstance(outcome, Failed) for outcome in house.notes.outcomes)


def test_two_hundred_names_and_no_way_to_the_ca(house: House, ca: CertificateAuthority) -> None:
    want(house, HOSTS)
    ca.fails("directory", status=503, times=FOR_EVER)

    async def story() -> None:
        await house.look()
        assert (failures(house), len(house.store.list_records("state"))) == (1, 1)
        for _ in range(29):
            await house.look(later=MINUTE)

    asyncio.run(story())
    # Probes after 1, 3, 7, 15 and 25 minutes.
    assert requests(ca) <= 7
    assert len(house.store.list_records("state")) <= failures(house) <= 7


def test_it_comes_back_and_all_have_their_certificates(house: House, ca: CertificateAuthority) -> None:
    want(house, FEW)
    ca.fails("directory", status=503, times=3)

    async def story() -> None:
        await house.look()
        assert house.keeper.away()
        for _ in range(8):
            await house.look(later=MINUTE)
        assert not house.keeper.away()

    asyncio.run(story())
    assert set(house.store.list()) == {f"acme/{host}" for host in FEW}
    assert failures(house) <= 3


@pytest.mark.parametrize(
    ("kind", "status", "detail", "most"),
    [("order", 429, ACCOUNT_LIMIT, 4), ("account", 429, "too many new registrations", 1), ("order", 503, "oops", 7)],
)
def test_a_limit_or_trouble_of_all_is_met_by_those_who_are_under_way_alone(
    house: House, ca: CertificateAuthority, kind: str, status: int, detail: str, most: int
) -> None:
    want(house, HOSTS)
    problem = "rateLimited" if status == 429 else "serverInternal"
    ca.fails(kind, problem, detail, status=status, headers={"Retry-After": "3600"}, times=FOR_EVER)

    async def story() -> None:
        for _ in range(50):
            await house.look(later=MINUTE)
        assert ca.count[kind] <= most
        assert failures(house) == len(house.store.list_records("state")) <= most
        assert all(outage.is_limit == (status == 429) for outage in house.keeper.away().values())
        before = ca.count[kind]
        await house.look(later=12 * MINUTE)
        assert ca.count[kind] == before + 1  # the probe

    asyncio.run(story())


def test_who_waits_says_why(house: House, ca: CertificateAuthority) -> None:
    want(house, FEW)
    ca.fails("directory", status=503, times=FOR_EVER)

    async def story() -> None:
        await house.look()
        waiting = wanted_from(house.issuers, FEW[-1])
        state, now = house.state(waiting.name), house.desk.clock()
        action = plan(waiting, None, state, now, away=house.keeper.away())
        assert isinstance(action, Wait)
        assert f"the CA {ca.directory} has been out of service since" in action.reason
        assert (state.attempts, state.last_error) == (0, None)

    asyncio.run(story())


def test_a_person_may_ask_and_ends_the_wait_of_all(house: House, ca: CertificateAuthority) -> None:
    want(house, FEW)
    ca.fails("directory", status=503, times=2)

    async def story() -> None:
        await house.look()
        last = f"acme/{FEW[-1]}"
        assert isinstance(await house.keeper.obtain(last, Asked(by_client=True), unwatched), NotNow)
        assert isinstance(await house.keeper.obtain(last, Asked(), unwatched), Failed)
        assert isinstance(await house.keeper.obtain(last, Asked(), unwatched), Obtained)
        await house.look()

    asyncio.run(story())
    assert len(house.store.list()) >= len(FEW) - 2  # but for who failed, whose own time comes in a minute


def test_a_person_does_not_ask_against_a_limit_but_by_force(house: House, ca: CertificateAuthority) -> None:
    want(house, FEW)
    ca.fails("order", "rateLimited", ACCOUNT_LIMIT, status=429, headers={"Retry-After": "3600"}, times=4)

    async def story() -> None:
        await house.look()
        last = f"acme/{FEW[-1]}"
        assert isinstance(await house.keeper.obtain(last, Asked(), unwatched), NotNow)
        assert isinstance(await house.keeper.obtain(last, Asked(force=True), unwatched), Obtained)

    asyncio.run(story())


def test_a_limit_of_one_name_stops_no_other(house: House, ca: CertificateAuthority) -> None:
    want(house, FEW)
    detail = "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s"
    ca.fails("order", "rateLimited", detail, status=429, headers={"Retry-After": "3600"}, times=4)
    asyncio.run(house.look())
    assert len(house.store.list()) == len(FEW) - 4


def test_another_ca_is_used_when_the_first_stays_away(tmp_path: Path, ca: CertificateAuthority) -> None:
    (tmp_path / "second").mkdir()
    with CertificateAuthority(tmp_path / "second") as second, make_house(ca, second) as house:
        bundle = ca.ca_bundle.read_bytes() + second.ca_bundle.read_bytes()
        for each in (ca, second):
            each.ca_bundle.write_bytes(bundle)
            each.now = house.desk.clock
        want(house, FEW)
        ca.fails("directory", status=503, times=FOR_EVER)

        async def story() -> None:
            await house.look()
            await house.look(later=5 * MINUTE)
            assert house.store.list() == ()
            for _ in range(8):
                await house.look(later=MINUTE)

        asyncio.run(story())
        assert len(house.store.list()) >= len(FEW) - 4
        assert ca.count["directory"] <= 10


def test_ten_thousand_that_wait_hold_nobody_up(house: House, ca: CertificateAuthority) -> None:
    want(house, [f"h{number}.test" for number in range(3_000)])
    ca.fails("directory", status=503, times=FOR_EVER)

    async def story() -> None:
        longest, loop = 0.0, asyncio.get_running_loop()

        async def tick() -> None:
            nonlocal longest
            while True:
                before = loop.time()
                await asyncio.sleep(0)
                longest = max(longest, loop.time() - before)

        ticking = asyncio.create_task(tick())
        await house.look()
        while len(house.keeper._backlog):
            await asyncio.sleep(0)
        ticking.cancel()
        assert longest < 0.5
        assert len(house.keeper._agenda) == 3_000

    asyncio.run(story())
    assert requests(ca) <= 2
