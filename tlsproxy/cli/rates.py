"""Two samples of GET /top -> what went on between them: rates, quantiles, shares. PURE.

Knows the shape of a sample. Rules: what cannot be known (no request, a counter that began anew) is None, not 0; a
quantile is as exact as the bucket it lies in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

Sample: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Traffic:
    """Requests per second, quantiles in seconds, requests per second by class of status ("2xx", "left": the client)."""

    rate: float
    p50: float | None
    p99: float | None
    statuses: Mapping[str, float]

    @property
    def failed(self) -> float | None:
        """The part of requests that ended with 5xx."""
        return self.statuses.get("5xx", 0.0) / self.rate if self.rate else None


@dataclass(frozen=True)
class WorkerRates:
    """One worker: requests per second and CPU (1.0 is a whole core), None when it is new."""

    row: Mapping[str, Any]
    rate: float | None
    cpu: float | None


@dataclass(frozen=True)
class View:
    """What there is to show at one moment; `sample` is the later one."""

    sample: Sample
    seconds: float
    total: Traffic
    sites: Sequence[tuple[str, Traffic]]
    workers: Sequence[WorkerRates]
    backends: Mapping[str, float | None]
    """Requests per second by URL."""

    def days_left(self, row: Mapping[str, Any]) -> float | None:
        """Until a certificate ends, by the proxy's clock."""
        if not row["not_after"]:
            return None
        return (datetime.fromisoformat(row["not_after"]).timestamp() - float(self.sample["time"])) / 86400


def compare(before: Sample, after: Sample) -> View | None:
    """Return what happened in between; None if `after` is not of the same run of the proxy."""
    seconds = after["clock"] - before["clock"]
    if before["started"] != after["started"] or seconds <= 0 or after["requests"] < before["requests"]:
        return None
    bounds = after["bounds"]
    earlier = {each["site"]: each for each in before["traffic"]}
    sites = [(each["site"], _traffic(earlier.get(each["site"]), each, bounds, seconds)) for each in after["traffic"]]
    workers = {row["pid"]: row for row in before["workers"]}
    backends = {row["url"]: row for row in before["backends"]}
    return View(
        after,
        seconds,
        _traffic(before, after, bounds, seconds),
        sorted(sites, key=lambda item: (-item[1].rate, item[0])),
        [_worker(workers.get(row["pid"]), row, seconds) for row in after["workers"]],
        {row["url"]: _rate(backends.get(row["url"]), row, "requests", seconds) for row in after["backends"]},
    )


def quantile(part: float, buckets: Sequence[int], bounds: Sequence[float]) -> float | None:
    """Return where `part` of the values lie below, between the bounds of its bucket; None without values.

    In the last bucket, which has no end, it is that bucket's beginning.
    """
    wanted = part * sum(buckets)
    if not wanted:
        return None
    below = 0
    for place, count in enumerate(buckets[: len(bounds)]):
        if below + count >= wanted:
            low = bounds[place - 1] if place else 0.0
            return low + (bounds[place] - low) * (wanted - below) / count
        below += count
    return bounds[-1]


def _traffic(before: Sample | None, after: Sample, bounds: Sequence[float], seconds: float) -> Traffic:
    old_buckets = before["buckets"] if before else [0] * len(after["buckets"])
    old_statuses = before["statuses"] if before else {}
    buckets = [max(0, now - then) for then, now in zip(old_buckets, after["buckets"], strict=True)]
    statuses = {name: max(0, now - old_statuses.get(name, 0)) / seconds for name, now in after["statuses"].items()}
    return Traffic(sum(statuses.values()), quantile(0.5, buckets, bounds), quantile(0.99, buckets, bounds), statuses)


def _worker(before: Mapping[str, Any] | None, row: Mapping[str, Any], seconds: float) -> WorkerRates:
    return WorkerRates(row, _rate(before, row, "requests", seconds), _rate(before, row, "cpu", seconds))


def _rate(before: Mapping[str, Any] | None, after: Mapping[str, Any], key: str, seconds: float) -> float | None:
    then, now = (before or {}).get(key), after[key]
    return None if then is None or now is None or now < then else float(now - then) / seconds
