"""How often events are worth a call, and how many there may be in all. No I/O; time is an argument.

Rule: an alarm that lasts is repeated now and then, not with every attempt; other kinds are told each time.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

REPEATED_AFTER = {"failing": timedelta(hours=1), "expiring": timedelta(days=1)}
PER_MINUTE = 60
_MOST_NAMES = 20_000


class Throttle:
    """Remembers what was told when."""

    # Mutable: _told (when, by kind and name, oldest first), _recent (times of the last minute).

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], datetime] = {}
        self._recent: deque[datetime] = deque(maxlen=PER_MINUTE)

    def is_due(self, kind: str, name: str, now: datetime) -> bool:
        """Tell whether this kind is worth a call again for this name."""
        pause, last = REPEATED_AFTER.get(kind), self._told.get((kind, name))
        # A clock that was set back must not silence an alarm until it has caught up.
        return pause is None or last is None or not last <= now < last + pause

    def has_room(self, now: datetime) -> bool:
        """Tell whether the last minute had fewer calls than PER_MINUTE."""
        oldest = self._recent[0] if len(self._recent) == PER_MINUTE else None
        return oldest is None or not oldest <= now < oldest + timedelta(minutes=1)

    def count(self, kind: str, name: str, now: datetime) -> None:
        """Take a call as made. Good news end the alarms of their name: the next one is told at once."""
        self._recent.append(now)
        self._told.pop((kind, name), None)
        if kind in REPEATED_AFTER:
            self._told[kind, name] = now
        else:
            for alarm in REPEATED_AFTER:
                self._told.pop((alarm, name), None)
        if len(self._told) > _MOST_NAMES:
            del self._told[next(iter(self._told))]
