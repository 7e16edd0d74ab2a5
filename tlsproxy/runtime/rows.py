"""What all workers see of their backends, put together: one row for each backend. PURE.

Rule: the row tells the state that deserves attention most, and how many workers see it so; counts are sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

GRAVEST: Final = ("draining", "down", "ejected", "recovering", "up", "unknown")
_SUMS: Final = ("active", "idle", "requests", "failures")


class Report(NamedTuple):
    """What one worker says; None if it did not answer."""

    worker: int
    backends: Sequence[Mapping[str, Any]] | None


def merge(
    reports: Iterable[Report], routes: Mapping[str, Sequence[str]], drained: Collection[str]
) -> list[dict[str, Any]]:
    """Return a row for each backend of `routes` and each that still has requests, sorted by its first route.

    `drained` are those of operators: workers follow, so they need not be asked.
    """
    used: dict[str, list[str]] = {}
    for route, urls in routes.items():
        for url in urls:
            used.setdefault(url, []).append(route)
    seen: dict[str, list[Mapping[str, Any]]] = {url: [] for url in used}
    for report in reports:
        for row in report.backends or ():
            if row.get("active") or row["url"] in used:
                seen.setdefault(row["url"], []).append(row)
    return [_merged(url, rows, used.get(url, []), url in drained) for url, rows in seen.items()]


def still_busy(reports: Iterable[Report], urls: Collection[str]) -> int | None:
    """How many requests are under way at these; None while a worker has not said so."""
    reports = list(reports)
    if any(report.backends is None for report in reports):
        return None
    rows = [row for report in reports for row in report.backends or ()]
    return sum(int(row["active"]) for row in rows if row["url"] in urls)


def _merged(url: str, rows: Sequence[Mapping[str, Any]], routes: list[str], is_drained: bool) -> dict[str, Any]:
    states = [row["state"] for row in rows]
    gravest = min(states, key=_rank, default="unknown")
    if is_drained or not routes:  # what no route has any more only ends what is under way
        gravest = "draining"
    so = [row for row in rows if row["state"] == gravest]
    return {
        "url": url,
        "routes": routes,
        "state": gravest,
        "why": next((row["why"] for row in so if row["why"]), ""),
        "workers": {state: states.count(state) for state in sorted(set(states), key=_rank)},
        **{name: sum(row[name] for row in rows) for name in _SUMS},
        "since": _instant(min((row["since"] for row in so), default=None)),
    }


def _instant(seconds: float | None) -> str | None:
    """RFC 3339, as all times of the admin API."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rank(state: str) -> int:
    return GRAVEST.index(state) if state in GRAVEST else len(GRAVEST)
