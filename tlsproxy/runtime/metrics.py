"""What all workers have counted, added up: the totals outlive workers, reloads and upgrades, so they never go back.

Strategy: workers hand over increments (proxy.metrics), which are added to totals by name; what is a state and not a
count (connections, loop lag, backends) is kept as each process last told it and forgotten when the process has ended.
Knows series as "name{labels}" strings; what they mean and how they are written for a scraper is `exposition`'s.

Rules: an increment is added exactly once, where it arrives, whoever asked for it; a worker, which strangers talk to,
can neither take from a count nor make up names; after `MOST_SERIES` new ones are dropped, and that is said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tlsproxy.proxy.metrics import series_name
from tlsproxy.runtime.families import SERIES_DROPPED, parse_series
from tlsproxy.runtime.messages import Stats

logger = logging.getLogger(__name__)

MOST_SERIES: Final = 200_000
DROPPED: Final = SERIES_DROPPED.name


@dataclass(frozen=True)
class Told:
    """What one process last said of its state."""

    values: Mapping[str, int] = field(default_factory=dict)
    backends: Sequence[Mapping[str, Any]] = ()


class Collector:
    """See the module's text. One for the life of the proxy; belongs to the supervisor.

    Mutable: `_totals` by series, `_sent` (what of them the next supervisor has), `_told` by pid.
    """

    def __init__(self, most_series: int = MOST_SERIES) -> None:
        self._most_series = most_series
        self._totals: dict[str, float] = {}
        self._sent: dict[str, float] = {}
        self._told: dict[int, Told] = {}

    def __repr__(self) -> str:
        return f"<Collector {len(self._totals)} series of {len(self._told)} processes>"

    def take(self, pid: int, stats: Stats) -> None:
        """Add what a child has sent. Called once for each Stats that arrives, for nothing else."""
        self._told[pid] = Told(stats.values, stats.backends)
        self._add(stats.series)

    def forget(self, pid: int) -> None:
        """A child has ended: its state is over, what it counted stays."""
        self._told.pop(pid, None)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Count something that happens in the supervisor."""
        self._add({series_name(name, labels): by})

    @property
    def totals(self) -> Mapping[str, float]:
        """All counters by "name{labels}"; buckets of histograms are not cumulated."""
        return self._totals

    @property
    def told(self) -> Mapping[int, Told]:
        """The state of each living process by pid."""
        return self._told

    # --- upgrade

    def snapshot(self) -> dict[str, float]:
        """Return the totals for the next supervisor; `rest` then tells what comes after."""
        self._sent = dict(self._totals)
        return dict(self._totals)

    def rest(self) -> dict[str, float]:
        """Return what was added since the last `snapshot` or `rest`: for whoever has the snapshot already.

        To be sent before the other one answers its first scrape, then every few seconds, and at the end.
        """
        added = {name: total - self._sent.get(name, 0) for name, total in self._totals.items()}
        self._sent = dict(self._totals)
        return {name: increment for name, increment in added.items() if increment > 0}

    def absorb(self, increments: Mapping[str, float]) -> None:
        """Add a `snapshot` or a `rest` of the supervisor before this one."""
        self._add(increments)

    def _add(self, increments: Mapping[str, float]) -> None:
        totals = self._totals
        for name, by in increments.items():
            if not by > 0 or math.isinf(by):
                continue
            if name in totals:
                totals[name] += by
            elif parse_series(name) is None:
                self._drop("unknown", name)
            elif len(totals) >= self._most_series:
                self._drop("too many", name)
            else:
                totals[name] = by

    def _drop(self, why: str, name: str) -> None:
        if not self._totals.get(DROPPED):
            extra = {"why": why, "series": name[:200], "limit": self._most_series}
            logger.warning("metrics.series_dropped", extra=extra)
        self._totals[DROPPED] = self._totals.get(DROPPED, 0) + 1
