"""What a scraper reads: both formats, read back by their own parsers; every family, whole histograms, zeros."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tlsproxy.proxy.metrics import EDGES, series_name
from tlsproxy.runtime import families
from tlsproxy.runtime.exposition import MOST_ZEROS, Page, Sample, render
from tlsproxy.runtime.families import FAMILIES, parse_series

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
HOSTILE = 'q"uo\\te\nd}'
DURATION = "tlsproxy_request_duration_seconds"


def totals() -> dict[str, float]:
    """One series of each counter and histogram, with label values that need care."""
    made: dict[str, float] = {}
    for family in FAMILIES.values():
        labels = dict.fromkeys(family.labels, HOSTILE)
        if family.kind == "counter":
            made[series_name(family.name, labels)] = 3
        elif family.kind == "histogram":
            made[series_name(f"{family.name}_bucket", {**labels, "le": "0.005"})] = 2
            made[series_name(f"{family.name}_bucket", {**labels, "le": "+Inf"})] = 1
            made[series_name(f"{family.name}_sum", labels)] = 301.5
    return made


def gauges() -> list[Sample]:
    made = [family for family in FAMILIES.values() if family.kind == "gauge"]
    return [Sample(family, (HOSTILE,) * len(family.labels), 1.5) for family in made]


def read(page: Page) -> dict[str, Metric]:
    text = page.body.decode()
    is_openmetrics = "openmetrics" in page.content_type
    found: Iterable[Metric] = parse_openmetrics(text) if is_openmetrics else parse_text(text)  # type: ignore[no-untyped-call]
    return {metric.name: metric for metric in found}


def values(metric: Metric, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {tuple(sorted(s.labels.items())): s.value for s in metric.samples if s.name == name}


@pytest.mark.parametrize("accept", ["", OPENMETRICS, "text/plain", "*/*"])
def test_every_family_is_there_with_what_it_was_given(accept: str) -> None:
    metrics = read(render(totals(), gauges(), [], accept))
    assert set(metrics) == {name.removesuffix("_total") for name in FAMILIES}
    for name, family in FAMILIES.items():
        metric = metrics[name.removesuffix("_total")]
        labels = tuple(sorted(dict.fromkeys(family.labels, HOSTILE).items()))
        assert (metric.type, metric.documentation) == (family.kind, family.help)
        if family.kind != "histogram":
            assert values(metric, name)[labels] == (3 if family.kind == "counter" else 1.5)


def test_a_histogram_is_cumulated_and_whole() -> None:
    metric = read(render(totals(), [], []))[DURATION]
    labels = {"site": HOSTILE, "route": HOSTILE}
    buckets = [(s.labels["le"], s.value) for s in metric.samples if s.name == f"{DURATION}_bucket"]
    assert [edge for edge, _ in buckets] == list(EDGES)
    assert [count for _, count in buckets] == [0, 0, *[2] * (len(EDGES) - 3), 3]
    assert list(values(metric, f"{DURATION}_count").values()) == [3]
    assert values(metric, f"{DURATION}_sum") == {tuple(sorted(labels.items())): 301.5}
    assert math.isinf(float(buckets[-1][0]))


def test_the_formats_are_called_what_they_are() -> None:
    assert render({}, [], []).content_type.startswith("text/plain; version=0.0.4")
    assert render({}, [], [], OPENMETRICS).content_type.startswith("application/openmetrics-text; version=1.0.0")


@pytest.mark.parametrize("accept", [f"{OPENMETRICS[:-5]}x", ",;=,", "text/plain;version=²", "a" * 9999])
def test_a_header_that_makes_no_sense_is_no_trouble(accept: str) -> None:
    assert read(render(totals(), [], [], accept))


def test_counters_begin_at_zero_where_it_is_known_which_there_will_be() -> None:
    metrics = read(render({}, [], ["a.test"]))
    downgrades = values(metrics["tlsproxy_backend_scheme_downgrade"], families.DOWNGRADES.name)
    assert downgrades == {(("site", "a.test"),): 0}
    assert values(metrics["tlsproxy_tls_unknown_sni"], families.UNKNOWN_SNI.name) == {(): 0}
    many = read(render({}, [], [f"{number}.test" for number in range(MOST_ZEROS + 1)]))
    assert values(many["tlsproxy_backend_scheme_downgrade"], families.DOWNGRADES.name) == {}


def test_what_is_no_metric_is_left_out() -> None:
    made_up: Mapping[str, float] = {"made_up_total": 1, 'tlsproxy_requests_total{site="a"}': 1}
    assert render(made_up, [], []).body == render({}, [], []).body


@pytest.mark.parametrize("value", ["", "a", HOSTILE, "ü", '"', "\\", "\\n", ',x="y"'])
def test_a_name_is_taken_apart_as_it_was_put_together(value: str) -> None:
    series = parse_series(series_name(families.RETRIES.name, {"site": value}))
    assert series is not None
    assert (series.family, series.labels, series.part) == (families.RETRIES, (value,), "")


def test_promtool_finds_no_fault() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    page = render(totals(), gauges(), ["a.test"])
    said = subprocess.run([promtool, "check", "metrics"], input=page.body, capture_output=True, timeout=30)
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")
