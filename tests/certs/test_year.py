"""400 days of certificates: no order too many, none too late, whatever the CA, the machine and the clock do."""

import random
from datetime import datetime, timedelta

import pytest

from tests.certs.plans import BORN, DAY, HOUR, MINUTE
from tests.certs.year import NEVER, Span, World, Year, regular, usual_window
from tlsproxy.certs.wanted import Held

LIVES = [160 * HOUR, 45 * DAY, 64 * DAY, 90 * DAY, 200 * DAY]
SOON = 130 * MINUTE
"""After so long with everything working there is a certificate: 100 minutes, a fifth of jitter, a tick."""


def due(life: timedelta, days: float = 400) -> tuple[int, int]:
    """The least and the most certificates of one name: by the renewal points of acme.md, an hour of backdating."""
    share = 1 / 2 if life < 10 * DAY else 2 / 3
    latest, earliest = life * (share + 0.02), life * (share - 0.02) - HOUR - 10 * MINUTE
    return int(days * DAY / latest), int(days * DAY / earliest) + 1


def check(year: Year, *, extra: int = 0, failures: int = 0, patience: timedelta = SOON) -> None:
    """`extra` certificates and `failures` failed orders of one name are what this world may cost."""
    least, most = due(year.world.life, year.world.days)
    for name, count in year.issued.items():
        assert count <= most + extra, f"{name}: {count} certificates"
        assert year.orders[name] <= count + failures, f"{name}: {year.orders[name]} orders for {count} certificates"
    assert len(year.issued) == len(year.world.names)
    assert year.unserved(patience) == []
    assert year.over_limit == 0, "the CA had to refuse something"
    assert all(most_in_an_hour(times) <= 5 for times in year.failed.values())
    assert year.most_at_once <= 2, "rehearsal and order, no more in one go"
    if not (year.world.down or year.world.asleep or year.world.broken_dns or year.world.busy):
        assert min(year.issued.values()) >= least


def most_in_an_hour(times: list[datetime]) -> int:
    return max((sum(1 for time in times if start <= time < start + HOUR) for start in times), default=0)


@pytest.mark.parametrize("has_ari", [True, False])
@pytest.mark.parametrize("life", LIVES)
def test_a_calm_year(life: timedelta, has_ari: bool) -> None:
    year = Year(World(life, has_ari=has_ari)).run()
    check(year)
    first_ones = len(year.world.names)
    assert year.exempt == (year.issued.total() - first_ones if has_ari else 0), "every renewal is exempt from limits"
    assert year.window_fetches <= 400 * 1.5 * first_ones


@pytest.mark.parametrize("life", LIVES)
def test_a_third_of_all_attempts_fails(life: timedelta) -> None:
    year = Year(World(life, failure_rate=0.33)).run()
    check(year, failures=due(life)[1] + 6)


@pytest.mark.parametrize("hours", [3, 70])
@pytest.mark.parametrize("life", LIVES[:2])
def test_a_ca_that_is_down_for_hours_and_days(life: timedelta, hours: float) -> None:
    outages = regular(1, 11, hours * HOUR)
    year = Year(World(life, down=outages)).run()
    check(year, failures=len(outages) * (4 + int(hours / 1.3)))


def test_a_ca_that_is_down_for_longer_than_certificates_live() -> None:
    """Whoever has nothing to lose asks every 100 minutes, and has a certificate soon after the CA is back."""
    year = Year(World(160 * HOUR, down=regular(3, 60, 12 * DAY))).run()
    check(year, failures=7 * 12 * 24)
    assert year.outages


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
def test_a_ca_that_asks_for_an_hour_of_patience(life: timedelta) -> None:
    year = Year(World(life, busy=regular(2, 7, 20 * HOUR))).run()
    check(year, failures=58 * 20)


@pytest.mark.parametrize("life", [160 * HOUR, 45 * DAY, 90 * DAY])
def test_names_that_point_elsewhere_for_days(life: timedelta) -> None:
    """Three of four are rehearsals but towards a certificate's end. It takes a day to notice that it works again."""
    broken = regular(5, 40, 8 * DAY)
    year = Year(World(life, broken_dns=broken)).run()
    check(year, failures=13 * len(broken), patience=30 * HOUR)


def test_a_name_that_never_worked() -> None:
    """Nothing but failures for 400 days, one a day: the real CA hears of every fourth, its staging of the others."""
    year = Year(World(90 * DAY, names=(("a.example.com",),), broken_dns=((BORN, BORN + 400 * DAY),))).run()
    assert year.issued.total() == 0
    assert 100 <= year.orders.total() <= 420 / 4
    assert most_in_an_hour(year.failed["a.example.com"]) == 1


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
def test_a_staging_ca_that_validates_nothing_any_more(life: timedelta) -> None:
    """Failures of the real CA that say nothing of the name are not rehearsed, and those that do a few times."""
    year = Year(World(life, staging_is_broken=True, failure_rate=0.2, busy=regular(2, 7, HOUR))).run()
    check(year, failures=due(life)[1] + 58 * 3, patience=30 * HOUR)


@pytest.mark.parametrize("life", [160 * HOUR, 45 * DAY, 90 * DAY])
def test_machines_that_sleep(life: timedelta) -> None:
    nights, holidays = regular(0.7, 1, 14 * HOUR), regular(50, 90, 10 * DAY)
    year = Year(World(life, asleep=(*nights, *holidays))).run()
    check(year, patience=15 * MINUTE)


def mass_revocation(held: Held, now: datetime) -> Span:
    """Twice a year all certificates of before are to be replaced at once."""
    for day in (100, 250):
        incident = BORN + day * DAY
        if held.not_before < incident <= now:
            return incident - 2 * DAY, incident - DAY
    return usual_window(held, now)


@pytest.mark.parametrize("life", [160 * HOUR, 45 * DAY, 90 * DAY, 200 * DAY])
def test_windows_that_move_to_the_past(life: timedelta) -> None:
    year = Year(World(life, window=mass_revocation)).run()
    check(year, extra=2)
    assert year.issued.total() > Year(World(life)).run().issued.total() or life < 10 * DAY


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
def test_windows_after_the_end(life: timedelta) -> None:
    """A CA that suggests to let certificates expire is not believed: a twentieth of the life is left."""
    year = Year(World(life, window=lambda held, _: (held.not_after + HOUR, held.not_after + DAY))).run()
    assert max(year.issued.values()) <= 400 * DAY / (life * 0.94) + 1
    assert year.unserved(SOON) == []


def test_a_name_that_is_mended_on_the_last_day() -> None:
    """Attempts come closer towards the end: half a day is enough to find out that it works again."""
    end = BORN + 90 * DAY - HOUR
    names = tuple((f"n{number}.example.com",) for number in range(8))
    year = Year(World(90 * DAY, names, broken_dns=((BORN + 30 * DAY, end - 12 * HOUR),), days=120)).run()
    assert year.issued.total() >= 2 * len(names)
    assert [outage for outage in year.outages if outage[1] > BORN] == []


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
def test_windows_that_move_with_each_look(life: timedelta) -> None:
    """Back and forth by a tenth of the life. An early one is obeyed, and no order is ever repeated for it."""
    dice = random.Random(7)

    def restless(held: Held, now: datetime) -> Span:
        start, end = usual_window(held, now)
        shift = held.life * dice.uniform(-0.1, 0.1)
        return start + shift, end + shift

    least, most = due(life)
    year = Year(World(life, window=restless)).run()
    check(year, extra=int(most * 0.25) + 1)
    assert least <= min(year.issued.values())


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
def test_a_ca_that_wants_renewal_whatever_it_issues(life: timedelta) -> None:
    """A window that is always over must not become an order each time it is looked at."""
    year = Year(World(life, window=lambda held, now: (now - 2 * DAY, now - DAY), days=100)).run()
    gap = min(DAY, life / 20)
    assert max(year.issued.values()) <= 100 * DAY / gap + 1
    assert year.over_limit == 0
    assert year.unserved(SOON) == []


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
def test_renewal_information_that_can_hardly_be_had(life: timedelta) -> None:
    year = Year(World(life, ari_failure_rate=0.9, days=100)).run()
    check(year)
    assert year.window_fetches < 100 * 24 * 2 * len(year.world.names)


@pytest.mark.parametrize("life", [160 * HOUR, 90 * DAY])
@pytest.mark.parametrize("leap", [-40 * DAY, -3 * HOUR, 2 * DAY, 40 * DAY])
def test_clocks_that_leap(life: timedelta, leap: timedelta) -> None:
    """For a day every month the clock is wrong by `leap`; our own idea of time costs a few certificates at most."""
    wrong = regular(20, 30, DAY)
    year = Year(World(life, clock=lambda true: leap if any(a <= true < b for a, b in wrong) else timedelta())).run()
    least, most = due(life)
    assert all(least <= count <= most + 3 * len(wrong) for count in year.issued.values())
    assert year.over_limit == 0
    if leap > timedelta():
        assert year.unserved(SOON) == []


def test_a_store_that_loses_its_certificates() -> None:
    """Each is obtained again at once, and it is the quota guard that says when it is enough."""
    lost = tuple(BORN + 100 * DAY + n * 6 * HOUR for n in range(12))
    world = World(90 * DAY, names=(("a.example.com",),), loses_records=lost, days=120, polls=HOUR)
    year = Year(world).run()
    assert year.over_limit == 0
    assert 2 + 4 <= year.issued.total() <= 2 + 4 + 4, "four at once, then one each 34 hours"


def test_sixty_names_of_one_domain_at_once() -> None:
    """More than the CA grants in a week: 49 at once, the others as the bucket refills, all of them in two days."""
    names = tuple((f"n{number}.example.com",) for number in range(60))
    year = Year(World(90 * DAY, names=names, days=20)).run()
    assert year.over_limit == 0
    assert len(year.issued) == 60
    late = [end for name, start, end in year.outages if start == NEVER]
    assert sum(1 for end in late if end < BORN + 2 * HOUR) == 49
    assert max(late) < BORN + 3 * DAY
