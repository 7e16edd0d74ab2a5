"""The HTTP/1.1 codec of the data path: bytes in, heads and body pieces out, and back. Pure; llhttp parses the fields.

Strategy: a reader collects bytes until a head is whole, checks it as a whole (`grammar`), lets llhttp take it apart,
and decides the framing itself from the parsed fields. llhttp never sees a body: bodies are counted or de-chunked
here, so that no parser state outlives a message and an answer to HEAD needs no trick. Each head has its own parser.

Rules kept: one framing or an error (RFC 9112 6.3); after a ProtocolError the reader must not be used again.
"""

from __future__ import annotations

from typing import Final

import httptools

from tlsproxy.wire import grammar
from tlsproxy.wire.bodies import MessageReader
from tlsproxy.wire.fields import REQUEST_KIND, RESPONSE_KIND, Fields, Kind, connection_names, without
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead, ResponseHead

_ANSWER_HEADER_SIZE: Final = 64 * 1024  # bytes; frameworks set large cookies and policies, nobody needs more
_ANSWER_HEADER_COUNT: Final = 256
_PLAIN: Final = Kind.PLAIN


class RequestReader(MessageReader):
    """Reads the requests of one client connection, in order.

    `header_size` in bytes, `header_count` in fields, `target_size` in bytes. Raises ProtocolError.
    """

    __slots__ = ("_fields", "_header_count", "_header_size", "_special", "_target_size", "on_header")

    def __init__(self, *, header_size: int, header_count: int, target_size: int) -> None:
        super().__init__()
        self._header_size = header_size
        self._header_count = header_count
        self._target_size = target_size

    def next_head(self) -> RequestHead | None:
        """The head of the next request, or None while it is not whole. The previous body must be done."""
        raw = self._take_head_or_refuse()
        if raw is None:
            return None
        grammar.check_head_bytes(raw)
        lines = raw.count(b"\r\n") - 2
        if lines > self._header_count:
            raise grammar.too_many_fields(lines, self._header_count)
        method, target, version = grammar.parse_request_line(raw[: raw.find(b"\r\n")])
        if len(target) > self._target_size:
            raise grammar.target_too_long(self._target_size)
        origin, authority = grammar.parse_target(method, target)
        head = RequestHead(method, origin, version)
        special = self._parse_fields(head, raw)
        self._judge(head, special, authority)
        self.begin_body(head.framing, head.length)
        return head

    def _take_head_or_refuse(self) -> bytes | None:
        # RFC 9112 2.2: one empty line before a request line is ignored.
        if self._buffer[:2] == b"\r\n":
            self._buffer = self._buffer[2:]
            self._checked = 0
        raw = self.take_head(self._header_size)
        if raw is None:
            self._check_unfinished()
        elif raw[:2] == b"\r\n":
            raise ProtocolError(400, "The request begins with empty lines.")
        return raw

    def _check_unfinished(self) -> None:
        """Refuse a bad or endless request line as soon as it can be told."""
        end = self._buffer.find(b"\r\n")
        if end > 0:
            grammar.parse_request_line(self._buffer[:end])
        elif len(self._buffer) > self._target_size + 64:
            raise grammar.target_too_long(self._target_size)

    def _parse_fields(self, head: RequestHead, raw: bytes) -> list[tuple[Kind, bytes, bytes]]:
        fields: Fields = []
        special: list[tuple[Kind, bytes, bytes]] = []

        def on_header(name: bytes, value: bytes) -> None:
            kind = REQUEST_KIND[name]
            if kind is _PLAIN:
                fields.append((name, value))
            else:
                special.append((kind, name, value))

        self.on_header = on_header
        try:
            httptools.HttpRequestParser(self).feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass  # llhttp stops behind a head that asks for an upgrade; the head is whole
        except httptools.HttpParserError as error:
            _check_request_framing(special, head.version)  # a more precise answer, if the framing was what it disliked
            raise ProtocolError(400, "The request header is malformed.", f"llhttp: {error}") from None
        if b" \r\n" in raw or b"\t\r\n" in raw:
            fields = [(name, value.strip(b" \t")) for name, value in fields]
        head.fields = fields
        return special

    def _judge(self, head: RequestHead, special: list[tuple[Kind, bytes, bytes]], authority: bytes | None) -> None:
        """Decide everything that hangs on a special field. What is left in `head.special` is for `forwarding`."""
        upgrades = b""
        names: list[bytes] = []
        hosts = 0
        framed = False
        for kind, name, raw_value in special:
            value = raw_value.strip(b" \t")
            if kind is Kind.HOST:
                hosts += 1
                head.authority = value
                head.host, head.port = grammar.HOSTS[value]
            elif kind is Kind.NOTED:
                head.fields.append((name, value))
                if len(name) == 7:
                    head.referer = value
                else:
                    head.user_agent = value
            elif kind is Kind.CONNECTION:
                names += connection_names(value)
            elif kind is Kind.CONTENT_LENGTH or kind is Kind.TRANSFER_ENCODING:
                framed = True
            elif kind is Kind.UPGRADE:
                upgrades += value.lower() + b","
            elif kind is Kind.FORWARDING:
                head.special.append((kind, name, value))
            elif kind is Kind.TE:
                head.trailers_accepted = b"trailers" in connection_names(value)
            elif kind is Kind.TRAILER:
                head.special.append((kind, name, value))
            elif kind is Kind.EXPECT:
                _judge_expectation(head, value)
        if framed:
            head.framing, head.length = _check_request_framing(special, head.version)
        _judge_host(head, hosts, authority)
        if names:
            _judge_connection(head, names, upgrades)


def _check_request_framing(special: list[tuple[Kind, bytes, bytes]], version: int) -> tuple[Framing, int]:
    """The one framing of a request (RFC 9112 6.3); anything that two parsers could read in two ways is refused."""
    lengths = [value.strip(b" \t") for kind, _, value in special if kind is Kind.CONTENT_LENGTH]
    codings = [value.strip(b" \t") for kind, _, value in special if kind is Kind.TRANSFER_ENCODING]
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


def _judge_expectation(head: RequestHead, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise ProtocolError(417, "The only expectation known here is 100-continue.")
    head.expect_continue = head.version == 11  # RFC 9110 10.1.1: ignored in HTTP/1.0


def _judge_host(head: RequestHead, hosts: int, authority: bytes | None) -> None:
    if hosts > 1 or (hosts == 0 and head.version == 11):
        raise ProtocolError(400, "A request needs exactly one Host field.")
    if authority is not None:  # RFC 9112 3.2.2: the target's authority replaces what Host says
        head.authority = authority
        head.host, head.port = grammar.HOSTS[authority]


def _judge_connection(head: RequestHead, names: list[bytes], upgrades: bytes) -> None:
    if b"close" in names:
        head.keep_alive = False
    elif b"keep-alive" in names and head.version == 10:
        head.keep_alive = True
    head.upgrade = _is_websocket(head, names, upgrades)
    own = set(names) - {b"close", b"keep-alive", b"upgrade", b"te"}
    if own:
        head.fields = without(head.fields, own)


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

    __slots__ = ("_bodiless", "on_header")

    def __init__(self) -> None:
        super().__init__()
        self._bodiless = False

    def expect(self, method: bytes) -> None:
        """Prepare for the answer to a request with `method`."""
        self._bodiless = method == b"HEAD"

    def next_head(self) -> ResponseHead | None:
        """The next head, interim (1xx) ones included, or None while it is not whole."""
        raw = self.take_head(_ANSWER_HEADER_SIZE)
        if raw is None:
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                _parse_status_line(self._buffer[:end])
            return None
        grammar.check_head_bytes(raw)
        if raw.count(b"\r\n") - 2 > _ANSWER_HEADER_COUNT:
            raise ProtocolError(502, f"The answer has more than {_ANSWER_HEADER_COUNT} header fields.")
        head, version = _parse_status_line(raw[: raw.find(b"\r\n")])
        special = self._parse_fields(head, raw)
        _judge_answer(head, special, version)
        self._frame(head, special, version)
        return head

    def receive_eof(self) -> None:
        """The backend has closed: the end of a body without framing, an error anywhere else before the end."""
        if self._framing is Framing.UNTIL_CLOSE:
            self.body_done = True
        elif not self.body_done:
            raise ProtocolError(502, "The backend closed the connection in the middle of its answer.")

    def _parse_fields(self, head: ResponseHead, raw: bytes) -> list[tuple[Kind, bytes, bytes]]:
        fields: Fields = []
        special: list[tuple[Kind, bytes, bytes]] = []

        def on_header(name: bytes, value: bytes) -> None:
            kind = RESPONSE_KIND[name]
            if kind is _PLAIN:
                fields.append((name, value))
            else:
                special.append((kind, name, value))

        self.on_header = on_header
        try:
            httptools.HttpResponseParser(self).feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise ProtocolError(502, "The answer's header is malformed.", f"llhttp: {error}") from None
        if b" \r\n" in raw or b"\t\r\n" in raw:
            fields = [(name, value.strip(b" \t")) for name, value in fields]
        head.fields = fields
        return special

    def _frame(self, head: ResponseHead, special: list[tuple[Kind, bytes, bytes]], version: int) -> None:
        lengths = [value.strip(b" \t") for kind, _, value in special if kind is Kind.CONTENT_LENGTH]
        codings = [value.strip(b" \t") for kind, _, value in special if kind is Kind.TRANSFER_ENCODING]
        if len(lengths) > 1 or (lengths and codings) or (codings and version == 10):
            raise ProtocolError(502, "The answer's framing is ambiguous.")
        if lengths:
            head.length = grammar.parse_content_length(lengths[0])
        if codings:
            grammar.check_transfer_encoding(codings)
        if self._bodiless or head.status < 200 or head.status in (204, 304):
            head.framing = Framing.NONE  # RFC 9112 6.3 items 1 and 2
        elif codings:
            head.framing = Framing.CHUNKED
        elif lengths:
            head.framing = Framing.LENGTH
        else:
            head.framing = Framing.UNTIL_CLOSE
            head.keep_alive = False
        self.begin_body(head.framing, max(head.length, 0))


def _parse_status_line(line: bytes) -> tuple[ResponseHead, int]:
    """RFC 9112 4. HTTP/1.0 and 1.1 only; a status of three digits from 100 to 599."""
    version, _, rest = line.partition(b" ")
    status, _, reason = rest.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ProtocolError(502, "The backend does not speak HTTP/1.1 or HTTP/1.0.")
    if len(status) != 3 or not status.isdigit() or not 100 <= int(status) <= 599:
        raise ProtocolError(502, "The answer's status is not a number from 100 to 599.")
    return ResponseHead(int(status), reason), 10 if version == b"HTTP/1.0" else 11


def _judge_answer(head: ResponseHead, special: list[tuple[Kind, bytes, bytes]], version: int) -> None:
    names: list[bytes] = []
    for kind, name, raw_value in special:
        if kind is Kind.NOTED:
            head.fields.append((name, raw_value.strip(b" \t")))
            if len(name) == 6:
                head.server = raw_value
        elif kind is Kind.CONNECTION:
            names += connection_names(raw_value)
        elif kind is Kind.UPGRADE:
            head.upgrade = raw_value.strip(b" \t").lower()
        elif kind is Kind.TRAILER:
            head.trailer = raw_value.strip(b" \t")
    head.keep_alive = b"keep-alive" in names if version == 10 else b"close" not in names
    own = set(names) - {b"close", b"keep-alive", b"upgrade"}
    if own:
        head.fields = without(head.fields, own)


def request_head_bytes(method: bytes, target: bytes, fields: Fields) -> bytes:
    """A request head as HTTP/1.1 sends it. `fields` is not empty: there always is a Host."""
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, b"\r\n".join(map(b": ".join, fields)))


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
