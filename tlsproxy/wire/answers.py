"""Reading the answers of a backend: the other direction of the HTTP/1.1 codec. Pure.

The strategy of `http1`: lines are judged once, the framing from all fields together. A backend is trusted with content,
not with framing: anything ambiguous is a ProtocolError, which the exchange turns into a 502.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from tlsproxy.wire import grammar
from tlsproxy.wire.bodies import MessageReader
from tlsproxy.wire.fields import NO_NAMES, RESPONSE_KIND, Field, Kind, connection_names, without
from tlsproxy.wire.lines import FieldLines
from tlsproxy.wire.messages import Framing, ProtocolError, ResponseHead

_ANSWER_HEADER_SIZE: Final = 64 * 1024  # bytes; frameworks set large cookies and policies, nobody needs more
_ANSWER_HEADER_COUNT: Final = 256
_STATUS_LINES_REMEMBERED: Final = 256
_LONGEST_STATUS_LINE: Final = 128  # of those remembered; some back ends put an error's text into the reason
_LONGEST_REPEATED: Final = 4096  # bytes a connection holds to recognise a head it has seen before
# A global costs a third of looking a member up on its Enum, and the loops over fields compare often.
_PLAIN: Final = Kind.PLAIN
_NOTED: Final = Kind.NOTED
_CONTENT_LENGTH: Final = Kind.CONTENT_LENGTH
_NO_BODY: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH
_ANSWER_OPTIONS: Final = frozenset((b"close", b"keep-alive", b"upgrade"))  # the others name fields that end here


class ResponseReader(MessageReader):
    """Reads the answers of one backend connection. Raises ProtocolError; the client gets 502 whatever it says.

    `expect` must be told for each request before its answer is read: the framing depends on the method.
    """

    __slots__ = ("_bodiless", "_last", "_last_raw")

    def __init__(self) -> None:
        super().__init__()
        self._bodiless = False
        self._last: ResponseHead | None = None  # with its bytes, and valid for this kind of request only
        self._last_raw = b""

    def expect(self, method: bytes) -> None:
        """Prepare for the answer to a request with `method`."""
        bodiless = method == b"HEAD"
        if bodiless is not self._bodiless:
            self._bodiless = bodiless
            self._last = None

    def next_head(self) -> ResponseHead | None:
        """The next head, interim (1xx) ones included, or None. It may be one handed out before: do not edit."""
        raw = self.take_head(_ANSWER_HEADER_SIZE)
        if raw is None:
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                parse_status_line(self._buffer[:end])
            return None
        last = self._last
        if last is not None and raw == self._last_raw:
            # Under load a backend says the same many times within a second (then `Date` changes).
            self.begin_body(last.framing, last.length if last.length > 0 else 0)
            return last
        lines = raw.split(b"\r\n")
        if len(lines) - 3 > _ANSWER_HEADER_COUNT:
            raise ProtocolError(502, f"The answer has more than {_ANSWER_HEADER_COUNT} header fields.")
        status, reason, version = STATUS_LINES[lines[0]]
        head = ResponseHead(status, reason)
        self._last = None
        self._hop_names = self._judge(head, lines, version)
        if len(raw) <= _LONGEST_REPEATED:
            self._last, self._last_raw = head, raw
        self.begin_body(head.framing, head.length if head.length > 0 else 0)
        return head

    def receive_eof(self) -> None:
        """The backend has closed: the end of a body without framing, an error anywhere else before the end."""
        if self._framing is Framing.UNTIL_CLOSE:
            self.body_done = True
        elif not self.body_done:
            raise ProtocolError(502, "The backend closed the connection in the middle of its answer.")

    def _judge(self, head: ResponseHead, lines: list[bytes], version: int) -> Set[bytes]:
        """Take the field lines into `head` and decide the framing. Returns the names that are hop-by-hop here."""
        fields = head.fields
        special: list[tuple[Kind, Field]] = []
        for kind, field in map(RESPONSE_LINES.__getitem__, lines[1:-2]):
            if kind is _PLAIN:
                fields.append(field)
            elif kind is _CONTENT_LENGTH:
                if head.length >= 0:
                    raise ProtocolError(502, "The answer's framing is ambiguous.")
                head.length = grammar.parse_content_length(field[1])
            elif kind is _NOTED:
                fields.append(field)
                if len(field[0]) == 4:
                    head.is_dated = True
                elif len(field[0]) == 6:
                    head.server = field[1]
            else:
                special.append((kind, field))
        head.keep_alive = version == 11
        names, codings = _judge_special_answer(head, special, version) if special else (NO_NAMES, False)
        self._frame(head, codings=codings)
        return names

    def _frame(self, head: ResponseHead, *, codings: bool) -> None:
        if self._bodiless:
            head.framing = _NO_BODY  # RFC 9112 6.3 item 1
        elif head.status < 200 or head.status in (204, 304):
            head.framing = _NO_BODY
            if codings or head.length > 0:
                _judge_promised_body(head)
        elif codings:
            head.framing = Framing.CHUNKED
        elif head.length >= 0:
            head.framing = _BY_LENGTH
        else:
            head.framing = Framing.UNTIL_CLOSE
            head.keep_alive = False


def _judge_promised_body(head: ResponseHead) -> None:
    """A 1xx, 204 or 304 never has a body (RFC 9112 6.3 item 1); a backend that frames one may send it all the same."""
    if head.status < 200 and head.status != 101:
        raise ProtocolError(502, "An interim answer announces a body.")
    head.keep_alive = False  # what comes behind it must not become the next answer


def _judge_special_answer(
    head: ResponseHead, special: list[tuple[Kind, Field]], version: int
) -> tuple[Set[bytes], bool]:
    """What hangs on the rarer fields of an answer: the names `Connection` takes out, and whether it is chunked."""
    names: list[bytes] = []
    codings: list[bytes] = []
    for kind, (_, value) in special:
        if kind is Kind.CONNECTION:
            names += connection_names(value)
        elif kind is Kind.TRANSFER_ENCODING:
            codings.append(value)
        elif kind is Kind.UPGRADE:
            head.upgrade = head.upgrade + b", " + value.lower() if head.upgrade else value.lower()
        elif kind is Kind.TRAILER:
            head.trailer = value
        elif kind is Kind.TEMPLATE:
            head.template = value
    if codings:
        if head.length >= 0 or version == 10:
            raise ProtocolError(502, "The answer's framing is ambiguous.")
        grammar.check_transfer_encoding(codings)
    head.keep_alive = b"keep-alive" in names if version == 10 else b"close" not in names
    own = set(names) - _ANSWER_OPTIONS
    if own:
        head.fields = without(head.fields, own)
    return own, bool(codings)


def parse_status_line(line: bytes) -> tuple[int, bytes, int]:
    """Status, reason and version (10 or 11) of RFC 9112 4. A status has three digits and is from 100 to 599."""
    version, _, rest = line.partition(b" ")
    status, _, reason = rest.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ProtocolError(502, "The backend does not speak HTTP/1.1 or HTTP/1.0.")
    if len(status) != 3 or not status.isdigit() or not 100 <= int(status) <= 599:
        raise ProtocolError(502, "The answer's status is not a number from 100 to 599.")
    grammar.check_text(reason)
    return int(status), reason, 10 if version == b"HTTP/1.0" else 11


class _StatusLines(dict[bytes, tuple[int, bytes, int]]):
    """Status lines and what they say; backends use a handful. Bounded, because a backend may go mad."""

    def __missing__(self, line: bytes) -> tuple[int, bytes, int]:
        parsed = parse_status_line(line)
        if len(line) <= _LONGEST_STATUS_LINE:
            if len(self) >= _STATUS_LINES_REMEMBERED:
                self.clear()
            self[line] = parsed
        return parsed


RESPONSE_LINES: Final = FieldLines(RESPONSE_KIND)
STATUS_LINES: Final = _StatusLines()
