from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.proxy_protocol import V2_SIGNATURE, ProxyHeader, ProxyProtocolError, parse_proxy_header

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
FOUR = bytes((192, 0, 2, 7, 198, 51, 100, 1)) + (56324).to_bytes(2) + (443).to_bytes(2)
SIX = bytes.fromhex("20010db8000000000000000000000007") + bytes(15) + b"\x01" + (56324).to_bytes(2) + (443).to_bytes(2)
MAPPED = bytes(10) + b"\xff\xff" + FOUR[:4] + bytes(16) + FOUR[8:]


def v2(command: int, family: int, block: bytes) -> bytes:
    return V2_SIGNATURE + bytes((command, family)) + len(block).to_bytes(2) + block


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (V1, ProxyHeader(len(V1), "192.0.2.7", 56324, "198.51.100.1", 443)),
        (b"PROXY TCP6 2001:DB8::7 ::1 1 2\r\n", ProxyHeader(32, "2001:db8::7", 1, "::1", 2)),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 0\r\n", ProxyHeader(37, "192.0.2.7", 1, "::1", 0)),
        (b"PROXY UNKNOWN\r\n", ProxyHeader(15)),
        (b"PROXY UNKNOWN anything at all\r\n", ProxyHeader(31)),
        (v2(0x21, 0x11, FOUR), ProxyHeader(28, "192.0.2.7", 56324, "198.51.100.1", 443)),
        (v2(0x21, 0x21, SIX), ProxyHeader(52, "2001:db8::7", 56324, "::1", 443)),
        (v2(0x21, 0x21, MAPPED), ProxyHeader(52, "192.0.2.7", 56324, "::", 443)),
        (v2(0x21, 0x11, FOUR + b"\x04\0\x03abc"), ProxyHeader(34, "192.0.2.7", 56324, "198.51.100.1", 443)),
        (v2(0x21, 0x31, bytes(216)), ProxyHeader(232)),
        (v2(0x21, 0x00, b""), ProxyHeader(16)),
        (v2(0x20, 0x00, b""), ProxyHeader(16)),
        (v2(0x20, 0x11, FOUR), ProxyHeader(28)),
    ],
)
def test_reads_whole_byte_by_byte_and_with_bytes_behind(data: bytes, header: ProxyHeader) -> None:
    assert parse_proxy_header(data) == header
    assert parse_proxy_header(data + b"\x16\x03\x01") == header
    for length in range(len(data)):
        assert parse_proxy_header(data[:length]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 \xb2 2\r\n",
        b"PROXY TCP4 \xff.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY " + b"x" * 101,
        v2(0x11, 0x11, FOUR),
        v2(0x22, 0x11, FOUR),
        v2(0x21, 0x12, FOUR),
        v2(0x21, 0x11, FOUR[:11]),
        v2(0x21, 0x21, FOUR),
        v2(0x21, 0x31, bytes(215)),
        V2_SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        parse_proxy_header(data)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, V2_SIGNATURE + b"!\x11\0"])
)
def test_random_bytes(data: bytes, start: bytes) -> None:
    try:
        header = parse_proxy_header(start + data)
    except ProxyProtocolError:
        return
    assert header is None or header.size <= len(start + data)
