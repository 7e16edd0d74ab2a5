"""Which trace a request belongs to, what the backend is told of it, and which requests become spans."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.collector import attributes, collecting
from tests.system.running import free_port
from tlsproxy.proxy import spans
from tlsproxy.proxy.record import Record
from tlsproxy.proxy.spans import SpanExport, TracingError, read_headers
from tlsproxy.proxy.stream import ConnectionInfo
from tlsproxy.proxy.tracing import Tracing, make_tracing
from tlsproxy.settings import Tracing as Section
from tlsproxy.wire.fields import Fields
from tlsproxy.wire.messages import RequestHead
from tlsproxy.wire.tracing import parse_traceparent

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (b"00-%b-%b-%b" % (TRACE, SPAN, flags) for flags in (b"01", b"00"))


class Sink:
    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def put(self, exchange: Record) -> None:
        self.taken.append(exchange.trace)

    def close(self) -> None:
        pass


def exchange(*fields: tuple[bytes, bytes], target: bytes = b"/a?token=secret") -> Record:
    head = RequestHead(b"GET", target, 11)
    head.fields = [(b"Accept", b"*/*"), *fields]
    head.host = "a.test"
    head.user_agent = b"curl/8"
    return Record(head, ConnectionInfo("192.0.2.7", 1, 443, "https"))


def ask(tracing: Tracing, *fields: tuple[bytes, bytes]) -> tuple[Record, Fields]:
    record = exchange(*fields)
    told = tracing.begin(record, record.head)
    tracing.ended(record)
    return record, told


@pytest.mark.parametrize("value", [SAMPLED, UNSAMPLED])
def test_without_a_place_for_spans_what_is_well_formed_passes_as_it_is(value: bytes) -> None:
    record, told = ask(Tracing(1.0, None), (b"TraceParent", value), (b"tracestate", b"a=b"))
    assert (record.trace, told) == (TRACE, [])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"traceparent", SAMPLED.upper()), (b"tracestate", b"a=b")],
        [(b"traceparent", SAMPLED), (b"traceparent", SAMPLED)],  # it is one field
    ],
)
@pytest.mark.parametrize(("sample", "is_sampled"), [(1.0, True), (0.0, False)])
def test_else_a_trace_begins(fields: Fields, sample: float, is_sampled: bool) -> None:
    record, told = ask(Tracing(sample, None), *fields)
    (name, value), state = told
    context = parse_traceparent(value)
    assert context is not None
    assert (name, context.trace, context.is_sampled) == (b"traceparent", record.trace, is_sampled)
    assert state == (b"tracestate", b"")  # is taken away
    assert context.trace != TRACE


def test_all_traces_differ() -> None:
    tracing = Tracing(0.5, None)
    assert len({ask(tracing)[0].trace for _ in range(1000)}) == 1000


def test_with_a_place_for_spans_the_proxy_is_a_step_of_sampled_traces() -> None:
    sink = Sink()
    record, told = ask(Tracing(0.0, sink), (b"traceparent", SAMPLED), (b"tracestate", b"a=b"))
    ((_, value),) = told  # tracestate stays as it came
    context = parse_traceparent(value)
    assert context is not None
    assert context.trace == TRACE
    assert context.is_sampled
    assert context.span != SPAN
    assert record.trace == b"%b-%b-%b" % (TRACE, context.span, SPAN)
    assert sink.taken == [record.trace]


def test_what_is_not_sampled_becomes_no_span() -> None:
    sink = Sink()
    assert ask(Tracing(0.0, sink), (b"traceparent", UNSAMPLED))[1] == []
    ask(Tracing(0.0, sink))
    assert sink.taken == []


def test_off_is_nothing_at_all() -> None:
    assert make_tracing(Section()) is None
    assert isinstance(make_tracing(Section(traceparent=True)), Tracing)


# --- spans


def finished(record: Record, trace: bytes, status: int = 200) -> Record:
    record.trace = trace
    record.started_at, record.started, record.ended = 1_000_000.5, 10.0, 10.25
    record.status, record.backend_ms, record.request_id = status, 12.5, b"id-1"
    record.template = "/items/{item_id}"
    return record


def test_a_span_says_what_the_conventions_name() -> None:
    with collecting() as collector:
        export = SpanExport(collector.url, "Authorization=Bearer x, x-tenant=7")
        export.put(finished(exchange(), b"%b-%b-%b" % (TRACE, b"00000000000000aa", SPAN)))
        export.put(finished(exchange(), b"%b-%b-" % (b"a" * 32, b"00000000000000ab"), 503))
        export.close()  # sends what is there
        first, second = collector.spans
    assert (first.trace_id.hex(), first.span_id.hex()) == (TRACE.decode(), "00000000000000aa")
    assert (first.parent_span_id.hex(), second.parent_span_id) == (SPAN.decode(), b"")
    assert (first.name, first.kind) == ("GET /items/{item_id}", 2)  # SPAN_KIND_SERVER
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (1_000_000_500_000_000, 1_000_000_750_000_000)
    assert (first.status.code, second.status.code) == (0, 2)
    told = attributes(first)
    assert told["http.request.method"] == "GET"
    assert told["http.response.status_code"] == 200
    assert told["http.route"] == "/items/{item_id}"
    assert told["url.path"] == "/a"
    assert told["client.address"] == "192.0.2.7"
    assert told["tlsproxy.request_id"] == "id-1"
    assert "error.type" not in told
    assert attributes(second)["error.type"] == "503"
    assert "secret" not in str(collector.requests)
    assert attributes(collector.requests[0].resource_spans[0].resource)["service.name"] == "tlsproxy"
    ((path, headers),) = collector.asked
    assert path == "/v1/traces"
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer x", "7")


def test_a_place_that_does_not_answer_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(spans, "SEND_TIME", 0.1)
    with caplog.at_level(logging.INFO, "tlsproxy"):
        export = SpanExport(f"http://127.0.0.1:{free_port()}/v1/traces", "")
        for _ in range(2):
            export.put(finished(exchange(), b"%b-%b-" % (TRACE, SPAN)))
            export._send()
        export.close()
    assert [record.getMessage() for record in caplog.records] == ["tracing.export_failed"]
    assert not export._waiting


def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST_WAITING", 3)
    with collecting() as collector:
        monkeypatch.setattr(spans, "PAUSE", 60.0)
        export = SpanExport(collector.url, "")
        for _ in range(5):
            export.put(finished(exchange(), b"%b-%b-" % (TRACE, SPAN)))
        assert (len(export._waiting), export.dropped) == (3, 2)
        export.close()
        assert len(collector.spans) == 3


@pytest.mark.parametrize("method", [b"BREW", b"get"])
def test_a_stranger_names_no_span(method: bytes) -> None:
    assert spans.name_of(method, "/") == "HTTP /"


def test_headers() -> None:
    assert read_headers("") == {}
    assert read_headers("Api-Key=a=b, x=1") == {"api-key": "a=b", "x": "1"}
    with pytest.raises(TracingError, match="name=value") as caught:
        read_headers("hunter2")
    assert "hunter2" not in str(caught.value)
