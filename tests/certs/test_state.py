"""What is remembered: schedules, transitions, and the record that survives restarts."""

import json
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.certs.plans import BORN, CA, DAY, HOUR, MINUTE, SITE, STAGING, WANTED, at, failed, living, windowed
from tlsproxy.certs.ari import after_ari_failure, ari_due, ari_next_check, window_of, with_ari
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.retries import retry_delay
from tlsproxy.certs.state import (
    HISTORY,
    State,
    after_rehearsal,
    after_revocation,
    after_success,
    by_hand,
    needs_alert,
    used,
)
from tlsproxy.certs.wanted import Held, Obtain

VALIDATION, UNREACHABLE = FailureKind.VALIDATION, FailureKind.UNREACHABLE


# --- the retry schedule


@pytest.mark.parametrize(
    ("held", "now", "attempts", "kind", "expected"),
    [
        (SITE, 60, 1, VALIDATION, 1 * MINUTE),
        (SITE, 60, 2, VALIDATION, 10 * MINUTE),
        (SITE, 60, 3, VALIDATION, 100 * MINUTE),
        (SITE, 60, 4, VALIDATION, 1 * DAY),
        (SITE, 60, 99, VALIDATION, 1 * DAY),
        (living(160 * HOUR), 4, 4, VALIDATION, 8 * HOUR),
        (living(160 * HOUR), 4, 3, VALIDATION, 100 * MINUTE),
        (living(12 * HOUR), 0.3, 3, VALIDATION, 36 * MINUTE),
        (living(6 * MINUTE), 0.003, 3, VALIDATION, 1 * MINUTE),
        # towards the end a quarter of what is left
        (SITE, 88, 9, VALIDATION, 12 * HOUR),
        (SITE, 89.99, 9, VALIDATION, 100 * MINUTE),
        # without a valid certificate
        (None, 0, 4, VALIDATION, 6 * HOUR),
        (SITE, 91, 9, VALIDATION, 6 * HOUR),
        (None, 4, 9, VALIDATION, 1 * DAY),
        (SITE, 94, 9, VALIDATION, 1 * DAY),
        # nothing was spent
        (SITE, 60, 9, UNREACHABLE, 100 * MINUTE),
        (None, 9, 9, FailureKind.BUSY, 100 * MINUTE),
        (None, 9, 1, UNREACHABLE, 1 * MINUTE),
    ],
)
def test_the_schedule(held: Held | None, now: float, attempts: int, kind: FailureKind, expected: timedelta) -> None:
    since = BORN if held is None else min(at(now), at(60))
    assert retry_delay(attempts, kind, held, since, at(now), 0.5) == expected


@pytest.mark.parametrize(("rnd", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.999, 1.2)])
def test_every_wait_is_spread_by_a_fifth(rnd: float, factor: float) -> None:
    assert retry_delay(2, VALIDATION, SITE, BORN, at(60), rnd) / (10 * MINUTE) == pytest.approx(factor, abs=0.001)


@given(st.sampled_from(list(FailureKind)), st.floats(1, 200), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60)
def test_never_more_than_five_attempts_within_an_hour(kind: FailureKind, life: float, rnd: float) -> None:
    held, now, times = living(life * DAY), BORN + life * DAY * 2 / 3, []
    for attempts in range(1, 30):
        times.append(now)
        now += retry_delay(attempts, kind, held, times[0], now, rnd)
    assert max(sum(1 for time in times if start <= time < start + HOUR) for start in times) <= 5


# --- transitions


def test_a_failure_is_counted_and_remembered_with_the_cas_own_words() -> None:
    failure = AcmeFailure(
        VALIDATION, detail="Fetching http://a.test: refused", address="2001:db8::7", step="validation"
    )
    state = failed(failure, now=at(1))
    assert (state.attempts, state.failing_since, state.next_attempt) == (1, at(1), at(1) + MINUTE)
    assert state.last_error is not None
    assert state.last_error.sentence == str(failure)
    assert (state.last_error.ca_words, state.last_error.address) == (failure.detail, "2001:db8::7")
    assert state.history[-1].what == "failed"


def test_failing_since_is_the_first_failure() -> None:
    assert failed(VALIDATION, now=at(5), state=failed(VALIDATION, now=at(1))).failing_since == at(1)


def test_a_cancelled_attempt_leaves_no_trace() -> None:
    assert failed(FailureKind.CANCELLED) == State()


def test_our_own_quota_guard_makes_wait_but_counts_no_attempt() -> None:
    state = failed(AcmeFailure(FailureKind.QUOTA, retry_at=at(2)), now=at(1))
    assert (state.attempts, state.next_attempt, dict(state.busy)) == (0, None, {CA: at(2)})
    assert state.last_error is not None


def test_a_ca_may_ask_for_no_more_than_a_week() -> None:
    assert failed(AcmeFailure(FailureKind.RATE_LIMITED, retry_at=at(300))).busy == {CA: at(7)}


def test_what_the_staging_ca_asks_for_binds_it_alone() -> None:
    failure = AcmeFailure(VALIDATION, retry_at=at(1))
    assert failed(failure, action=Obtain("test", rehearse=True)).busy == {STAGING: at(1)}


def test_success_forgets_failures_and_remembers_what_worked() -> None:
    state = replace(failed(VALIDATION, VALIDATION), winners={"a.test": "http-01", "gone.test": "http-01"})
    state = replace(state, busy={CA: at(1), "https://other.test": at(3)})
    state = after_success(used(state, at(1)), WANTED, SITE, at(2), {"b.test": "dns-01"})
    assert replace(state, history=()) == State(
        fingerprint="one",
        busy={"https://other.test": at(3)},
        winners={"a.test": "http-01", "b.test": "dns-01"},
        last_success=at(2),
        last_attempt=at(2),
        last_used=at(1),
    )


def test_what_a_rehearsal_has_learned_is_used() -> None:
    state = replace(failed(VALIDATION), winners={"a.test": "tls-alpn-01", "b.test": "dns-01"})
    state = after_rehearsal(state, at(1), {"a.test": "http-01"})
    assert state.winners == {"a.test": "http-01", "b.test": "dns-01"}


def test_history_keeps_the_last_lines() -> None:
    state = failed(*[VALIDATION] * 30)
    state = after_revocation(by_hand(after_rehearsal(state, at(1)), WANTED, at(1)), SITE, at(2), "keyCompromise")
    assert len(state.history) == HISTORY
    assert [event.what for event in state.history[-3:]] == ["rehearsed", "asked", "revoked"]


@pytest.mark.parametrize(
    ("held", "since", "now", "expected"),
    [(None, 0, 2.9, False), (None, 0, 3, True), (SITE, 60, 89, False), (SITE, 60, 91, False), (SITE, 60, 93.1, True)],
)
def test_people_are_called_after_three_days_without_a_valid_certificate(
    held: Held | None, since: float, now: float, expected: bool
) -> None:
    assert needs_alert(failed(VALIDATION, now=at(since)), held, at(now)) is expected


# --- renewal information


@pytest.mark.parametrize(
    ("retry_after", "pause"), [(None, 6 * HOUR), (0, MINUTE), (7200, 2 * HOUR), (1e9, DAY), (-5, MINUTE)]
)
def test_the_window_is_fetched_when_the_ca_says_within_limits(retry_after: float | None, pause: timedelta) -> None:
    assert ari_due(State(), SITE, at(1))
    state = with_ari(State(), SITE, at(50), at(52), retry_after=retry_after, now=at(1))
    assert ari_next_check(state, SITE, at(1)) == at(1) + pause
    assert not ari_due(state, SITE, at(1))


def test_no_window_without_an_id_or_a_ca_or_for_what_is_expired() -> None:
    assert not ari_due(State(), None, at(1))
    assert not ari_due(State(), replace(SITE, ari_id=""), at(1))
    assert not ari_due(State(), replace(SITE, directory=""), at(1))
    assert not ari_due(State(), SITE, at(91))


def test_a_new_certificate_has_its_window_fetched_at_once() -> None:
    state = windowed(at(50), at(52))
    new = replace(SITE, ari_id="aki.new")
    assert window_of(state, new) is None
    assert ari_due(state, new, BORN)
    assert not ari_due(state, SITE, BORN)


def test_failures_back_off_and_the_known_window_stays() -> None:
    state, now, pauses = windowed(at(50), at(52)), BORN, []
    for _ in range(9):
        state = after_ari_failure(state, SITE, now=now, rnd=0.5)
        due = ari_next_check(state, SITE, now)
        assert due is not None
        pauses.append((due - now) / MINUTE)
        now = due
    assert pauses == [10, 20, 40, 80, 160, 320, 360, 360, 360]
    assert state.ari is not None
    assert state.ari.start == at(50)
    assert ari_next_check(after_ari_failure(state, SITE, retry_after=1e6, now=now, rnd=0.5), SITE, now) == now + DAY


def test_a_window_that_ends_before_it_begins_is_none() -> None:
    state = with_ari(State(), SITE, at(52), at(50), retry_after=None, now=BORN)
    assert state.ari is not None
    assert (state.ari.start, state.ari.failures) == (None, 1)


def test_a_check_far_ahead_is_of_a_clock_that_was_wrong() -> None:
    assert ari_due(with_ari(State(), SITE, at(50), at(52), retry_after=60, now=at(80)), SITE, at(1))


# --- the record


FULL = replace(
    windowed(at(50), at(52), url="https://ca.test/why", state=failed(VALIDATION, FailureKind.REFUSED)),
    busy={CA: at(3)},
    winners={"a.test": "dns-01"},
    last_success=at(1),
    last_used=at(2),
    rehearsed=True,
    no_replaces="aki.x",
    replace_now="f0",
)


@pytest.mark.parametrize("state", [State(), FULL, failed(*[AcmeFailure(VALIDATION, subproblems=())] * 3)])
def test_a_record_brings_everything_back(state: State) -> None:
    assert State.from_record(json.loads(json.dumps(state.to_record()))) == state


def test_a_fresh_state_is_an_empty_record() -> None:
    assert State().to_record() == {}


def test_fields_of_later_versions_are_ignored() -> None:
    record = {**FULL.to_record(), "invented": 5, "ari": {**FULL.to_record()["ari"], "invented": [1]}}
    assert State.from_record(record) == FULL


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("2026-01-01"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["when", "x", "start"]), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([field.name for field in fields(State)]), _JSON))
@settings(max_examples=100)
def test_no_record_is_so_damaged_that_it_can_not_be_read(record: dict[str, Any]) -> None:
    state = State.from_record(record)
    assert State.from_record(state.to_record()) == state


@pytest.mark.parametrize("record", [None, [], "x", {"attempts": True}, {"next_attempt": "2026-01-01T00:00:00"}])
def test_what_can_not_be_understood_has_its_default(record: Any) -> None:
    assert State.from_record(record) == State()
