"""When to look at which name: a heap of instants, one for each name.

Knows: names and instants. Does not know: what is due then, clocks. Rule: a name has one place; giving it a new one
drops the old, so the agenda never grows beyond its names for long. Names of the same instant come in the order in which
they were put.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from datetime import datetime


class Agenda:
    """Names by the instant they are due at."""

    # Mutable: _due (the truth, by name), _heap (may hold places that were given up; they are skipped), _turns.

    def __init__(self) -> None:
        self._due: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, int, str]] = []
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def __repr__(self) -> str:
        return f"<Agenda {len(self)} names, next {self.next_due()}>"

    def put(self, name: str, when: datetime) -> None:
        """Give the name a place; one that it has already it keeps."""
        if self._due.get(name) == when:
            return
        self._due[name] = when
        heapq.heappush(self._heap, (when, next(self._turns), name))
        if len(self._heap) > 2 * len(self._due) + 100:
            self._heap = sorted(place for place in self._heap if self._due.get(place[2]) == place[0])

    def drop(self, name: str) -> None:
        self._due.pop(name, None)

    def clear(self) -> None:
        self._due.clear()
        self._heap.clear()

    def when(self, name: str) -> datetime | None:
        return self._due.get(name)

    def next_due(self) -> datetime | None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: datetime) -> Iterator[str]:
        """Yield and drop every name that is due."""
        while (when := self.next_due()) is not None and when <= now:
            yield self._pop()

    def take_first(self) -> str | None:
        """Return and drop the name that is due first, whenever that is."""
        return self._pop() if self.next_due() is not None else None

    def _pop(self) -> str:
        _, _, name = heapq.heappop(self._heap)
        del self._due[name]
        return name
