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
from tlsproxy.wire.fields import NO_NAMES, REQUEST_KIND, Field, Fields, Kind, connection_names, without
from tlsproxy.wire.lines import FieldLines
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead

_AROUND_TARGET: Final = 64  # more than the longest method and the version take
_LONGEST_REPEATED: Final = 4096  # bytes a connection holds to recognise a head it has seen before
# A global costs a third of looking a member up on its Enum, and the loops over fields compare often.
_PLAIN: Final = Kind.PLAIN
_NOTED: Final = Kind.NOTED
_HOST: Final = Kind.HOST
_CONTENT_LENGTH: Final = Kind.CONTENT_LENGTH
_TRANSFER_ENCODING: Final = Kind.TRANSFER_ENCODING
# Members of `Connection` with a meaning of their own; the others name fields that end here.
_ANSWER_OPTIONS: Final = frozenset((b"close", b"keep-alive", b"upgrade"))
_REQUEST_OPTIONS: Final = _ANSWER_OPTIONS | {b"te"}


REQUEST_LINES: Final = FieldLines(REQUEST_KIND)


class RequestReader(MessageReader):
    """Reads the requests of one client connection, in order.

    `header_size` in bytes, `header_count` in fields, `target_size` in bytes. Raises ProtocolError.
    """

    __slots__ = ("_header_count", "_header_size", "_last", "_last_block", "_refused", "_skipped", "_target_size")

    def __init__(self, *, header_size: int, header_count: int, target_size: int) -> None:
        super().__init__()
        self._header_size = header_size
        self._header_count = header_count
        self._target_size = target_size
        self._skipped = False  # an empty line before the request line
        self._last: RequestHead | None = None  # in origin form, with the bytes of its fields
        self._last_block = b""
        self._refused = b""

    def next_head(self) -> RequestHead | None:
        """The head of the next request, or None while it is not whole. The previous body must be done."""
        received = self._buffer
        try:
            raw = self._take_head_or_refuse()
            return None if raw is None else self._read_head(raw)
        except ProtocolError:
            self._refused = received
            raise

    def refused_head(self) -> RequestHead:
        """What can be told, for the log, of a head that was refused or did not come to its end."""
        method, target, host = grammar.salvage(self._refused or self._buffer)
        head = RequestHead(method, target, 11)
        head.host = host.decode("latin-1")
        return head

    def _read_head(self, raw: bytes) -> RequestHead:
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
