"""The proxy's own answers: the right form for who asks, and nothing in them that could hurt."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.proxy.replies import error_reply, plain_http_on_tls_page, prefers_html, title_of

CHROMIUM = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        (b"", False),
        (b"*/*", False),
        (b"text/*", False),
        (CHROMIUM, True),
        (b"text/html", True),
        (b"TEXT/HTML ; Q=0.5", True),
        (b"application/json", False),
        (b"application/json, text/html", False),
        (b"text/html, application/json", True),
        (b"text/html;q=0.5, application/problem+json", False),
        (b"application/json;q=0.1, text/html;q=0.2", True),
        (b"text/html;q=0", False),
        (b"text/html;q=2", False),
        (b"text/html;q=nan", False),
        (b"text/html," * 1000, False),
    ],
)
def test_who_gets_a_page(accept: bytes | None, html: bool) -> None:
    assert prefers_html(accept) is html


def test_a_program_gets_a_problem() -> None:
    fields, body = error_reply(502, "The application closed the connection.", "r-1", b"*/*")
    assert json.loads(body) == {
        "type": "about:blank",
        "title": "Bad Gateway",
        "status": 502,
        "detail": "The application closed the connection.",
        "request_id": "r-1",
    }
    assert dict(fields)[b"content-type"] == b"application/problem+json"
    assert dict(fields)[b"cache-control"] == b"no-store"


def test_a_browser_gets_a_page() -> None:
    fields, body = error_reply(404, "", "r-1", CHROMIUM)
    assert dict(fields)[b"content-type"] == b"text/html; charset=utf-8"
    assert b"<title>404 Not Found</title>" in body
    assert b"<code>r-1</code>" in body
    assert b"There is nothing at this address." in body


def test_the_page_loads_nothing() -> None:
    _, body = error_reply(500, "", "r", CHROMIUM)
    assert not any(word in body for word in (b"<script", b"src=", b"href=", b"url(", b"@import", b"http:", b"https:"))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


def tags(body: bytes) -> list[str]:
    parser = Tags()
    parser.feed(body.decode())
    parser.close()
    return parser.seen


@given(detail=st.text(min_size=1), request_id=st.text(min_size=1), accept=st.sampled_from([None, CHROMIUM]))
def test_any_text_stays_text(detail: str, request_id: str, accept: bytes | None) -> None:
    fields, body = error_reply(400, detail, request_id, accept)
    assert dict(fields)[b"content-length"] == str(len(body)).encode()
    if accept is None:
        assert json.loads(body)["detail"] == detail
    else:
        assert tags(body) == tags(error_reply(400, "x", "x", accept)[1])


@given(st.binary(max_size=60))
def test_any_accept_is_survived(accept: bytes) -> None:
    error_reply(400, "", "", accept)


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (408, "Request Timeout"),
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (421, "Misdirected Request"),
        (431, "Request Header Fields Too Large"),
        (503, "Service Unavailable"),
        (504, "Gateway Timeout"),
        (599, "Error"),
    ],
)
def test_titles(status: int, title: str) -> None:
    assert title_of(status) == title
    assert json.loads(error_reply(status, "", "", None)[1])["title"] == title


def test_plain_http_on_the_tls_port() -> None:
    head, _, body = plain_http_on_tls_page().partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert b"content-length: %d" % len(body) in fields
    assert b"connection: close" in fields
    assert b"https://" in body
