"""Traces through real processes: what the backend hears, what the collector gets, what the access log says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from tests.collector import attributes, collecting
from tests.system.conftest import StartProxy
from tests.system.running import until, write_pair
from tlsproxy.wire.tracing import parse_traceparent

pytestmark = pytest.mark.system

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def site(folder: Path, authority: trustme.CA, app: str) -> str:
    pair = write_pair(folder, authority, "localhost")
    return f'[[sites]]\nhosts = ["localhost"]\ncertificate = {pair}\nbackends = ["{app}"]\n'


@pytest.fixture
def sites(tmp_path: Path, authority: trustme.CA, app: str) -> str:
    return site(tmp_path, authority, app)


@pytest.mark.parametrize("http2", [False, True])
def test_a_sampled_request_becomes_a_span_between_its_parent_and_the_backend(
    start_proxy: StartProxy, sites: str, http2: bool
) -> None:
    with collecting() as collector:
        proxy = start_proxy(sites, head=f'tracing = {{ otlp = "{collector.url}", sample = 0.0 }}')
        with proxy.client(http2=http2) as client:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
            heard = client.get("/whoami?token=secret", headers=headers).json()["headers"]
            unsampled = client.get("/whoami").json()["headers"]
        (span,) = until(lambda: collector.spans, "the span")
        said = parse_traceparent(dict(heard)["traceparent"].encode())
        assert said is not None
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
        assert (said.trace.decode(), said.span.decode(), said.is_sampled) == (TRACE, span.span_id.hex(), True)
        assert dict(heard)["tracestate"] == "vendor=1"
        told = attributes(span)
        assert (told["http.response.status_code"], told["url.path"], told["tlsproxy.site"]) == (
            200,
            "/whoami",
            "localhost",
        )
        assert "secret" not in str(collector.requests)
        assert proxy.logged(trace_id=TRACE)["request_id"] == told["tlsproxy.request_id"]
        begun = parse_traceparent(dict(unsampled)["traceparent"].encode())
        assert begun is not None
        assert not begun.is_sampled
        assert proxy.logged(trace_id=begun.trace.decode())["status"] == 200


def test_spans_of_the_last_moment_come_and_a_dead_collector_costs_nothing(start_proxy: StartProxy, sites: str) -> None:
    with collecting() as collector:
        proxy = start_proxy(sites, head=f'tracing = {{ otlp = "{collector.url}", sample = 1.0 }}')
        collector.status = 400
        with proxy.client() as client:
            assert client.get("/whoami").status_code == 200
            proxy.wait_for("tracing.export_failed")
            collector.status = 200
            client.get("/whoami")
        proxy.stop()
        assert len(collector.spans) == 1


def test_without_tracing_nothing_is_added(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    with proxy.client() as client:
        plain = dict(client.get("/whoami").json()["headers"])
        own = dict(client.get("/whoami", headers={"traceparent": "whatever"}).json()["headers"])
    assert "traceparent" not in plain
    assert own["traceparent"] == "whatever"  # a field like any other
    assert "trace_id" not in proxy.logged(status=200)


def test_check_says_that_the_extra_is_missing(tmp_path: Path) -> None:
    """A finder that knows no OpenTelemetry plays the machine that has none."""
    config = tmp_path / "tlsproxy.toml"
    config.write_text(
        '[tracing]\notlp = "http://127.0.0.1:4318/v1/traces"\nheaders = "nonsense"\n'
        f'[store]\nurl = "file://{tmp_path}/store"\n[[sites]]\nhosts = ["localhost"]\nbackends = ["127.0.0.1:1"]\n'
    )
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["opentelemetry.exporter"] = None\n')
    command = [sys.executable, "-m", "tlsproxy", "check", "--config", str(config)]
    ran = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, timeout=60)
    assert ran.returncode == 2
    assert "tracing.otlp: spans need OpenTelemetry" in ran.stderr
    assert "pip install 'tlsproxy[otel]'" in ran.stderr
    assert 'tracing.headers: write them as "name=value,name=value"' in ran.stderr
    assert "nonsense" not in ran.stderr
