"""ACME Renewal Information (RFC 9773): when to fetch it, and what is remembered of it. PURE.

Knows: the window of one certificate and the clock of its polling. Does not know: HTTP, and what a window means for the
renewal (plan.py). Rules: a window belongs to the certificate whose id it was fetched for and is never applied to
another one; one fetch per certificate for all machines, because what came of it lies in the shared state.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from tlsproxy.certs.state import Ari, State
from tlsproxy.certs.wanted import Held

SHORTEST = timedelta(minutes=1)
LONGEST = timedelta(days=1)
USUAL = timedelta(hours=6)
"""The CA's Retry-After within these limits, or the usual one (RFC 9773 4.3)."""
_FIRST_RETRY = timedelta(minutes=10)


def ari_next_check(state: State, held: Held | None, now: datetime) -> datetime | None:
    """Return when to ask the CA that `held` comes from for its window: at once for a certificate that has none yet.

    None: never, for want of an id or a CA, or because it has expired. Whether the CA offers ARI its directory tells;
    `after_ari_failure` also stands for one that does not.
    """
    if held is None or not held.ari_id or not held.directory or held.not_after <= now:
        return None
    ari = window_of(state, held)
    if ari is None or ari.next_check is None:
        return now
    # No check is ever set further ahead than LONGEST: beyond that the clock has been set back.
    return now if ari.next_check > now + LONGEST * 1.2 else ari.next_check


def ari_due(state: State, held: Held | None, now: datetime) -> bool:
    """Tell whether to fetch the window of `held` now."""
    when = ari_next_check(state, held, now)
    return when is not None and when <= now


def window_of(state: State, held: Held) -> Ari | None:
    """Return what is known of the window of this very certificate."""
    return state.ari if state.ari and held.ari_id and state.ari.certificate == held.ari_id else None


def with_ari(
    state: State,
    held: Held,
    start: datetime,
    end: datetime,
    explanation_url: str = "",
    *,
    retry_after: float | None,
    now: datetime,
) -> State:
    """Return the state with the window that the CA has just told. `retry_after` in seconds, None if it told none.

    A window that ends before it begins is no window (RFC 9773 4.2): it counts as a failure.
    """
    if end < start:
        return after_ari_failure(state, held, retry_after=retry_after, now=now, rnd=0.5)
    pause = USUAL if retry_after is None else timedelta(seconds=min(max(retry_after, 0), LONGEST.total_seconds()))
    ari = Ari(held.ari_id, start, end, explanation_url, now + max(pause, SHORTEST))
    return replace(state, ari=ari)


def after_ari_failure(
    state: State, held: Held, *, retry_after: float | None = None, now: datetime, rnd: float
) -> State:
    """Return the state after the window could not be had: what was known stays, the next try is 10, 20, 40 … minutes
    away, at most 6 hours, or later if the CA says so. Also for a CA without ARI."""
    known = window_of(state, held) or Ari(held.ari_id)
    failures = known.failures + 1
    pause = min(USUAL, _FIRST_RETRY * 2 ** min(failures - 1, 10)) * (0.8 + 0.4 * rnd)
    asked = timedelta(seconds=min(retry_after or 0, LONGEST.total_seconds()))
    return replace(state, ari=replace(known, failures=failures, next_check=now + max(pause, asked, SHORTEST)))
