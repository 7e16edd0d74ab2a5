"""The traceparent field of W3C Trace Context, level 1: who began what this request is part of. PURE.

Rule: what is not exactly of the form is nobody's, and is not guessed at (section 3.2.2.3 to 3.2.2.5; 4.3).
"""

from __future__ import annotations

from typing import Final, NamedTuple

FIELD: Final = b"traceparent"
STATE: Final = b"tracestate"

_LENGTH: Final = 55
_HEX: Final = b"0123456789abcdef"
_DASHES: Final = (2, 35, 52)
_DASH: Final = ord("-")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16
_SAMPLED: Final = 1


class TraceContext(NamedTuple):
    """Ids in lower-case hexadecimal: 32 digits of the trace, 16 of the span that is the parent."""

    trace: bytes
    span: bytes
    is_sampled: bool


def parse_traceparent(value: bytes) -> TraceContext | None:
    """Return what a field's value says; None if it is malformed, and is to be treated as if it were not there.

    A version that is yet to come may have more after a dash (4.3); ff is none (3.2.2.1).
    """
    head, rest = value[:_LENGTH], value[_LENGTH:]
    if len(head) < _LENGTH or head.translate(None, _HEX) != b"---" or any(head[n] != _DASH for n in _DASHES):
        return None
    version, trace, span = head[:2], head[3:35], head[36:52]
    if version == b"ff" or (rest and (version == b"00" or rest[:1] != b"-")):
        return None
    if trace == _NO_TRACE or span == _NO_SPAN:
        return None
    return TraceContext(trace, span, bool(int(head[53:], 16) & _SAMPLED))


def format_traceparent(trace: bytes, span: bytes, *, is_sampled: bool) -> bytes:
    return b"00-%b-%b-0%d" % (trace, span, is_sampled)
