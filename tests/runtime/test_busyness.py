"""Counters of all workers, put together for `admin top`."""

from __future__ import annotations

from tlsproxy.proxy.metrics import EDGES
from tlsproxy.runtime import busyness
from tlsproxy.runtime.busyness import summarize


def requests(site: str, status: str, route: str = "/") -> str:
    return f'tlsproxy_requests_total{{site="{site}",route="{route}",method="GET",status="{status}"}}'


def bucket(site: str, edge: str) -> str:
    return f'tlsproxy_request_duration_seconds_bucket{{site="{site}",route="/",le="{edge}"}}'


def test_requests_and_durations_by_site() -> None:
    found = summarize(
        {
            requests("a.test", "200"): 7.0,
            requests("a.test", "204", "/api"): 1.0,
            requests("a.test", "499"): 2.0,
            requests("b.test", "503"): 20.0,
            requests("b.test", "other"): 1.0,
            bucket("a.test", "0.001"): 9.0,
            bucket("b.test", "+Inf"): 3.0,
            'tlsproxy_request_duration_seconds_sum{site="a.test",route="/"}': 4.5,
            "tlsproxy_tls_unknown_sni_total": 5.0,
            "nonsense": 1.0,
        }
    )
    assert found["requests"] == 31
    assert found["statuses"] == {"2xx": 8, "5xx": 20, "left": 2, "other": 1}
    assert len(found["buckets"]) == len(EDGES) == len(found["bounds"]) + 1
    assert (found["buckets"][0], found["buckets"][-1]) == (9, 3)
    assert [(row["site"], row["requests"], sum(row["buckets"])) for row in found["traffic"]] == [
        ("b.test", 21, 3),
        ("a.test", 10, 9),
    ]


def test_nothing_yet() -> None:
    found = summarize({})
    assert (found["requests"], found["statuses"], found["traffic"]) == (0, {}, [])


def test_only_the_busiest_sites_are_named_and_all_are_counted() -> None:
    most = busyness.MOST_SITES
    found = summarize({requests(f"s{number}.test", "200"): number + 1.0 for number in range(most + 10)})
    assert len(found["traffic"]) == most
    assert found["traffic"][-1]["site"] == "s10.test"
    assert found["requests"] == sum(range(1, most + 11))
