"""How long to wait after a failure. PURE: one function, the random number is an argument.

Knows: the schedule that CAs ask for (letsencrypt.org, integration guide: 1, 10, 100 minutes, then daily) and where a
certificate's own life asks for less or more patience. Does not know: states, plans. Rule: never more than 5 attempts
within an hour for what lives for a day or longer: Let's Encrypt takes 5 failed authorizations.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tlsproxy.certs.problems import FailureKind
from tlsproxy.certs.wanted import Held

STEPS = (timedelta(minutes=1), timedelta(minutes=10), timedelta(minutes=100))
LONGEST = timedelta(days=1)
UNSERVED = timedelta(hours=6)
"""From the fourth attempt on, while no valid certificate is there whose life could tell."""
PATIENCE = timedelta(days=3)
"""A name without a valid certificate that has failed so long is asked for once a day: half of all requests that reach
Let's Encrypt come from names that nobody cares for any more. An event tells people (`is_hopeless`)."""
LONGEST_RETRY_AFTER = timedelta(days=7)
"""A CA may ask for no more; the longest limit published anywhere refills in a week."""
_PASSES = (FailureKind.UNREACHABLE, FailureKind.BUSY)


def retry_delay(
    attempts: int, kind: str, held: Held | None, failing_since: datetime, now: datetime, rnd: float
) -> timedelta:
    """Return the time to the next attempt after the `attempts`th failure in a row; `rnd` in [0, 1) spreads it by 20 %.

    1, 10, 100 minutes, then a twentieth of the life, at most a day. Less than that:

    * towards the end of a valid certificate a quarter of what is left, so that a CA that works again is found in time;
    * when the CA did not answer or was overloaded, 100 minutes: nothing was spent, and it will be back.
    """
    return _plain_delay(attempts, kind, held, failing_since, now) * (0.8 + 0.4 * rnd)


def is_hopeless(held: Held | None, failing_since: datetime | None, now: datetime) -> bool:
    """Tell whether a name has been without a valid certificate, and failing, for longer than PATIENCE."""
    if failing_since is None or (held and held.is_valid(now)):
        return False
    unserved_since = max(failing_since, held.not_after) if held and held.not_after <= now else failing_since
    return now - unserved_since >= PATIENCE


def _plain_delay(attempts: int, kind: str, held: Held | None, failing_since: datetime, now: datetime) -> timedelta:
    usable = held if held and held.is_valid(now) else None
    longest = max(STEPS[0], min(LONGEST, usable.life / 20)) if usable else UNSERVED
    delay = min(longest, STEPS[attempts - 1]) if attempts <= len(STEPS) else longest
    if kind in _PASSES:
        return min(delay, STEPS[-1])
    if usable:
        return min(delay, max(STEPS[-1], (usable.not_after - now) / 4))
    return LONGEST if is_hopeless(held, failing_since, now) else delay
