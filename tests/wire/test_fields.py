from __future__ import annotations

import pytest

from tlsproxy.wire.fields import (
    REQUEST_KIND,
    RESPONSE_KIND,
    Classifier,
    Kind,
    allowed_trailers,
    answer_trailers,
    connection_names,
    without,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"Accept", Kind.PLAIN),
        (b"HOST", Kind.HOST),
        (b"content-length", Kind.CONTENT_LENGTH),
        (b"Transfer-Encoding", Kind.TRANSFER_ENCODING),
        (b"User-Agent", Kind.NOTED),
        (b"X-Forwarded-For", Kind.FORWARDING),
        (b"X-Forwarded-Anything", Kind.FORWARDING),
        (b"x-real-ip", Kind.FORWARDING),
        (b"Forwarded", Kind.FORWARDING),
        (b"X-Request-ID", Kind.FORWARDING),
        (b"Proxy", Kind.HOP),
        (b"Proxy-Authorization", Kind.HOP),
        (b"HTTP2-Settings", Kind.HOP),
        (b"Client-Cert", Kind.HOP),
        (b"Keep-Alive", Kind.HOP),
    ],
)
def test_kinds_of_request_fields(name: bytes, kind: Kind) -> None:
    assert REQUEST_KIND[name] is kind


@pytest.mark.parametrize(
    "name",
    [
        b"X_Forwarded_For", b"X-Forwarded_For", b"x_forwarded-for", b"X.Forwarded.For", b"X-Forwarded.For",
        b"x.real-ip",
        b"X_Anything", b"_", b"Content_Length",
        b"content.length", b"Transfer_Encoding", b"Transfer.Encoding", b"HOST_",
        b"x.request.id", b"Proxy_Authorization", b"client.cert",
    ],
)  # fmt: skip
def test_names_that_back_ends_read_as_others_are_dropped(name: bytes) -> None:
    assert REQUEST_KIND[name] is Kind.HOP


@pytest.mark.parametrize("name", [b"X.Custom", b"com.example.id", b"x-forwardedfor", b"X-Forwarded", b"x-real-ipp"])
def test_names_that_only_look_alike_pass(name: bytes) -> None:
    assert REQUEST_KIND[name] is Kind.PLAIN


def test_case_is_ascii_case() -> None:
    # In text, "K" (U+212A) and "ſ" (U+017F) fold to "k" and "s"; bytes must not.
    assert REQUEST_KIND["\u212aeep-alive".encode()] is Kind.PLAIN
    assert REQUEST_KIND["Ho\u017ft".encode()] is Kind.PLAIN


def test_kinds_of_answer_fields() -> None:
    assert RESPONSE_KIND[b"Set-Cookie"] is Kind.PLAIN
    assert RESPONSE_KIND[b"Upgrade"] is Kind.UPGRADE
    assert RESPONSE_KIND[b"Proxy-Connection"] is Kind.HOP


@pytest.mark.parametrize(
    "name",
    [b"X_Rate_Limit", b"X-Forwarded-Prefix", b"X_Forwarded_For", b"Content.Length", b"X.Request.Id", b"X-Real-IP"],
)
def test_an_application_may_answer_with_any_name(name: bytes) -> None:
    assert RESPONSE_KIND[name] is Kind.PLAIN


def test_memory_is_bounded() -> None:
    classifier = Classifier({b"a": Kind.HOST}, to_backend=True)
    assert classifier[b"n" * 65] is Kind.PLAIN
    assert len(classifier) == 0
    for number in range(5000):
        assert classifier[b"n%d" % number] is Kind.PLAIN
        assert len(classifier) <= 4096
    assert b"n4999" in classifier
    assert classifier[b"A"] is Kind.HOST


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (b"", []),
        (b" , ,", []),
        (b"Close", [b"close"]),
        (b"keep-alive,\tX-A ,", [b"keep-alive", b"x-a"]),
        (b"\xa0close", [b"\xa0close"]),
        (b"\x0bclose", [b"\x0bclose"]),
    ],
)
def test_connection_names(value: bytes, names: list[bytes]) -> None:
    assert connection_names(value) == names


def test_without() -> None:
    assert without([(b"X-A", b"1"), (b"x-b", b"2"), (b"x-a", b"3")], {b"x-a"}) == [(b"x-b", b"2")]


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length", b"Transfer-Encoding", b"Host", b"Trailer", b"Connection", b"Set-Cookie", b"TE",
        b"Authorization",
        b"Content-Type", b"X-Forwarded-For", b"X_Forwarded_For", b"Cookie", b"Location", b"Expect", b"Keep-Alive",
        b"Strict-Transport-Security",
    ],
)  # fmt: skip
def test_trailers_that_may_not_pass(name: bytes) -> None:
    assert allowed_trailers([(b"Server-Timing", b"a"), (name, b"b"), (name.lower(), b"c")]) == [
        (b"Server-Timing", b"a")
    ]


def test_trailers_of_answers_have_whatever_names_the_application_likes() -> None:
    kept = [(b"grpc-status", b"0"), (b"some_name", b"a"), (b"X-Request-ID", b"b"), (b"Server-Timing", b"c")]
    dropped = [(b"Content-Type", b"d"), (b"content-length", b"5"), (b"Host", b"e"), (b"Transfer-Encoding", b"f")]

    assert answer_trailers([*dropped, *kept, (b"Set-Cookie", b"g"), (b"Trailer", b"h"), (b"Connection", b"i")]) == kept
