"""Counters of all workers -> what `admin top` shows of the traffic: how much, how slow, how well, for each site. PURE.

Knows series by their names. Rule: the answer stays small with thousands of sites; two answers make a rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tlsproxy.proxy.metrics import BOUNDS, EDGES
from tlsproxy.runtime.families import REQUEST_DURATION, REQUESTS, parse_series

MOST_SITES: Final = 200
"""Those that have had the most requests; the others are in the sums."""

_PLACES: Final = {edge: place for place, edge in enumerate(EDGES)}


def summarize(totals: Mapping[str, float]) -> dict[str, Any]:
    """Return totals: `requests`, `statuses` by class ("2xx"), `buckets` of durations; `traffic`: by site.

    Buckets are not cumulated; `bounds` are the upper ends of the buckets in seconds; the last bucket has none.
    """
    sites: dict[str, _Site] = {}
    for name, total in totals.items():
        series = parse_series(name)
        if series is None or not series.labels:
            continue
        if series.family is REQUESTS:
            site, _, _, status = series.labels
            sites.setdefault(site, _Site()).statuses[_class_of(status)] += int(total)
        elif series.family is REQUEST_DURATION and series.part == "bucket":
            sites.setdefault(series.labels[0], _Site()).buckets[_PLACES[series.edge]] += int(total)
    busiest = sorted(sites.items(), key=lambda item: (-item[1].requests, item[0]))[:MOST_SITES]
    together = _Site.sum_of(sites.values())
    return {
        **together.shown(),
        "bounds": list(BOUNDS),
        "traffic": [{"site": name, **site.shown()} for name, site in busiest],
    }


class _Site:
    """What was counted of a site. Mutable: both, while series are taken."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.buckets = [0] * len(EDGES)

    @classmethod
    def sum_of(cls, sites: Iterable[_Site]) -> _Site:
        whole = cls()
        for site in sites:
            whole.statuses.update(site.statuses)
            whole.buckets = [mine + its for mine, its in zip(whole.buckets, site.buckets, strict=True)]
        return whole

    @property
    def requests(self) -> int:
        return self.statuses.total()

    def shown(self) -> dict[str, Any]:
        return {"requests": self.requests, "statuses": dict(sorted(self.statuses.items())), "buckets": self.buckets}


def _class_of(status: str) -> str:
    """499 is the client's own doing: it has left."""
    return "left" if status == "499" else f"{status[:1]}xx" if status[:1].isdigit() else "other"
