"""Heads of HTTP/2 messages: the fields of a request, decoded, become a checked RequestHead; an answer's become theirs.

Strategy: libnghttp2 has refused what is malformed (RFC 9113 8.1.1); here the rules of HTTP/1.1's reader are applied to
what is left, by the same tables and the same grammar, so that a request means the same however it came. The usual
client repeats itself: a list that equals the one before it but for `:path` is not judged again.

Rule kept: nothing goes to a backend unchecked because a library has checked it: bytes that would end a field of
HTTP/1.1 are looked for here too (security rule 1).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from typing import Final

from ngh2 import NeverIndexedHeader

from tlsproxy.wire import grammar
from tlsproxy.wire.fields import REQUEST_KIND, Field, Fields, Kind
from tlsproxy.wire.lines import SecretNames
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead

VERSION: Final = 20  # of RequestHead
_LONGEST_REPEATED: Final = 4096  # bytes a connection holds to recognise a head it has seen before
_FIELD_OVERHEAD: Final = 32  # RFC 9113 6.5.2
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))
_NAME_BYTES: Final = bytes(byte for byte in grammar.TOKEN if not 0x41 <= byte <= 0x5A)  # RFC 9113 8.2.1
_DEFAULT_PORTS: Final = {b"https": b"443", b"http": b"80"}
_PLAIN: Final = Kind.PLAIN
_NOTED: Final = Kind.NOTED
_HOP: Final = Kind.HOP
# RFC 9113 8.2.2. libnghttp2 lets none of them through.
_CONNECTION_SPECIFIC: Final = frozenset((Kind.CONNECTION, Kind.TRANSFER_ENCODING, Kind.UPGRADE))
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Limits:
    """What a client may ask of one connection: `header_size` and `target_size` in bytes, `header_count` in fields."""

    __slots__ = ("header_count", "header_size", "streams", "target_size")

    def __init__(self, *, header_size: int, header_count: int, target_size: int, streams: int) -> None:
        self.header_size = header_size
        self.header_count = header_count
        self.target_size = target_size
        self.streams = streams


class HeadReader:
    """Reads the request heads of one connection, in order. Raises ProtocolError with the status of the answer."""

    __slots__ = ("_last", "_last_ended", "_last_fields", "_limits", "_path_at", "_size_but_path")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last: RequestHead | None = None
        self._last_fields: Sequence[Field] = ()
        self._last_ended = False
        self._path_at = 0
        self._size_but_path = 0

    def read(self, fields: Sequence[Field], *, ended: bool) -> RequestHead:
        """The head that `fields` are; `ended` says that no body follows."""
        last = self._last
        if last is not None and ended is self._last_ended:
            if fields == self._last_fields:
                return last
            head = self._read_repeated(last, fields)
            if head is not None:
                return head
        return self._read_new(fields, ended=ended)

    def forget(self) -> None:
        """Judge the next head anew."""
        self._last = None
        self._last_fields = ()

    def refused_head(self, fields: Sequence[Field]) -> RequestHead:
        """What can be told, for the log, of a list that was refused. No user information."""
        said = dict(reversed(fields))
        method, target, host = grammar.salvage(
            b"%b %b HTTP/2\r\nHost: %b"
            % (
                said.get(b":method", b"").translate(None, b" \r\n")[:33],
                said.get(b":path", b"").translate(None, b" \r\n"),
                said.get(b":authority", b"") or said.get(b"host", b""),
            )
        )
        head = RequestHead(method, target, VERSION)
        head.host = host.decode("latin-1")
        return head

    def are_good_trailers(self, fields: Sequence[Field]) -> bool:
        """Whether trailers keep the limits of a head, and libnghttp2 was right to let them through."""
        if len(fields) > self._limits.header_count or _list_size(fields) > self._limits.header_size:
            return False
        try:
            _check_bytes(fields)
        except ProtocolError:
            return False
        return True

    def _read_repeated(self, last: RequestHead, fields: Sequence[Field]) -> RequestHead | None:
        """The head if `fields` differ from the last ones in the path only, else None."""
        at = self._path_at
        known = self._last_fields
        if len(fields) != len(known) or fields[at][0] != b":path":
            return None
        if fields[at + 1 :] != known[at + 1 :] or fields[:at] != known[:at]:
            return None
        path = fields[at][1]
        if self._size_but_path + len(path) > self._limits.header_size:
            return None
        return last.repeated(self._target(last.method, path))

    def _read_new(self, fields: Sequence[Field], *, ended: bool) -> RequestHead:
        self._last = None
        size = _list_size(fields)
        if size > self._limits.header_size:
            raise self._too_large(fields, size)
        pseudo = {name: value for name, value in fields if name in _PSEUDO}
        regular = [field for field in fields if field[0] not in _PSEUDO]
        _check_bytes(regular)
        method = pseudo.get(b":method", b"")
        if b":protocol" in pseudo:
            return self._read_connect(pseudo, regular, ended=ended)
        if method not in grammar.METHODS:
            raise grammar.wrong_method(method)
        head = RequestHead(method, self._target(method, pseudo.get(b":path", b"")), VERSION)
        self._judge(head, pseudo, regular, ended=ended)
        if size <= _LONGEST_REPEATED:
            self._remember(head, fields, size, ended=ended)
        return head

    def _too_large(self, fields: Sequence[Field], size: int) -> ProtocolError:
        """414 if it is the path that is too long, else 431."""
        biggest, value = max(fields, key=lambda field: len(field[0]) + len(field[1]))
        if biggest == b":path" and len(value) > self._limits.target_size:
            return grammar.target_too_long(self._limits.target_size)
        name, length, limit = biggest[:64].decode("latin-1"), len(biggest) + len(value), self._limits.header_size
        note = f"limits.header_size {limit} exceeded ({size} received); biggest field: {name} {length} bytes"
        return ProtocolError(
            431, f"The request header is larger than {limit} bytes; the biggest field is {name}.", note
        )

    def _remember(self, head: RequestHead, fields: Sequence[Field], size: int, *, ended: bool) -> None:
        self._path_at = next(at for at, field in enumerate(fields) if field[0] == b":path")
        self._size_but_path = size - len(fields[self._path_at][1])
        self._last, self._last_fields, self._last_ended = head, fields, ended

    def _target(self, method: bytes, path: bytes) -> bytes:
        if len(path) > self._limits.target_size:
            raise grammar.target_too_long(self._limits.target_size)
        target, authority = grammar.parse_target(method, path)
        if authority is not None:
            raise ProtocolError(400, "The :path is not a path.")  # RFC 9113 8.3.1
        return target

    def _read_connect(self, pseudo: dict[bytes, bytes], regular: Fields, *, ended: bool) -> RequestHead:
        """Extended CONNECT (RFC 8441): the HTTP/1.1 upgrade that means the same."""
        if pseudo.get(b":method") != b"CONNECT":
            raise ProtocolError(400, "Only CONNECT has a :protocol.")
        if pseudo[b":protocol"].lower() != b"websocket":
            raise ProtocolError(501, "The only :protocol known here is websocket.")
        if ended:
            raise ProtocolError(400, "The WebSocket ended before it began.")
        regular = [field for field in regular if field[0] != b"sec-websocket-key"]
        head = RequestHead(b"GET", self._target(b"GET", pseudo.get(b":path", b"")), VERSION)
        self._judge(head, pseudo, regular, ended=True)
        if head.framing is not Framing.NONE:
            raise ProtocolError(400, "A WebSocket handshake has no body.")
        head.upgrade = True
        head.fields.append((b"Sec-WebSocket-Key", websocket_key()))
        return head

    def _judge(self, head: RequestHead, pseudo: dict[bytes, bytes], regular: Fields, *, ended: bool) -> None:
        """Take the fields into `head` and decide all that hangs on special ones."""
        scheme = pseudo.get(b":scheme", b"").lower()
        if scheme not in _DEFAULT_PORTS:
            raise ProtocolError(400, "The :scheme is neither https nor http.")
        special, hosts = _sort(head, regular)
        if len(head.fields) + len(special) + len(hosts) > self._limits.header_count:
            raise grammar.too_many_fields(len(regular), self._limits.header_count)
        _take_host(head, pseudo.get(b":authority"), hosts, _DEFAULT_PORTS[scheme])
        head.keep_alive = True
        lengths = [value for kind, _, value in special if kind is Kind.CONTENT_LENGTH]
        _take_framing(head, lengths, ended=ended)
        for kind, name, value in special:
            if kind in _CONNECTION_SPECIFIC:
                raise ProtocolError(400, f"HTTP/2 has no {name.decode()} field.")
            if kind is Kind.FORWARDING or kind is Kind.TRAILER:
                head.special.append((kind, name, value))
            elif kind is Kind.TE:
                head.trailers_accepted = value.lower() == b"trailers"  # RFC 9113 8.2.2: nothing else is in there
            elif kind is Kind.EXPECT:
                if value.lower() != b"100-continue":
                    raise ProtocolError(417, "The only expectation known here is 100-continue.")
                head.expect_continue = head.framing is Framing.CHUNKED or head.length > 0


def _list_size(fields: Sequence[Field]) -> int:
    """As SETTINGS_MAX_HEADER_LIST_SIZE counts (RFC 9113 6.5.2)."""
    return sum([len(name) + len(value) for name, value in fields]) + len(fields) * _FIELD_OVERHEAD


def _check_bytes(regular: Sequence[Field]) -> None:
    names = [name for name, _ in regular]
    values = b"".join([value for _, value in regular])
    if b"" in names or b"".join(names).translate(None, _NAME_BYTES):
        raise ProtocolError(400, "The name of a header field is not a token in lower case.")
    grammar.check_text(values)


def _sort(head: RequestHead, regular: Fields) -> tuple[list[tuple[Kind, bytes, bytes]], list[bytes]]:
    """Put the fields that pass on into `head`. Returns what somebody has to decide, and the Host fields."""
    special: list[tuple[Kind, bytes, bytes]] = []
    hosts: list[bytes] = []
    cookies: list[bytes] = []
    for field in regular:
        name, value = field
        kind = REQUEST_KIND[name]
        if name == b"cookie":
            cookies.append(value)
        elif kind is _PLAIN:
            head.fields.append(field)
        elif kind is _NOTED:
            head.fields.append(field)
            if name == b"referer":
                head.referer = value
            else:
                head.user_agent = value
        elif kind is Kind.HOST:
            hosts.append(value)
        else:
            special.append((kind, name, value))
    if cookies:
        head.fields.append((b"cookie", b"; ".join(cookies)))  # RFC 9113 8.2.3
    return special, hosts


def _take_host(head: RequestHead, authority: bytes | None, hosts: list[bytes], default_port: bytes) -> None:
    """The host is :authority; a Host field must not say otherwise (RFC 9113 8.3.1)."""
    if len(hosts) > 1 or (authority is None and not hosts):
        raise ProtocolError(400, "A request needs exactly one :authority or Host.")
    head.authority = hosts[0] if authority is None else authority
    head.host, head.port = grammar.HOSTS[head.authority]
    if authority is not None and hosts and hosts[0] != authority:
        name, port = grammar.HOSTS[hosts[0]]
        if name != head.host or (port or default_port) != (head.port or default_port):
            raise ProtocolError(400, "The Host field and :authority differ.")


def _take_framing(head: RequestHead, lengths: list[bytes], *, ended: bool) -> None:
    """Frames tell where the body ends; this is what an HTTP/1.1 backend is told of it."""
    if len(lengths) > 1:
        raise ProtocolError(400, "The request has more than one Content-Length.")
    if lengths:
        head.framing = Framing.LENGTH
        head.length = grammar.parse_content_length(lengths[0])
        if ended and head.length:
            raise ProtocolError(400, "The request ended before its Content-Length.")  # RFC 9113 8.1.1
    elif not ended:
        head.framing = Framing.CHUNKED
    elif head.method in _WITH_BODY:
        head.framing = Framing.LENGTH  # RFC 9110 8.6: a method that means content says that there is none


# --- answers ----------------------------------------------------------------------------------------------------------

_NAMES_REMEMBERED: Final = 4096
_LONGEST_NAME_REMEMBERED: Final = 64
# RFC 7541 7.1.3: what must not be guessed by whoever sees the size of an answer never enters a table.
_SECRETS: Final = SecretNames()


class _LowerNames(dict[bytes, bytes]):
    """Field name as a backend wrote it -> in lower case (RFC 9113 8.2.1). Bounded, and emptied when full.

    Names of secrets are never kept: so `__missing__` notices them, and the usual answer is not searched for them.
    """

    __slots__ = ("has_secret",)

    def __init__(self) -> None:
        super().__init__()
        self.has_secret = False

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        if _SECRETS[lower]:
            self.has_secret = True
        elif len(name) <= _LONGEST_NAME_REMEMBERED:
            if len(self) >= _NAMES_REMEMBERED:
                self.clear()
            self[name] = lower
        return lower


class _LastAnswer:
    """The last answer of all: a backend under load says the same again and again (0.2 µs against 1 µs)."""

    __slots__ = ("fields", "result", "status")

    def __init__(self) -> None:
        self.status = 0
        self.fields: Fields = []
        self.result: Fields = []


_LOWER: Final = _LowerNames()
_LAST: Final = _LastAnswer()


def answer_fields(status: int, fields: Fields) -> Fields:
    """The fields of an answer as HTTP/2 sends them. The list is shared, not edited."""
    last = _LAST
    if status == last.status and fields == last.fields:
        return last.result
    result = [(b":status", b"%d" % status), *lower_fields(fields)]
    if not _LOWER.has_secret:
        last.status, last.fields, last.result = status, list(fields), result
    return result


def lower_fields(fields: Fields) -> Fields:
    """`fields` with lower-case names, secrets marked as never to be indexed (RFC 7541 6.2.3)."""
    lower = _LOWER
    lower.has_secret = False
    result: Fields = [(lower[name], value) for name, value in fields]
    if lower.has_secret:
        return [NeverIndexedHeader(*field) if _SECRETS[field[0]] else field for field in result]
    return result


def websocket_key() -> bytes:
    """A nonce of 16 bytes (RFC 6455 4.1), which RFC 8441 does without and an HTTP/1.1 backend needs."""
    return base64.b64encode(secrets.token_bytes(16))


def websocket_accept(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that proves that a handshake with `key` was understood (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def is_right_accept(key: bytes, accept: bytes) -> bool:
    """Whether `accept` is that proof."""
    return accept == websocket_accept(key)
