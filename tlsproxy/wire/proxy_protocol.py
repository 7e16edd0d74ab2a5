"""The header that a load balancer puts before a connection to tell the client's address: PROXY protocol v1 and v2.

Knows the bytes (haproxy.org/download/3.0/doc/proxy-protocol.txt), not whom to believe: the caller asks only for peers
that are configured as such, and then the header is not optional (section 2: a receiver must not guess).

Rule: anything that is not exactly a header is an error, never "no header".
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

V1_START: Final = b"PROXY "
V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_LONGEST: Final = 107  # section 2.1, with CRLF
_V2_LONGEST: Final = 16 + 16_384  # room for a client certificate in a TLV
_LOCAL, _PROXY = 0, 1
_STREAM_INET, _STREAM_INET6, _STREAM_UNIX = 0x11, 0x21, 0x31


class ProxyProtocolError(Exception):
    """The connection does not begin with a valid header."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The original connection; `size` bytes of the stream belong to the header.

    `source` is None where the header names no client (v1 UNKNOWN, v2 LOCAL, unix sockets): keep the socket's address.
    """

    size: int
    source: str | None = None
    source_port: int = 0
    destination: str | None = None
    destination_port: int = 0


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read a header from the start of `data`; None = need more bytes. Raises `ProxyProtocolError`."""
    if data.startswith(V1_START):
        return _version_1(data)
    if data.startswith(V2_SIGNATURE):
        return _version_2(data)
    if V1_START.startswith(data) or V2_SIGNATURE.startswith(data):
        return None
    raise ProxyProtocolError("no PROXY header")


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise ProxyProtocolError("PROXY line too long")
        return None
    fields = data[:end].split(b" ")
    if fields[1] == b"UNKNOWN":  # the rest of the line is to be ignored
        return ProxyHeader(end + 2)
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise ProxyProtocolError("malformed PROXY line")
    read = _ipv4 if fields[1] == b"TCP4" else _ipv6
    return ProxyHeader(end + 2, read(fields[2]), _port(fields[4]), read(fields[3]), _port(fields[5]))


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    if data[12] >> 4 != 2:
        raise ProxyProtocolError("unknown PROXY version")
    size = 16 + (data[14] << 8 | data[15])
    if size > _V2_LONGEST:
        raise ProxyProtocolError("PROXY header too long")
    if len(data) < size:
        return None
    command = data[12] & 0x0F
    if command == _LOCAL:
        return ProxyHeader(size)
    if command != _PROXY:
        raise ProxyProtocolError("unknown PROXY command")
    return _addresses(data[13], data[16:size], size)


def _addresses(family: int, block: bytes, size: int) -> ProxyHeader:
    """Read the address block of section 2.2; TLVs behind it are not ours."""
    if family == _STREAM_INET and len(block) >= 12:
        source, destination, ports = _text(IPv4Address(block[:4])), _text(IPv4Address(block[4:8])), block[8:12]
    elif family == _STREAM_INET6 and len(block) >= 36:
        source, destination, ports = _text(IPv6Address(block[:16])), _text(IPv6Address(block[16:32])), block[32:36]
    elif family == 0 or (family == _STREAM_UNIX and len(block) >= 216):
        return ProxyHeader(size)
    else:
        raise ProxyProtocolError("unsupported or short PROXY addresses")
    return ProxyHeader(size, source, ports[0] << 8 | ports[1], destination, ports[2] << 8 | ports[3])


def _ipv4(field: bytes) -> str:
    try:
        return _text(IPv4Address(field.decode("ascii")))
    except (AddressValueError, UnicodeDecodeError) as error:
        raise ProxyProtocolError("malformed IPv4 address") from error


def _ipv6(field: bytes) -> str:
    if b"%" in field:
        raise ProxyProtocolError("malformed IPv6 address")
    try:
        return _text(IPv6Address(field.decode("ascii")))
    except (AddressValueError, UnicodeDecodeError) as error:
        raise ProxyProtocolError("malformed IPv6 address") from error


def _text(address: IPv4Address | IPv6Address) -> str:
    """One client has one name: ::ffff:192.0.2.1 is written as 192.0.2.1."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _port(field: bytes) -> int:
    if not field.isdigit() or len(field) > 5 or (field[0] == 0x30 and len(field) > 1) or int(field) > 65_535:
        raise ProxyProtocolError("malformed port")
    return int(field)
