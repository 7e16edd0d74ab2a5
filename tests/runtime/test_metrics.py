"""Totals over workers and supervisors: they only ever rise, and each increment is in them once."""

from __future__ import annotations

import logging
import math

import pytest

from tlsproxy.runtime.messages import Stats
from tlsproxy.runtime.metrics import DROPPED, Collector

UNKNOWN = "tlsproxy_tls_unknown_sni_total"
TURNED_AWAY = "tlsproxy_connections_turned_away_total"


def told(collector: Collector, pid: int, **series: float) -> None:
    collector.take(pid, Stats({"connections": pid}, series))


def test_increments_of_all_workers_are_added() -> None:
    collector = Collector()
    told(collector, 1, **{UNKNOWN: 2})
    told(collector, 2, **{UNKNOWN: 3})
    told(collector, 1, **{UNKNOWN: 1})
    assert collector.totals == {UNKNOWN: 6}


def test_a_worker_s_end_takes_its_state_and_leaves_its_counts() -> None:
    collector = Collector()
    told(collector, 1, **{UNKNOWN: 2})
    told(collector, 2)
    collector.forget(1)
    assert collector.totals == {UNKNOWN: 2}
    assert {pid: state.values for pid, state in collector.told.items()} == {2: {"connections": 2}}


@pytest.mark.parametrize("wrong", [-1.0, 0.0, math.nan, math.inf, -math.inf])
def test_nothing_makes_a_total_fall_or_useless(wrong: float) -> None:
    collector = Collector()
    told(collector, 1, **{UNKNOWN: 2})
    told(collector, 1, **{UNKNOWN: wrong})
    assert collector.totals == {UNKNOWN: 2}


@pytest.mark.parametrize(
    "name",
    [
        "made_up_total",
        f'{UNKNOWN}{{client="192.0.2.1"}}',
        "tlsproxy_generation",
        'tlsproxy_requests_total{site="a"}',
        'tlsproxy_backend_retries_total{site="a',
        'tlsproxy_backend_duration_seconds_bucket{site="a",backend="b",le="7"}',
        "",
    ],
)
def test_a_worker_cannot_make_up_series(name: str, caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    with caplog.at_level(logging.WARNING):
        told(collector, 1, **{name: 1})
        told(collector, 1, **{name: 1})
    assert collector.totals == {DROPPED: 2}
    assert caplog.messages == ["metrics.series_dropped"]


def test_there_is_a_limit_of_series() -> None:
    collector = Collector(most_series=2)
    for site in ("a", "b", "c", "c", "b"):
        told(collector, 1, **{f'tlsproxy_backend_retries_total{{site="{site}"}}': 1})
    retries = 'tlsproxy_backend_retries_total{{site="{}"}}'.format
    assert collector.totals == {retries("a"): 1, retries("b"): 2, DROPPED: 2}


def test_the_supervisor_counts_too() -> None:
    collector = Collector()
    collector.count("tlsproxy_process_deaths_total", role="worker")
    assert collector.totals == {'tlsproxy_process_deaths_total{role="worker"}': 1}


def test_an_upgrade_loses_and_doubles_nothing() -> None:
    old, new = Collector(), Collector()
    told(old, 1, **{UNKNOWN: 2})
    new.absorb(old.snapshot())
    told(old, 1, **{UNKNOWN: 1, TURNED_AWAY: 4})  # its workers drain
    told(new, 2, **{UNKNOWN: 10})
    new.absorb(old.rest())
    new.absorb(old.rest())
    told(old, 1, **{UNKNOWN: 1})
    new.absorb(old.rest())
    assert new.totals == {UNKNOWN: 14, TURNED_AWAY: 4}


def test_an_upgrade_that_comes_to_nothing_changes_nothing() -> None:
    old = Collector()
    told(old, 1, **{UNKNOWN: 2})
    old.snapshot()
    told(old, 1, **{UNKNOWN: 1})
    assert old.totals == {UNKNOWN: 3}
    assert old.snapshot() == {UNKNOWN: 3}
    assert old.rest() == {}
