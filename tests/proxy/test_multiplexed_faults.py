"""Backends that break HTTP/2, or overdo it: one request fails where one is meant, and what they cost is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fakes.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    INTERNAL_ERROR,
    PING,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    frame,
    plain_block,
)
from tests.fakes.h2c_backend import H2cBackend, H2cPeer
from tests.fakes.peer import CUT, Peer
from tests.fakes.stage import Stage

GET = b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n"
OK = (b":status", b"200")


@pytest.fixture
def upstream() -> Iterator[H2cBackend]:
    with H2cBackend() as backend:
        yield backend


def asked(stage: Stage, upstream: H2cBackend) -> tuple[Peer, H2cPeer, int]:
    """A client that waits, the connection of the backend that it waits for, and the stream of its request."""
    stage.serve(upstream)
    client = stage.connect()
    client.send(GET % 1)
    peer = upstream.connection()
    return client, peer, peer.next_request().stream


def head(stream: int, fields: Fields, *, end: bool = True) -> bytes:
    return frame(HEADERS, plain_block(fields), flags=END_HEADERS | (END_STREAM if end else 0), stream=stream)


# --- one answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [OK, (b"connection", b"close")],
        [OK, (b"keep-alive", b"timeout=5")],
        [OK, (b"proxy-connection", b"close")],
        [OK, (b"transfer-encoding", b"chunked")],
        [OK, (b"upgrade", b"h2c")],
        [OK, (b"te", b"gzip")],
        [OK, (b"X-Upper", b"1")],
        [OK, (b"x y", b"1")],
        [OK, (b"", b"1")],
        [OK, (b"x", b" blank")],
        [OK, (b"x", b"a\nb")],
        [OK, (b"x", b"a\0b")],
        [OK, (b"x", b"a\x7fb")],
        [OK, (b":path", b"/")],
        [OK, OK],
        [(b"x", b"1"), OK],
        [(b"x", b"1")],
        [(b":status", b"")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"099")],
        [(b":status", b"600")],
        [(b":status", b"abc")],
        [(b":status", b"+20")],
        [(b":status", b"101")],
        [(b":status", b"100")],  # with END_STREAM
        [OK, (b"content-length", b"5")],
        [OK, (b"content-length", b"-1")],
        [OK, (b"content-length", b"0"), (b"content-length", b"0")],
        [OK, (b"content-length", b"0, 0")],
        [OK, *[(b"x", b"1")] * 257],
        [OK, (b"x", b"1" * 65_536)],
    ],
    ids=lambda fields: repr(fields[-1])[:40],
)
def test_a_malformed_head_fails_its_request_alone(stage: Stage, upstream: H2cBackend, fields: Fields) -> None:
    client, peer, stream = asked(stage, upstream)

    block = plain_block(fields)
    peer.send(
        frame(HEADERS, block[:16_000], flags=END_STREAM | (END_HEADERS if len(block) <= 16_000 else 0), stream=stream)
    )
    for at in range(16_000, len(block), 16_000):
        last = at + 16_000 >= len(block)
        peer.send(frame(CONTINUATION, block[at : at + 16_000], flags=END_HEADERS if last else 0, stream=stream))

    assert client.message().status == 502
    client.send(GET % 2)
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"


@pytest.mark.parametrize("fields", [[(b"connection", b"close")], [(b"x", b"1")] * 257])
def test_a_stream_with_a_malformed_head_is_reset(stage: Stage, upstream: H2cBackend, fields: Fields) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.head(stream, fields)

    assert client.message().status == 502
    peer.expect_reset(peer.requests[stream], PROTOCOL_ERROR)


@pytest.mark.parametrize("body", [b"1234", b"123456"])
def test_a_body_that_is_not_as_long_as_was_said_is_cut(stage: Stage, upstream: H2cBackend, body: bytes) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.head(stream, [(b"content-length", b"5")])
    assert client.until(b"\r\n\r\n")
    peer.data(stream, body, end=True)

    assert client.has_ended() or not client.some().endswith(b"5")
    peer.expect_reset(peer.requests[stream], PROTOCOL_ERROR)
    assert stage.log()[0]["error"].endswith("the answer is malformed (RFC 9113 8.1.1)")


@pytest.mark.parametrize("trailers", [[(b":status", b"200")], [(b"x", b"a\rb")], [(b"connection", b"x")]])
def test_malformed_trailers_cut_the_answer(stage: Stage, upstream: H2cBackend, trailers: Fields) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.head(stream)
    peer.data(stream, b"body")
    peer.send(head(stream, trailers))

    peer.expect_reset(peer.requests[stream], PROTOCOL_ERROR)
    with pytest.raises(CUT):
        client.rest()


def test_more_interim_answers_than_anybody_needs(stage: Stage, upstream: H2cBackend) -> None:
    client, peer, stream = asked(stage, upstream)

    for _ in range(65):
        peer.head(stream, status=102)

    answers = [client.message().status for _ in range(65)]
    assert answers == [102] * 64 + [502]
    peer.expect_reset(peer.requests[stream])


def test_data_before_a_head(stage: Stage, upstream: H2cBackend) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.data(stream, b"body")

    assert client.message().status == 502


# --- the connection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bytes_of",
    [
        lambda stream: frame(PUSH_PROMISE, b"\0\0\0\2" + plain_block([OK]), flags=END_HEADERS, stream=stream),
        lambda stream: frame(HEADERS, b"\xff\xff\xff\xff\xff\xff", flags=END_HEADERS, stream=stream),
        lambda stream: frame(DATA, b"x", stream=stream + 100),
        lambda stream: frame(DATA, b"x", stream=2),
        lambda stream: frame(DATA, b"x"),
        lambda stream: frame(DATA, bytes(16_385), stream=stream),
        lambda stream: head(2, [OK]),
        lambda stream: frame(RST_STREAM, b"\0\0\0\0", stream=stream + 100),
        lambda stream: frame(WINDOW_UPDATE, b"\0\0\0\0"),
        lambda stream: frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"),
        lambda stream: frame(SETTINGS, b"\0\2\0\0\0\1"),
        lambda stream: frame(SETTINGS, b"\0\4\xff\xff\xff\xff"),
        lambda stream: frame(SETTINGS, b"\0"),
        lambda stream: frame(CONTINUATION, b"", flags=END_HEADERS, stream=stream),
        lambda stream: frame(GOAWAY, b"\0"),
    ],
)
def test_a_broken_rule_of_the_connection_ends_it(
    stage: Stage, upstream: H2cBackend, bytes_of: Callable[[int], bytes]
) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.send(bytes_of(stream))

    assert client.message().status == 502
    peer.expect_end()
    assert [goaway.error_code > 0 for goaway in peer.goaways] == [True]
    stage.wait_for_pool(upstream.url, "0 active, 0 connections, 0 waiting")


@pytest.mark.parametrize(
    "piece",
    [
        frame(PING, bytes(8)),
        frame(SETTINGS),
        frame(DATA, b"", stream=1),
        frame(WINDOW_UPDATE, b"\0\0\0\1"),
        frame(99, b"unknown"),
        frame(HEADERS, plain_block([(b":status", b"102")]), flags=END_HEADERS, stream=1),
        frame(RST_STREAM, b"\0\0\0\0", stream=1),
    ],
    ids=["PING", "SETTINGS", "empty DATA", "WINDOW_UPDATE", "unknown", "interim", "RST_STREAM"],
)
def test_a_flood_ends_the_connection_or_the_request(stage: Stage, upstream: H2cBackend, piece: bytes) -> None:
    client, peer, stream = asked(stage, upstream)
    peer.head(stream)
    assert client.until(b"\r\n\r\n")

    peer.send(piece * 3000)

    assert client.has_ended()


def test_pings_are_answered_while_they_are_few(stage: Stage, upstream: H2cBackend) -> None:
    client, peer, stream = asked(stage, upstream)

    for _ in range(100):
        peer.ping()
    peer.answer(stream)

    assert client.message().body == b"ok"


def test_a_bomb_of_fields_ends_the_connection(stage: Stage, upstream: H2cBackend) -> None:
    """One entry of 4 KiB in the table, referred to again and again (RFC 7541 7.3)."""
    client, peer, stream = asked(stage, upstream)

    entry = b"\x40\x01x" + b"\x7f" + bytes([(3900 - 127) & 127 | 128, (3900 - 127) >> 7]) + b"y" * 3900
    peer.send(frame(HEADERS, b"\x88" + entry + b"\xbe" * 8000, flags=END_HEADERS, stream=stream))

    assert client.message().status == 502
    peer.expect_end()
    assert peer.goaways[-1].error_code == ENHANCE_YOUR_CALM


def test_a_head_in_endless_pieces_ends_the_connection(stage: Stage, upstream: H2cBackend) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.send(frame(HEADERS, b"\x88", stream=stream))
    for _ in range(20):
        peer.send(frame(CONTINUATION, b"\x00\x01x\x01y", stream=stream))

    assert client.message().status == 502
    peer.expect_end()


def test_more_than_the_window_ends_the_connection(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect(receive_buffer=4096)
    client.send(GET % 1)
    peer = upstream.connection()
    stream = peer.next_request().stream
    peer.head(stream)

    piece = frame(DATA, bytes(16_384), stream=stream)
    for _ in range(2000):  # 31 MiB, more than any buffer on the way holds
        peer.send(piece)
        if not peer.is_quiet(0.0) and (peer.ended or peer.goaways):
            break

    peer.expect_end()


def test_an_acknowledgement_nobody_asked_for(stage: Stage, upstream: H2cBackend) -> None:
    client, peer, stream = asked(stage, upstream)

    peer.send(frame(PING, b"unasked!", flags=ACK))
    peer.answer(stream)

    assert client.message().body == b"ok"


def test_windows_are_given_back_for_what_no_client_reads(stage: Stage, upstream: H2cBackend) -> None:
    """Clients that leave in the middle of an answer do not wear the connection out."""
    stage.serve(upstream)
    client = stage.connect()
    client.send(GET % 0)
    peer = upstream.connection()
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"

    for number in range(30):
        gone = stage.connect()
        gone.send(GET % number)
        request = peer.next_request()
        peer.head(request.stream)
        peer.send(frame(DATA, bytes(16_384), stream=request.stream)[:10_000])
        gone.reset()
        peer.expect_reset(request)
        peer.send(frame(DATA, bytes(16_384), stream=request.stream)[10_000:])
        peer.ping()

    window = 65_535 + peer.granted(0)
    client.send(GET % 1)
    request = peer.next_request()
    assert window + 30 * 16_384 >= 2 * 100 * 128 * 1024
    peer.answer(request.stream)
    assert client.message().body == b"ok"


def test_one_that_gives_requests_up_is_not_failing(
    stage: Stage, upstream: H2cBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers of gRPC reset whatever is no call: a client that sends such must not take them from all others."""
    client, peer, stream = asked(stage, upstream)
    for number in range(5):
        peer.reset(stream, INTERNAL_ERROR)
        assert client.message().status == 502
        client.send(GET % number)
        stream = peer.next_request().stream
    peer.answer(stream)
    assert client.message().status == 200
    assert "backend.failing" not in caplog.text
    assert stage.log(6)[0]["error"].endswith("it reset the stream (INTERNAL_ERROR)")
