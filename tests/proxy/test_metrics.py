"""What a worker counts: every exchange once, under names that nobody outside can choose."""

from __future__ import annotations

from typing import cast

import pytest

from tests.fakes.backend import OK
from tests.fakes.stage import Stage
from tlsproxy.proxy.metrics import BOUNDS, MOST_TEMPLATES, Metrics, series_name
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.record import Record
from tlsproxy.proxy.router import Forward, Route, Site
from tlsproxy.proxy.stream import ConnectionInfo
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.wire.messages import RequestHead

GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
REQUESTS = "tlsproxy_requests_total"
BACKEND = "http://127.0.0.1:8000"


class Head:
    """As much of a request's head as is counted."""

    def __init__(self, method: bytes) -> None:
        self.method = method


def site(*paths: str) -> Site:
    upstream = Upstream([Backend(BACKEND, most_idle=1)], "least_conn")
    return Site(["a.test"], [Route(path, upstream, strip=False, response_timeout=1, max_body=0) for path in paths])


def record(
    forward: Forward | None,
    *,
    status: int = 200,
    method: bytes = b"GET",
    template: str = "",
    seconds: float = 0.0,
    backend_ms: float = -1.0,
) -> Record:
    """An exchange that has ended."""
    made = Record(cast(RequestHead, Head(method)), ConnectionInfo("192.0.2.1", 1, 443, "https"))
    made.forward, made.site = forward, forward.site if forward else None
    made.status, made.template = status, template
    made.started, made.ended = 100.0, 100.0 + seconds
    if forward is not None:
        made.backend, made.backend_ms = forward.route.upstream.backends[0], backend_ms
    return made


def requests(**labels: str) -> str:
    return series_name(REQUESTS, {"site": "a.test", "route": "/", "method": "GET", "status": "200", **labels})


def only(series: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in series.items() if key.partition("{")[0] == name}


class TestExchanges:
    def test_each_is_counted_by_site_route_method_and_status(self) -> None:
        metrics, place = Metrics(), site("/", "/api")
        api, root = place.forwards
        for forward, status, method in ((root, 200, b"GET"), (root, 200, b"GET"), (api, 404, b"POST")):
            metrics.tally(record(forward, status=status, method=method))
        assert only(metrics.series(), REQUESTS) == {
            requests(): 2,
            requests(route="/api", method="POST", status="404"): 1,
        }

    def test_what_was_told_is_not_told_again(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        metrics.tally(record(forward))
        metrics.series()
        assert metrics.series() == {}
        metrics.tally(record(forward))
        assert metrics.series()[requests()] == 1

    def test_what_leads_nowhere_is_other(self) -> None:
        metrics = Metrics()
        metrics.tally(record(None, status=421))
        assert only(metrics.series(), REQUESTS) == {requests(site="other", route="other", status="421"): 1}

    def test_a_template_is_the_route(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        metrics.tally(record(forward, template="/items/{item_id}"))
        assert only(metrics.series(), REQUESTS) == {requests(route="/items/{item_id}"): 1}


class TestNobodyMakesSeries:
    def test_methods_and_statuses_that_no_standard_has_are_other(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        for number in range(3):
            metrics.tally(record(forward, method=b"BREW%d" % number))
            metrics.tally(record(forward, status=700 + number))
        assert only(metrics.series(), REQUESTS) == {requests(method="other"): 3, requests(status="other"): 3}

    def test_what_a_client_said_is_kept_nowhere(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        for number in range(1000):
            metrics.tally(record(forward, method=b"BREW%d" % number))
        assert len(metrics._cells) == 1

    def test_a_route_has_so_many_templates_and_no_more(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        for number in range(MOST_TEMPLATES + 5):
            metrics.tally(record(forward, template=f"/{number}"))
        metrics.tally(record(forward, template="/0"))
        counted = only(metrics.series(), REQUESTS)
        assert len(counted) == MOST_TEMPLATES + 1
        assert (counted[requests(route="other")], counted[requests(route="/0")]) == (5, 2)

    def test_after_a_spring_clean_it_goes_on_with_nothing_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tlsproxy.proxy.metrics._MOST_CELLS", 2)
        metrics, [forward] = Metrics(), site("/").forwards
        total = 0.0
        for _ in range(3):
            for status in (200, 404, 500):
                metrics.tally(record(forward, status=status, seconds=0.1))
            total += sum(only(metrics.series(), REQUESTS).values())
            assert metrics._cells == {}
        assert total == 9

    def test_values_are_escaped(self) -> None:
        assert series_name("x", {"a": 'q"\\\n'}) == 'x{a="q\\"\\\\\\n"}'


class TestHistograms:
    @pytest.mark.parametrize(
        ("seconds", "edge"), [(0.0, "0.001"), (0.001, "0.001"), (0.0011, "0.0025"), (1.0, "1.0"), (301.0, "+Inf")]
    )
    def test_a_bound_belongs_to_its_bucket(self, seconds: float, edge: str) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        made = record(forward)
        made.started, made.ended = 0.0, seconds
        metrics.tally(made)
        labels = {"site": "a.test", "route": "/"}
        name = "tlsproxy_request_duration_seconds"
        series = metrics.series()
        assert only(series, f"{name}_bucket") == {series_name(f"{name}_bucket", {**labels, "le": edge}): 1}
        assert series[series_name(f"{name}_sum", labels)] == seconds

    def test_a_websocket_has_no_duration(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        metrics.tally(record(forward, status=101, seconds=3600))
        assert only(metrics.series(), "tlsproxy_request_duration_seconds_bucket") == {}

    def test_a_backend_has_its_own(self) -> None:
        metrics, [forward] = Metrics(), site("/").forwards
        metrics.tally(record(forward, backend_ms=3.0))
        metrics.tally(record(forward, backend_ms=-1.0))
        labels = {"site": "a.test", "backend": BACKEND}
        name = "tlsproxy_backend_duration_seconds"
        series = metrics.series()
        assert only(series, f"{name}_bucket") == {series_name(f"{name}_bucket", {**labels, "le": "0.005"}): 1}
        assert series[series_name(f"{name}_sum", labels)] == pytest.approx(0.003)

    def test_bounds_ascend(self) -> None:
        assert list(BOUNDS) == sorted(set(BOUNDS))


class TestHandshakes:
    def test_success_and_failure_are_told_apart(self) -> None:
        metrics = Metrics()
        info = ConnectionInfo("192.0.2.1", 1, 443, "https")
        info.tls, info.resumed = "TLSv1.3", True
        metrics.handshake_done(info)
        metrics.handshake_failed("unrecognized name")
        metrics.handshake_failed("whatever openssl says")
        name = "tlsproxy_tls_handshakes_total"
        failed = {"version": "", "resumed": "false"}
        assert metrics.series() == {
            series_name(name, {"version": "TLSv1.3", "resumed": "true", "result": "ok"}): 1,
            series_name(name, {**failed, "result": "unknown_name"}): 1,
            series_name(name, {**failed, "result": "failed"}): 1,
            "tlsproxy_tls_unknown_sni_total": 1,
        }


class TestFront:
    def test_counts_what_it_serves(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET)
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        series = stage.call(stage.front.series)
        assert series[requests()] == 1
        assert series['tlsproxy_response_body_bytes_total{site="a.test"}'] == 2
        assert series['tlsproxy_tls_handshakes_total{version="TLSv1.3",resumed="false",result="ok"}'] == 1
        assert only(series, "tlsproxy_backend_duration_seconds_bucket")

    def test_counts_one_that_http_refuses(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        client.message()
        counted = only(stage.call(stage.front.series), REQUESTS)
        assert counted == {requests(site="other", route="other", status="400"): 1}

    def test_plain_connections_are_no_handshakes(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect_plain()
        client.send(GET)
        client.message()
        assert only(stage.call(stage.front.series), "tlsproxy_tls_handshakes_total") == {}
