"""How late a worker's event loop is: the tick knows when it should have come.

A callback that takes long (a flaw of ours, a machine without CPU to give) holds up every client of the worker; nothing
else tells. Rule: said once per stall, after it, with how long it took.
"""

from __future__ import annotations

import logging
from typing import Final

logger = logging.getLogger(__name__)

STALLED: Final = 1.0
"""Seconds of lateness that are worth a line: every client has noticed."""


class LoopLag:
    """Mutable: `_due` (when the next tick should come), `last_ms` (how late the last one was)."""

    def __init__(self, every: float) -> None:
        """`every` is the time between two ticks, in seconds."""
        self._every = every
        self._due = 0.0
        self.last_ms = 0

    def start(self, now: float) -> None:
        """The first tick is due like the others."""
        self._due = now + self._every

    def tick(self, now: float) -> None:
        """A tick has come; `now` is the loop's time."""
        late = max(0.0, now - self._due)
        self._due = now + self._every
        self.last_ms = round(late * 1000)
        if late >= STALLED:
            logger.warning("worker.stalled", extra={"seconds": round(late, 2)})
