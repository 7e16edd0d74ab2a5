"""RFC 9113 8: HTTP in HTTP/2. Requests that break it are malformed (8.1.1), and no backend sees them whole."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame

from tests.fakes.frames import (
    DATA,
    END_STREAM,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    Fields,
    FramePeer,
    block,
    frame,
    headers_frames,
    plain_block,
)
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import either_error, goes_on, malformed


def _ask(peer: FramePeer, fields: Fields, *, body: bytes | None = None) -> int:
    """Send a request of just these fields."""
    stream = peer.new_stream()
    peer.send(*headers_frames(plain_block(fields), stream, end_stream=body is None))
    if body is not None:
        peer.data(stream, body, end=True)
    return stream


def _refused(peer: FramePeer, origin: Origin, path: str, fields: Fields, *, body: bytes | None = None) -> None:
    malformed(peer, _ask(peer, fields, body=body))
    assert not any(each.is_whole for each in origin.seen(path))


# --- 8.1 message framing ----------------------------------------------------------------------------------------------


def test_8_1_get(peer: FramePeer, origin: Origin) -> None:
    """8.1: HEADERS alone; the answer's END_STREAM ends the stream without a RST_STREAM."""
    stream = peer.request("/8-1-get")
    assert peer.answer(stream).status == 200
    peer.ping()
    assert peer.kinds(stream) == ["HEADERS", "DATA"]
    assert origin.only("/8-1-get").method == b"GET"


def test_8_1_head(peer: FramePeer) -> None:
    """8.1: an answer to HEAD has no content, whatever its content-length says."""
    answer = peer.answer(peer.request("/big/7", method=b"HEAD"))
    assert (answer.status, answer.get("content-length"), answer.body) == (200, b"7", b"")


@pytest.mark.parametrize("status", [204, 304])
def test_8_1_answers_without_content(peer: FramePeer, status: int) -> None:
    """8.1: so have 204 and 304."""
    answer = peer.get(f"/status/{status}")
    assert (answer.status, answer.body, answer.pieces) == (status, b"", [])


@pytest.mark.parametrize("length", [True, False])
def test_8_1_post(peer: FramePeer, origin: Origin, length: bool) -> None:
    """8.1: HEADERS and DATA, with content-length or without."""
    path = f"/8-1-post/{length}"
    stream = peer.request(path, [(b"content-length", b"6")] if length else [], end=False)
    peer.send(DataFrame(stream, b"abc"), DataFrame(stream, b"def", flags=["END_STREAM"]))
    assert peer.answer(stream).status == 200
    seen = origin.only(path)
    assert (seen.method, seen.body) == (b"POST", b"abcdef")
    assert seen.all("content-length" if length else "transfer-encoding") == [b"6" if length else b"chunked"]


def test_8_1_post_with_trailers(peer: FramePeer, origin: Origin) -> None:
    """8.1: HEADERS, DATA and HEADERS with END_STREAM."""
    stream = peer.request("/8-1-trailers", body=b"abc", end=False)
    peer.trailers(stream, [(b"x-sum", b"3")])
    assert peer.answer(stream).status == 200
    seen = origin.only("/8-1-trailers")
    assert (seen.body, seen.trailers) == (b"abc", [(b"x-sum", b"3")])


def test_8_1_trailers_without_content(peer: FramePeer, origin: Origin) -> None:
    """8.1: there may be no DATA between the two."""
    stream = peer.request("/8-1-only-trailers", end=False)
    peer.trailers(stream, [(b"x-sum", b"0")])
    assert peer.answer(stream).status == 200
    assert origin.only("/8-1-only-trailers").trailers == [(b"x-sum", b"0")]


def test_8_1_trailers_of_the_answer(peer: FramePeer) -> None:
    """8.1: they come with END_STREAM behind the content."""
    stream = peer.request("/trailers", [(b"te", b"trailers")])
    answer = peer.answer(stream)
    assert (answer.body, answer.trailers) == (b"ok", [(b"x-sum", b"2")])
    assert peer.kinds(stream)[-1] == "HEADERS"


def test_8_1_interim_answer(peer: FramePeer) -> None:
    """8.1: 1xx come as HEADERS without END_STREAM before the final answer."""
    answer = peer.get("/hints")
    assert answer.status == 200
    (hints,) = answer.interim
    assert hints[0] == (b":status", b"103")
    assert (b"link", b"</a.css>") in hints


def test_8_1_expect_100_continue(peer: FramePeer, origin: Origin) -> None:
    """8.1, RFC 9110 10.1.1: the client that waits is told to go on."""
    stream = peer.request("/8-1-expect", [(b"expect", b"100-continue"), (b"content-length", b"3")], end=False)
    peer.until(lambda: bool(peer.stream(stream).interim), "a 100")
    assert peer.stream(stream).interim[0][0] == (b":status", b"100")
    peer.data(stream, b"abc", end=True)
    assert peer.answer(stream).status == 200
    assert origin.only("/8-1-expect").body == b"abc"


def test_8_1_trailers_without_end_stream(peer: FramePeer, origin: Origin) -> None:
    """8.1: a second HEADERS frame that does not end the stream makes the request malformed."""
    stream = peer.request("/8-1-second-head", body=b"x", end=False)
    peer.send(*headers_frames(block([(b"x-sum", b"1")]), stream, end_stream=False))
    malformed(peer, stream)
    assert not any(each.is_whole for each in origin.seen("/8-1-second-head"))


def test_8_1_data_behind_trailers(peer: FramePeer, origin: Origin) -> None:
    """8.1, 5.1: trailers are the end."""
    stream = peer.request("/8-1-behind", body=b"x", end=False)
    peer.send(*headers_frames(block([(b"x-sum", b"1")]), stream), frame(DATA, b"y", flags=END_STREAM, stream=stream))
    either_error(peer, stream, STREAM_CLOSED)


# --- 8.1.1 malformed messages: content-length -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "body"),
    [(b"1", b""), (b"3", b"ab"), (b"3", b"abcd"), (b"5", None), (b"18446744073709551617", b"a")],
)
def test_8_1_1_content_length_is_not_the_content(
    peer: FramePeer, origin: Origin, length: bytes, body: bytes | None
) -> None:
    """8.1.1: a content-length that does not equal the sum of the DATA payloads."""
    path = f"/8-1-1/{length.decode()}-{body!r}"
    _refused(peer, origin, path, [*peer.head(path, method=b"POST"), (b"content-length", length)], body=body)


def test_8_1_1_content_that_was_denied(peer: FramePeer, origin: Origin) -> None:
    """8.1.1: `content-length: 0`, and content: it may be answered before that comes, and the content goes nowhere."""
    stream = peer.request("/8-1-1-denied", [(b"content-length", b"0")], body=b"a")
    peer.over(stream)
    goes_on(peer)
    assert all(each.body == b"" for each in origin.seen("/8-1-1-denied"))


def test_8_1_1_content_length_of_several_frames(peer: FramePeer, origin: Origin) -> None:
    """8.1.1: the sum of all frames counts, without padding."""
    stream = peer.request("/8-1-1-sum", [(b"content-length", b"4")], end=False)
    peer.send(DataFrame(stream, b"ab", pad_length=9, flags=["PADDED"]), DataFrame(stream, b"cd", flags=["END_STREAM"]))
    assert peer.answer(stream).status == 200
    assert origin.only("/8-1-1-sum").body == b"abcd"


def test_8_1_1_too_much_content_in_several_frames(peer: FramePeer, origin: Origin) -> None:
    """8.1.1: too much is noticed when it comes."""
    stream = peer.request("/8-1-1-too-much", [(b"content-length", b"4")], end=False)
    peer.send(DataFrame(stream, b"abc"), DataFrame(stream, b"de"))
    malformed(peer, stream)
    assert not any(each.is_whole for each in origin.seen("/8-1-1-too-much"))


def test_8_1_1_too_little_content_before_trailers(peer: FramePeer, origin: Origin) -> None:
    """8.1.1: trailers end the content as well."""
    stream = peer.request("/8-1-1-too-little", [(b"content-length", b"4")], body=b"abc", end=False)
    peer.trailers(stream, [(b"x-sum", b"3")])
    malformed(peer, stream)
    assert not any(each.is_whole for each in origin.seen("/8-1-1-too-little"))


@pytest.mark.parametrize("value", [b"", b"-1", b"+3", b"0x3", b"3,3", b"3 3", b"three", b"\xb3"])
def test_8_1_1_content_length_is_no_number(peer: FramePeer, origin: Origin, value: bytes) -> None:
    """8.1.1, RFC 9110 8.6: digits."""
    path = "/8-1-1-number/" + value.hex()
    _refused(peer, origin, path, [*peer.head(path, method=b"POST"), (b"content-length", value)], body=b"abc")


@pytest.mark.parametrize("second", [b"3", b"4"])
def test_8_1_1_two_content_lengths(peer: FramePeer, origin: Origin, second: bytes) -> None:
    """8.1.1, RFC 9110 8.6: one of them."""
    path = "/8-1-1-two/" + second.decode()
    fields = [*peer.head(path, method=b"POST"), (b"content-length", b"3"), (b"content-length", second)]
    _refused(peer, origin, path, fields, body=b"abc")


# --- 8.2 fields -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"X-Upper", b"x-uppeR", b"Content-Type", b"Host"])
def test_8_2_upper_case_name(peer: FramePeer, origin: Origin, name: bytes) -> None:
    """8.2: names are in lower case."""
    path = f"/8-2/{name.decode()}"
    _refused(peer, origin, path, [*peer.head(path), (name, b"a.test")])


@pytest.mark.parametrize(
    "character", [0x00, 0x09, 0x0A, 0x0D, 0x20, 0x22, 0x28, 0x2C, 0x2F, 0x3A, 0x40, 0x7F, 0x80, 0xFF]
)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_8_2_1_character_in_a_name(peer: FramePeer, origin: Origin, character: int, where: str) -> None:
    """8.2.1: controls, blanks, upper case, DEL and beyond ASCII are malformed; of the rest a token is asked for."""
    path = f"/8-2-1/{character}/{where}"
    name = {"first": b"%cx", "middle": b"x%cx", "last": b"x%c"}[where] % character
    _refused(peer, origin, path, [*peer.head(path), (name, b"v")])


def test_8_2_1_empty_name(peer: FramePeer, origin: Origin) -> None:
    """8.2.1: a field has a name."""
    _refused(peer, origin, "/8-2-1-empty", [*peer.head("/8-2-1-empty"), (b"", b"v")])


@pytest.mark.parametrize("value", [b"a\0b", b"a\rb", b"a\nb", b"a\r\nx-evil: 1", b"\0", b"\n", b"\r"])
def test_8_2_1_character_in_a_value(peer: FramePeer, origin: Origin, value: bytes) -> None:
    """8.2.1: a value has no NUL, LF or CR at any position."""
    path = "/8-2-1-value/" + value.hex()
    _refused(peer, origin, path, [*peer.head(path), (b"x-a", value)])


@pytest.mark.parametrize("value", [b" a", b"a ", b"\ta", b"a\t", b" ", b"\t"])
def test_8_2_1_blanks_around_a_value(peer: FramePeer, origin: Origin, value: bytes) -> None:
    """8.2.1: a value does not begin or end with a blank."""
    path = "/8-2-1-blank/" + value.hex()
    _refused(peer, origin, path, [*peer.head(path), (b"x-a", value)])


@pytest.mark.parametrize("value", [b"", b"a b\tc", b"\xe9\x80", b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"])
def test_8_2_1_valid_values(peer: FramePeer, origin: Origin, value: bytes) -> None:
    """8.2.1: everything else is passed on as it is."""
    path = "/8-2-1-valid/" + value.hex()
    assert peer.answer(_ask(peer, [*peer.head(path), (b"x-a", value)])).status == 200
    assert origin.only(path).all("x-a") == [value]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"connection", b"keep-alive"),
        (b"connection", b"close"),
        (b"connection", b"x-a"),
        (b"proxy-connection", b"keep-alive"),
        (b"keep-alive", b"timeout=5"),
        (b"transfer-encoding", b"chunked"),
        (b"transfer-encoding", b"identity"),
        (b"upgrade", b"websocket"),
        (b"upgrade", b"h2c"),
    ],
)
def test_8_2_2_connection_specific_field(peer: FramePeer, origin: Origin, name: bytes, value: bytes) -> None:
    """8.2.2: fields about a connection of HTTP/1.1 make a message malformed."""
    path = f"/8-2-2/{name.decode()}/{value.decode()}"
    _refused(peer, origin, path, [*peer.head(path), (name, value)])


@pytest.mark.parametrize("value", [b"trailers"])
def test_8_2_2_te_trailers(peer: FramePeer, value: bytes) -> None:
    """8.2.2: TE is the exception, with this value."""
    assert peer.answer(_ask(peer, [*peer.head("/8-2-2-te"), (b"te", value)])).status == 200


@pytest.mark.parametrize("value", [b"gzip", b"trailers, deflate;q=0.5", b"trailers,gzip", b"chunked"])
def test_8_2_2_te_else(peer: FramePeer, origin: Origin, value: bytes) -> None:
    """8.2.2: and with no other."""
    path = "/8-2-2-te/" + value.hex()
    _refused(peer, origin, path, [*peer.head(path), (b"te", value)])


@pytest.mark.parametrize("name", [b"connection", b"transfer-encoding", b"keep-alive", b"upgrade"])
def test_8_2_2_in_trailers(peer: FramePeer, origin: Origin, name: bytes) -> None:
    """8.2.2: the same holds for trailers."""
    path = f"/8-2-2-trailers/{name.decode()}"
    stream = peer.request(path, body=b"x", end=False)
    peer.send(*headers_frames(plain_block([(name, b"x")]), stream))
    malformed(peer, stream)
    assert not any(each.is_whole for each in origin.seen(path))


def test_8_2_2_answers_have_none(peer: FramePeer) -> None:
    """8.2.2: nothing of a backend's connection reaches the client."""
    names = {name for name, _ in peer.get("/8-2-2-answer").fields}
    assert not names & {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
    names = {name for name, _ in peer.get("/trailers").fields}  # chunked, there
    assert b"transfer-encoding" not in names


def test_8_2_3_cookies_are_joined(peer: FramePeer, origin: Origin) -> None:
    """8.2.3: cookie crumbs become one field of HTTP/1.1, joined by "; "."""
    crumbs = [(b"cookie", b"a=1"), (b"x-a", b"v"), (b"cookie", b"b=2; c=3"), (b"cookie", b"d=4")]
    assert peer.answer(_ask(peer, [*peer.head("/8-2-3"), *crumbs])).status == 200
    assert origin.only("/8-2-3").all("cookie") == [b"a=1; b=2; c=3; d=4"]


# --- 8.3 pseudo-headers -----------------------------------------------------------------------------------------------


def test_8_3_order_among_them_is_free(peer: FramePeer, origin: Origin) -> None:
    """8.3: they come before the rest, in any order."""
    assert peer.answer(_ask(peer, [*reversed(peer.head("/8-3")), (b"x-a", b"v")])).status == 200
    assert origin.only("/8-3").all("host") == [b"a.test"]


@pytest.mark.parametrize("at", range(4))
def test_8_3_behind_a_regular_field(peer: FramePeer, origin: Origin, at: int) -> None:
    """8.3: a pseudo-header behind a regular field."""
    fields = peer.head(f"/8-3-behind/{at}")
    late = fields.pop(at)
    _refused(peer, origin, f"/8-3-behind/{at}", [*fields, (b"x-a", b"v"), late])


@pytest.mark.parametrize("name", [b":status", b":reason", b":version", b":x", b":", b":Path", b":method "])
def test_8_3_unknown(peer: FramePeer, origin: Origin, name: bytes) -> None:
    """8.3: those that are not defined for requests, `:status` among them."""
    path = "/8-3-unknown/" + name.hex()
    _refused(peer, origin, path, [*peer.head(path), (name, b"200")])


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority", b":status", b":protocol"])
def test_8_3_in_trailers(peer: FramePeer, origin: Origin, name: bytes) -> None:
    """8.3: none in trailers."""
    path = "/8-3-trailers/" + name.hex()
    stream = peer.request(path, body=b"x", end=False)
    peer.send(*headers_frames(plain_block([(b"x-sum", b"1"), (name, b"/")]), stream))
    malformed(peer, stream)
    assert not any(each.is_whole for each in origin.seen(path))


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("different", [False, True])
def test_8_3_twice(peer: FramePeer, origin: Origin, at: int, different: bool) -> None:
    """8.3: the same one twice, with whatever value."""
    path = f"/8-3-twice/{at}/{different}"
    fields = peer.head(path)
    name, value = fields[at]
    fields.insert(at, (name, b"/other" if different and name == b":path" else value + b"x" * different))
    _refused(peer, origin, path, fields)


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path"])
def test_8_3_1_missing(peer: FramePeer, origin: Origin, name: bytes) -> None:
    """8.3.1: a request has exactly one valid :method, :scheme and :path."""
    path = f"/8-3-1-missing/{name.decode()}"
    _refused(peer, origin, path, [field for field in peer.head(path) if field[0] != name])


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority"])
def test_8_3_1_empty(peer: FramePeer, origin: Origin, name: bytes) -> None:
    """8.3.1: none of them is empty."""
    path = f"/8-3-1-empty/{name.decode()}"
    _refused(peer, origin, path, [(key, b"" if key == name else value) for key, value in peer.head(path)])


@pytest.mark.parametrize(
    "path", [b"relative", b"?query", b"*", b"https://a.test/x", b"//\x00", b"/a b", b"/\xe9", b"/a#b", b"\\x", b"/\t"]
)
def test_8_3_1_path_is_none(peer: FramePeer, origin: Origin, path: bytes) -> None:
    """8.3.1: an absolute path and maybe a query; "*" for OPTIONS alone."""
    _refused(peer, origin, path.decode("latin-1"), peer.head(path))
    assert origin.seen(path) == []


def test_8_3_1_options_asterisk(peer: FramePeer, origin: Origin) -> None:
    """8.3.1: OPTIONS may be about the server as a whole."""
    assert peer.answer(_ask(peer, peer.head("*", method=b"OPTIONS"))).status == 200
    assert origin.only("*").method == b"OPTIONS"


@pytest.mark.parametrize("method", [b"GE T", b"get\0", b"G\tT", b"(", b"\xe9"])
def test_8_3_1_method_is_no_token(peer: FramePeer, origin: Origin, method: bytes) -> None:
    """8.3.1, RFC 9110 9.1: methods are tokens."""
    path = "/8-3-1-method/" + method.hex()
    _refused(peer, origin, path, peer.head(path, method=method))


def test_8_3_1_method_is_unknown(peer: FramePeer, origin: Origin) -> None:
    """RFC 9110 9.1: a method that this server does not know gets 501; they are case-sensitive."""
    for method in (b"BREW", b"get"):
        assert peer.answer(_ask(peer, peer.head("/8-3-1-unknown", method=method))).status == 501
    assert origin.seen("/8-3-1-unknown") == []


@pytest.mark.parametrize("scheme", [b"ftp", b"https ", b"", b"h\0", b"javascript"])
def test_8_3_1_scheme(peer: FramePeer, origin: Origin, scheme: bytes) -> None:
    """8.3.1: this is a server of http and https."""
    path = "/8-3-1-scheme/" + scheme.hex()
    fields = [(name, scheme if name == b":scheme" else value) for name, value in peer.head(path)]
    _refused(peer, origin, path, fields)


@pytest.mark.parametrize(
    "authority", [b"user@a.test", b"user:secret@a.test", b"a.test:x", b"a.test/x", b"a test", b"a.test:99999", b"\xe9"]
)
def test_8_3_1_authority_is_none(peer: FramePeer, origin: Origin, authority: bytes) -> None:
    """8.3.1: a host and maybe a port, without user information."""
    path = "/8-3-1-authority/" + authority.hex()
    fields = [(name, authority if name == b":authority" else value) for name, value in peer.head(path)]
    _refused(peer, origin, path, fields)


def test_8_3_1_host_instead_of_authority(peer: FramePeer, origin: Origin) -> None:
    """8.3.1: a request that came from HTTP/1.1 may have Host alone."""
    fields = [field for field in peer.head("/8-3-1-host") if field[0] != b":authority"]
    assert peer.answer(_ask(peer, [*fields, (b"host", b"a.test")])).status == 200
    assert origin.only("/8-3-1-host").all("host") == [b"a.test"]


def test_8_3_1_host_and_authority_agree(peer: FramePeer, origin: Origin) -> None:
    """8.3.1: both, if they mean the same; one goes out."""
    assert peer.answer(_ask(peer, [*peer.head("/8-3-1-both"), (b"host", b"a.test")])).status == 200
    assert origin.only("/8-3-1-both").all("host") == [b"a.test"]


@pytest.mark.parametrize("host", [b"b.test", b"a.test:8443", b"", b"a.test, a.test"])
def test_8_3_1_host_and_authority_differ(peer: FramePeer, origin: Origin, host: bytes) -> None:
    """8.3.1: a Host that names another entity than :authority is malformed."""
    path = "/8-3-1-differ/" + host.hex()
    _refused(peer, origin, path, [*peer.head(path), (b"host", host)])


def test_8_3_1_two_hosts(peer: FramePeer, origin: Origin) -> None:
    """8.3.1, RFC 9110 7.2: not even twice the same."""
    fields = [field for field in peer.head("/8-3-1-hosts") if field[0] != b":authority"]
    _refused(peer, origin, "/8-3-1-hosts", [*fields, (b"host", b"a.test"), (b"host", b"a.test")])


def test_8_3_1_neither_host_nor_authority(peer: FramePeer, origin: Origin) -> None:
    """8.3.1: a server needs to know whose resource it is."""
    fields = [field for field in peer.head("/8-3-1-neither") if field[0] != b":authority"]
    _refused(peer, origin, "/8-3-1-neither", fields)


def test_8_3_2_status_is_the_only_one_of_answers(peer: FramePeer) -> None:
    """8.3.2: every answer has one `:status`, in front, and no reason phrase."""
    for path in ("/8-3-2", "/hints", "/status/404"):
        answer = peer.get(path)
        for fields in (*answer.interim, answer.fields):
            assert [name for name, _ in fields if name.startswith(b":")] == [b":status"]
            assert fields[0][0] == b":status"
            assert all(name == name.lower() for name, _ in fields)


def test_8_4_nothing_is_pushed(peer: FramePeer) -> None:
    """8.4: this server does not push."""
    peer.get("/hints")
    peer.ping()
    assert not [each for each in peer.frames if each.stream_id and each.stream_id % 2 == 0]


# --- 8.5 CONNECT, 8.6 upgrade -----------------------------------------------------------------------------------------


def _connect(authority: bytes = b"a.test:443") -> Fields:
    return [(b":method", b"CONNECT"), (b":authority", authority)]


def test_8_5_connect_is_refused(peer: FramePeer) -> None:
    """8.5: a reverse proxy opens no tunnels; the request is well-formed and gets an answer."""
    answer = peer.over(_ask(peer, _connect()))
    assert answer.status in {405, 501}
    goes_on(peer)


@pytest.mark.parametrize("more", [(b":scheme", b"https"), (b":path", b"/8-5")])
def test_8_5_connect_with_scheme_or_path(peer: FramePeer, origin: Origin, more: tuple[bytes, bytes]) -> None:
    """8.5: CONNECT has neither."""
    _refused(peer, origin, "/8-5", [*_connect(), more])


def test_8_5_connect_without_authority(peer: FramePeer) -> None:
    """8.5: it says where to."""
    malformed(peer, _ask(peer, _connect()[:1]))


def test_8_6_no_101(peer: FramePeer, origin: Origin) -> None:
    """8.6: HTTP/2 has no Upgrade; the field makes the request malformed (8.2.2), 101 is never sent."""
    _refused(peer, origin, "/8-6", [*peer.head("/8-6"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")])
    assert not any(fields[0] == (b":status", b"101") for each in peer.streams.values() for fields in each.interim)


def test_8_7_requests_refused_before_they_began(peer: FramePeer) -> None:
    """8.7: GOAWAY tells which requests were not processed: nothing beyond the last stream is answered."""
    goes_on(peer)
    peer.send(frame(DATA, b"x", stream=0), *headers_frames(block(peer.head()), peer.new_stream()))
    goaway = peer.expect_goaway(PROTOCOL_ERROR)
    assert all(number <= goaway.last_stream_id for number in peer.streams)


def test_8_8_example_of_a_request_with_everything(peer: FramePeer, origin: Origin) -> None:
    """8.8.3: a POST with CONTINUATION, content and trailers."""
    fields = [
        *peer.head("/8-8-3", method=b"POST"),
        (b"content-type", b"image/jpeg"),
        (b"content-length", b"123"),
    ]
    stream = peer.new_stream()
    peer.send(*headers_frames(block(fields), stream, end_stream=False, cuts=[6, 12]))
    peer.data(stream, b"j" * 123, end=True)
    assert peer.answer(stream).status == 200
    seen = origin.only("/8-8-3")
    assert (seen.all("content-type"), len(seen.body)) == ([b"image/jpeg"], 123)
