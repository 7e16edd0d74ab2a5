"""When to look at which name: a heap of instants, one for each name.

Knows: names and instants. Does not know: what is due then, clocks. Rule: a name has one place; giving it a new one
drops the old, so the agenda never grows beyond its names for long.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime


class Agenda:
    """Names by the instant they are due at."""

    # Mutable: _due (the truth, by name), _heap (may hold places that were given up; they are skipped).

    def __init__(self) -> None:
        self._due: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __repr__(self) -> str:
        return f"<Agenda {len(self)} names, next {self.next_due()}>"

    def put(self, name: str, when: datetime) -> None:
        self._due[name] = when
        heapq.heappush(self._heap, (when, name))
        if len(self._heap) > 2 * len(self._due) + 100:
            self._heap = [(due, each) for each, due in self._due.items()]
            heapq.heapify(self._heap)

    def drop(self, name: str) -> None:
        self._due.pop(name, None)

    def clear(self) -> None:
        self._due.clear()
        self._heap.clear()

    def when(self, name: str) -> datetime | None:
        return self._due.get(name)

    def next_due(self) -> datetime | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: datetime) -> Iterator[str]:
        """Yield and drop every name that is due."""
        while (when := self.next_due()) is not None and when <= now:
            _, name = heapq.heappop(self._heap)
            del self._due[name]
            yield name
