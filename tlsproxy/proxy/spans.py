"""Sampled exchanges -> spans of OpenTelemetry -> OTLP over HTTP. In a thread; the request path only adds to a list.

Knows the attributes of the semantic conventions for HTTP servers (stable since 1.23); the encoding and the sending are
the SDK's, which is the optional extra [otel] and is imported here alone. Rules: at most `MOST_WAITING` exchanges wait,
what comes beyond them is dropped and counted; a place that does not answer is said once, and once when it does again;
no query and no header of a client goes out, except its User-Agent.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tlsproxy import __version__
from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tlsproxy.proxy.record import Record

logger = logging.getLogger(__name__)

MOST_WAITING: Final = 4096
BATCH: Final = 512
PAUSE: Final = 2.0
"""Seconds between two looks for spans."""
SEND_TIME: Final = 5.0
PARTING_TIME: Final = 2.0
"""Seconds for what is left when the worker ends."""

_MISSING: Final = "spans need OpenTelemetry, which is not installed here: pip install 'tlsproxy[otel]'"

_NOISY: Final = ("opentelemetry.exporter", "opentelemetry.sdk")
_LONGEST: Final = 1024
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT"))
_VERSIONS: Final = {10: "1.0", 11: "1.1", 20: "2"}


class TracingError(TlsproxyError):
    """Spans can't be sent as the configuration has it."""


class _Ended(NamedTuple):
    """What a span needs of an exchange, and nothing that keeps its connection alive."""

    trace: bytes
    method: bytes
    target: bytes
    host: str
    version: int
    user_agent: bytes
    scheme: str
    client: str
    started_at: float
    seconds: float
    status: int
    site: str
    route: str
    template: str
    backend: str
    backend_ms: float
    request_id: bytes
    error: str
    bytes_in: int
    bytes_out: int


class SpanExport:
    """See the module's text. A `tracing.SpanSink`.

    Mutable: `_waiting` (the loop appends, the thread takes from the left), `dropped` (the loop's), `_in_trouble` (the
    thread's).
    """

    def __init__(self, endpoint: str, headers: str) -> None:
        self._endpoint = endpoint
        self._sdk = _Sdk(endpoint, read_headers(headers))
        self._waiting: deque[_Ended] = deque()
        self.dropped = 0
        self._in_trouble = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<SpanExport {self._endpoint} {len(self._waiting)} waiting, {self.dropped} dropped>"

    def put(self, exchange: Record) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
        else:
            self._waiting.append(_taken_from(exchange))

    def close(self) -> None:
        """A place that does not answer gets no more time than that."""
        self._stop.set()
        self._thread.join(PARTING_TIME)
        self._sdk.close()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            self._send()
        self._send()

    def _send(self) -> None:
        while batch := self._take():
            try:
                is_sent = self._sdk.export(batch)
            except Exception:
                logger.exception("tracing.crashed")
                is_sent = False
            self._tell(len(batch), is_sent=is_sent)
            if not is_sent:
                return  # the next would wait for the same

    def _take(self) -> list[_Ended]:
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]

    def _tell(self, lost: int, *, is_sent: bool) -> None:
        if not is_sent and not self._in_trouble:
            logger.warning("tracing.export_failed", extra={"otlp": self._endpoint, "lost": lost, "hint": _HINT})
        elif is_sent and self._in_trouble:
            logger.info("tracing.export_works", extra={"otlp": self._endpoint, "dropped": self.dropped})
        self._in_trouble = not is_sent


_HINT: Final = "is a collector listening there, and is the path right? For OTLP over HTTP it is usually :4318/v1/traces"


class _Sdk:
    """Everything of OpenTelemetry."""

    def __init__(self, endpoint: str, headers: dict[str, str]) -> None:
        try:
            self._api = importlib.import_module("opentelemetry.trace")
            self._trace = importlib.import_module("opentelemetry.sdk.trace")
            resources = importlib.import_module("opentelemetry.sdk.resources")
            scope = importlib.import_module("opentelemetry.sdk.util.instrumentation")
            exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError as error:
            raise TracingError(f"tracing.otlp: {_MISSING} ({error})") from error
        for name in _NOISY:  # what goes wrong is said here, once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        about = {"service.name": "tlsproxy", "service.version": __version__, "process.pid": os.getpid()}
        self._resource = resources.Resource.create(about)
        self._scope = scope.InstrumentationScope("tlsproxy", __version__)
        self._exporter = exporter.OTLPSpanExporter(endpoint=endpoint, headers=headers, timeout=SEND_TIME)
        self._sampled = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)

    def export(self, ended: Iterable[_Ended]) -> bool:
        result: Any = self._exporter.export([self._span(each) for each in ended])
        return bool(result.name == "SUCCESS")

    def close(self) -> None:
        self._exporter.shutdown()

    def _span(self, ended: _Ended) -> Any:
        trace, span, parent = ended.trace.split(b"-")
        begin = int(ended.started_at * 1e9)
        api = self._api
        failed = api.Status(api.StatusCode.ERROR, ended.error or None) if ended.status >= 500 else api.Status()
        return self._trace.ReadableSpan(
            name=name_of(ended.method, ended.template or ended.route),
            context=self._context(trace, span, is_remote=False),
            parent=self._context(trace, parent, is_remote=True) if parent else None,
            resource=self._resource,
            attributes=attributes_of(ended),
            kind=api.SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=failed,
            start_time=begin,
            end_time=begin + int(ended.seconds * 1e9),
        )

    def _context(self, trace: bytes, span: bytes, *, is_remote: bool) -> Any:
        return self._api.SpanContext(int(trace, 16), int(span, 16), is_remote, self._sampled)


def require() -> None:
    """Raise TracingError if spans could not be sent for lack of a package; imports nothing that costs time."""
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ImportError:  # of a parent package
        found = None
    if found is None:
        raise TracingError(_MISSING)


def read_headers(text: str) -> dict[str, str]:
    """Take "name=value,name=value" apart. Raises TracingError, without the values."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().replace("-", "").replace("_", "").isalnum():
            raise TracingError('write them as "name=value,name=value"')
        found[name.strip().lower()] = value.strip()
    return found


def name_of(method: bytes, route: str) -> str:
    """As the conventions want it: few of them, so nothing a client can make up."""
    known = method.decode() if method in _METHODS else "HTTP"
    return f"{known} {route}" if route else known


def attributes_of(ended: _Ended) -> dict[str, Any]:
    """Return the attributes of a span, those of the semantic conventions first."""
    path = ended.target.partition(b"?")[0]
    found: dict[str, Any] = {
        "http.request.method": ended.method.decode() if ended.method in _METHODS else "_OTHER",
        "http.response.status_code": ended.status,
        "http.route": ended.template or ended.route,
        "url.scheme": ended.scheme,
        "url.path": _text(path),
        "server.address": ended.host[:_LONGEST],
        "client.address": ended.client,
        "network.protocol.version": _VERSIONS[ended.version],
        "user_agent.original": _text(ended.user_agent),
        "http.request.body.size": ended.bytes_in,
        "http.response.body.size": ended.bytes_out,
        "error.type": str(ended.status) if ended.status >= 500 else "",
        "tlsproxy.site": ended.site,
        "tlsproxy.backend": ended.backend,
        "tlsproxy.request_id": ended.request_id.decode("latin-1"),
        "tlsproxy.error": ended.error[:_LONGEST],
    }
    if ended.backend_ms >= 0:
        found["tlsproxy.backend_ms"] = round(ended.backend_ms, 3)
    return {name: value for name, value in found.items() if value != ""}


def _text(value: bytes) -> str:
    return value[:_LONGEST].decode("latin-1")


def _taken_from(exchange: Record) -> _Ended:
    head, forward, backend, site = exchange.head, exchange.forward, exchange.backend, exchange.site
    return _Ended(
        exchange.trace,
        head.method,
        head.target,
        head.host,
        head.version,
        head.user_agent,
        exchange.info.scheme,
        exchange.client,
        exchange.started_at,
        exchange.ended - exchange.started,
        exchange.status,
        site.name if site is not None else "",
        forward.route.label if forward is not None else "",
        exchange.template,
        backend.url if backend is not None else "",
        exchange.backend_ms,
        exchange.request_id,
        exchange.error,
        exchange.bytes_in,
        exchange.bytes_out,
    )
