"""What is due when, for certificates of an ACME CA. PURE: values in, one action out; the clock is an argument.

Knows: the renewal point, when failures, the CA's words and the configuration allow an order. Does not know: stores,
sessions, how an order goes. Rule: the same input gives the same answer in every process and on every machine, and no
answer of a CA, no clock and no restart makes a certificate be ordered in a loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from tlsproxy.certs.ari import window_of
from tlsproxy.certs.outages import Outage
from tlsproxy.certs.state import Ari, State, as_configured
from tlsproxy.certs.wanted import Action, Held, IssuerId, Obtain, Park, Wait, Wanted
from tlsproxy.certs.words import listing, moment, span
from tlsproxy.settings.directories import find_known

__all__ = ["Action", "Held", "IssuerId", "Obtain", "Park", "Wait", "Wanted", "plan", "renewal_time"]

TICK = timedelta(minutes=10)
"""How often plans are looked at, at least: a renewal is due one tick early rather than one late."""
LATELY = timedelta(days=30)
"""An on-demand name that was used within this time (or half its certificate's life, if that is less) is renewed."""
MOST_REHEARSALS = 3
"""So many in a row fail, and the real CA is asked: two failed validations of five that it takes within an hour."""
_SHORT_LIFE = timedelta(days=10)
_ASKED = timedelta(hours=1)  # an on-demand name without a certificate: the client that asked has gone by then
_LONG_BUSY = timedelta(hours=1)  # who has to wait longer for one CA, and has another, asks that one
_STEADY = timedelta(minutes=10)  # a clock that is set back by less than this is an ordinary clock
_LONG_AWAY = timedelta(minutes=10)  # who has no valid certificate, and another CA, asks that one; else _LONG_BUSY
_MOST_BUSY = timedelta(days=8)
_NONE_AWAY: Mapping[str, Outage] = {}


def plan(
    wanted: Wanted,
    held: Held | None,
    state: State,
    now: datetime,
    *,
    forced: str = "",
    away: Mapping[str, Outage] = _NONE_AWAY,
) -> Action:
    """Tell what to do about one certificate. `held` is None if there is none in the store that can be read.

    `forced` is the reason of a person who wants it now (after `by_hand` on the state): it overrides the renewal point,
    not what the CA asked to wait for. `away` are the CAs that other names have found to be of no use now.
    """
    state = as_configured(state, wanted)
    need = forced or _need(wanted, held, state, now)
    return need if isinstance(need, Wait | Park) else _order(need, wanted, held, state, now, away)


def renewal_time(held: Held, ari: Ari | None = None) -> datetime:
    """Return the instant at which `held` is to be renewed; fixed for one certificate and one window.

    In the window of the CA, if it is this certificate's (RFC 9773 4.2); else after two thirds of the life, half of it
    if that is short, plus or minus 2 % so that certificates of one day spread. Never later than shortly before the end.
    """
    life = held.life
    if ari and ari.start and ari.end and held.ari_id and ari.certificate == held.ari_id:
        chosen = ari.start + held.point * (ari.end - ari.start)
    else:
        chosen = held.not_before + life * (1 / 2 if life < _SHORT_LIFE else 2 / 3) + life * 0.04 * (held.point - 0.5)
    return min(chosen, emergency_time(held))


def emergency_time(held: Held) -> datetime:
    """Return when to renew at the latest: a twentieth of the life, or 10 ticks, before the end."""
    return held.not_after - max(held.life / 20, min(10 * TICK, held.life / 4))


def _need(wanted: Wanted, held: Held | None, state: State, now: datetime) -> str | Wait | Park:
    """Return why a certificate is needed now, or the reason why not."""
    if wanted.on_demand and not _is_used(held, state, now):
        return _left_to_expire(held, state, now)
    if held is None:
        return "it is not in the store any more" if state.last_success else "there is no certificate yet"
    if state.replace_now and state.replace_now == held.fingerprint:
        return "it was revoked"
    if missing := held.missing(wanted.hosts):
        return f"it does not cover {listing(missing)}"
    if _is_test(wanted, held):
        return f"it is a test certificate of {held.directory}, which no client trusts"
    if now < held.not_before:
        # Another certificate would be from the future as well, as long as the clock is wrong.
        return Wait(held.not_before, f"it is not valid before {moment(held.not_before)}; is the clock right?")
    return _renewal(wanted, held, state, now)


def _renewal(wanted: Wanted, held: Held, state: State, now: datetime) -> str | Wait:
    window = window_of(state, held)
    due = renewal_time(held, window) - min(TICK, held.life / 50)
    if now < due:
        return Wait(due, _why_then(wanted, held, window))
    steady = _after_last_success(held, state)
    if steady and state.last_success and state.last_success <= now < steady:
        # A clock that is wrong, or a CA that asks for renewal at once whatever it has just issued.
        return Wait(steady, f"a certificate was obtained on {moment(state.last_success)}, so soon there is no other")
    if now >= held.not_after:
        return f"it expired on {moment(held.not_after)}"
    return _why_due(held, window, now)


def _order(
    need: str, wanted: Wanted, held: Held | None, state: State, now: datetime, away: Mapping[str, Outage]
) -> Action:
    """Turn a need into an order, if failures and the CAs let us."""
    turns = [(state.issuer + step) % len(wanted.issuers) for step in range(len(wanted.issuers))]
    willing = [index for index in turns if wanted.issuers[index].label not in state.refused]
    if not willing:
        return Park(f"{need}, but the CA refuses until the configuration is changed, or it is asked for by hand")
    first = _next_attempt(state, now)
    patience = _LONG_BUSY if held and held.is_valid(now) else _LONG_AWAY
    index = _whose_turn(wanted, willing, state, first, away, patience)
    issuer = wanted.issuers[index]
    until, outage = _busy_until(issuer, state, first), away.get(issuer.directory)
    if outage and outage.until > until:
        return Wait(outage.until, f"{need}, but {outage.words}")
    if until > first:
        return Wait(until, f"{need}, but there is nothing from {issuer.directory} before {moment(until)}")
    if first > now:
        count = "1 attempt" if state.attempts == 1 else f"{state.attempts} attempts"
        return Wait(first, f"{need}, but {count} failed; the next is on {moment(first)}")
    if issuer.staging and issuer.staging not in away and _is_rehearsed(held, state, now):
        return Obtain(need, issuer=index, rehearse=True)
    return Obtain(need, replaces=_replaces(issuer, wanted, held, state), issuer=index)


def _is_rehearsed(held: Held | None, state: State, now: datetime) -> bool:
    """Tell whether the staging CA is asked first: after a failure of the kind that the real one counts.

    The staging CA may be wrong about a name as well: it only ever delays, and not at all where time is short.
    """
    is_urgent = held is not None and emergency_time(held) <= now < held.not_after
    is_hopeful = state.failed_rehearsals < MOST_REHEARSALS and not is_urgent
    return state.is_doubted and not state.rehearsed and is_hopeful


def _next_attempt(state: State, now: datetime) -> datetime:
    """Return the earliest moment of another attempt, `now` if there is nothing to wait for."""
    if state.next_attempt is None or _is_set_back(state, now):
        return now
    return max(state.next_attempt, now)


def _whose_turn(
    wanted: Wanted,
    willing: list[int],
    state: State,
    now: datetime,
    away: Mapping[str, Outage],
    patience: timedelta,
) -> int:
    """Return the first CA that is to be had within reasonable time, or the one that is to be had first."""

    def outage_of(index: int) -> Outage | None:
        return away.get(wanted.issuers[index].directory)

    def possible_at(index: int) -> datetime:
        outage, until = outage_of(index), _busy_until(wanted.issuers[index], state, now)
        return max(outage.until, until) if outage else until

    for index in willing:
        outage = outage_of(index)
        is_long_away = outage is not None and not outage.is_limit and now - outage.since >= patience
        if possible_at(index) - now <= _LONG_BUSY and not is_long_away:
            return index
    return min(willing, key=possible_at)


def _busy_until(issuer: IssuerId, state: State, now: datetime) -> datetime:
    until = state.busy.get(issuer.directory, now)
    # Nothing is ever set further ahead: beyond that the clock has been set back.
    return now if until > now + _MOST_BUSY else max(until, now)


def _replaces(issuer: IssuerId, wanted: Wanted, held: Held | None, state: State) -> str:
    """Return what to send as `replaces`: only to the CA and by the account that the certificate comes from."""
    window = window_of(state, held) if held else None
    if held is None or window is None or window.start is None or state.no_replaces == held.ari_id:
        return ""
    if (held.directory, held.account) != (issuer.directory, issuer.account) or not held.account:
        return ""
    return held.ari_id if len(held.missing(wanted.hosts)) < len(wanted.hosts) else ""


def _is_set_back(state: State, now: datetime) -> bool:
    return state.last_attempt is not None and now < state.last_attempt - _STEADY


def _after_last_success(held: Held, state: State) -> datetime | None:
    return state.last_success and state.last_success + min(timedelta(days=1), held.life / 20)


def _is_test(wanted: Wanted, held: Held) -> bool:
    """Tell whether a staging CA has issued it, ours or one that everybody knows, and none such is asked for."""
    if held.directory in {"", *(issuer.directory for issuer in wanted.issuers)}:
        return False
    known = find_known(held.directory)
    return held.directory in {issuer.staging for issuer in wanted.issuers} or (known is not None and known.is_staging)


def _is_used(held: Held | None, state: State, now: datetime) -> bool:
    if held is None or not held.is_valid(now):
        return state.last_used is not None and now - state.last_used < _ASKED
    used = state.last_used or state.last_success or held.not_before
    return now - used < min(LATELY, held.life / 2)


def _left_to_expire(held: Held | None, state: State, now: datetime) -> Wait | Park:
    since = f" since {moment(state.last_used)}" if state.last_used else ""
    if held is None or held.not_after <= now:
        return Park(f"no client has asked for it{since}; it is obtained when one does")
    return Wait(held.not_after, f"no client has asked for it{since}; it is left to expire")


def _why_then(wanted: Wanted, held: Held, window: Ari | None) -> str:
    return "; ".join(filter(None, (_renewal_words(held, window), _what_changes(wanted, held))))


def _renewal_words(held: Held, window: Ari | None) -> str:
    if renewal_time(held, window) >= emergency_time(held):
        return f"that is {span(held.not_after - emergency_time(held))} before it expires"
    if window and window.start and window.end:
        return f"the CA suggests renewal between {moment(window.start)} and {moment(window.end)}"
    return f"about {_share(held)} over then"


def _what_changes(wanted: Wanted, held: Held) -> str:
    """Say what of a changed configuration takes effect with the next certificate; none is worth an order by itself."""
    first = wanted.issuers[0]
    if held.directory and held.directory not in {issuer.directory for issuer in wanted.issuers}:
        return f"the next one comes from {first.directory}"
    if held.directory == first.directory and held.profile != first.profile:
        return f"the next one has profile {first.profile or 'of the choice of the CA'}"
    return ""


def _why_due(held: Held, window: Ari | None, now: datetime) -> str:
    if now >= emergency_time(held) - TICK:
        return f"it expires in {span(held.not_after - now)}"
    if window and window.start and window.end:
        verb = "wanted" if window.end <= now else "wants"
        url = f" (see {window.explanation_url})" if window.explanation_url else ""
        return f"the CA {verb} it renewed between {moment(window.start)} and {moment(window.end)}{url}"
    return f"{_share(held)} over"


def _share(held: Held) -> str:
    return "half of its life is" if held.life < _SHORT_LIFE else "two thirds of its life are"
