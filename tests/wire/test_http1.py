"""The codec's rules one by one (security rules 1 to 7), and what must hold for any bytes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.codec import Answer, Conversation, read_answer, read_requests, request_reader, split, ways
from tests.fakes.generated import ANSWERS, STREAMS
from tests.fakes.refused import HOST, REFUSED, REFUSED_ANSWERS, UPGRADE, answer, chunked, post, request
from tlsproxy.wire.answers import ResponseReader
from tlsproxy.wire.http1 import chunk, last_chunk, response_head_bytes
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead, ResponseHead


def one(data: bytes) -> RequestHead:
    read = read_requests([data])
    assert read.error is None
    assert len(read.complete) == 1, read
    return read.complete[0].head


def status_of(data: bytes) -> int:
    """The one status that every way of feeding `data` ends with; no request may have been complete before."""
    reads = [read_requests(pieces) for pieces in ways(data)]
    assert not any(read.complete for read in reads)
    assert all(read.error is not None for read in reads), reads[0]
    assert len({read.error.status for read in reads if read.error}) == 1, reads
    assert reads[0].error is not None
    return reads[0].error.status


def head_of(data: bytes, method: bytes = b"GET") -> ResponseHead:
    read = read_answer([data], method)
    assert read.error is None
    assert read.head is not None
    return read.head


def is_refused(data: bytes, method: bytes = b"GET", *, eof: bool = False) -> bool:
    """Whether a client would get a 502: the error comes before the answer's head, however the bytes are cut."""
    reads = [read_answer(pieces, method, eof=eof) for pieces in ways(data)]
    return all(read.error is not None and read.head is None for read in reads)


# --- requests that are refused


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    status, data = REFUSED[what]
    assert status_of(data) == status


# --- what is accepted, and how it is understood


@pytest.mark.parametrize(
    ("line", "target", "host"),
    [
        (b"GET /x?y=%20 HTTP/1.1", b"/x?y=%20", "a.test"),
        (b"GET //b.test/x HTTP/1.1", b"//b.test/x", "a.test"),
        (b"GET /a/../b;c\\d{}|^ HTTP/1.1", b"/a/../b;c\\d{}|^", "a.test"),
        (b"OPTIONS * HTTP/1.1", b"*", "a.test"),
        (b"OPTIONS http://a.test HTTP/1.1", b"*", "a.test"),
        (b"GET http://B.test HTTP/1.1", b"/", "b.test"),
        (b"GET HTTPS://b.test:8443?q HTTP/1.1", b"/?q", "b.test"),
        (b"GET http://[::1]:80/x HTTP/1.1", b"/x", "::1"),
    ],
)
def test_targets(line: bytes, target: bytes, host: str) -> None:
    head = one(request(line=line))
    assert (head.target, head.host) == (target, host)


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        (b"a.test", "a.test", b""),
        (b"A.Test:8443", "a.test", b"8443"),
        (b"a.test:", "a.test", b""),
        (b"a.test.", "a.test", b""),
        (b"a_b.test", "a_b.test", b""),
        (b"[2001:DB8::1]:443", "2001:db8::1", b"443"),
        (b"[2001:0db8:0:0::0:1]", "2001:db8::1", b""),
        (b"[::ffff:192.0.2.1]", str(ip_address("::ffff:192.0.2.1")), b""),
        (b"192.0.2.1", "192.0.2.1", b""),
    ],
)
def test_hosts(value: bytes, host: str, port: bytes) -> None:
    head = one(request(b"Host: " + value + b"\r\n"))
    assert (head.host, head.port, head.authority) == (host, port, value)


def test_http_1_0_needs_no_host() -> None:
    head = one(request(b"", line=b"GET / HTTP/1.0"))
    assert (head.host, head.authority, head.keep_alive) == ("", b"", False)


@pytest.mark.parametrize(
    ("version", "value", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"keep-alive, Close", False),
        (b"1.1", b"closed", True),
        (b"1.1", b"\xa0close", True),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_keep_alive(version: bytes, value: bytes, kept: bool) -> None:
    head = one(request(HOST + b"Connection: " + value + b"\r\n", line=b"GET / HTTP/" + version))
    assert head.keep_alive is kept


def test_nothing_behind_a_last_request_is_read() -> None:
    read = read_requests([request(HOST + b"Connection: close\r\n") + request(line=b"GET /smuggled HTTP/1.1")])
    assert [each.head.target for each in read.complete] == [b"/x"]


def test_an_empty_line_between_requests_is_skipped_once() -> None:
    data = request() + b"\r\n" + request(line=b"GET /y HTTP/1.1") + b"\r\n" + request(line=b"GET /z HTTP/1.1")
    for pieces in ways(data):
        assert [each.head.target for each in read_requests(pieces).complete] == [b"/x", b"/y", b"/z"]


@pytest.mark.parametrize("value", [b"0", b"00000", b"000000000000000005"])
def test_leading_zeros_of_a_length_mean_nothing(value: bytes) -> None:
    read = read_requests([post(b"Content-Length: " + value + b"\r\n", b"hello"[: int(value)])])
    assert read.complete[0].head.length == int(value)
    assert b"Content-Length: %d\r\n" % int(value) in read.complete[0].forwarded()


@pytest.mark.parametrize("extension", [b"", b";a", b";a=b", b';a="b"', b';a="\\""', b";a;b=c", b";a=" + b"x" * 900])
def test_chunk_extensions_are_read_and_dropped(extension: bytes) -> None:
    data = chunked(b"5" + extension + b"\r\nhello\r\n00" + extension + b"\r\n\r\n")
    for pieces in ways(data, every_split_below=200):
        read = read_requests(pieces)
        assert read.complete[0].body == b"hello"
        if extension:
            assert extension not in read.complete[0].forwarded()


def test_trailers() -> None:
    data = chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nx-empty:\r\n\r\n")
    for pieces in ways(data):
        read = read_requests(pieces)
        assert read.complete[0].trailers == [(b"X-Sum", b"1"), (b"x-empty", b"")]


def test_trailers_end_with_their_message() -> None:
    """A reader is used for many messages; one without trailers must not inherit those of the message before."""
    reader = ResponseReader()
    first = answer(b"Transfer-Encoding: chunked\r\n", b"0\r\nX-Sum: 1\r\n\r\n")
    assert read_answer([first], reader=reader).trailers == [(b"X-Sum", b"1")]
    assert read_answer([answer(body=b"hello")], eof=True, reader=reader).complete
    assert reader.trailers == []


def test_a_field_that_connection_names_ends_here_as_a_trailer_too() -> None:
    lines = b"Connection: x-hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n"
    read = read_requests([post(lines, b"0\r\nX-Hop: 2\r\nX-Sum: 1\r\n\r\n")])
    assert read.complete[0].trailers == [(b"X-Sum", b"1")]
    assert b"hop" not in read.complete[0].forwarded().lower()
    assert read_answer([answer(lines, b"0\r\nX-Hop: 2\r\nX-Sum: 1\r\n\r\n")]).trailers == [(b"X-Sum", b"1")]


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"close", b"X-Forwarded-For"])
def test_connection_cannot_take_out_what_we_set(name: bytes) -> None:
    data = post(b"Content-Length: 5\r\nConnection: " + name + b"\r\n", b"hello")
    sent = read_requests([data]).complete[0].forwarded().lower()
    assert sent.count(b"\r\nhost: a.test\r\n") == 1
    assert sent.count(b"\r\ncontent-length: 5\r\n") == 1
    assert sent.count(b"\r\nx-forwarded-for: 198.51.100.7\r\n") == 1
    assert b"\r\nconnection:" not in sent


@pytest.mark.parametrize(
    ("lines", "body", "expected"),
    [
        (b"Content-Length: 5\r\n", b"hello", True),
        (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", True),
        (b"Content-Length: 0\r\n", b"", False),
        (b"", b"", False),
    ],
)
def test_an_expectation_goes_on_only_where_a_body_waits(lines: bytes, body: bytes, expected: bool) -> None:
    read = read_requests([post(lines + b"Expect: 100-Continue\r\n", body)])
    assert read.complete[0].head.expect_continue is expected
    assert (b"\r\nExpect: 100-continue\r\n" in read.complete[0].forwarded()) is expected


def test_http_1_0_has_no_expectations() -> None:
    data = request(HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n", line=b"POST / HTTP/1.0", body=b"x")
    assert not one(data).expect_continue


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (b"Upgrade: websocket\r\n", b"GET / HTTP/1.1"),
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n", b"GET / HTTP/1.1"),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n", b"GET / HTTP/1.1"),
        (b"Connection: Upgrade\r\nUpgrade: websocketx\r\n", b"GET / HTTP/1.1"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"GET / HTTP/1.0"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"HEAD / HTTP/1.1"),
        (b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n", b"OPTIONS * HTTP/1.1"),
    ],
)
def test_no_upgrade_but_websocket_goes_on(lines: bytes, line: bytes) -> None:
    read = read_requests([request(HOST + lines, line=line) + b"behind"])
    assert not read.requests[0].head.upgrade
    sent = read.requests[0].forwarded().lower()
    assert b"upgrade" not in sent
    assert b"http2-settings" not in sent


def test_websocket() -> None:
    read = read_requests([request(HOST + UPGRADE.replace(b"websocket", b"h2c, WebSocket"))])
    assert read.complete[0].head.upgrade
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in read.complete[0].forwarded()


def test_a_repeated_block_means_the_same_only_in_the_same_surroundings() -> None:
    """The reader remembers the block of fields of the last request; everything outside of it is judged each time."""
    block = HOST + b"Connection: keep-alive, x-a\r\nX-A: 1\r\nX-B: 2\r\n"
    lines = [
        b"GET /x HTTP/1.1",
        b"GET /y HTTP/1.1",
        b"GET http://b.test:8/z HTTP/1.1",
        b"POST /x HTTP/1.1",
        b"GET /x HTTP/1.0",
    ]
    read = read_requests([b"".join(request(block, line=line) for line in [*lines, *lines])])
    alone = [read_requests([request(block, line=line)]).complete[0].values() for line in lines]
    assert [each.values() for each in read.complete] == [*alone, *alone]
    for bad in (b"GET http:///x HTTP/1.1", b"GET http://a..test/ HTTP/1.1"):
        read = read_requests([request(block) + request(block, line=bad)])
        assert len(read.complete) == 1
        assert read.error


def test_a_repeated_answer_means_what_it_meant_to_that_kind_of_request() -> None:
    """The reader remembers the last answer's head; GET and HEAD read the same bytes in two ways."""
    whole = answer(b"Content-Length: 5\r\n", b"hello")
    only_head = answer(b"Content-Length: 5\r\n")
    early = answer(b"Link: </x>\r\n", line=b"HTTP/1.1 103 Early Hints")
    reader = ResponseReader()
    for method, raw in [
        (b"GET", whole),
        (b"GET", whole),
        (b"HEAD", only_head),
        (b"HEAD", only_head),
        (b"GET", early + whole),
    ]:
        read = read_answer([raw], method, reader=reader)
        assert read.values() == read_answer([raw], method).values()
        assert read.reusable


@settings(max_examples=100)
@given(
    st.lists(st.tuples(ANSWERS, st.sampled_from([b"GET", b"GET", b"HEAD"]), st.integers(1, 3)), min_size=1, max_size=3)
)
def test_answers_mean_the_same_on_a_connection_that_was_used(steps: list[tuple[bytes, bytes, int]]) -> None:
    reader = ResponseReader()
    for raw, method, times in steps:
        for _ in range(times):
            read = read_answer([raw], method, reader=reader)
            assert read.values() == read_answer([raw], method).values()
            if not read.reusable:
                return


# --- limits


def test_header_size() -> None:
    fits = request(HOST + b"X: " + b"y" * 967 + b"\r\n")
    for size, is_fine in ((len(fits) - 4, True), (len(fits) - 5, False)):
        for pieces in ways(fits):
            read = read_requests(pieces, request_reader(header_size=size))
            assert bool(read.complete) is is_fine
            assert is_fine or (read.error and read.error.status == 431)


def test_header_size_names_the_biggest_field() -> None:
    read = read_requests([request(HOST + b"X-Big: " + b"y" * 40_000 + b"\r\n")])
    assert read.error
    assert "X-Big" in read.error.reason
    assert "32768" in read.error.note


def test_header_count() -> None:
    def lines(count: int) -> bytes:
        return HOST + b"X: y\r\n" * (count - 1)

    assert len(read_requests([request(lines(100))]).complete) == 1
    assert status_of(request(lines(101))) == 431


@pytest.mark.parametrize("length", [8193, 40_000])
def test_target_size(length: int) -> None:
    assert len(one(request(line=b"GET /" + b"x" * 8191 + b" HTTP/1.1")).target) == 8192
    for pieces in ways(request(line=b"GET /" + b"x" * (length - 1) + b" HTTP/1.1")):
        read = read_requests(pieces)
        assert read.error
        assert read.error.status == 414


# --- answers


@pytest.mark.parametrize("what", REFUSED_ANSWERS)
def test_refuses_the_answer(what: str) -> None:
    assert is_refused(REFUSED_ANSWERS[what])


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n", b"HTTP/1.1 103 X\r\n\r\n"]
)
def test_an_answer_that_ends_before_its_head_is_refused(raw: bytes) -> None:
    assert is_refused(raw, eof=True)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (b"Content-Length: 10\r\n", b"hello"),
        (b"Transfer-Encoding: chunked\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhell"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\nX: y\r\n"),
    ],
)
def test_an_answer_that_ends_too_early_is_never_whole(lines: bytes, body: bytes) -> None:
    for pieces in ways(answer(lines, body)):
        read = read_answer(pieces, eof=True)
        assert read.head is not None
        assert read.error is not None
        assert not read.complete


@pytest.mark.parametrize(
    ("raw", "method", "framing", "keep_alive"),
    [
        (answer(b"Content-Length: 5\r\n", b"hello"), b"GET", Framing.LENGTH, True),
        (answer(b"Transfer-Encoding: Chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"), b"GET", Framing.CHUNKED, True),
        (answer(body=b"hello"), b"GET", Framing.UNTIL_CLOSE, False),
        (answer(b"Content-Length: 5\r\n"), b"HEAD", Framing.NONE, True),
        (answer(b"Transfer-Encoding: chunked\r\n"), b"HEAD", Framing.NONE, True),
        (answer(), b"HEAD", Framing.NONE, True),
        (answer(line=b"HTTP/1.1 204 No Content"), b"GET", Framing.NONE, True),
        (answer(line=b"HTTP/1.1 304 Not Modified"), b"GET", Framing.NONE, True),
        (answer(line=b"HTTP/1.1 200"), b"GET", Framing.UNTIL_CLOSE, False),
        (answer(b"Content-Length: 0\r\n", line=b"HTTP/1.0 200 OK"), b"GET", Framing.LENGTH, False),
        (
            answer(b"Connection: keep-alive\r\nContent-Length: 0\r\n", line=b"HTTP/1.0 200 OK"),
            b"GET",
            Framing.LENGTH,
            True,
        ),
        (answer(b"Connection: close\r\nContent-Length: 0\r\n"), b"GET", Framing.LENGTH, False),
    ],
)
def test_framing_of_answers(raw: bytes, method: bytes, framing: Framing, keep_alive: bool) -> None:
    head = head_of(raw, method)
    assert (head.framing, head.keep_alive) == (framing, keep_alive)


@pytest.mark.parametrize("lines", [b"Content-Length: 6\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_an_answer_that_announces_a_body_it_can_not_have_is_the_connections_last(lines: bytes, status: bytes) -> None:
    head = head_of(answer(lines, line=b"HTTP/1.1 " + status))
    assert (head.framing, head.keep_alive) == (Framing.NONE, False)
    assert head_of(answer(lines, line=b"HTTP/1.1 " + status), b"HEAD").keep_alive


def test_bytes_behind_an_answer_are_not_part_of_it() -> None:
    read = read_answer([answer(b"Content-Length: 5\r\n", b"hello" + answer(b"Content-Length: 6\r\n", b"POISON"))])
    assert read.body == b"hello"
    assert not read.reusable


def test_interim_answers() -> None:
    early = answer(b"Link: </x>\r\n", line=b"HTTP/1.1 103 Early Hints")
    for pieces in ways(early + early + answer(b"Content-Length: 5\r\n", b"hello")):
        read = read_answer(pieces)
        assert [head.status for head in read.interim] == [103, 103]
        assert read.interim[0].fields == [(b"Link", b"</x>")]
        assert read.body == b"hello"


@pytest.mark.parametrize(
    ("lines", "protocol"),
    [
        (b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n", b"websocket"),
        (b"Connection: Upgrade\r\nUpgrade: foo\r\nUpgrade: websocket\r\n", b"foo, websocket"),
        (b"Connection: Upgrade\r\n", b""),
    ],
)
def test_101_says_to_what(lines: bytes, protocol: bytes) -> None:
    assert head_of(answer(lines, line=b"HTTP/1.1 101 Switching Protocols")).upgrade == protocol


def test_hop_by_hop_fields_of_an_answer_end_here() -> None:
    lines = (
        b"Connection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-A: caf\xe9 \r\nContent-Length: 0\r\n"
    )
    head = head_of(answer(lines))
    assert head.fields == [(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"X-A", b"caf\xe9")]


# --- for any bytes


def some_cuts(data: bytes, places: list[float]) -> list[bytes]:
    return split(data, [int(place * len(data)) for place in places])


CUTS = st.lists(st.floats(0, 1), max_size=6)
ANY = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"\r\n", b" ", b":", b"GET", b"/", b"HTTP/1.1", b"a", b"5", b"0"])).map(b"".join),
)


def assert_same(reads: list[Conversation] | list[Answer]) -> None:
    first, *others = [read.values() for read in reads]
    assert all(other == first for other in others)


@settings(max_examples=80)
@given(st.one_of(STREAMS, ANY), CUTS)
def test_requests_mean_the_same_however_they_are_cut(data: bytes, places: list[float]) -> None:
    """Also: no bytes raise anything but ProtocolError."""
    assert_same([read_requests(pieces) for pieces in ([data], some_cuts(data, places), split(data, range(len(data))))])


@settings(max_examples=80)
@given(st.one_of(ANSWERS, ANY), CUTS, st.booleans())
def test_answers_mean_the_same_however_they_are_cut(data: bytes, places: list[float], eof: bool) -> None:
    ways = [data], some_cuts(data, places), split(data, range(len(data)))
    assert_same([read_answer(pieces, eof=eof) for pieces in ways])


NAME = st.text("!#$%&'*+-.^`|~0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12).map(
    lambda text: b"x-" + text.encode()
)
VALUE = st.binary(max_size=30).map(lambda value: bytes(byte for byte in value if byte >= 32 and byte != 127).strip())
FIELDS = st.lists(st.tuples(NAME, VALUE), max_size=6)
PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@settings(max_examples=70)
@given(FIELDS, PIECES, FIELDS, CUTS)
def test_what_is_written_is_read_back(
    fields: list[tuple[bytes, bytes]], pieces: list[bytes], trailers: list[tuple[bytes, bytes]], places: list[float]
) -> None:
    body = b"".join(map(chunk, pieces)) + last_chunk(trailers)
    coding = [(b"Transfer-Encoding", b"chunked")]
    lines = b"".join(b"%b: %b\r\n" % field for field in [*fields, *coding])
    sent = request(HOST + lines, line=b"PUT /x HTTP/1.1", body=body)
    read = read_requests(some_cuts(sent, places)).complete[0]
    assert (read.head.fields, read.body) == (fields, b"".join(pieces))
    assert [name for name, _ in read.trailers] == [name for name, _ in trailers]
    back = read_answer(some_cuts(response_head_bytes(200, b"OK", [*fields, *coding]) + body, places))
    assert back.head is not None
    assert (back.head.fields, back.body, back.trailers) == (fields, b"".join(pieces), trailers)
    assert back.reusable


def test_a_reader_says_what_is_missing_with_none() -> None:
    reader = request_reader()
    assert reader.next_head() is None
    reader.receive(b"GET / HTTP/1.1\r\nHos")
    assert reader.next_head() is None
    assert reader.buffered == 19
    assert reader.take_rest() == b"GET / HTTP/1.1\r\nHos"


def test_an_error_says_what_a_client_and_what_an_operator_may_know() -> None:
    error = ProtocolError(400, "The header is malformed.", "llhttp: x")
    assert repr(error) == "ProtocolError(400, 'llhttp: x')"
    assert str(error) == "The header is malformed."
    assert repr(one(request())) == "<RequestHead GET a.test/x NONE>"
    assert repr(head_of(answer(b"Content-Length: 0\r\n"))) == "<ResponseHead 200 LENGTH>"
