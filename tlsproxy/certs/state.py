"""What is remembered about one certificate besides the certificate: failures, the next attempt, the CA's wishes. PURE.

Knows: how a failure, a success or a word of the CA changes what is remembered, and how that becomes a record of the
folder "state". Does not know: what is done with it (plan.py), stores, the clock (an argument, as is the random number).
Rules: a State is never edited, a transition returns a new one; it survives restarts and is shared by all machines, so
a restart resets no count; reading a record never fails, because a damaged state must not keep a certificate from being
renewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from tlsproxy.certs import records
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.retries import LONGEST_RETRY_AFTER, is_hopeless, retry_delay
from tlsproxy.certs.wanted import Held, Obtain, Wanted
from tlsproxy.certs.words import moment

FOLDER = "state"
FAILURES_PER_CA = 3
"""So many failures in a row with one CA, and the next one of the list is asked."""
HISTORY = 10
MINUTE = timedelta(minutes=1)
_MOST_DOUBLINGS = 8  # to four hours between attempts with a configuration that has failed before
_MOST_TRIED = 8
_OWN_WAIT = timedelta(hours=1)  # after a refusal by our own quota guard that names no time


@dataclass(frozen=True, slots=True)
class Ari:
    """What the CA suggests for the renewal of one certificate (RFC 9773 4.2). No window yet: `start` is None."""

    certificate: str
    start: datetime | None = None
    end: datetime | None = None
    explanation_url: str = ""
    next_check: datetime | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class LastError:
    """The last failure: our sentence about it, and the failure as a record (AcmeFailure.to_record)."""

    when: datetime
    sentence: str
    failure: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: bool = False

    @property
    def ca_words(self) -> str:
        return str(self.failure.get("detail", ""))

    @property
    def address(self) -> str:
        """The address that the CA tried, "" if it is not known."""
        return str(self.failure.get("address", ""))


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history: `what` is obtained, rehearsed, failed, revoked, asked, adopted or kept."""

    when: datetime
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class State:
    """See the fields. A fresh State() belongs to a certificate of which nothing is known.

    attempts         failures since the last success or change of the configuration; the retry schedule counts them
    streak           failures since the last success, whatever the configuration
    failing_since    the first of them
    last_attempt     the last time a CA (or its staging) was asked for a certificate
    next_attempt     not before this, as long as the configuration is the same
    last_error       of the last failure; kept for reading until the next success
    fingerprint      of the configuration (Wanted.fingerprint) that the failures belong to
    tried            fingerprints of configurations that failed before it, since the last success
    refused          labels of the issuers that refuse for good under that configuration; all of them: parked
    busy             CA directory -> not before this, as the CA (or our quota guard) said
    issuer           index of the CA whose turn it is; `issuer_failures` counts failures in a row with it
    rehearsed        the staging CA has said yes since the last attempt at the real one
    is_doubted       the last that a CA has found out about the names is that they could not be validated
    failed_rehearsals        in a row, since the real CA was asked
    no_replaces      ARI id that a CA did not take as `replaces`; never sent again
    replace_now      fingerprint of a certificate that is to be replaced at once (revoked)
    ari              the CA's window
    winners          identifier -> challenge type that worked last
    last_success, last_used      last certificate obtained; last time a client asked for an on-demand name
    """

    attempts: int = 0
    streak: int = 0
    failing_since: datetime | None = None
    last_attempt: datetime | None = None
    next_attempt: datetime | None = None
    last_error: LastError | None = None
    fingerprint: str = ""
    tried: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    busy: Mapping[str, datetime] = field(default_factory=dict)
    issuer: int = 0
    issuer_failures: int = 0
    rehearsed: bool = False
    is_doubted: bool = False
    failed_rehearsals: int = 0
    no_replaces: str = ""
    replace_now: str = ""
    ari: Ari | None = None
    winners: Mapping[str, str] = field(default_factory=dict)
    last_success: datetime | None = None
    last_used: datetime | None = None
    history: tuple[Event, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record; fields with their default are left out."""
        return records.write(self)

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Rebuild; what is unknown or can't be understood is ignored. Never raises."""
        return records.read(cls, record)


def as_configured(state: State, wanted: Wanted) -> State:
    """Return the state as far as it counts for this configuration: after a change of it the next attempt is at once.

    Not if it has failed before, since the last success: then two processes with different configurations share a
    store, and each of them would try at once what the other has just tried in vain. Doubts stay, so that what could
    not be validated is rehearsed: who changes a configuration six times within an hour shall not use up the failures
    that the CA takes within an hour.
    """
    if state.fingerprint == wanted.fingerprint or not state.attempts:
        return state
    streak = max(state.streak, state.attempts)
    is_new = wanted.fingerprint not in state.tried or not state.last_error
    pause = MINUTE * 2 ** min(streak, _MOST_DOUBLINGS)
    return replace(
        state,
        attempts=1 if is_new else streak,
        streak=streak,
        next_attempt=None if is_new or not state.last_error else state.last_error.when + pause,
        fingerprint=wanted.fingerprint,
        tried=(*(each for each in state.tried if each != state.fingerprint), state.fingerprint)[-_MOST_TRIED:],
        refused=(),
        issuer=0,
        issuer_failures=0,
        rehearsed=False,
    )


def after_failure(
    state: State,
    failure: AcmeFailure,
    *,
    action: Obtain,
    wanted: Wanted,
    held: Held | None,
    now: datetime,
    rnd: float,
) -> State:
    """Return the state after `action` has failed; `rnd` in [0, 1). A CANCELLED attempt changes nothing."""
    if failure.kind is FailureKind.CANCELLED:
        return state
    state = _noted(as_configured(state, wanted), failure, action, wanted, now)
    directory = _directory(wanted, action)
    if action.replaces and _blames_replaces(failure):
        return replace(state, no_replaces=action.replaces, next_attempt=None)
    if action.rehearse and failure.kind is not FailureKind.VALIDATION:
        # The staging CA's own trouble, or its own rules: only the real one decides.
        return replace(state, rehearsed=True, next_attempt=None)
    if failure.kind is FailureKind.QUOTA:
        return _busy(state, directory, failure.retry_at or now + _OWN_WAIT, now)
    if failure.retry_at:
        state = _busy(state, directory, failure.retry_at, now)
    state = _doubted(_counted(state, failure, held, now, rnd), failure, action)
    return _failed_with(state, failure, action, wanted)


def after_rehearsal(state: State, now: datetime, winners: Mapping[str, str] | None = None) -> State:
    """Return the state after the staging CA has said yes: the real one is next, at once, by the same challenges."""
    history = _added(state, Event(now, "rehearsed", "the staging CA would issue it"))
    return replace(
        state,
        rehearsed=True,
        failed_rehearsals=0,
        winners={**state.winners, **(winners or {})},
        next_attempt=None,
        last_attempt=now,
        history=history,
    )


def after_success(
    state: State, wanted: Wanted, held: Held, now: datetime, winners: Mapping[str, str] | None = None
) -> State:
    """Return the state after `held` was obtained (and is in the store). `winners`: challenge types that worked.

    The next renewal begins with the first CA again. The window of the old certificate is forgotten: see `ari_due`.
    """
    known = {**state.winners, **(winners or {})}
    text = f"from {held.directory or held.issuer}, valid until {moment(held.not_after)}"
    return State(
        fingerprint=wanted.fingerprint,
        busy={directory: until for directory, until in state.busy.items() if until > now},
        winners={host: known[host] for host in wanted.hosts if host in known},
        last_success=now,
        last_attempt=now,
        last_used=state.last_used,
        history=_added(state, Event(now, "obtained", text)),
    )


def after_kept(
    state: State, wanted: Wanted, held: Held, now: datetime, winners: Mapping[str, str] | None = None
) -> State:
    """Return the state after a certificate was obtained and dropped, for somebody has put `held` there meanwhile."""
    text = f"serial {held.serial}, which somebody has put there meanwhile; what was ordered is dropped"
    return replace(after_success(state, wanted, held, now, winners), history=_added(state, Event(now, "kept", text)))


def by_hand(state: State, wanted: Wanted, now: datetime, *, force: bool = False) -> State:
    """Return the state after a person has asked for a certificate: parked and waiting are over.

    What the CA asked to wait for stays, except with `force`; that also leaves the rehearsal out.
    """
    state = as_configured(state, wanted)
    return replace(
        state,
        next_attempt=None,
        refused=(),
        busy={} if force else state.busy,
        rehearsed=force or state.rehearsed,
        history=_added(state, Event(now, "asked", "asked for by hand")),
    )


def after_revocation(state: State, held: Held, now: datetime, reason: str = "") -> State:
    """Return the state after `held` was revoked: it is replaced at once."""
    text = f"serial {held.serial}{f' ({reason})' if reason else ''}"
    history = _added(state, Event(now, "revoked", text))
    return replace(state, replace_now=held.fingerprint, next_attempt=None, history=history)


def used(state: State, now: datetime) -> State:
    """Return the state after a client has asked for an on-demand name."""
    return replace(state, last_used=now)


def needs_alert(state: State, held: Held | None, now: datetime) -> bool:
    """Tell whether people must know: without a valid certificate for days, and asked for only once a day now."""
    return is_hopeless(held, state.failing_since, now)


def _noted(state: State, failure: AcmeFailure, action: Obtain, wanted: Wanted, now: datetime) -> State:
    error = LastError(now, str(failure), failure.to_record(), action.rehearse)
    return replace(
        state,
        failing_since=min(state.failing_since or now, now),
        last_attempt=now,
        last_error=error,
        fingerprint=wanted.fingerprint,
        history=_added(state, Event(now, "failed", error.sentence)),
    )


def _counted(state: State, failure: AcmeFailure, held: Held | None, now: datetime, rnd: float) -> State:
    attempts = state.attempts + 1
    delay = retry_delay(attempts, failure.kind, held, state.failing_since or now, now, rnd)
    streak = max(state.streak, state.attempts) + 1
    return replace(state, attempts=attempts, streak=streak, next_attempt=now + delay, rehearsed=False)


def _doubted(state: State, failure: AcmeFailure, action: Obtain) -> State:
    """Our own store's failure says nothing about the names."""
    if failure.kind is FailureKind.STORE:
        return state
    failed = state.failed_rehearsals + 1 if action.rehearse else 0
    return replace(state, is_doubted=failure.kind is FailureKind.VALIDATION, failed_rehearsals=failed)


def _failed_with(state: State, failure: AcmeFailure, action: Obtain, wanted: Wanted) -> State:
    """Decide whose turn is next. Our own store's failure is no reason to ask another CA."""
    if failure.kind is FailureKind.STORE:
        return state
    if failure.kind is FailureKind.REFUSED:
        label = wanted.issuers[action.issuer].label
        return replace(state, refused=(*state.refused, label), issuer=_next(action, wanted), issuer_failures=0)
    failures = state.issuer_failures + 1 if action.issuer == state.issuer else 1
    if failures >= FAILURES_PER_CA:
        return replace(state, issuer=_next(action, wanted), issuer_failures=0)
    return replace(state, issuer=action.issuer, issuer_failures=failures)


def _blames_replaces(failure: AcmeFailure) -> bool:
    """RFC 9773 5 names one answer; CAs without ARI, or with another mind, refuse the whole order instead."""
    if failure.kind is FailureKind.ALREADY_REPLACED:
        return True
    return failure.step == "order" and failure.kind in (FailureKind.REFUSED, FailureKind.BAD_ORDER)


def _busy(state: State, directory: str, until: datetime, now: datetime) -> State:
    return replace(state, busy={**state.busy, directory: min(until, now + LONGEST_RETRY_AFTER)})


def _directory(wanted: Wanted, action: Obtain) -> str:
    issuer = wanted.issuers[action.issuer]
    return issuer.staging if action.rehearse else issuer.directory


def _next(action: Obtain, wanted: Wanted) -> int:
    return (action.issuer + 1) % len(wanted.issuers)


def _added(state: State, event: Event) -> tuple[Event, ...]:
    return (*state.history, event)[-HISTORY:]
