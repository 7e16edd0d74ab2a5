"""Token buckets by key: so many of something in a time, no matter how they are spread. No I/O; time is an argument.

Rule: memory is bounded; the key that was used longest ago is forgotten first, and begins again with a full bucket.
"""

from __future__ import annotations

from datetime import datetime

from tlsproxy.settings import Rate

MOST_KEYS = 20_000


class Buckets:
    """One rate for many keys. A rate of "off" takes everything."""

    # Mutable: _levels (tokens and when they were counted, by key; the one used last is the last).

    def __init__(self, rate: Rate) -> None:
        self._size = float(rate.count)
        self._refill = rate.count / rate.seconds
        self._levels: dict[str, tuple[float, datetime]] = {}

    def take(self, key: str, now: datetime) -> float:
        """Take a token and return 0.0, or return the seconds until there is one."""
        if not self._size:
            return 0.0
        level, counted = self._levels.pop(key, (self._size, now))
        # A clock that was set back gives nothing and takes nothing.
        level = min(self._size, level + max(0.0, (now - counted).total_seconds()) * self._refill)
        wait = 0.0 if level >= 1.0 else (1.0 - level) / self._refill
        self._levels[key] = (level if wait else level - 1.0, now)
        if len(self._levels) > MOST_KEYS:
            del self._levels[next(iter(self._levels))]
        return wait
