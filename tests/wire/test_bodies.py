from __future__ import annotations

import pytest

from tests.fakes.codec import request_reader
from tests.fakes.refused import HOST, chunked, post
from tlsproxy.wire.http1 import RequestReader
from tlsproxy.wire.messages import ProtocolError


def reader(head: bytes) -> RequestReader:
    """A reader that stands in front of the body."""
    made = request_reader()
    made.receive(head)
    assert made.next_head() is not None
    return made


def test_a_piece_of_a_chunk_is_handed_out_as_it_comes() -> None:
    body = reader(chunked(b""))
    given = []
    for piece in (b"a\r\n01", b"234", b"56789\r", b"\n0\r\n", b"\r\n"):
        body.receive(piece)
        given.append(body.read_body())
    assert given == [b"01", b"234", b"56789", b"", b""]
    assert body.body_done


def test_a_length_is_counted_and_what_follows_is_left() -> None:
    body = reader(post(b"Content-Length: 5\r\n", b"he"))
    assert (body.read_body(), body.body_done) == (b"he", False)
    body.receive(b"lloGET")
    assert (body.read_body(), body.body_done) == (b"llo", True)
    assert body.take_rest() == b"GET"


def test_many_chunks_in_one_piece_are_one_piece_of_body() -> None:
    body = reader(chunked(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n"))
    assert body.read_body() == b"a" * 10_000
    assert body.body_done


def test_no_body_is_done_at_once() -> None:
    assert reader(post(b"")).body_done
    assert reader(post(b"Content-Length: 0\r\n")).body_done


@pytest.mark.parametrize(
    "body",
    [
        b"5;" + b"a" * 1100,
        b"5" * 1100,
        b"5\rx",
        b"5\nx",
        b"5\r\nhelloX",
        b"5\r\nhello\rX",
        b"0\r\nX: y\nz",
        b"0\r\n\x00",
        b"0\r\nX: " + b"y" * 8300,
    ],
)
def test_what_can_not_become_right_is_refused_before_it_is_whole(body: bytes) -> None:
    waiting = reader(chunked(body))
    with pytest.raises(ProtocolError):
        waiting.read_body()


def test_extensions_are_limited_in_sum() -> None:
    body = reader(chunked(b""))
    for _ in range(18):
        body.receive(b"1;" + b"a" * 900 + b"\r\nx\r\n")
        assert body.read_body() == b"x"
    body.receive(b"1;" + b"a" * 900 + b"\r\nx\r\n")
    with pytest.raises(ProtocolError, match="too long"):
        body.read_body()


def test_ordinary_chunk_headers_do_not_count_as_extensions() -> None:
    body = reader(chunked(b""))
    for _ in range(10_000):
        body.receive(b"0001;abc\r\nx\r\n")
        assert body.read_body() == b"x"


def test_the_next_request_begins_afresh() -> None:
    both = request_reader()
    both.receive(chunked(b"1\r\nx\r\n0\r\nX: y\r\n\r\n") + post(b"Content-Length: 1\r\n", b"z") + HOST)
    assert both.next_head() is not None
    assert (both.read_body(), both.trailers) == (b"x", [(b"X", b"y")])
    assert both.next_head() is not None
    assert (both.read_body(), both.trailers) == (b"z", [])
