from __future__ import annotations

from collections.abc import Callable

import httptools
import pytest

from tests.fakes.refused import request
from tlsproxy.wire import grammar
from tlsproxy.wire.messages import ProtocolError

NOT_NUMBERS = [
    b"", b"+5", b"-5", b" 5", b"5 ", b"\t5", b"5_0", b"0x5", b"5.0", b"5e1", b"\xb2", b"\xc2\xb2", b"\xd9\xa5", b"5,5",
    b"5\x00", b"\x0b5", b"5\x0c", b"5\x85", b"\xa05", b"five", b"9" * 19, b"0" * 5000,
]  # fmt: skip


def status(act: Callable[[], object]) -> int:
    with pytest.raises(ProtocolError) as caught:
        act()
    return caught.value.status


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_content_length_is_digits(value: bytes) -> None:
    assert status(lambda: grammar.parse_content_length(value)) == 400


def test_content_length() -> None:
    assert grammar.parse_content_length(b"0") == 0
    assert grammar.parse_content_length(b"0042") == 42
    assert grammar.parse_content_length(b"9" * 18) == 10**18 - 1


@pytest.mark.parametrize(
    "line", [*NOT_NUMBERS, b"g", b"5 ;a", b"5; a", b"5;", b"5;=b", b"5;a=", b'5;a="', b"5;a b", b"5;a\x7f", b"f" * 16]
)
def test_chunk_size_is_hexadecimal(line: bytes) -> None:
    if line not in (b"5e1",):  # a number here
        assert status(lambda: grammar.parse_chunk_size(line)) == 400


def test_chunk_size() -> None:
    assert grammar.parse_chunk_size(b"5e1") == 0x5E1
    assert grammar.parse_chunk_size(b"aF") == 0xAF
    assert grammar.parse_chunk_size(b'00;a="b;\\"c";d=e;f') == 0
    assert grammar.parse_chunk_size(b"f" * 15) == 16**15 - 1


@pytest.mark.parametrize("start", [b"5;" + b"a" * 1000, b'5;a="' + b"x" * 1000, b'5;a="' + b"\\x" * 500, b";a=b" * 250])
def test_chunk_extensions_take_linear_time(start: bytes) -> None:
    """A regular expression that backtracks would need longer than anybody waits."""
    assert status(lambda: grammar.parse_chunk_size(start + b"\x00")) == 400


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"gzip"], 501),
        ([b"gzip, chunked"], 501),
        ([b"identity"], 501),
        ([b"gzip", b"chunked"], 501),
        ([b"chunked, gzip"], 400),
        ([b"chunked", b"chunked"], 400),
        ([b""], 400),
        ([b"chunked", b""], 400),
        ([b"x y"], 400),
        ([b"chunked\x0b"], 400),
        ([b"chunked\xa0"], 400),
    ],
)
def test_transfer_encodings(values: list[bytes], expected: int) -> None:
    assert status(lambda: grammar.check_transfer_encoding(values)) == expected


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED"])
def test_chunked(value: bytes) -> None:
    grammar.check_transfer_encoding([value])


@pytest.mark.parametrize("method", sorted(grammar.METHODS))
def test_every_method_is_one_that_the_parser_takes(method: bytes) -> None:
    assert grammar.parse_request_line(method + b" / HTTP/1.1") == (method, b"/", 11)
    parser = httptools.HttpRequestParser(object())
    parser.feed_data(request(line=method + b" / HTTP/1.1"))
    assert parser.get_method() == method


def test_what_is_idempotent_is_a_method() -> None:
    assert grammar.IDEMPOTENT < grammar.METHODS
    assert not grammar.IDEMPOTENT & {b"POST", b"PATCH", b"LOCK"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"FOO / HTTP/1.1", 501),
        (b"F(O / HTTP/1.1", 400),
        (b"PRI * HTTP/2.0", 505),
        (b"CONNECT a:1 HTTP/1.1", 405),
        (b"GET / HTTP/3.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.1x", 400),
        (b"GET / HTTPS/1.1", 400),
        (b"GET / ", 400),
        (b"", 400),
    ],
)
def test_bad_request_lines(line: bytes, expected: int) -> None:
    assert status(lambda: grammar.parse_request_line(line)) == expected


def test_hosts_are_remembered_but_not_for_ever() -> None:
    hosts = type(grammar.HOSTS)()
    for number in range(2000):
        assert hosts[b"h%d.test:8" % number] == (f"h{number}.test", b"8")
        assert len(hosts) <= 1024
    assert b"h1999.test:8" in hosts
    assert status(lambda: hosts[b"a..b"]) == 400
    assert b"a..b" not in hosts


@pytest.mark.parametrize("piece", [b"a\x00", b"a\nb", b"a\r\rb", b"\r\r\n", b"a\rb", b"\n", b"a\x7f", b"\x1b"])
def test_garbage_is_seen_before_a_head_is_whole(piece: bytes) -> None:
    assert status(lambda: grammar.check_partial_head(piece)) == 400


@pytest.mark.parametrize("piece", [b"", b"a\r\nb", b"a\r", b"\r\n\r", b"caf\xe9\t\r\n"])
def test_the_beginning_of_a_head_is_no_garbage(piece: bytes) -> None:
    grammar.check_partial_head(piece)


def test_limits_name_themselves_and_the_biggest_field() -> None:
    error = grammar.head_too_large(b"GET / HTTP/1.1\r\nA: b\r\nX-Big: " + b"y" * 50, 40)
    assert error.status == 431
    assert "X-Big" in error.reason
    assert "limits.header_size 40" in error.note
    assert grammar.head_too_large(b"x" * 50, 40).status == 431
    assert (grammar.too_many_fields(101, 100).status, grammar.target_too_long(8).status) == (431, 414)


@pytest.mark.parametrize(
    ("head", "target", "host"),
    [
        (b"GET http://me:pw@a.test/x?y@z HTTP/1.1\r\nHost: me:pw@a.test\r\n\r\n", b"http://a.test/x?y@z", b"a.test"),
        (b"GET http://me:p@w@a.test HTTP/1.1\r\n", b"http://a.test", b""),
        (b"GET http://me:pw@a.test?x#@ HTTP/1.1\r\n", b"http://a.test?x#@", b""),
        (b"CONNECT me:pw@a.test:443 HTTP/1.1\r\n", b"a.test:443", b""),
        (b"GET //a@b/@c HTTP/1.1\r\n", b"//a@b/@c", b""),
        (b"GET ftp://me:" + b"p" * 2000 + b"@a.test/ HTTP/1.1\r\n", b"ftp://a.test/", b""),
        (b"GET http://me:pw", b"http://", b""),  # what comes next may be "@"
        (b"GET http://me:pw@a.test/x", b"http://a.test/x", b""),
        (b"GET http://a.test \x00", b"http://a.test", b""),
        (b"GET /x", b"/x", b""),
        (b"me:pw@a.test", b"", b""),
    ],
)
def test_what_is_salvaged_holds_no_password(head: bytes, target: bytes, host: bytes) -> None:
    found = grammar.salvage(head)
    assert found[1:] == (target, host)
    assert b"pw" not in b"".join(found)
