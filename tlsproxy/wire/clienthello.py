"""The first message of a TLS client, read before OpenSSL sees it.

Knows the record layer and the ClientHello (RFC 8446 4.1.2, 5.1; RFC 6066 3; RFC 7301 3.1) as far as the choice of a
certificate needs them: server name, ALPN list, versions. Everything else is skipped by its length and judged by
OpenSSL, which gets the same bytes afterwards.

Rule: every length is checked against the end of what encloses it, so broken input ends in `ClientHelloError` with the
alert to send and in nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct, unpack
from typing import Final

MAX_HELLO: Final = 16_384
# One record per byte is legal, and nobody's client does it. All records are walked again with every segment that
# arrives, so their number is what a client that dribbles can make us work.
MAX_RECORDS: Final = 64

# RFC 8446 6: alert descriptions
UNEXPECTED_MESSAGE: Final = 10
RECORD_OVERFLOW: Final = 22
HANDSHAKE_FAILURE: Final = 40
ILLEGAL_PARAMETER: Final = 47
DECODE_ERROR: Final = 50
PROTOCOL_VERSION: Final = 70
INTERNAL_ERROR: Final = 80
UNRECOGNIZED_NAME: Final = 112
NO_APPLICATION_PROTOCOL: Final = 120  # RFC 7301 3.2

HANDSHAKE_RECORD: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_SUPPORTED_VERSIONS: Final = 43
_KIND_AND_SIZE: Final = Struct(">HH").unpack_from
_LABEL: Final = rb"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST: Final = re.compile(rb"%b(?:\.%b)*" % (_LABEL, _LABEL))


class ClientHelloError(Exception):
    """The bytes are no ClientHello; `alert` is the AlertDescription to answer with."""

    def __init__(self, alert: int, reason: str) -> None:
        super().__init__(reason)
        self.alert = alert


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the client asks for.

    `server_name` is lower-case ASCII without a trailing dot, None if the client sent no name. `versions` are the
    offered protocol versions (0x0304 = TLS 1.3) without GREASE (RFC 8701), `alpn` is in the client's order.
    """

    server_name: str | None
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]


def parse_client_hello(data: bytes) -> ClientHello | None:
    """Read a ClientHello from the start of `data`; None = need more bytes.

    Bytes after the message are not looked at. Raises `ClientHelloError` as soon as it is certain.
    """
    message = _message(data)
    return None if message is None else _parse(message)


def _message(data: bytes) -> bytes | None:
    """Join the handshake fragments of as many records as the message needs; the result begins after its header."""
    joined = b""
    at = 0
    for _ in range(MAX_RECORDS):
        fragment, at = _fragment(data, at)
        joined = joined + fragment if joined else fragment
        if len(joined) >= 4:
            end = _message_end(joined)
            if len(joined) >= end:
                return joined[4:end]
        if at > len(data):
            return None
    raise ClientHelloError(ILLEGAL_PARAMETER, "ClientHello in too many records")


def _fragment(data: bytes, at: int) -> tuple[bytes, int]:
    """Return what is there of the record at `at`, and where the next one starts (beyond `data`: more is needed)."""
    start = at + 5
    if len(data) > at and data[at] != HANDSHAKE_RECORD:
        raise ClientHelloError(UNEXPECTED_MESSAGE, "not a TLS handshake record")
    if len(data) > at + 1 and data[at + 1] != 3:
        raise ClientHelloError(PROTOCOL_VERSION, "not a TLS record version")
    if len(data) < start:
        return b"", start
    size = data[at + 3] << 8 | data[at + 4]
    if size > MAX_HELLO:
        raise ClientHelloError(RECORD_OVERFLOW, "record longer than 16 KiB")
    if size == 0:  # RFC 8446 5.1: no zero-length fragments of handshake messages
        raise ClientHelloError(UNEXPECTED_MESSAGE, "empty handshake record")
    # A record that ends with the data needs another one, unless the message is complete: the caller looks first.
    end = start + size
    return data[start:end], end if end <= len(data) else len(data) + 1


def _message_end(joined: bytes) -> int:
    if joined[0] != _CLIENT_HELLO:
        raise ClientHelloError(UNEXPECTED_MESSAGE, "first handshake message is not a ClientHello")
    end = 4 + int.from_bytes(joined[1:4])
    if end > MAX_HELLO:
        raise ClientHelloError(ILLEGAL_PARAMETER, "ClientHello longer than 16 KiB")
    return end


def _parse(body: bytes) -> ClientHello:
    at = 34  # legacy_version, random
    _, at = _vector(body, at, 1, 0, 32)  # legacy_session_id
    suites, at = _vector(body, at, 2, 2, 65_534)
    _, at = _vector(body, at, 1, 1, 255)  # legacy_compression_methods
    if len(suites) % 2:
        raise ClientHelloError(DECODE_ERROR, "odd cipher suite list")
    legacy_version = body[0] << 8 | body[1]
    if at == len(body):  # TLS 1.2 without extensions (RFC 5246 7.4.1.2)
        return ClientHello(None, (), (legacy_version,))
    block, at = _vector(body, at, 2, 0, 65_535)
    if at != len(body):
        raise ClientHelloError(DECODE_ERROR, "bytes after the extensions")
    return _from_extensions(_extensions(block), legacy_version)


def _from_extensions(found: dict[int, bytes], legacy_version: int) -> ClientHello:
    name = found.get(_SERVER_NAME)
    alpn = found.get(_ALPN)
    versions = found.get(_SUPPORTED_VERSIONS)
    return ClientHello(
        None if name is None else _server_name(name),
        () if alpn is None else _protocols(alpn),
        (legacy_version,) if versions is None else _versions(versions),
    )


def _extensions(block: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at, end = 0, len(block)
    last = end - 4
    while at < end:
        if at > last:
            raise ClientHelloError(DECODE_ERROR, "extension cut short")
        kind, size = _KIND_AND_SIZE(block, at)
        start = at + 4
        at = start + size
        if at > end:
            raise ClientHelloError(DECODE_ERROR, "extension longer than its list")
        if kind in found:  # RFC 8446 4.2
            raise ClientHelloError(ILLEGAL_PARAMETER, "extension sent twice")
        found[kind] = block[start:at]
    return found


def _server_name(extension: bytes) -> str | None:
    names = _whole_vector(extension, 2, 1)
    found: str | None = None
    at = 0
    while at < len(names):
        kind = names[at]
        name, at = _vector(names, at + 1, 2, 1, 65_535)
        if kind != 0:
            continue  # only host_name is defined; RFC 6066 3 lets the list grow
        if found is not None:
            raise ClientHelloError(ILLEGAL_PARAMETER, "two names of one type")
        found = _host(name)
    return found


def _host(name: bytes) -> str:
    """Return the name in the form of the tables, or refuse: what is not a DNS name can't be one of ours."""
    host = name.lower().removesuffix(b".")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ClientHelloError(UNRECOGNIZED_NAME, "server name is not a host name")
    return host.decode("ascii")


def _protocols(extension: bytes) -> tuple[bytes, ...]:
    names = _whole_vector(extension, 2, 2)
    protocols: list[bytes] = []
    at = 0
    while at < len(names):
        name, at = _vector(names, at, 1, 1, 255)
        protocols.append(name)
    return tuple(protocols)


def _versions(extension: bytes) -> tuple[int, ...]:
    listed = _whole_vector(extension, 1, 2)
    if len(listed) % 2:
        raise ClientHelloError(DECODE_ERROR, "odd version list")
    versions = unpack(f">{len(listed) // 2}H", listed)
    return tuple([version for version in versions if version & 0x0F0F != 0x0A0A])


def _whole_vector(extension: bytes, width: int, least: int) -> bytes:
    content, at = _vector(extension, 0, width, least, 65_535)
    if at != len(extension):
        raise ClientHelloError(DECODE_ERROR, "bytes after a list")
    return content


def _vector(data: bytes, at: int, width: int, least: int, most: int) -> tuple[bytes, int]:
    """Return the variable-length vector at `at` (RFC 8446 3.4) and where it ends."""
    start = at + width
    if start > len(data):
        raise ClientHelloError(DECODE_ERROR, "length cut short")
    size = data[at] if width == 1 else data[at] << 8 | data[at + 1]
    end = start + size
    if end > len(data) or not least <= size <= most:
        raise ClientHelloError(DECODE_ERROR, "bad length")
    return data[start:end], end
