"""Times and lists as people read them, for the sentences of plans, limits and `admin certs why`. PURE."""

from collections.abc import Iterable
from datetime import datetime, timedelta

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def moment(when: datetime) -> str:
    """Return e.g. "2026-03-01 04:05 UTC"."""
    return when.strftime("%Y-%m-%d %H:%M UTC")


def span(length: timedelta | float) -> str:
    """Return e.g. "3 days", "90 minutes": one unit, the largest of which there are at least two (or one exactly)."""
    seconds = round(length.total_seconds() if isinstance(length, timedelta) else length)
    for size, unit in _UNITS:
        if seconds == size:
            return f"1 {unit}"
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return "no time"


def listing(words: Iterable[str], most: int = 5) -> str:
    """Return e.g. "a, b and 3 more"."""
    every = list(words)
    shown = ", ".join(every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown
