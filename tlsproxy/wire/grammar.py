"""The grammar of an HTTP/1.1 head beyond what llhttp checks: bytes, lines, targets, hosts, framing numbers.

Strategy: whole-head checks by `bytes.translate` and `bytes.count` (about 1 µs together) refuse what llhttp lets
through, before it is parsed. Numbers are read from digits only: `int()` takes signs, blanks and underscores.
Everything raises ProtocolError with the status of security rule 7; nothing is repaired.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

from tlsproxy.wire.fields import Fields
from tlsproxy.wire.messages import ProtocolError

TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # RFC 9110 5.6.2
_DIGITS: Final = b"0123456789"
_HEX: Final = b"0123456789abcdefABCDEF"
_TEXT_BYTES: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_HEAD_BYTES: Final = b"\r\n" + _TEXT_BYTES
# RFC 3986 would forbid more (quotes, braces, backslash), but browsers send those; "#" never belongs on the wire.
_TARGET_BYTES: Final = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x23)
# RFC 3986 3.2.2 allows more in a name; no DNS name has it, and a list or an escape in there is read in two ways.
_NAME_BYTES: Final = b"-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LONGEST_NAME: Final = 254  # with the final dot
_HOSTS_REMEMBERED: Final = 1024
_AUTHORITY_END: Final = re.compile(rb"[/?#]")  # RFC 3986 3.2
_LONGEST_NUMBER: Final = 18  # decimal digits of a Content-Length: below 2**63
_LONGEST_CHUNK_SIZE: Final = 15  # hexadecimal digits
_CHUNK_EXTENSIONS: Final = re.compile(  # RFC 9112 7.1.1 without the "bad" white space; off the ordinary path
    rb"""(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]"""
    rb"""|\\[\t \x21-\x7e\x80-\xff])*"))?)+"""
)

# What llhttp parses; the rest of the IANA registry is answered 501 (never misread). CONNECT is not for a reverse proxy.
METHODS: Final = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE OPTIONS PATCH POST "
    b"PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH TRACE UNBIND UNLINK UNLOCK "
    b"NOTIFY SUBSCRIBE UNSUBSCRIBE M-SEARCH".split()
)
# RFC 9110 9.2.2 and the registry's "idempotent" column, of those above.
IDEMPOTENT: Final = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE OPTIONS PROPFIND PROPPATCH "
    b"PUT QUERY REBIND REPORT SEARCH TRACE UNBIND UNLINK UNLOCK".split()
)


def check_head_bytes(head: bytes) -> None:
    """Refuse controls, NUL, DEL, bare CR or LF and obs-fold anywhere in a head (RFC 9112 2.2, 5.2; RFC 9110 5.5)."""
    if head.translate(None, _HEAD_BYTES):
        raise ProtocolError(400, "The message head contains a control character.")
    pairs = head.count(b"\r\n")
    if head.count(b"\n") != pairs or head.count(b"\r") != pairs:
        raise ProtocolError(400, "A line of the message head does not end with CR LF.")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise ProtocolError(400, "A header field is folded over several lines.")


def check_text(text: bytes) -> None:
    """Refuse controls in what may be free text: a reason phrase (RFC 9112 4)."""
    if text.translate(None, _TEXT_BYTES):
        raise ProtocolError(400, "The message head contains a control character.")


def check_partial_head(piece: bytes) -> None:
    """The same for the newest piece of an unfinished head, so that garbage is refused before its deadline."""
    if piece.translate(None, _HEAD_BYTES):
        raise ProtocolError(400, "The message head contains a control character.")
    rest = (piece[:-1] if piece.endswith(b"\r") else piece).replace(b"\r\n", b"")
    if b"\n" in rest or b"\r" in rest:
        raise ProtocolError(400, "A line of the message head does not end with CR LF.")


def parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Method, target and version (10 or 11) of a request line (RFC 9112 3): exactly one blank between the parts."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise ProtocolError(400, "The request line is not of the form METHOD TARGET HTTP/1.1.")
    method, target, version = parts
    if method not in METHODS:
        raise _wrong_method(method, version)
    if version == b"HTTP/1.1":
        return method, target, 11
    if version == b"HTTP/1.0":
        return method, target, 10
    raise _wrong_version(version)


def _wrong_method(method: bytes, version: bytes) -> ProtocolError:
    if not method or method.translate(None, TOKEN):
        return ProtocolError(400, "The request method is not a token.")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return _wrong_version(version)  # PRI * HTTP/2.0, above all
    return wrong_method(method)


def wrong_method(method: bytes) -> ProtocolError:
    """The error for a token that is not one of METHODS."""
    if method == b"CONNECT":
        return ProtocolError(405, "This server is a reverse proxy and does not open tunnels for CONNECT.")
    return ProtocolError(501, "The request method is not implemented.")


def _wrong_version(version: bytes) -> ProtocolError:
    well_formed = len(version) == 8 and version[:5] == b"HTTP/" and version[6:7] == b"."
    if well_formed and version[5:6].isdigit() and version[7:8].isdigit():
        return ProtocolError(505, "This server speaks HTTP/1.1 and HTTP/1.0 here.")
    return ProtocolError(400, "The request line does not end with an HTTP version.")


def parse_target(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """The target in origin form (or `*`), and the authority if it came in absolute form (RFC 9112 3.2)."""
    if target.translate(None, _TARGET_BYTES):
        raise ProtocolError(400, "The request target contains a character that has to be percent-encoded.")
    if target[:1] == b"/":
        return target, None
    if target == b"*" and method == b"OPTIONS":
        return target, None
    return _parse_absolute_target(method, target)


def _parse_absolute_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise ProtocolError(400, "The request target is neither a path nor an absolute http(s) URL.")
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    if b"@" in authority:
        raise ProtocolError(400, "The request target contains user information.")
    if not path:
        return (b"*" if method == b"OPTIONS" else b"/"), authority  # RFC 9112 3.2.4
    return (path if path[:1] == b"/" else b"/" + path), authority


class _Hosts(dict[bytes, tuple[str, bytes]]):
    """Host values as they came in -> (name that routes, port or b""). Judged once; bounded, and emptied when full."""

    def __missing__(self, value: bytes) -> tuple[str, bytes]:
        judged = _parse_host(value)
        if len(self) >= _HOSTS_REMEMBERED:
            self.clear()
        self[value] = judged
        return judged


HOSTS: Final = _Hosts()


def _parse_host(value: bytes) -> tuple[str, bytes]:
    """`name[:port]` or `[v6][:port]` (RFC 9110 7.2, RFC 3986 3.2.2); the name as sites are named in the settings.

    That is lower case without a final dot, and for IPv6 the canonical text (RFC 5952) without brackets.
    """
    if value[:1] == b"[":
        literal, bracket, port = value[1:].partition(b"]")
        name = _canonical_ipv6(literal) if bracket else ""
    else:
        text, colon, port = value.partition(b":")
        port = colon + port
        name = text.lower().removesuffix(b".").decode("ascii") if _is_name(text) else ""
    if not name or (port and not (port[:1] == b":" and is_port(port[1:]))):
        raise ProtocolError(400, "The Host field is not a host name with an optional port.")
    return name, port[1:]


def _is_name(name: bytes) -> bool:
    """Labels of letters, digits, "-" and "_", none of them empty; a final dot may follow."""
    if not name or len(name) > _LONGEST_NAME or name.translate(None, _NAME_BYTES):
        return False
    return all(name.removesuffix(b".").split(b"."))


def _canonical_ipv6(literal: bytes) -> str:
    """The canonical text of an IPv6 address, "" for what is none."""
    if literal.translate(None, _HEX + b":."):
        return ""
    try:
        return str(IPv6Address(literal.decode("ascii")))
    except ValueError:
        return ""


def is_port(port: bytes) -> bool:
    """True for a port number, and for nothing at all: RFC 3986 3.2.3 allows "a.test:"."""
    return len(port) <= 5 and not port.translate(None, _DIGITS) and int(port or b"0") <= 65535


def parse_content_length(value: bytes) -> int:
    """A Content-Length (RFC 9110 8.6): digits only, no list, at most 18 of them."""
    if not value or len(value) > _LONGEST_NUMBER or value.translate(None, _DIGITS):
        raise ProtocolError(400, "The Content-Length is not a number.")
    return int(value)


def check_transfer_encoding(values: list[bytes]) -> None:
    """Accept exactly one `chunked` (RFC 9112 6.1); 501 for codings we do not decode, 400 for anything ambiguous."""
    if len(values) == 1 and values[0].lower() == b"chunked":
        return
    codings = [part.strip(b" \t").lower() for value in values for part in value.split(b",")]
    names = [coding.partition(b";")[0] for coding in codings]
    if any(not name or name.translate(None, TOKEN) for name in names) or b"chunked" in names[:-1]:
        raise ProtocolError(400, "The Transfer-Encoding is ambiguous.")
    raise ProtocolError(501, "The only transfer coding accepted here is chunked.")


def parse_chunk_size(line: bytes) -> int:
    """The size of a chunk in bytes (RFC 9112 7.1); extensions are checked and dropped."""
    size, semicolon, _ = line.partition(b";")
    if not size or len(size) > _LONGEST_CHUNK_SIZE or size.translate(None, _HEX):
        raise ProtocolError(400, "A chunk size is not a hexadecimal number.")
    if semicolon and not _CHUNK_EXTENSIONS.fullmatch(line, len(size)):
        raise ProtocolError(400, "A chunk extension is malformed.")
    return int(size, 16)


def parse_trailers(block: bytes) -> Fields:
    """The fields of a trailer section, `block` being its lines without the final empty one (RFC 9112 7.1.2)."""
    check_head_bytes(block)
    fields: Fields = []
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not name or name.translate(None, TOKEN):
            raise ProtocolError(400, "A trailer field is malformed.")
        fields.append((name, value.strip(b" \t")))
    return fields


def head_too_large(head: bytes, limit: int) -> ProtocolError:
    """The 431 (RFC 6585 5) for `head`, with a note that names the limit and the biggest field."""
    lines = head.split(b"\r\n")[1:] or [b""]
    biggest = max(lines, key=len)
    name = biggest.partition(b":")[0][:64].decode("latin-1")
    note = f"limits.header_size {limit} exceeded ({len(head)} received); biggest field: {name} {len(biggest)} bytes"
    return ProtocolError(431, f"The request header is larger than {limit} bytes; the biggest field is {name}.", note)


def too_many_fields(count: int, limit: int) -> ProtocolError:
    """The 431 for a head with more than `limit` fields."""
    note = f"limits.header_count {limit} exceeded ({count} received)"
    return ProtocolError(431, f"The request has more than {limit} header fields.", note)


def target_too_long(limit: int) -> ProtocolError:
    """The 414 (RFC 9110 15.5.15)."""
    return ProtocolError(
        414, f"The request target is longer than {limit} bytes.", f"limits.target_size {limit} exceeded"
    )


def salvage(head: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and Host of a head that was refused, for the log alone; b"" for what can't be told.

    Without user information: a password in a URL may be why it was refused.
    """
    line, end, rest = head.partition(b"\r\n")
    parts = line.split(b" ")
    if len(parts) < 2 or not parts[0] or len(parts[0]) > 32 or parts[0].translate(None, TOKEN):
        return b"", b"", b""
    hosts = [field for field in rest.split(b"\r\n") if field[:5].lower() == b"host:"]
    host = hosts[0][5:].strip(b" \t").rpartition(b"@")[2] if hosts else b""
    return parts[0], _without_user(parts[1], cut=len(parts) == 2 and not end)[:1024], host[:255]


def _without_user(target: bytes, *, cut: bool) -> bytes:
    """`target` less what is before "@" in its authority; less all of that if it was `cut` before its end was seen."""
    if target[:1] == b"/":
        return target
    scheme, separator, rest = target.partition(b"//") if b"//" in target else (b"", b"", target)
    path = _AUTHORITY_END.search(rest)
    at = path.start() if path else len(rest)
    host = b"" if cut and path is None else rest[:at].rpartition(b"@")[2]
    return scheme + separator + host + rest[at:]
