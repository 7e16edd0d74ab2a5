"""Heads of HTTP/2 messages towards backends: what `forwarding` wrote becomes fields, and an answer's fields its head.

Strategy: an outbound head is decided once, as HTTP/1.1 has it; here its lines are taken apart again, which is safe
because nobody but us has written them, and cheap because the usual client repeats itself: the block of lines that it is
the cause of is remembered by the connection. Answers are judged by the tables and the grammar of HTTP/1.1's reader.

Rule kept: libnghttp2 has refused what is malformed (RFC 9113 8.1.1), and still no byte that would end a field of
HTTP/1.1 passes unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ngh2 import NeverIndexedHeader

from tlsproxy.wire import grammar
from tlsproxy.wire.fields import RESPONSE_KIND, Field, Fields, Kind
from tlsproxy.wire.http2_heads import lower_fields
from tlsproxy.wire.messages import Framing, ProtocolError, ResponseHead

ANSWER_HEADER_SIZE: Final = 64 * 1024  # bytes, as for HTTP/1.1
_ANSWER_HEADER_COUNT: Final = 256
_FIELD_OVERHEAD: Final = 32  # RFC 9113 6.5.2
_BLOCKS_REMEMBERED: Final = 64
_LONGEST_REMEMBERED: Final = 4096
_OWN: Final = b"X-Request-ID: "  # the first of the two lines that `forwarding` writes behind the block, always new
# RFC 9113 8.2.2, and Host, which is :authority.
_NOT_SENT: Final = frozenset((b"host", b"connection", b"transfer-encoding", b"upgrade"))
_CONNECTION_SPECIFIC: Final = frozenset((Kind.CONNECTION, Kind.TRANSFER_ENCODING, Kind.UPGRADE))
_PLAIN: Final = Kind.PLAIN
_NOTED: Final = Kind.NOTED
_NO_BODY: Final = Framing.NONE
_SCHEME: Final = (b":scheme", b"http")


class RequestFields:
    """Makes the fields of one connection's requests."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[bytes, Fields] = {}

    def read(self, head: bytes) -> Fields:
        """The fields of a request, pseudo-fields first (RFC 9113 8.3)."""
        line, _, rest = head.partition(b"\r\n")
        method, target, _ = line.split(b" ")
        at = rest.rindex(_OWN)
        own = rest[at:-4].split(b"\r\n")
        fields = [(b":method", method), (b":path", target), *self._block(rest[:at])]
        # Never the same twice: in the table of RFC 7541 2.3.2 they would only push out what is.
        fields += [NeverIndexedHeader(*field) for field in _split(own)]
        return fields

    def websocket(self, head: bytes) -> Fields:
        """The same for an upgrade: an extended CONNECT (RFC 8441 4), which has no key (5)."""
        fields = [field for field in self.read(head)[1:] if field[0] != b"sec-websocket-key"]
        return [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *fields]

    def _block(self, block: bytes) -> Fields:
        fields = self._blocks.get(block)
        if fields is None:
            fields = _read_block(block)
            if len(block) <= _LONGEST_REMEMBERED:
                if len(self._blocks) >= _BLOCKS_REMEMBERED:
                    self._blocks.clear()
                self._blocks[block] = fields
        return fields


def _read_block(block: bytes) -> Fields:
    fields = _split(block.split(b"\r\n")[:-1])
    authority = [(b":authority", value) for name, value in fields if name == b"host" and value]
    return [_SCHEME, *authority, *(field for field in fields if field[0] not in _NOT_SENT)]


def _split(lines: list[bytes]) -> Fields:
    return lower_fields([(name, value) for name, _, value in [line.partition(b": ") for line in lines]])


class AnswerReader:
    """Reads the heads of one connection's answers. Raises ProtocolError; the client gets 502 whatever it says."""

    __slots__ = ("_last", "_last_ended", "_last_fields")

    def __init__(self) -> None:
        self._last: ResponseHead | None = None
        self._last_ended = False
        self._last_fields: Sequence[Field] = ()

    def read(self, fields: Sequence[Field], *, bodiless: bool, ended: bool) -> ResponseHead:
        """The head, which may be one handed out before: do not edit. `bodiless`: the answer to HEAD."""
        last = self._last
        if last is not None and not bodiless and ended is self._last_ended and fields == self._last_fields:
            return last
        head = ResponseHead(_status(fields), b"")
        _check(fields[1:])
        for field in fields[1:]:
            kind = RESPONSE_KIND[field[0]]
            if kind is _PLAIN:
                head.fields.append(field)
            elif kind is _NOTED:
                head.fields.append(field)
                if len(field[0]) == 4:
                    head.is_dated = True
                elif len(field[0]) == 6:
                    head.server = field[1]
            else:
                _take_special(head, kind, field)
        _frame(head, bodiless=bodiless, ended=ended)
        if not bodiless:
            self._last, self._last_ended, self._last_fields = head, ended, fields
        return head

    def trailers(self, fields: Sequence[Field]) -> Fields:
        """The trailers of an answer, checked as a head is."""
        _check(fields)
        return list(fields)


def _status(fields: Sequence[Field]) -> int:
    name, value = fields[0]
    if name != b":status" or len(value) != 3 or not value.isdigit() or not 100 <= int(value) <= 599:
        raise ProtocolError(502, "The answer's status is not a number from 100 to 599.")
    return int(value)


def _check(fields: Sequence[Field]) -> None:
    if len(fields) > _ANSWER_HEADER_COUNT:
        raise ProtocolError(502, f"The answer has more than {_ANSWER_HEADER_COUNT} header fields.")
    names = b"".join([name for name, _ in fields])
    values = b"".join([value for _, value in fields])
    if len(names) + len(values) + len(fields) * _FIELD_OVERHEAD > ANSWER_HEADER_SIZE:
        raise ProtocolError(502, f"The answer's header is larger than {ANSWER_HEADER_SIZE} bytes.")
    if names.translate(None, grammar.TOKEN):
        raise ProtocolError(502, "The name of a header field is not a token.")
    grammar.check_text(values)


def _take_special(head: ResponseHead, kind: Kind, field: Field) -> None:
    name, value = field
    if kind in _CONNECTION_SPECIFIC:
        raise ProtocolError(502, f"The answer has a {name.decode('latin-1')} field, which HTTP/2 has not.")
    if kind is Kind.CONTENT_LENGTH:
        if head.length >= 0:
            raise ProtocolError(502, "The answer has more than one Content-Length.")
        head.length = grammar.parse_content_length(value)
    elif kind is Kind.TRAILER:
        head.trailer = value
    elif kind is Kind.TEMPLATE:
        head.template = value


def _frame(head: ResponseHead, *, bodiless: bool, ended: bool) -> None:
    """What an HTTP/1.1 client is told of the body. Frames tell its end; libnghttp2 compares that to the length."""
    if bodiless or head.status < 200 or head.status in (204, 304):
        head.framing = _NO_BODY
        return
    if ended and head.length < 0:
        head.length = 0
    head.framing = Framing.LENGTH if head.length >= 0 else Framing.CHUNKED
