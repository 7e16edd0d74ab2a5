"""One row for each backend out of what all workers see."""

from __future__ import annotations

from typing import Any

import pytest

from tlsproxy.runtime.rows import Report, merge, still_busy

URL, OLD = "http://10.0.0.1:80", "http://10.0.0.2:80"
ROUTES = {"a.test /": (URL,), "a.test /api": (URL,)}


def seen(url: str = URL, state: str = "up", **fields: Any) -> dict[str, Any]:
    row = {"url": url, "state": state, "why": "", "active": 1, "idle": 2, "requests": 10, "failures": 0, "since": 60.0}
    return {**row, **fields}


def merged(*rows: list[dict[str, Any]] | None, drained: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return merge([Report(pid, each) for pid, each in enumerate(rows)], ROUTES, drained)


def test_counts_are_sums_and_the_state_is_that_of_all() -> None:
    assert merged([seen()], [seen(active=2, since=30.0)]) == [
        {
            "url": URL,
            "routes": ["a.test /", "a.test /api"],
            "state": "up",
            "why": "",
            "workers": {"up": 2},
            "active": 3,
            "idle": 4,
            "requests": 20,
            "failures": 0,
            "since": "1970-01-01T00:00:30Z",
        }
    ]


@pytest.mark.parametrize("state", ["down", "ejected", "recovering"])
def test_what_one_worker_sees_is_told_before_all_is_well(state: str) -> None:
    row = merged([seen()], [seen(state=state, why="refused")], [seen()])[0]
    assert (row["state"], row["why"], row["workers"]) == (state, "refused", {state: 1, "up": 2})


def test_a_drained_one_is_drained_before_the_workers_know() -> None:
    assert merged([seen()], drained=(URL,))[0]["state"] == "draining"


def test_one_that_no_worker_has_told_of_is_unknown() -> None:
    row = merged(None, [])[0]
    assert (row["state"], row["active"], row["since"]) == ("unknown", 0, None)


def test_one_without_a_route_is_there_as_long_as_it_has_requests() -> None:
    assert [row["url"] for row in merged([seen(), seen(OLD, active=0)])] == [URL]
    row = merged([seen(), seen(OLD)])[1]
    assert (row["url"], row["routes"], row["state"]) == (OLD, [], "draining")


class TestStillBusy:
    def test_requests_of_all_workers_count_and_others_do_not(self) -> None:
        reports = [Report(1, [seen(), seen(OLD, active=2)]), Report(2, [seen(OLD, active=3)]), Report(3, [])]
        assert still_busy(reports, {OLD}) == 5

    def test_a_worker_that_says_nothing_may_have_some(self) -> None:
        assert still_busy([Report(1, []), Report(2, None)], {OLD}) is None
