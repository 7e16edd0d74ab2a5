"""What the fields of an HTTP/2 request mean, which are refused and how, and what becomes of an answer's."""

from __future__ import annotations

import base64
import sys

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ngh2 import NeverIndexedHeader

from tests.fakes.codec import PEER
from tests.fakes.frames import Fields
from tests.fakes.generated import HOSTS, METHODS, NAMES, NUMBERS, TARGETS, VALUES
from tests.fakes.h2_memory import GET, LIMITS, POST, meaning
from tlsproxy.wire.fields import Kind
from tlsproxy.wire.forwarding import outbound_request
from tlsproxy.wire.http2_heads import (
    HeadReader,
    Limits,
    answer_fields,
    is_right_accept,
    lower_fields,
    websocket_key,
)
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead

WEBSOCKET: Fields = [
    (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":authority", b"a.test"),
    (b":path", b"/chat?x=1"), (b"sec-websocket-version", b"13"), (b"origin", b"https://a.test"),
]  # fmt: skip


def read(fields: Fields, *, ended: bool = True, limits: Limits = LIMITS) -> RequestHead:
    return HeadReader(limits).read(tuple(fields), ended=ended)


def refused(fields: Fields, *, ended: bool = True, limits: Limits = LIMITS) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read(fields, ended=ended, limits=limits)
    return caught.value


def replaced(fields: Fields, name: bytes, value: bytes) -> Fields:
    return [(key, value if key == name else old) for key, old in fields]


def without(fields: Fields, name: bytes) -> Fields:
    return [field for field in fields if field[0] != name]


# --- what a head means


def test_pseudo_header_fields_become_the_request_line_and_the_host() -> None:
    """RFC 9113 8.3.1."""
    head = read(replaced(replaced(GET, b":path", b"/x?y=z"), b":authority", b"A.Test:8443"))
    assert (head.method, head.target, head.version) == (b"GET", b"/x?y=z", 20)
    assert (head.host, head.port, head.authority) == ("a.test", b"8443", b"A.Test:8443")
    assert head.keep_alive
    assert head.fields == []


def test_a_host_field_stands_in_for_authority() -> None:
    head = read([*without(GET, b":authority"), (b"host", b"a.test")])
    assert (head.host, head.authority) == ("a.test", b"a.test")


@pytest.mark.parametrize("host", [b"a.test", b"A.TEST", b"a.test.", b"a.test:443"])
def test_a_host_that_says_the_same_is_no_field_of_the_request(host: bytes) -> None:
    head = read([*GET, (b"host", host)])
    assert (head.host, head.authority, head.fields) == ("a.test", b"a.test", [])


@pytest.mark.parametrize("host", [b"b.test", b"a.test:8443", b"a.test:80", b"", b"u@a.test", b"a.test,b.test"])
def test_a_host_that_differs_from_authority_is_refused(host: bytes) -> None:
    assert refused([*GET, (b"host", host)]).status == 400


@pytest.mark.parametrize(
    "authority", [b"", b"u@a.test", b"a.test:x", b"a.test:80:80", b"a%2etest", b"a.test/", b"a..b"]
)
def test_an_authority_is_a_host_and_a_port(authority: bytes) -> None:
    """User information is not part of it (RFC 9113 8.3.1)."""
    assert refused(replaced(GET, b":authority", authority)).status == 400


def test_one_host_is_needed() -> None:
    assert refused(without(GET, b":authority")).status == 400
    assert refused([*without(GET, b":authority"), (b"host", b"a.test"), (b"host", b"a.test")]).status == 400


@pytest.mark.parametrize("path", [b"", b"x", b"*", b"http://b.test/", b"//b.test"])
def test_a_path_is_absolute(path: bytes) -> None:
    if path[:1] == b"/":
        assert read(replaced(GET, b":path", path)).target == path  # an empty segment, no authority
    else:
        assert refused(replaced(GET, b":path", path)).status == 400


@pytest.mark.parametrize("path", [b"/a#b", b"/a b", b"/\xff", b"/\x7f", b"/\0", b"/\r\nx: y"])
def test_a_path_is_ascii_without_blanks_and_fragment(path: bytes) -> None:
    assert refused(replaced(GET, b":path", path)).status == 400


def test_options_of_the_server() -> None:
    """RFC 9113 8.3.1, RFC 9110 9.3.7."""
    assert read(replaced(replaced(GET, b":method", b"OPTIONS"), b":path", b"*")).target == b"*"


@pytest.mark.parametrize(("scheme", "is_known"), [(b"https", True), (b"HTTPS", True), (b"http", True), (b"ftp", False)])
def test_schemes(scheme: bytes, is_known: bool) -> None:
    fields = replaced(GET, b":scheme", scheme)
    assert read(fields).host if is_known else refused(fields).status == 400


@pytest.mark.parametrize(("method", "status"), [(b"FOO", 501), (b"get", 501), (b"CONNECT", 405)])
def test_methods_that_are_not_ours(method: bytes, status: int) -> None:
    assert refused(replaced(GET, b":method", method)).status == status


def test_cookies_are_joined() -> None:
    """RFC 9113 8.2.3: HTTP/1.1 has one Cookie field."""
    head = read([*GET, (b"cookie", b"a=1"), (b"accept", b"*/*"), (b"cookie", b"b=2; c=3")])
    assert head.fields == [(b"accept", b"*/*"), (b"cookie", b"a=1; b=2; c=3")]


def test_crumbs_of_cookies_count_as_one_field() -> None:
    limits = Limits(header_size=8192, header_count=2, target_size=1024, streams=100)
    crumbs = [(b"cookie", b"c%d=1" % number) for number in range(50)]
    assert len(read([*GET, *crumbs], limits=limits).fields) == 1


def test_notes_what_the_log_wants() -> None:
    head = read([*GET, (b"user-agent", b"curl"), (b"referer", b"https://b.test/")])
    assert (head.user_agent, head.referer) == (b"curl", b"https://b.test/")
    assert len(head.fields) == 2


def test_what_a_client_says_of_itself_does_not_pass() -> None:
    """Security rule 5: kinds are those of HTTP/1.1."""
    dropped = [
        b"proxy",
        b"client-cert",
        b"x_forwarded_for",
        b"content_length",
        b"proxy-authorization",
        b"http2-settings",
    ]
    set_aside = [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"x-request-id", b"x-forwarded-any"]
    head = read([*GET, *((name, b"1") for name in [*dropped, *set_aside]), (b"x-own", b"1")])
    assert head.fields == [(b"x-own", b"1")]
    assert head.special == [(Kind.FORWARDING, name, b"1") for name in set_aside]


def test_te_and_trailer() -> None:
    head = read([*POST, (b"te", b"trailers"), (b"trailer", b"x-sum")], ended=False)
    assert head.trailers_accepted
    assert head.special == [(Kind.TRAILER, b"trailer", b"x-sum")]


# --- bodies


@pytest.mark.parametrize(
    ("fields", "ended", "framing", "length"),
    [
        (GET, True, Framing.NONE, 0),
        (GET, False, Framing.CHUNKED, 0),
        (POST, True, Framing.LENGTH, 0),
        (POST, False, Framing.CHUNKED, 0),
        ([*GET, (b"content-length", b"0")], True, Framing.LENGTH, 0),
        ([*POST, (b"content-length", b"5")], False, Framing.LENGTH, 5),
        ([*GET, (b"content-length", b"5")], False, Framing.LENGTH, 5),
    ],
)
def test_framing_for_the_backend(fields: Fields, ended: bool, framing: Framing, length: int) -> None:
    head = read(fields, ended=ended)
    assert (head.framing, head.length) == (framing, length)


@pytest.mark.parametrize("value", [value for value in NUMBERS if not value.isdigit() or len(value) > 18])
def test_a_length_is_digits(value: bytes) -> None:
    """Security rule 6."""
    assert refused([*POST, (b"content-length", value)], ended=False).status == 400


def test_a_length_must_be_right_and_alone() -> None:
    """RFC 9113 8.1.1."""
    assert refused([*POST, (b"content-length", b"5")]).status == 400
    assert refused([*POST, (b"content-length", b"5"), (b"content-length", b"5")], ended=False).status == 400


@pytest.mark.parametrize(
    ("more", "ended", "expects"),
    [
        ([], False, True),
        ([(b"content-length", b"5")], False, True),
        ([(b"content-length", b"0")], False, False),
        ([], True, False),
    ],
)
def test_expecting_100_where_there_is_something_to_wait_for(more: Fields, ended: bool, expects: bool) -> None:
    assert read([*POST, *more, (b"expect", b"100-Continue")], ended=ended).expect_continue is expects


def test_another_expectation() -> None:
    assert refused([*POST, (b"expect", b"cookies")], ended=False).status == 417


# --- what libnghttp2 refuses before, and would be refused here too


@pytest.mark.parametrize("name", [b"connection", b"transfer-encoding", b"upgrade"])
def test_connection_specific_fields(name: bytes) -> None:
    """RFC 9113 8.2.2."""
    assert refused([*GET, (name, b"x")]).status == 400


@pytest.mark.parametrize("name", [b"", b"X-A", b"x a", b"x:a", b"x\0", b"x\r\ny", b"\xff", b":other"])
def test_names_are_tokens_in_lower_case(name: bytes) -> None:
    """RFC 9113 8.2.1."""
    assert refused([*GET, (name, b"x")]).status == 400


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"a\x0bb", b"\x7f"])
def test_values_have_no_controls(value: bytes) -> None:
    assert refused([*GET, (b"x-a", value)]).status == 400


# --- limits


def test_a_list_of_just_the_limit() -> None:
    """Sizes are those of SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 6.5.2): 32 bytes more for each field."""
    size = sum(len(name) + len(value) + 32 for name, value in GET)
    filler = LIMITS.header_size - size - 32 - len(b"x-a")
    assert read([*GET, (b"x-a", b"a" * filler)]).fields
    error = refused([*GET, (b"x-a", b"a" * (filler + 1))])
    assert error.status == 431
    assert "limits.header_size 8192 exceeded (8193 received)" in error.note
    assert "x-a" in error.note


def test_too_many_fields() -> None:
    fields = [(b"x-%d" % number, b"") for number in range(LIMITS.header_count + 1)]
    error = refused([*GET, *fields])
    assert (error.status, "limits.header_count 50" in error.note) == (431, True)
    assert len(read([*GET, *fields[1:]]).fields) == LIMITS.header_count


@pytest.mark.parametrize("size", [LIMITS.target_size + 1, LIMITS.header_size * 2])
def test_a_long_target(size: int) -> None:
    error = refused(replaced(GET, b":path", b"/" + b"a" * (size - 1)))
    assert (error.status, "limits.target_size" in error.note) == (414, True)


def test_trailers_keep_the_limits_of_heads() -> None:
    reader = HeadReader(LIMITS)
    assert reader.are_good_trailers(((b"x-sum", b"1"),))
    assert not reader.are_good_trailers(((b"x-sum", b"1" * LIMITS.header_size),))
    assert not reader.are_good_trailers(((b"x-sum", b"1"),) * (LIMITS.header_count + 1))
    assert not reader.are_good_trailers(((b"x-sum", b"a\r\nb: c"),))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (GET, (b"GET", b"/", "a.test")),
        (replaced(GET, b":authority", b"me:secret@a.test"), (b"GET", b"/", "a.test")),
        (replaced(GET, b":path", b"https://me:secret@a.test/x"), (b"GET", b"https://a.test/x", "a.test")),
        (replaced(GET, b":path", b"/x\r\nHost: evil"), (b"GET", b"/xHost:evil", "a.test")),
        ([*without(GET, b":authority"), (b"host", b"b.test")], (b"GET", b"/", "b.test")),
        (without(GET, b":method"), (b"", b"", "")),
        ([], (b"", b"", "")),
    ],
)
def test_tells_the_log_of_a_refused_head_but_no_user(fields: Fields, told: tuple[bytes, bytes, str]) -> None:
    head = HeadReader(LIMITS).refused_head(tuple(fields))
    assert (head.method, head.target, head.host, head.version) == (*told, 20)


# --- WebSocket over HTTP/2 (RFC 8441)


def test_extended_connect_becomes_an_upgrade() -> None:
    head = read([*WEBSOCKET, (b"sec-websocket-key", b"mine")], ended=False)
    assert (head.method, head.target, head.upgrade, head.framing) == (b"GET", b"/chat?x=1", True, Framing.NONE)
    keys = [value for name, value in head.fields if name.lower() == b"sec-websocket-key"]
    assert [len(base64.b64decode(key)) for key in keys] == [16]
    assert (b"sec-websocket-version", b"13") in head.fields


def test_every_websocket_has_a_key_of_its_own() -> None:
    reader = HeadReader(LIMITS)
    first, second = (reader.read(tuple(WEBSOCKET), ended=False) for _ in range(2))
    assert first.fields[-1] != second.fields[-1]


@pytest.mark.parametrize(
    ("fields", "ended", "status"),
    [
        (replaced(WEBSOCKET, b":protocol", b"connect-udp"), False, 501),
        (WEBSOCKET, True, 400),
        (replaced(WEBSOCKET, b":method", b"GET"), False, 400),
        ([*WEBSOCKET, (b"content-length", b"5")], False, 400),
        (replaced(WEBSOCKET, b":path", b"x"), False, 400),
    ],
)
def test_extended_connects_that_are_refused(fields: Fields, ended: bool, status: int) -> None:
    assert refused(fields, ended=ended).status == status


def test_the_accept_of_rfc_6455() -> None:
    """RFC 6455 1.3."""
    assert is_right_accept(b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    assert not is_right_accept(websocket_key(), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")


# --- heads that repeat


def test_a_head_that_repeats_is_the_same_one() -> None:
    reader = HeadReader(LIMITS)
    fields = [*GET, (b"accept", b"*/*")]
    assert reader.read(tuple(fields), ended=True) is reader.read(tuple(fields), ended=True)


def test_a_head_that_differs_in_its_path_shares_the_rest() -> None:
    reader = HeadReader(LIMITS)
    fields = [*GET, (b"accept", b"*/*")]
    first = reader.read(tuple(fields), ended=True)
    second = reader.read(tuple(replaced(fields, b":path", b"/other")), ended=True)
    assert (first.target, second.target) == (b"/", b"/other")
    assert second.fields is first.fields


def test_a_repeated_head_is_held_to_the_limits() -> None:
    reader = HeadReader(LIMITS)
    reader.read(tuple(GET), ended=True)
    with pytest.raises(ProtocolError) as caught:
        reader.read(tuple(replaced(GET, b":path", b"/" * (LIMITS.target_size + 1))), ended=True)
    assert caught.value.status == 414
    with pytest.raises(ProtocolError) as caught:
        reader.read(tuple(replaced(GET, b":path", b"x")), ended=True)
    assert caught.value.status == 400


REPEATED: Fields = [*GET, (b"accept", b"*/*"), (b"cookie", b"a=1")]


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        (replaced(REPEATED, b":method", b"PUT"), True),
        (replaced(REPEATED, b":authority", b"b.test"), True),
        (replaced(REPEATED, b"accept", b"a/b"), True),
        (replaced(REPEATED, b"cookie", b"a=2"), True),
        (replaced(replaced(REPEATED, b":path", b"/x"), b":authority", b"b.test"), True),
        (replaced(replaced(REPEATED, b":path", b"/x"), b"cookie", b"a=2"), True),
        (replaced(REPEATED, b":path", b"/x"), False),
        (REPEATED, False),
        (REPEATED[:-1], True),
        ([*REPEATED, (b"x-a", b"1")], True),
        ([*REPEATED[1:], REPEATED[0]], True),
        ([REPEATED[3], *REPEATED[1:3], REPEATED[0], *REPEATED[4:]], True),
    ],
)
def test_a_head_that_differs_elsewhere_is_judged_anew(fields: Fields, ended: bool) -> None:
    reader = HeadReader(LIMITS)
    reader.read(tuple(REPEATED), ended=True)
    assert meaning(reader.read(tuple(fields), ended=ended)) == meaning(read(fields, ended=ended))


def test_a_longer_path_may_make_a_repeated_head_too_large() -> None:
    limits = Limits(header_size=300, header_count=50, target_size=200, streams=100)
    reader = HeadReader(limits)
    reader.read(tuple(GET), ended=True)
    with pytest.raises(ProtocolError) as caught:
        reader.read(tuple(replaced(GET, b":path", b"/" * 200)), ended=True)
    assert caught.value.status == 431


def test_a_long_head_is_not_remembered() -> None:
    reader = HeadReader(LIMITS)
    fields = (*GET, (b"x-a", b"a" * 5000))
    assert reader.read(fields, ended=True) is not reader.read(fields, ended=True)


# --- any list of fields

TRICKS = st.one_of(
    st.tuples(st.just(b":method"), st.sampled_from(METHODS)),
    st.tuples(st.just(b":scheme"), st.sampled_from([b"http", b"HTTPS", b"x", b""])),
    st.tuples(st.just(b":authority"), st.sampled_from(HOSTS)),
    st.tuples(st.just(b":path"), st.sampled_from(TARGETS)),
    st.tuples(st.just(b":protocol"), st.sampled_from([b"websocket", b"x"])),
)
ANY_PSEUDO = st.builds(
    lambda base, changes: dict(base) | dict(changes),
    st.sampled_from([GET, POST, WEBSOCKET[:5]]),
    st.one_of(st.just([]), st.lists(TRICKS, max_size=1)),
)
ANY_FIELD = st.one_of(
    st.tuples(st.sampled_from([b"x-a", b"cookie", b"accept", b"x-forwarded-for", b"te"]), st.just(b"trailers")),
    st.tuples(
        st.sampled_from([b"x-a", b"cookie", b"accept", b"user-agent", b"x_a"]), st.sampled_from([b"", b"a", b"b; c"])
    ),
    st.tuples(st.just(b"content-length"), st.sampled_from(NUMBERS)),
    st.tuples(
        st.sampled_from([*(name.lower() for name in NAMES), b"cookie", b"te", b"expect"]),
        st.sampled_from([*VALUES, *NUMBERS]),
    ),
)


def read_or_refuse(reader: HeadReader, fields: tuple[tuple[bytes, bytes], ...], *, ended: bool) -> object:
    try:
        return meaning(reader.read(fields, ended=ended))
    except ProtocolError as error:
        reader.refused_head(fields)
        return error.status, error.reason


@settings(max_examples=80)
@given(pseudo=ANY_PSEUDO, fields=st.lists(ANY_FIELD, max_size=3), ended=st.booleans())
def test_whatever_passes_is_one_request_of_http_1(
    pseudo: dict[bytes, bytes], fields: list[tuple[bytes, bytes]], ended: bool
) -> None:
    is_one_request([*pseudo.items(), *fields], ended=ended)


def is_one_request(fields: Fields, *, ended: bool) -> bool:
    """Whether these pass. Nothing in a field may end it, or frame another request, where the backend reads it."""
    try:
        head = read(fields, ended=ended)
    except ProtocolError:
        return False
    data = outbound_request(head, PEER, head.target, request_id=b"id", started_ms=1, prefix=b"").data
    backend = h11.Connection(h11.SERVER)
    backend.receive_data(data)
    event = backend.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method, head.target)
    assert [value for name, value in event.headers if name == b"host"] == [head.authority]
    framing = [name for name, _ in event.headers if name in (b"content-length", b"transfer-encoding")]
    names = {Framing.NONE: [], Framing.LENGTH: [b"content-length"], Framing.CHUNKED: [b"transfer-encoding"]}
    assert framing == names[head.framing]
    return True


ANY_HEAD = st.tuples(ANY_PSEUDO, st.lists(ANY_FIELD, max_size=2), st.booleans())
ANY_PATH = st.one_of(st.none(), st.sampled_from([*TARGETS, b"/x", b"/y", b"/" * 2000]))


@settings(max_examples=100)
@given(heads=st.lists(ANY_HEAD, min_size=1, max_size=2), order=st.lists(st.tuples(st.booleans(), ANY_PATH), max_size=6))
def test_what_was_read_before_changes_nothing(
    heads: list[tuple[dict[bytes, bytes], list[tuple[bytes, bytes]], bool]], order: list[tuple[bool, bytes | None]]
) -> None:
    reader = HeadReader(LIMITS)
    for is_last, path in order:
        pseudo, fields, ended = heads[-is_last]
        if pseudo.get(b":protocol"):
            continue  # has a new key each time
        everything = tuple((pseudo | ({b":path": path} if path is not None else {})).items()) + tuple(fields)
        known = read_or_refuse(reader, everything, ended=ended)
        assert known == read_or_refuse(HeadReader(LIMITS), everything, ended=ended)


# --- answers


def test_answers_have_names_in_lower_case() -> None:
    """RFC 9113 8.2.1."""
    assert answer_fields(204, [(b"X-Own", b"A"), (b"Date", b"now")]) == [
        (b":status", b"204"),
        (b"x-own", b"A"),
        (b"date", b"now"),
    ]


@pytest.mark.parametrize("name", [b"Set-Cookie", b"SET-COOKIE", b"Authentication-Info", b"X-Csrf-Token", b"Location"])
def test_secrets_of_answers_never_enter_a_table(name: bytes) -> None:
    """RFC 7541 7.1.3."""
    for fields in (
        answer_fields(200, [(b"Date", b"now"), (name, b"v")])[1:],
        lower_fields([(b"Date", b"now"), (name, b"v")]),
    ):
        assert [isinstance(field, NeverIndexedHeader) for field in fields] == [False, True]
        assert fields[1] == (name.lower(), b"v")


def test_an_answer_that_repeats_is_recognised_by_its_content() -> None:
    fields = [(b"Content-Type", b"text/plain")]
    first = answer_fields(200, fields)
    assert answer_fields(200, list(fields)) is first
    assert answer_fields(404, fields)[0] == (b":status", b"404")
    fields[0] = (b"Content-Type", b"text/html")
    assert answer_fields(404, fields)[1] == (b"content-type", b"text/html")


def test_secrets_are_not_remembered() -> None:
    fields = [(b"Set-Cookie", b"secret-%d" % id(object()))]
    assert answer_fields(200, fields) is not answer_fields(200, fields)


def test_names_of_answers_take_bounded_memory() -> None:
    from tlsproxy.wire.http2_heads import _LOWER

    for number in range(20_000):
        lower_fields([(b"X-%d" % number, b"")])
    lower_fields([(b"X-" + b"a" * 10_000, b"")])
    assert len(_LOWER) <= 4096
    assert all(len(name) <= 64 for name in _LOWER)
    assert sys.getsizeof(_LOWER) < 512 * 1024
