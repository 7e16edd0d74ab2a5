"""Requests followed across services: which trace each belongs to, and which of them become spans.

Strategy: a client's traceparent that is well-formed is kept; else the request begins a trace of its own, and `sample`
of these are marked as sampled, which backends go by. With a place for spans, the proxy is a step of each sampled trace:
the backend's parent is then the proxy's span. On the request path there is nothing but a scan of the fields, two random
numbers and, for what is sampled, an entry in a list; `spans` makes spans of these in a thread.

Rule: what a client says about sampling is believed, as the standard has it; the list is bounded, so that it costs
spans and not memory.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Protocol

from tlsproxy.proxy.spans import SpanExport
from tlsproxy.wire.tracing import FIELD, STATE, TraceContext, format_traceparent, parse_traceparent

if TYPE_CHECKING:
    from tlsproxy.proxy.record import Record
    from tlsproxy.settings import Tracing as Section
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import RequestHead

TRACE_DIGITS: Final = 32

_FIELD_LENGTH: Final = len(FIELD)


class SpanSink(Protocol):
    """Takes sampled exchanges that have ended. Must return at once and not raise."""

    def put(self, exchange: Record) -> None: ...

    def close(self) -> None:
        """Send what is there, in a short time."""
        ...


class Tracing:
    """A `services.Trace`. `sample` is the part of new traces that are sampled; `sink` gets what becomes spans.

    `Record.trace` is the id of the trace; of one that becomes a span it is "TRACE-SPAN-PARENT" (no parent: "").
    Mutable: the state of `_random`.
    """

    def __init__(self, sample: float, sink: SpanSink | None) -> None:
        self._sample = sample
        self._sink = sink
        self._random = random.Random()  # noqa: S311 - ids need to be different, not secret

    def __repr__(self) -> str:
        return f"<Tracing {self._sample:g} {self._sink or 'passed on only'}>"

    def begin(self, exchange: Record, head: RequestHead) -> Fields:
        """Return the fields that take the place of the client's own. One with an empty value only takes them away."""
        parent = _find(head.fields)
        if parent is None:
            return self._begin_trace(exchange)
        if self._sink is None or not parent.is_sampled:
            exchange.trace = parent.trace  # passed on as it came, tracestate and all
            return []
        span = self._new_span()
        exchange.trace = b"%b-%b-%b" % (parent.trace, span, parent.span)
        return [(FIELD, format_traceparent(parent.trace, span, is_sampled=True))]

    def ended(self, exchange: Record) -> None:
        if len(exchange.trace) > TRACE_DIGITS and self._sink is not None:
            self._sink.put(exchange)

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def _begin_trace(self, exchange: Record) -> Fields:
        """What came as tracestate belongs to a parent that can't be read (3.3.1.1: discard it)."""
        trace, span = b"%032x" % (self._random.getrandbits(128) or 1), self._new_span()
        is_sampled = self._random.random() < self._sample
        exchange.trace = b"%b-%b-" % (trace, span) if is_sampled and self._sink is not None else trace
        return [(FIELD, format_traceparent(trace, span, is_sampled=is_sampled)), (STATE, b"")]

    def _new_span(self) -> bytes:
        return b"%016x" % (self._random.getrandbits(64) or 1)


def make_tracing(section: Section) -> Tracing | None:
    """Return what the configuration wants; None: nothing. Raises TlsproxyError if spans are wanted and can't be."""
    if not (section.traceparent or section.otlp):
        return None
    if not section.otlp:
        return Tracing(section.sample, None)
    return Tracing(section.sample, SpanExport(section.otlp, section.headers.get_secret_value()))


def _find(fields: Fields) -> TraceContext | None:
    """Two of them are as good as none (3.2: it is one field)."""
    found = b""
    for name, value in fields:
        if len(name) == _FIELD_LENGTH and name.lower() == FIELD:
            if found:
                return None
            found = value
    return parse_traceparent(found) if found else None
