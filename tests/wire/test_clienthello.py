from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.clienthello import (
    DECODE_ERROR,
    ILLEGAL_PARAMETER,
    MAX_HELLO,
    MAX_RECORDS,
    PROTOCOL_VERSION,
    RECORD_OVERFLOW,
    UNEXPECTED_MESSAGE,
    UNRECOGNIZED_NAME,
    ClientHello,
    ClientHelloError,
    parse_client_hello,
)


def real_hello(name: str | None = "a.test", alpn: tuple[str, ...] = ("h2", "http/1.1"), newest: bool = True) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if not newest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def records(message: bytes, size: int) -> bytes:
    parts = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in parts)


def vector(content: bytes, width: int) -> bytes:
    return len(content).to_bytes(width) + content


def message(extensions: bytes | None = b"", *, suites: bytes = b"\x13\x01", session: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(session, 1) + vector(suites, 2) + b"\x01\x00"
    if extensions is not None:
        body += vector(extensions, 2)
    return b"\x01" + vector(body, 3)


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + vector(content, 2)


def sni(*names: bytes) -> bytes:
    return extension(0, vector(b"".join(b"\0" + vector(name, 2) for name in names), 2))


def hello_of(extensions: bytes | None) -> bytes:
    return records(message(extensions), MAX_HELLO)


HELLO = real_hello()
FULL = ClientHello("a.test", (b"h2", b"http/1.1"), (0x0304, 0x0303))


def test_reads_what_openssl_sends() -> None:
    assert parse_client_hello(HELLO) == FULL


def test_reads_a_tls_1_2_hello_without_name_and_alpn() -> None:
    assert parse_client_hello(real_hello(None, (), newest=False)) == ClientHello(None, (), (0x0303,))


def test_a_hello_without_extensions_is_complete() -> None:
    assert parse_client_hello(hello_of(None)) == ClientHello(None, (), (0x0303,))


@pytest.mark.parametrize("size", [-(-len(HELLO[5:]) // MAX_RECORDS), 100, 516])
def test_fragments_over_many_records(size: int) -> None:
    assert parse_client_hello(records(HELLO[5:], size)) == FULL


@pytest.mark.parametrize("size", [11, 100, MAX_HELLO])
def test_every_truncation_needs_more(size: int) -> None:
    data = records(HELLO[5:], size)
    for length in range(len(data)):
        assert parse_client_hello(data[:length]) is None


def test_bytes_after_the_message_are_not_looked_at() -> None:
    assert parse_client_hello(HELLO + b"\x14\x03\x03\x00\x01\x01") == FULL


def test_takes_16_kib_and_no_more() -> None:
    room = MAX_HELLO - len(message(extension(21, b"")))
    assert parse_client_hello(hello_of(extension(21, bytes(room)))) is not None
    with pytest.raises(ClientHelloError) as refused:
        parse_client_hello(records(message(extension(21, bytes(room + 1))), 1000))
    assert refused.value.alert == ILLEGAL_PARAMETER


def test_too_long_is_refused_from_its_header_on() -> None:
    with pytest.raises(ClientHelloError):
        parse_client_hello(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff")


@pytest.mark.parametrize("size", [1, 7])
def test_endless_small_records_are_refused(size: int) -> None:
    data = records(HELLO[5:], size)
    assert parse_client_hello(data[: (MAX_RECORDS - 1) * (5 + size)]) is None
    with pytest.raises(ClientHelloError) as refused:
        parse_client_hello(data[: MAX_RECORDS * (5 + size)])
    assert refused.value.alert == ILLEGAL_PARAMETER


def test_grease_is_passed_over() -> None:
    grease = extension(0x1A1A, b"") + extension(0xAAAA, b"\0")
    versions = extension(43, vector(b"\x2a\x2a\x03\x04\x03\x03", 1))
    alpn = extension(16, vector(vector(b"\x0a\x0a", 1) + vector(b"h2", 1), 2))
    hello = parse_client_hello(hello_of(grease + versions + alpn))
    assert hello == ClientHello(None, (b"\x0a\x0a", b"h2"), (0x0304, 0x0303))


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"A.Test", "a.test"),
        (b"a.test.", "a.test"),
        (b"xn--bcher-kva.test", "xn--bcher-kva.test"),
        (b"_dmarc.a.test", "_dmarc.a.test"),
        (b"192.0.2.1", "192.0.2.1"),
        (b"localhost", "localhost"),
    ],
)
def test_names_as_the_tables_hold_them(sent: bytes, seen: str) -> None:
    hello = parse_client_hello(hello_of(sni(sent)))
    assert hello is not None
    assert hello.server_name == seen


@pytest.mark.parametrize(
    "name",
    [
        b"a\0b.test",
        b"a b",
        b"..",
        b".",
        b"a..b",
        b".a.test",
        "bücher.test".encode(),
        b"-a.test",
        b"a-.test",
        b"*.test",
        b"a/b",
        b"a.test:443",
        b"::1",
        b"a.test..",
        b"a" * 64 + b".test",
        b"a." * 127 + b"test",
        b"\xff",
    ],
)
def test_what_is_no_host_name_is_not_recognized(name: bytes) -> None:
    with pytest.raises(ClientHelloError) as refused:
        parse_client_hello(hello_of(sni(name)))
    assert refused.value.alert == UNRECOGNIZED_NAME


@pytest.mark.parametrize(
    ("data", "alert"),
    [
        (b"\x17\x03\x03\x00\x01\x00", UNEXPECTED_MESSAGE),
        (b"\x80\x2e\x01\x00\x02", UNEXPECTED_MESSAGE),
        (b"\x16\x02", PROTOCOL_VERSION),
        (b"\x16\x03\x01\x40\x01", RECORD_OVERFLOW),
        (b"\x16\x03\x01\x00\x00", UNEXPECTED_MESSAGE),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x10", UNEXPECTED_MESSAGE),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x30\x15", UNEXPECTED_MESSAGE),
        (records(b"\x01\x00\x00\x00", 100), DECODE_ERROR),
        (records(message(suites=b""), 1000), DECODE_ERROR),
        (records(message(suites=b"\x13"), 1000), DECODE_ERROR),
        (records(message(session=bytes(33)), 1000), DECODE_ERROR),
        (hello_of(b"\0"), DECODE_ERROR),
        (hello_of(b"\0\0\0\x05\0"), DECODE_ERROR),
        (hello_of(extension(0, b"")), DECODE_ERROR),
        (hello_of(extension(0, b"\0\0")), DECODE_ERROR),
        (hello_of(extension(0, b"\0\x04\0\0\x02a")), DECODE_ERROR),
        (hello_of(extension(0, b"\0\x04\0\0\x01ab")), DECODE_ERROR),
        (hello_of(sni(b"")), DECODE_ERROR),
        (hello_of(sni(b"a", b"b")), ILLEGAL_PARAMETER),
        (hello_of(sni(b"a") + sni(b"a")), ILLEGAL_PARAMETER),
        (hello_of(extension(16, b"")), DECODE_ERROR),
        (hello_of(extension(16, b"\0\x01\0")), DECODE_ERROR),
        (hello_of(extension(16, b"\0\x03\x03h2")), DECODE_ERROR),
        (hello_of(extension(43, b"\x03\x03\x04\x03")), DECODE_ERROR),
        (hello_of(extension(43, b"\0")), DECODE_ERROR),
    ],
)
def test_broken_hellos_end_with_their_alert(data: bytes, alert: int) -> None:
    with pytest.raises(ClientHelloError) as refused:
        parse_client_hello(data)
    assert refused.value.alert == alert


def test_bytes_after_the_extensions_are_refused() -> None:
    whole = message(extension(21, b""))
    longer = b"\x01" + vector(whole[4:] + b"\0", 3)
    with pytest.raises(ClientHelloError):
        parse_client_hello(records(longer, 1000))


def survives(data: bytes) -> None:
    """The one property: a value, None or ClientHelloError."""
    try:
        hello = parse_client_hello(data)
    except ClientHelloError:
        return
    assert hello is None or hello.server_name is None or hello.server_name.isascii()


@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    survives(data)
    survives(b"\x16\x03\x01" + vector(data, 2))
    survives(records(b"\x01" + vector(data, 3), 50))
    survives(hello_of(data))


@given(st.lists(st.tuples(st.integers(0, len(HELLO) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutations_of_a_real_hello(changes: list[tuple[int, int]]) -> None:
    data = bytearray(HELLO)
    for at, value in changes:
        data[at] = value
    survives(bytes(data))
    survives(records(bytes(data[5:]), 33))


@given(st.integers(0, len(HELLO)), st.integers(0, len(HELLO)))
def test_pieces_missing_from_a_real_hello(start: int, end: int) -> None:
    survives(HELLO[:start] + HELLO[end:])
