"""What is due when, for certificates of the internal CA. PURE: values in, values out; the clock is an argument.

Knows: lifetimes and names. Does not know: keys, stores, how a certificate is made. Rule: the same input gives the same
answer in every process, so two certifiers never disagree about a certificate.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from tlsproxy.certs.wanted import Obtain, Wait
from tlsproxy.store.bundle import Bundle

ROOT_RENEWAL = timedelta(days=365)
"""A root is replaced when less than this is left: people need time to install the new one."""


def plan_root(held: Bundle | None, now: datetime) -> Obtain | Wait:
    """Tell when the root of the internal CA is due."""
    if held is None:
        return Obtain("there is no root yet")
    if problem := held.date_problem(now):
        return Obtain(f"the root {problem}")
    due = held.not_after - ROOT_RENEWAL
    return Obtain("less than a year of the root is left") if now >= due else Wait(due)


def plan_leaf(hosts: Sequence[str], held: Bundle | None, root: Bundle, now: datetime) -> Obtain | Wait:
    """Tell when the certificate for `hosts` is due.

    A certificate that covers more than `hosts` is left alone: while an old and a new configuration run side by side
    they must not renew each other's certificate in turns.
    """
    if held is None:
        return Obtain("there is no certificate yet")
    if missing := held.check_names(hosts):
        return Obtain(f"it does not cover {', '.join(missing)}")
    if held.issuer != root.issuer:
        return Obtain("the root of the internal CA is new")
    if problem := held.date_problem(now):
        return Obtain(f"it {problem}")
    due = renewal_time(held)
    return Obtain("a third of its life is left") if now >= due else Wait(due)


def renewal_time(held: Bundle) -> datetime:
    """Return the instant at which a third of the life is left."""
    return held.not_after - (held.not_after - held.not_before) / 3
