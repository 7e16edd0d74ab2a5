"""What is due when, as rules over a fake clock."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.certs.plans import (
    ACCOUNT,
    BORN,
    CA,
    DAY,
    FIRST,
    HOUR,
    MINUTE,
    OTHER,
    SECOND,
    SITE,
    STAGING,
    TWO,
    WANTED,
    at,
    failed,
    living,
    windowed,
)
from tlsproxy.certs.outages import Outage
from tlsproxy.certs.plan import TICK, plan, renewal_time
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.state import Ari, State, after_rehearsal, after_revocation, after_success, by_hand, used
from tlsproxy.certs.wanted import Action, Held, IssuerId, Obtain, Park, Wait, Wanted
from tlsproxy.settings.directories import directory_url

VALIDATION, REFUSED, RATE_LIMITED = FailureKind.VALIDATION, FailureKind.REFUSED, FailureKind.RATE_LIMITED
FRESH = State()


# --- when to renew


@pytest.mark.parametrize(
    ("life", "first", "last"),
    [
        (160 * HOUR, 3.2, 3.47),
        (45 * DAY, 29.1, 30.9),
        (64 * DAY, 41.38, 43.95),
        (90 * DAY, 58.2, 61.8),
        (200 * DAY, 129.3, 137.4),
        (1 * DAY, 0.48, 0.52),
        (1 * HOUR, 0.019, 0.022),
    ],
)
@given(ari_id=st.text("abcdef", min_size=1))
@settings(max_examples=20)
def test_without_a_window_two_thirds_of_the_life_or_half_of_a_short_one(
    life: timedelta, first: float, last: float, ari_id: str
) -> None:
    when = renewal_time(living(life, ari_id))
    assert first <= (when - BORN) / DAY <= last
    assert renewal_time(living(life, ari_id)) == when


def test_a_hundred_certificates_of_one_day_spread_over_the_whole_range() -> None:
    times = sorted(renewal_time(living(90 * DAY, f"id{n}")) for n in range(100))
    assert times[-1] - times[0] > 3 * DAY


WINDOW = Ari("aki.serial", at(50), at(52))
LATE = Ari("aki.serial", at(95), at(99))


@pytest.mark.parametrize(
    ("ari", "first", "last"),
    [
        (WINDOW, 50, 52),
        (replace(WINDOW, start=at(1), end=at(1)), 1, 1),
        (replace(WINDOW, start=at(-9), end=at(-8)), -9, -8),
        (replace(WINDOW, certificate="aki.other"), 58, 62),
        (replace(WINDOW, start=None), 58, 62),
        (LATE, 85.5, 85.5),  # the emergency floor: a twentieth of the life is left
        (None, 58, 62),
    ],
)
def test_the_window_of_this_very_certificate_decides(ari: Ari | None, first: float, last: float) -> None:
    assert at(first) <= renewal_time(SITE, ari) <= at(last)


def test_a_window_never_applies_to_a_certificate_without_an_id() -> None:
    held = replace(SITE, ari_id="")
    assert renewal_time(held, replace(WINDOW, certificate="")) > at(57)


@pytest.mark.parametrize(
    ("life", "floor"),
    [(90 * DAY, 4.5 * DAY), (160 * HOUR, 8 * HOUR), (12 * HOUR, 100 * MINUTE), (1 * HOUR, 15 * MINUTE)],
)
def test_the_emergency_floor_follows_the_life(life: timedelta, floor: timedelta) -> None:
    held = living(life)
    beyond = Ari(held.ari_id, held.not_after, held.not_after)
    assert renewal_time(held, beyond) == held.not_after - floor


@given(st.floats(-100, 200), st.floats(0, 50), st.sampled_from([1, 6.67, 45, 90, 200]), st.text(min_size=1))
@settings(max_examples=100)
def test_no_window_lets_a_certificate_expire(start: float, width: float, life: float, ari_id: str) -> None:
    held = living(life * DAY, ari_id)
    assert renewal_time(held, Ari(ari_id, at(start), at(start + width))) < held.not_after


def test_it_is_renewed_one_tick_early_rather_than_late() -> None:
    due = renewal_time(SITE) - TICK
    assert plan(WANTED, SITE, FRESH, due - 1 * MINUTE) == Wait(due, "about two thirds of its life are over then")
    assert obtained(plan(WANTED, SITE, FRESH, due)).reason == "two thirds of its life are over"


# --- what makes a certificate due

RENEWED = windowed(at(50), at(52))
MOVED = windowed(at(-9), at(-8), url="https://ca.test/incident")


@pytest.mark.parametrize(
    ("held", "state", "day", "expected"),
    [
        (None, FRESH, 0, "there is no certificate yet"),
        (None, replace(FRESH, last_success=BORN), 1, "it is not in the store any more"),
        (SITE, FRESH, 1, at(61)),
        (SITE, FRESH, 62, "two thirds of its life are over"),
        (living(160 * HOUR), FRESH, 3.6, "half of its life is over"),
        (SITE, RENEWED, 1, at(51)),
        (SITE, RENEWED, 51.99, "the CA wants it renewed between 2026-02-20 00:00 UTC and 2026-02-22 00:00 UTC"),
        (SITE, MOVED, 2, "the CA wanted it renewed between 2025-12-23"),
        (SITE, FRESH, 89, "it expires in 1 day"),
        (SITE, FRESH, 91, "it expired on 2026-04-01 00:00 UTC"),
        (replace(SITE, names=("a.test",)), FRESH, 1, "it does not cover b.test"),
        (replace(SITE, names=("a.test", "b.test", "c.test")), FRESH, 1, at(61)),
        (replace(SITE, names=("*.test",)), FRESH, 1, at(61)),
        (replace(SITE, directory="https://gone.test"), FRESH, 1, at(61)),
        (replace(SITE, profile="tlsserver"), FRESH, 1, at(61)),
        (replace(SITE, directory="", source="file"), FRESH, 1, at(61)),
        (replace(SITE, directory=STAGING), FRESH, 1, f"it is a test certificate of {STAGING}, which no client trusts"),
        (SITE, after_revocation(FRESH, SITE, BORN), 1, "it was revoked"),
        (SITE, after_revocation(FRESH, replace(SITE, fingerprint="f0"), BORN), 1, at(61)),
    ],
)
def test_due(held: Held | None, state: State, day: float, expected: str | datetime) -> None:
    action = plan(WANTED, held, state, at(day))
    if isinstance(expected, str):
        assert obtained(action).reason.startswith(expected)
    else:
        assert isinstance(action, Wait)
        assert abs(action.until - expected) < 2 * DAY


def test_the_page_of_the_ca_is_in_the_reason() -> None:
    assert "https://ca.test/incident" in obtained(plan(WANTED, SITE, MOVED, at(2))).reason


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (replace(SITE, directory="https://gone.test"), f"the next one comes from {CA}"),
        (replace(SITE, profile="tlsserver"), "the next one has profile of the choice of the CA"),
        (SITE, "of its life are over then"),
    ],
)
def test_a_changed_issuer_or_profile_waits_for_the_renewal_and_says_so(held: Held, words: str) -> None:
    assert waited(plan(WANTED, held, FRESH, at(1))).reason.endswith(words)


def test_a_person_may_have_it_now() -> None:
    action = plan(WANTED, SITE, by_hand(FRESH, WANTED, at(1)), at(1), forced="asked for by hand")
    assert action == Obtain("asked for by hand")


# --- clocks that are wrong


def test_a_certificate_of_the_future_is_waited_for() -> None:
    action = waited(plan(WANTED, SITE, FRESH, at(-1)))
    assert action.until == BORN
    assert "is the clock right?" in action.reason


def test_a_clock_far_ahead_orders_once_a_day_at_most() -> None:
    """Whatever the CA issues is expired at once then."""
    now, orders, state = at(1000), 0, FRESH
    for _ in range(7 * 24 * 6):
        if isinstance(plan(WANTED, SITE, state, now), Obtain):
            state, orders = after_success(state, WANTED, SITE, now), orders + 1
        now += 10 * MINUTE
    assert orders <= 8


def test_a_ca_that_always_wants_renewal_gets_one_order_a_day() -> None:
    """And a short-lived certificate a third of that: cert-manager#8993 made five orders in ten seconds."""
    now, orders, state = at(10), 0, FRESH
    for _ in range(7 * 24 * 6):
        held = replace(SITE, not_before=now - HOUR, not_after=now + 89 * DAY)
        state = windowed(now - 2 * HOUR, now - HOUR, held, state=state)
        if isinstance(plan(WANTED, held, state, now), Obtain):
            state, orders = after_success(state, WANTED, held, now), orders + 1
        now += 10 * MINUTE
    assert orders <= 8


@pytest.mark.parametrize(("back", "expected"), [(5 * MINUTE, Wait), (2 * DAY, Obtain)])
def test_a_clock_set_back_past_the_last_attempt_makes_its_wait_void(back: timedelta, expected: type[Action]) -> None:
    state = failed(*[VALIDATION] * 5, now=at(30))
    assert isinstance(plan(WANTED, None, state, at(30) - back), expected)


def test_a_wait_that_the_ca_asked_for_under_a_wrong_clock_is_void() -> None:
    busy = AcmeFailure(RATE_LIMITED, retry_at=at(1000) + HOUR)
    state = failed(busy, now=at(1000))
    assert isinstance(plan(WANTED, None, state, at(1)), Obtain)


# --- after failures


def test_nothing_before_the_next_attempt() -> None:
    state = failed(VALIDATION, now=at(1))
    action = waited(plan(WANTED, None, state, at(1)))
    assert action.until == at(1) + 1 * MINUTE
    assert action.reason == ("there is no certificate yet, but 1 attempt failed; the next is on 2026-01-02 00:01 UTC")


def test_the_second_attempt_is_rehearsed_and_then_made() -> None:
    state = failed(VALIDATION)
    soon = BORN + HOUR
    assert plan(WANTED, None, state, soon) == Obtain("there is no certificate yet", rehearse=True)
    state = after_rehearsal(state, soon)
    assert plan(WANTED, None, state, soon) == Obtain("there is no certificate yet")
    again = failed(VALIDATION, state=state, now=soon)
    assert obtained(plan(WANTED, None, again, soon + HOUR)).rehearse


def test_after_three_rehearsals_that_fail_the_real_ca_has_the_say() -> None:
    assert rehearsals(None, at(0), 9) == [False, True, True, True, False, True, True, True, False]


def test_a_certificate_that_is_about_to_expire_waits_for_no_rehearsal() -> None:
    assert rehearsals(SITE, at(70), 3) == [False, True, True]
    assert rehearsals(SITE, at(86), 3) == [False, False, False]
    assert rehearsals(SITE, at(91), 3) == [False, True, True]


@pytest.mark.parametrize("kind", [FailureKind.UNREACHABLE, FailureKind.BUSY, FailureKind.QUOTA, RATE_LIMITED])
def test_what_says_nothing_about_the_name_is_not_rehearsed(kind: FailureKind) -> None:
    assert not obtained(plan(WANTED, None, failed(kind), at(2))).rehearse
    assert not obtained(plan(WANTED, None, failed(VALIDATION, FailureKind.BUSY), at(2))).rehearse


@pytest.mark.parametrize("kind", [FailureKind.QUOTA, FailureKind.STORE])
def test_what_no_ca_has_said_takes_no_doubt_away(kind: FailureKind) -> None:
    assert obtained(plan(WANTED, None, failed(VALIDATION, kind), at(2))).rehearse


@pytest.mark.parametrize("kind", [FailureKind.UNREACHABLE, FailureKind.BUSY, FailureKind.QUOTA, RATE_LIMITED, REFUSED])
def test_the_staging_cas_own_trouble_keeps_nobody_from_the_real_one(kind: FailureKind) -> None:
    state = failed(VALIDATION)
    now = BORN + HOUR
    state = failed(kind, state=state, now=now, action=obtained(plan(WANTED, None, state, now)))
    assert plan(WANTED, None, state, now) == Obtain("there is no certificate yet")


@pytest.mark.parametrize("issuers", [(SECOND,), (replace(FIRST, staging=""),)], ids=["another CA", "no rehearsals"])
def test_a_test_certificate_is_replaced_whatever_ca_takes_over(issuers: tuple[IssuerId, ...]) -> None:
    tried_out = replace(SITE, directory=directory_url("letsencrypt-staging"))
    action = plan(replace(WANTED, issuers=issuers), tried_out, FRESH, at(1))
    assert isinstance(action, Obtain)
    staying = replace(WANTED, issuers=(*issuers, IssuerId(tried_out.directory)))
    assert isinstance(plan(staying, tried_out, FRESH, at(1)), Wait)


def test_no_rehearsal_where_no_staging_is_known() -> None:
    wanted = replace(WANTED, issuers=(SECOND,))
    assert not obtained(plan(wanted, None, failed(VALIDATION, wanted=wanted), at(1))).rehearse


def test_a_permanent_error_is_parked_until_the_configuration_changes() -> None:
    state = failed(REFUSED)
    assert isinstance(plan(WANTED, None, state, at(300)), Park)
    changed = replace(WANTED, fingerprint="two")
    assert plan(changed, None, state, BORN) == Obtain("there is no certificate yet")


def test_a_permanent_error_is_tried_again_by_hand() -> None:
    state = by_hand(failed(REFUSED), WANTED, at(1))
    assert isinstance(plan(WANTED, None, state, at(1), forced="asked for by hand"), Obtain)


def test_a_changed_configuration_is_tried_at_once() -> None:
    state = failed(*[VALIDATION] * 6)
    assert isinstance(plan(WANTED, None, state, BORN + HOUR), Wait)
    assert isinstance(plan(replace(WANTED, fingerprint="two"), None, state, BORN + HOUR), Obtain)


@pytest.mark.parametrize("kind", [VALIDATION, REFUSED, FailureKind.BUSY])
def test_two_configurations_on_one_store_do_not_set_each_other_off(kind: FailureKind) -> None:
    """Two machines or releases whose [acme] differs, a day long, each looking every ten seconds."""
    two, state, asked = (WANTED, replace(WANTED, fingerprint="two")), FRESH, []
    for second in range(0, 86_400, 10):
        now, wanted = BORN + timedelta(seconds=second), two[second // 10 % 2]
        action = plan(wanted, None, state, now)
        if isinstance(action, Obtain):
            asked.append(now)
            state = failed(kind, state=state, now=now, wanted=wanted, action=action)
    assert 5 <= len(asked) <= 20
    assert all(later - sooner >= HOUR for sooner, later in zip(asked, asked[5:], strict=False)), "5 failures an hour"


def test_a_person_is_heard_whatever_configurations_there_are() -> None:
    state = failed(VALIDATION, wanted=replace(WANTED, fingerprint="two"))
    state = failed(VALIDATION, state=state, wanted=WANTED)
    other = replace(WANTED, fingerprint="two")
    assert isinstance(plan(other, None, state, BORN), Wait)
    for force in (False, True):
        asked = by_hand(state, other, BORN, force=force)
        assert plan(other, None, asked, BORN, forced="asked") == Obtain("asked", rehearse=not force)


@pytest.mark.parametrize("forced", ["", "asked for by hand"])
def test_retry_after_wins_even_over_a_changed_configuration_and_a_person(forced: str) -> None:
    state = failed(AcmeFailure(RATE_LIMITED, retry_at=at(2)))
    for wanted in (WANTED, replace(WANTED, fingerprint="two")):
        action = waited(plan(wanted, None, state, at(1), forced=forced))
        assert action.until == at(2)
    assert isinstance(plan(WANTED, None, state, at(2)), Obtain)


def test_only_force_overrides_what_the_ca_said() -> None:
    state = failed(AcmeFailure(RATE_LIMITED, retry_at=at(2)))
    forced = by_hand(state, WANTED, at(1), force=True)
    assert plan(WANTED, None, forced, at(1), forced="asked for by hand") == Obtain("asked for by hand")


def test_who_asks_by_hand_after_a_failure_has_it_rehearsed_too() -> None:
    state = by_hand(failed(VALIDATION), WANTED, BORN)
    assert plan(WANTED, None, state, BORN, forced="asked for by hand") == Obtain("asked for by hand", rehearse=True)


# --- several CAs


def test_after_three_failures_in_a_row_the_next_ca() -> None:
    assert turns(TWO, [VALIDATION] * 8) == [0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_a_ca_that_refuses_for_good_is_left_at_once_and_all_of_them_are_parked() -> None:
    assert turns(TWO, [REFUSED]) == [0, 1]
    assert isinstance(plan(TWO, None, failed(REFUSED, REFUSED, wanted=TWO), at(9)), Park)


def test_our_own_store_is_no_reason_to_ask_another_ca() -> None:
    assert turns(TWO, [FailureKind.STORE] * 5) == [0] * 6


def test_a_ca_that_asks_for_hours_is_left_for_another_one() -> None:
    for hours, expected in ((0.5, 0), (5, 1)):
        state = failed(AcmeFailure(RATE_LIMITED, retry_at=BORN + hours * HOUR), wanted=TWO)
        action = plan(TWO, None, state, BORN + 5 * MINUTE)
        assert action == (Obtain("there is no certificate yet", issuer=1) if expected else action)
        assert isinstance(action, Obtain if expected else Wait)


def test_the_next_renewal_begins_with_the_first_ca_again() -> None:
    state = failed(*[VALIDATION] * 3, wanted=TWO)
    state = after_success(state, TWO, replace(SITE, directory=OTHER), BORN)
    action = obtained(plan(TWO, replace(SITE, directory=OTHER), state, at(70)))
    assert (action.issuer, action.rehearse) == (0, False)


def test_one_ca_may_stand_there_twice_with_two_profiles() -> None:
    both = (IssuerId(CA, "shortlived"), IssuerId(CA, "classic"))
    wanted = replace(WANTED, issuers=both)
    assert obtained(plan(wanted, None, failed(REFUSED, wanted=wanted), at(1))).issuer == 1


# --- replaces

KNOWN = windowed(at(50), at(52))


@pytest.mark.parametrize(
    ("why", "issuer", "held", "state", "expected"),
    [
        ("the same CA and account, and a window", FIRST, SITE, KNOWN, "aki.serial"),
        ("another account", replace(FIRST, account=f"{ACCOUNT}2"), SITE, KNOWN, ""),
        ("an account not known", replace(FIRST, account=""), replace(SITE, account=""), KNOWN, ""),
        ("another CA", replace(FIRST, directory=OTHER), SITE, KNOWN, ""),
        ("no window was ever fetched", FIRST, SITE, FRESH, ""),
        ("the window of another certificate", FIRST, SITE, windowed(at(1), at(2), living(DAY, "x")), ""),
        ("a CA that has refused it", FIRST, SITE, replace(KNOWN, no_replaces="aki.serial"), ""),
        ("it refused another one", FIRST, SITE, replace(KNOWN, no_replaces="aki.old"), "aki.serial"),
        ("one of the names is the same", FIRST, replace(SITE, names=("a.test",)), KNOWN, "aki.serial"),
        ("no name is the same", FIRST, replace(SITE, names=("c.test",)), KNOWN, ""),
        ("a second profile of the same CA", replace(FIRST, profile="tlsserver"), SITE, KNOWN, "aki.serial"),
    ],
)
def test_replaces(why: str, issuer: IssuerId, held: Held, state: State, expected: str) -> None:
    action = obtained(plan(replace(WANTED, issuers=(issuer,)), held, state, at(60)))
    assert action.replaces == expected, why


@pytest.mark.parametrize(
    "failure",
    [
        AcmeFailure(FailureKind.ALREADY_REPLACED, step="order"),
        AcmeFailure(FailureKind.REFUSED, status=401, step="order"),
        AcmeFailure(FailureKind.BAD_ORDER, status=404, step="order"),
    ],
)
def test_an_order_that_a_ca_refuses_with_replaces_is_made_without_at_once(failure: AcmeFailure) -> None:
    first = obtained(plan(WANTED, SITE, KNOWN, at(60)))
    state = failed(failure, state=KNOWN, now=at(60), action=first)
    assert plan(WANTED, SITE, state, at(60)) == replace(first, replaces="")


def test_a_rehearsal_replaces_nothing() -> None:
    state = failed(VALIDATION, state=KNOWN, now=at(60))
    assert obtained(plan(WANTED, SITE, state, at(61))) == Obtain(
        "the CA wanted it renewed between 2026-02-20 00:00 UTC and 2026-02-22 00:00 UTC", rehearse=True
    )


# --- on demand

ASKED = replace(WANTED, name="acme/x.test", hosts=("a.test",), on_demand=True)


@pytest.mark.parametrize(
    ("held", "last_used", "day", "expected"),
    [
        (None, None, 0, Park),
        (None, 0, 0.01, Obtain),
        (None, 0, 1, Park),
        (SITE, 40, 65, Obtain),
        (SITE, 1, 65, Wait),
        (SITE, None, 65, Wait),
        (SITE, 1, 100, Park),
        (SITE, 100, 100.01, Obtain),
        (living(160 * HOUR), 2, 4, Obtain),
        (living(160 * HOUR), 0, 4, Wait),
    ],
)
def test_on_demand_only_what_was_used_lately(
    held: Held | None, last_used: float | None, day: float, expected: type[Action]
) -> None:
    state = FRESH if last_used is None else used(FRESH, at(last_used))
    assert isinstance(plan(ASKED, held, state, at(day)), expected)


def test_an_unused_one_is_left_to_expire() -> None:
    action = waited(plan(ASKED, SITE, used(FRESH, at(1)), at(65)))
    assert action == Wait(SITE.not_after, "no client has asked for it since 2026-01-02 00:00 UTC; it is left to expire")


def rehearsals(held: Held | None, begin: datetime, count: int) -> list[bool]:
    """Which of so many attempts are rehearsed; none of them succeeds."""
    state, now, found = FRESH, begin, []
    for _ in range(count):
        action = obtained(plan(WANTED, held, state, now))
        found.append(action.rehearse)
        state = failed(VALIDATION, state=state, now=now, held=held, action=action)
        now = state.next_attempt or now
    return found


def obtained(action: Action) -> Obtain:
    assert isinstance(action, Obtain), action
    return action


def waited(action: Action) -> Wait:
    assert isinstance(action, Wait), action
    return action


def turns(wanted: Wanted, failures: list[FailureKind]) -> list[int]:
    """The CAs asked, attempt by attempt; each rehearsal goes well."""
    state, now, asked = FRESH, BORN, []
    for failure in [*failures, None]:
        now += 3 * DAY
        action = obtained(plan(wanted, None, state, now))
        if action.rehearse:
            state = after_rehearsal(state, now)
            action = obtained(plan(wanted, None, state, now))
        asked.append(action.issuer)
        if failure:
            state = failed(failure, wanted=wanted, state=state, now=now, action=action)
    return asked


# --- CAs that are away


def away(directory: str = CA, *, minutes: float = 1, is_limit: bool = False) -> dict[str, Outage]:
    """Of no use since BORN."""
    return {directory: Outage(directory, BORN, BORN + minutes * MINUTE, is_limit, "no answer")}


def test_who_has_not_asked_waits_for_a_ca_that_is_away_and_has_not_failed() -> None:
    action = plan(WANTED, None, FRESH, BORN, away=away())
    assert isinstance(action, Wait)
    assert action.until == BORN + MINUTE
    assert action.reason.startswith(f"there is no certificate yet, but the CA {CA} has been out of service since ")
    assert isinstance(plan(WANTED, None, FRESH, BORN, away=away(OTHER)), Obtain)


def test_a_certificate_that_is_good_waits_for_its_renewal_alone() -> None:
    assert plan(WANTED, SITE, FRESH, at(10), away=away()) == plan(WANTED, SITE, FRESH, at(10))


@pytest.mark.parametrize(
    ("now", "held", "outage", "issuer"),
    [
        (BORN, None, away(), None),
        (BORN + 9 * MINUTE, None, away(minutes=10), None),
        (BORN + 10 * MINUTE, None, away(minutes=15), 1),
        (at(89), SITE, {CA: Outage(CA, at(89) - 30 * MINUTE, at(89) + MINUTE)}, None),
        (at(89), SITE, {CA: Outage(CA, at(89) - 60 * MINUTE, at(89) + MINUTE)}, 1),
        (BORN + 30 * MINUTE, None, away(minutes=60, is_limit=True), None),
        (BORN, None, away(minutes=61, is_limit=True), 1),
        (BORN, None, away(OTHER, minutes=61), 0),
        (BORN + 20 * MINUTE, None, away(minutes=30) | away(OTHER, minutes=25), None),
    ],
)
def test_another_ca_is_asked_when_the_first_is_away_for_long(
    now: datetime, held: Held | None, outage: dict[str, Outage], issuer: int | None
) -> None:
    action = plan(TWO, held, FRESH, now, away=outage)
    assert (action.issuer if isinstance(action, Obtain) else None) == issuer


def test_of_two_that_are_away_the_one_that_comes_back_first_is_waited_for() -> None:
    action = plan(TWO, None, FRESH, BORN + 20 * MINUTE, away=away(minutes=30) | away(OTHER, minutes=25))
    assert isinstance(action, Wait)
    assert action.until == BORN + 25 * MINUTE


def test_its_own_longer_wait_is_the_reason() -> None:
    state = failed(VALIDATION, VALIDATION)
    action = plan(WANTED, None, state, BORN, away=away())
    assert isinstance(action, Wait)
    assert "2 attempts failed" in action.reason


def test_no_rehearsal_at_a_staging_ca_that_is_away() -> None:
    state = failed(VALIDATION)
    assert plan(WANTED, None, state, BORN + 2 * MINUTE) == Obtain("there is no certificate yet", rehearse=True)
    action = plan(WANTED, None, state, BORN + 2 * MINUTE, away=away(STAGING, minutes=5))
    assert action == Obtain("there is no certificate yet")
