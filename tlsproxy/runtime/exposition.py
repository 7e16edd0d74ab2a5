"""Totals and gauges -> what a scraper reads: Prometheus' text format, or OpenMetrics if it asks for that. PURE.

The writing is prometheus_client's; here the series of a family are put together, and buckets cumulated. Rules: every
family is there in each answer, also without a series, so that a dashboard can be made before anything has happened;
counters that have no series yet begin at 0 where it is known which there will be, or an alert on the first increase
would miss it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as Source

from tlsproxy.proxy.metrics import EDGES
from tlsproxy.runtime import families
from tlsproxy.runtime.families import FAMILIES, Family, parse_series

Labels: TypeAlias = tuple[str, ...]

MOST_ZEROS: Final = 1000
"""Sites that get a 0 for what has not happened to them yet; with more of them that would be most of the page."""

_OPENMETRICS: Final = "application/openmetrics-text"
_FROM_ZERO: Final = (families.UNKNOWN_SNI, families.TURNED_AWAY, families.LOG_DROPPED, families.SERIES_DROPPED)
_FROM_ZERO_BY_SITE: Final = (families.RETRIES, families.DOWNGRADES)
_FROM_ZERO_BY_ROLE: Final = (families.DEATHS, families.HANGS)


@dataclass(frozen=True)
class Sample:
    """A gauge's value."""

    family: Family
    labels: Labels
    value: float


@dataclass(frozen=True)
class Page:
    """An answer to a scraper."""

    content_type: str
    body: bytes


def render(totals: Mapping[str, float], gauges: Iterable[Sample], sites: Sequence[str], accept: str = "") -> Page:
    """Write all families. `totals` as of `Collector.totals`; `sites` by name; `accept` is the scraper's header."""
    # The library's own reading of the header raises on versions that are none.
    encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
    return Page(content_type, encode(_Everything(totals, gauges, sites)))


class _Everything(Source):
    """What prometheus_client writes."""

    def __init__(self, totals: Mapping[str, float], gauges: Iterable[Sample], sites: Sequence[str]) -> None:
        self._plain: dict[str, dict[Labels, float]] = defaultdict(dict)
        self._buckets: dict[str, dict[Labels, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        self._begin_at_zero(sites)
        for name, total in totals.items():
            self._take(name, total)
        for sample in gauges:
            self._plain[sample.family.name][sample.labels] = sample.value

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES.values():
            yield self._histogram(family) if family.kind == "histogram" else self._simple(family)

    def _begin_at_zero(self, sites: Sequence[str]) -> None:
        zeros: list[tuple[Family, Labels]] = [(family, ()) for family in _FROM_ZERO]
        zeros += [(family, (role,)) for family in _FROM_ZERO_BY_ROLE for role in ("worker", "certifier")]
        zeros += [(families.RELOADS, (result,)) for result in ("ok", "failed")]
        if len(sites) <= MOST_ZEROS:
            zeros += [(family, (site,)) for family in _FROM_ZERO_BY_SITE for site in sites]
        for family, labels in zeros:
            self._plain[family.name][labels] = 0

    def _take(self, name: str, total: float) -> None:
        series = parse_series(name)
        if series is None:
            return
        if series.part == "bucket":
            self._buckets[series.family.name][series.labels][series.edge] = total
        else:
            self._plain[series.family.name][series.labels] = total  # of a histogram: the sum

    def _simple(self, family: Family) -> Metric:
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        metric = kind(family.name.removesuffix("_total"), family.help, labels=family.labels)
        for labels, value in sorted(self._plain[family.name].items()):
            metric.add_metric(labels, value)
        return metric

    def _histogram(self, family: Family) -> Metric:
        metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, counts in sorted(self._buckets[family.name].items()):
            metric.add_metric(labels, list(_cumulated(counts)), self._plain[family.name].get(labels, 0.0))
        return metric


def _cumulated(counts: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    below = 0.0
    for edge in EDGES:
        below += counts.get(edge, 0)
        yield edge, below
