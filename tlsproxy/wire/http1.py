"""The HTTP/1.1 codec of the data path: bytes in, heads and body pieces out, and back. Pure; llhttp parses fields.

Strategy: a reader collects bytes until a head is whole, splits it into lines, has each judged (`lines`: llhttp sees
every line that is new) and decides the framing itself from all fields together. llhttp never sees a body: bodies are
counted or de-chunked in `bodies`, so that no parser state outlives a line and an answer to HEAD needs no trick.

Rules kept: one framing or an error (RFC 9112 6.3); after a ProtocolError the reader must not be used again.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from tlsproxy.wire import grammar
from tlsproxy.wire.bodies import MessageReader
from tlsproxy.wire.fields import NO_NAMES, REQUEST_KIND, RESPONSE_KIND, Field, Fields, Kind, connection_names, without
from tlsproxy.wire.lines import FieldLines
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead, ResponseHead

_ANSWER_HEADER_SIZE: Final = 64 * 1024  # bytes; frameworks set large cookies and policies, nobody needs more
_ANSWER_HEADER_COUNT: Final = 256
_AROUND_TARGET: Final = 64  # more than the longest method and the version take
_STATUS_LINES_REMEMBERED: Final = 256
_LONGEST_REPEATED: Final = 4096  # bytes a connection holds to recognise a head it has seen before
# A global costs a third of looking a member up on its Enum, and the loops over fields compare often.
_PLAIN: Final = Kind.PLAIN
_NOTED: Final = Kind.NOTED
_HOST: Final = Kind.HOST
_CONTENT_LENGTH: Final = Kind.CONTENT_LENGTH
_TRANSFER_ENCODING: Final = Kind.TRANSFER_ENCODING
_NO_BODY: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH
# Members of `Connection` with a meaning of their own; the others name fields that end here.
_ANSWER_OPTIONS: Final = frozenset((b"close", b"keep-alive", b"upgrade"))
_REQUEST_OPTIONS: Final = _ANSWER_OPTIONS | {b"te"}


class RequestReader(MessageReader):
    """Reads the requests of one client connection, in order.

    `header_size` in bytes, `header_count` in fields, `target_size` in bytes. Raises ProtocolError.
    """

    __slots__ = ("_header_count", "_header_size", "_last", "_last_block", "_skipped", "_target_size")

    def __init__(self, *, header_size: int, header_count: int, target_size: int) -> None:
        super().__init__()
        self._header_size = header_size
        self._header_count = header_count
        self._target_size = target_size
        self._skipped = False  # an empty line before the request line
        self._last: RequestHead | None = None  # in origin form, with the bytes of its fields
        self._last_block = b""

    def next_head(self) -> RequestHead | None:
        """The head of the next request, or None while it is not whole. The previous body must be done."""
        raw = self._take_head_or_refuse()
        if raw is None:
            return None
        end = raw.find(b"\r\n")
        method, target, version = grammar.parse_request_line(raw[:end])
        if len(target) > self._target_size:
            raise grammar.target_too_long(self._target_size)
        origin, authority = grammar.parse_target(method, target)
        block = raw[end:]
        last = self._last
        if (
            last is not None
            and block == self._last_block
            and last.method == method
            and last.version == version
            and authority is None  # an absolute target replaces the Host that `last` was judged by
        ):
            # The usual client says the same about itself with every request, and what it says means the same.
            head = last.repeated(origin)
        else:
            head = RequestHead(method, origin, version)
            self._hop_names = self._parse_block(head, block, authority)
            if authority is None and len(block) <= _LONGEST_REPEATED:
                self._last, self._last_block = head, block
        self.begin_body(head.framing, head.length)
        return head

    def _parse_block(self, head: RequestHead, block: bytes, authority: bytes | None) -> Set[bytes]:
        """Take the fields of `block` (from the request line's CR LF to the empty line) into `head`."""
        self._last = None
        lines = block.split(b"\r\n")[1:-2]
        if len(lines) > self._header_count:
            raise grammar.too_many_fields(len(lines), self._header_count)
        return _judge(head, lines, authority)

    def _take_head_or_refuse(self) -> bytes | None:
        if self._buffer[:2] == b"\r\n":
            self._skip_empty_line()
        raw = self.take_head(self._header_size)
        if raw is None:
            self._check_unfinished()
        else:
            self._skipped = False
        return raw

    def _skip_empty_line(self) -> None:
        """RFC 9112 2.2: one empty line before a request line is ignored."""
        if self._skipped or self._buffer[2:4] == b"\r\n":
            raise ProtocolError(400, "The request begins with empty lines.")
        self._skipped = True
        self._buffer = self._buffer[2:]
        self._checked = 0

    def too_large(self, head: bytes, limit: int) -> ProtocolError:
        """414 if it is the request line that is too long, else 431."""
        if len(head.partition(b"\r\n")[0]) > self._target_size + _AROUND_TARGET:
            return grammar.target_too_long(self._target_size)
        return super().too_large(head, limit)

    def _check_unfinished(self) -> None:
        """Refuse a bad or endless request line as soon as it can be told."""
        end = self._buffer.find(b"\r\n")
        if end > 0:
            grammar.parse_request_line(self._buffer[:end])
        elif len(self._buffer) > self._target_size + _AROUND_TARGET:
            raise grammar.target_too_long(self._target_size)


def _judge(head: RequestHead, lines: list[bytes], authority: bytes | None) -> Set[bytes]:
    """Take the field lines into `head` and decide all that hangs on special ones. Returns the names hop-by-hop here.

    What is left in `head.special` is for `forwarding`.
    """
    fields = head.fields
    special: list[tuple[Kind, Field]] = []
    hosts = 0
    for kind, field in map(REQUEST_LINES.__getitem__, lines):
        if kind is _PLAIN:
            fields.append(field)
        elif kind is _NOTED:
            fields.append(field)
            if len(field[0]) == 7:
                head.referer = field[1]
            else:
                head.user_agent = field[1]
        elif kind is _HOST:
            hosts += 1
            head.authority = field[1]
        else:
            special.append((kind, field))
    if hosts > 1 or (hosts == 0 and head.version == 11):
        raise ProtocolError(400, "A request needs exactly one Host field.")
    if authority is not None:  # RFC 9112 3.2.2: the target's authority replaces what Host says
        if hosts:
            grammar.HOSTS[head.authority]
        head.authority = authority
    if hosts or authority is not None:
        head.host, head.port = grammar.HOSTS[head.authority]
    return _judge_special(head, special) if special else NO_NAMES


def _judge_special(head: RequestHead, special: list[tuple[Kind, Field]]) -> Set[bytes]:
    upgrades = b""
    names: list[bytes] = []
    expects = False
    for kind, field in special:
        value = field[1]
        if kind is Kind.CONNECTION:
            names += connection_names(value)
        elif kind is Kind.UPGRADE:
            upgrades += value.lower() + b","
        elif kind is Kind.FORWARDING or kind is Kind.TRAILER:
            head.special.append((kind, field[0], value))
        elif kind is Kind.TE:
            head.trailers_accepted = head.trailers_accepted or b"trailers" in connection_names(value)
        elif kind is Kind.EXPECT:
            expects = _is_continue(value)
    head.framing, head.length = _check_request_framing(special, head.version)
    if expects:  # RFC 9110 10.1.1: ignored in HTTP/1.0, and where there is nothing to wait for
        head.expect_continue = head.version == 11 and (head.framing is Framing.CHUNKED or head.length > 0)
    return _judge_connection(head, names, upgrades) if names else NO_NAMES


def _check_request_framing(special: list[tuple[Kind, Field]], version: int) -> tuple[Framing, int]:
    """The one framing of a request (RFC 9112 6.3); anything that two parsers could read in two ways is refused."""
    lengths = [field[1] for kind, field in special if kind is _CONTENT_LENGTH]
    codings = [field[1] for kind, field in special if kind is _TRANSFER_ENCODING]
    if len(lengths) > 1:
        raise ProtocolError(400, "The request has more than one Content-Length.")
    if codings:
        if lengths:
            raise ProtocolError(400, "The request has both Content-Length and Transfer-Encoding.")
        if version == 10:
            raise ProtocolError(400, "HTTP/1.0 has no Transfer-Encoding.")
        grammar.check_transfer_encoding(codings)
        return Framing.CHUNKED, 0
    if lengths:
        return Framing.LENGTH, grammar.parse_content_length(lengths[0])
    return Framing.NONE, 0


def _is_continue(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise ProtocolError(417, "The only expectation known here is 100-continue.")
    return True


def _judge_connection(head: RequestHead, names: list[bytes], upgrades: bytes) -> Set[bytes]:
    if b"close" in names:
        head.keep_alive = False
    elif b"keep-alive" in names and head.version == 10:
        head.keep_alive = True
    head.upgrade = _is_websocket(head, names, upgrades)
    own = set(names) - _REQUEST_OPTIONS
    if own:
        head.fields = without(head.fields, own)
    return own


def _is_websocket(head: RequestHead, names: list[bytes], upgrades: bytes) -> bool:
    if b"upgrade" not in names or b"websocket" not in connection_names(upgrades):
        return False
    if head.method != b"GET" or head.version != 11:
        return False
    if head.framing is not Framing.NONE:
        raise ProtocolError(400, "A WebSocket handshake has no body.")
    return True


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
        if len(self) < _STATUS_LINES_REMEMBERED:
            self[line] = parsed
        return parsed


REQUEST_LINES: Final = FieldLines(REQUEST_KIND)
RESPONSE_LINES: Final = FieldLines(RESPONSE_KIND)
STATUS_LINES: Final = _StatusLines()


def response_head_bytes(status: int, reason: bytes, fields: Fields) -> bytes:
    """A response head as HTTP/1.1 sends it."""
    if not fields:
        return b"HTTP/1.1 %d %b\r\n\r\n" % (status, reason)
    return b"HTTP/1.1 %d %b\r\n%b\r\n\r\n" % (status, reason, b"\r\n".join(map(b": ".join, fields)))


def chunk(data: bytes) -> bytes:
    """`data` as one chunk (RFC 9112 7.1). Not for empty data: that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Fields) -> bytes:
    """The end of a chunked body."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n%b\r\n\r\n" % b"\r\n".join(map(b": ".join, trailers))
