"""What is under way for one certificate, and who watches it.

Knows: steps, watchers, the task. Does not know: what is done (an Errand), when. Rule: who comes late hears of the steps
that were made before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tlsproxy.certs.attempt import Outcome
from tlsproxy.certs.progress import Progress, Step


class Work:
    """What is under way for one name, and who watches.

    `is_order`: no mere question to the CA; `is_asked`: somebody waits for it, so it does not wait for others.
    """

    # Mutable: _watchers, _steps (for those who come late), task (set once).

    def __init__(self, *, is_order: bool, is_asked: bool) -> None:
        self.is_order, self.is_asked = is_order, is_asked
        self.task: asyncio.Task[Outcome | None] | None = None
        self._watchers: list[Progress] = []
        self._steps: list[Step] = []

    @property
    def step(self) -> Step | None:
        """What is being done now."""
        return self._steps[-1] if self._steps else None

    def tell(self, step: Step) -> None:
        self._steps.append(step)
        for watcher in self._watchers:
            watcher(step)

    def watch(self, progress: Progress) -> None:
        for step in self._steps:
            progress(step)
        self._watchers.append(progress)


Errand = Callable[[Work], Awaitable[Outcome | None]]
