"""The traceparent field: the examples of the standard, and everything that only looks like one."""

from __future__ import annotations

import pytest

from tlsproxy.wire.tracing import TraceContext, format_traceparent, parse_traceparent

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
GOOD = b"00-%b-%b-01" % (TRACE, SPAN)


@pytest.mark.parametrize(
    ("value", "is_sampled"),
    [
        (GOOD, True),
        (b"00-%b-%b-00" % (TRACE, SPAN), False),
        (b"00-%b-%b-02" % (TRACE, SPAN), False),  # another flag, of level 2
        (b"00-%b-%b-ff" % (TRACE, SPAN), True),
        (b"01-%b-%b-01" % (TRACE, SPAN), True),  # versions that are yet to come (4.3)
        (b"cc-%b-%b-01-what-the-future-will-be-like" % (TRACE, SPAN), True),
    ],
)
def test_what_is_well_formed_is_understood(value: bytes, is_sampled: bool) -> None:
    assert parse_traceparent(value) == TraceContext(TRACE, SPAN, is_sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-extra",  # version 00 has no more
        b"cc" + GOOD[2:] + b".more",
        b"ff" + GOOD[2:],
        GOOD.upper(),
        GOOD.replace(b"4bf9", b"4bg9"),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        GOOD.replace(b"-", b"_"),
        b"0-0%b-%b-01" % (TRACE, SPAN),
        b" " + GOOD,
        b"0\xff" + GOOD[2:],
    ],
)
def test_what_only_looks_like_one_is_none(value: bytes) -> None:
    assert parse_traceparent(value) is None


def test_what_is_written_can_be_read() -> None:
    assert format_traceparent(TRACE, SPAN, is_sampled=True) == GOOD
    assert parse_traceparent(format_traceparent(TRACE, SPAN, is_sampled=False)) == TraceContext(TRACE, SPAN, False)
