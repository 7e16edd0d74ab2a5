"""What failures tell of a CA as a whole, and who may ask it when."""

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tlsproxy.certs.outages import LONGEST, PROBING, Outages
from tlsproxy.certs.problems import AcmeFailure, FailureKind

CA = "https://ca.test/directory"
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
START = datetime(2027, 1, 1, tzinfo=UTC)


@dataclass
class Bench:
    """Outages over a clock that stands still."""

    now: datetime = START
    outages: Outages = field(init=False)

    def __post_init__(self) -> None:
        self.outages = Outages(lambda: self.now, lambda: 0.5)

    def ask(self, name: str, failure: AcmeFailure | None = None) -> None:
        with contextlib.suppress(AcmeFailure), self.outages.asking(CA, name):
            if failure:
                raise failure

    @property
    def until(self) -> datetime | None:
        outage = self.outages.away().get(CA)
        return outage.until if outage else None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def unreachable(step: str = "account") -> AcmeFailure:
    return AcmeFailure(FailureKind.UNREACHABLE, type="caUnreachable", detail="refused", step=step, directory=CA)


def busy(step: str = "order", **fields: Any) -> AcmeFailure:
    return AcmeFailure(FailureKind.BUSY, status=503, step=step, directory=CA, **fields)


def limited(detail: str, *, step: str = "order", retry_at: datetime | None = None, identifier: str = "") -> AcmeFailure:
    about: dict[str, Any] = {"step": step, "retry_at": retry_at, "identifier": identifier}
    return AcmeFailure(FailureKind.RATE_LIMITED, type="rateLimited", detail=detail, status=429, **about)


def test_whom_nobody_answers_is_asked_by_one_in_growing_pauses(bench: Bench) -> None:
    pauses = []
    for number in range(6):
        bench.ask(f"acme/{number}.test", unreachable())
        assert bench.until
        pauses.append((bench.until - bench.now) / MINUTE)
        bench.now = bench.until
        assert bench.until is None
    assert pauses == [1, 2, 4, 8, 10, 10]


def test_while_one_asks_the_others_wait_and_go_when_it_was_answered(bench: Bench) -> None:
    bench.ask("acme/a.test", unreachable())
    bench.now += MINUTE
    with bench.outages.asking(CA, "acme/b.test"):
        assert bench.until == bench.now + PROBING
        assert not bench.outages.away("acme/b.test")
        assert bench.outages.away("acme/c.test")
    assert bench.until is None
    bench.ask("acme/c.test", unreachable())
    assert bench.until == bench.now + MINUTE


def test_a_probe_that_never_came_to_ask_leaves_it_to_the_next(bench: Bench) -> None:
    bench.ask("acme/a.test", unreachable())
    bench.now += MINUTE
    bench.ask("acme/b.test", AcmeFailure(FailureKind.STORE, step="store"))
    assert bench.until is None
    bench.ask("acme/c.test", unreachable())
    assert bench.until == bench.now + 2 * MINUTE


def test_trouble_with_orders_is_the_ca_s_when_three_names_have_it(bench: Bench) -> None:
    for name in ("a", "b", "a", "b"):
        bench.ask(name, busy())
    assert bench.until is None
    bench.ask("c", busy())
    assert bench.until == bench.now + MINUTE


@pytest.mark.parametrize(
    "answer",
    [
        None,
        AcmeFailure(FailureKind.VALIDATION, type="dns", step="validation"),
        AcmeFailure(FailureKind.REFUSED, type="rejectedIdentifier", step="order"),
        limited("too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s"),
    ],
    ids=str,
)
def test_an_answer_about_a_name_in_between_says_that_the_ca_works(bench: Bench, answer: AcmeFailure | None) -> None:
    for name in ("a", "b"):
        bench.ask(name, busy())
    bench.ask("c", answer)
    for name in ("d", "e"):
        bench.ask(name, busy())
    assert bench.until is None


@pytest.mark.parametrize(
    ("failure", "names"),
    [
        (limited("too many new orders (300) from this account in the last 3h0m0s"), 1),
        (limited("too many new registrations (10) from this IP address in the last 3h0m0s", step="account"), 1),
        (limited("slow down", step="account"), 1),
        (limited("slow down"), 3),
        (limited('too many certificates (50) already issued for "example.com" in the last 168h0m0s'), 0),
        (limited('too many failed authorizations (5) for "a.test" in the last 1h0m0s'), 0),
        (limited("too many new orders", identifier="a.test"), 0),
        (AcmeFailure(FailureKind.QUOTA, detail="Let's Encrypt grants 10 new accounts", step="account"), 1),
        (AcmeFailure(FailureKind.QUOTA, detail="Let's Encrypt grants 5 certificates", step="order"), 0),
        (AcmeFailure(FailureKind.BUSY, detail="no answer to the finalize within 90 seconds", step="finalize"), 0),
        (busy("validation"), 0),
        (busy("finalize"), 3),
        (unreachable("order"), 3),
        (AcmeFailure(FailureKind.VALIDATION, type="connection", step="validation"), 0),
        (AcmeFailure(FailureKind.INTERNAL, step="order"), 0),
    ],
    ids=lambda value: str(value)[:60],
)
def test_how_many_names_must_meet_it_until_all_are_spared(bench: Bench, failure: AcmeFailure, names: int) -> None:
    """0: however many, it is a matter of each."""
    met: list[str] = []
    while bench.until is None and len(met) < 5:
        met.append(f"acme/{len(met)}.test")
        bench.ask(met[-1], failure)
    assert len(met) == (names or 5)
    assert bool(bench.until) == bool(names)


def test_a_limit_lasts_as_long_as_the_ca_says(bench: Bench) -> None:
    limit = limited("too many new orders", retry_at=bench.now + 36 * SECOND)
    bench.ask("a", limit)
    assert bench.until == bench.now + 36 * SECOND
    bench.ask("began before", None)
    assert bench.until == bench.now + 36 * SECOND
    bench.now += 36 * SECOND
    bench.ask("b", None)
    assert bench.until is None


def test_a_busy_ca_that_asks_for_little_patience_is_given_more(bench: Bench) -> None:
    bench.ask("a", busy("directory", retry_at=bench.now + SECOND))
    assert bench.until == bench.now + MINUTE
    bench.now += MINUTE
    bench.ask("a", busy("directory", retry_at=bench.now + 60 * MINUTE))
    assert bench.until == bench.now + 60 * MINUTE


def test_who_began_before_makes_no_pause_longer(bench: Bench) -> None:
    late = [bench.outages.asking(CA, name) for name in "abc"]
    for each in late:
        each.__enter__()
    bench.ask("first", unreachable())
    bench.now += 10 * SECOND
    for each in late:
        assert not each.__exit__(AcmeFailure, unreachable(), None)
    assert bench.until == START + MINUTE


def test_a_person_may_ask_a_ca_that_is_away_but_not_against_a_limit(bench: Bench) -> None:
    bench.ask("a", unreachable())
    assert not bench.outages.away("b", by_hand=True)
    bench.ask("b", limited("too many new orders", retry_at=bench.now + 60 * MINUTE))
    assert bench.outages.away("b", by_hand=True)
    assert not bench.outages.away("b", by_hand=True, force=True)


def test_a_person_who_asks_in_vain_makes_no_pause_longer_and_who_is_answered_ends_it(bench: Bench) -> None:
    bench.ask("a", unreachable())
    bench.ask("by hand", unreachable())
    assert bench.until == START + MINUTE
    bench.ask("by hand", None)
    assert bench.until is None


def test_nobody_says_since_when_who_has_not_asked_for_long(bench: Bench) -> None:
    bench.ask("a", unreachable())
    bench.now += 5 * 60 * MINUTE
    bench.ask("a", unreachable())
    outage = bench.outages.away()[CA]
    assert (outage.since, outage.until) == (bench.now, bench.now + MINUTE)


def test_a_clock_that_is_set_back_ends_the_wait(bench: Bench) -> None:
    bench.ask("a", unreachable())
    bench.now -= timedelta(days=1)
    assert bench.until is None
    bench.now = START - LONGEST / 2
    assert bench.until


def test_another_ca_is_another_matter(bench: Bench) -> None:
    bench.ask("a", unreachable())
    with bench.outages.asking("https://other.test", "a"):
        pass
    assert list(bench.outages.away()) == [CA]
    assert repr(bench.outages) == f"<Outages {CA}>"


def test_what_is_said(bench: Bench) -> None:
    bench.ask("a", unreachable())
    outage = bench.outages.away()[CA]
    assert outage.words == (
        f"the CA {CA} has been out of service since 2027-01-01 00:00 UTC; it is tried again on 2027-01-01 00:01 UTC"
    )
    assert "can't be reached" in outage.error
    bench.ask("a", limited("too many new orders", retry_at=bench.now + 60 * MINUTE))
    assert bench.outages.away()[CA].words == f"the CA {CA} grants nothing more before 2027-01-01 01:00 UTC"
