"""Requests and answers over HTTP/2 to a backend: what each side is told, and that no stream holds up another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.frames import CANCEL, END_HEADERS, HEADERS, NO_ERROR, REFUSED_STREAM, FramePeer, frame, plain_block
from tests.fakes.h2c_backend import CONNECT, INITIAL_WINDOW, H2cBackend, H2cPeer
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage

GET = b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST /%d HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MIB = 1024 * 1024


@pytest.fixture
def upstream() -> Iterator[H2cBackend]:
    with H2cBackend() as backend:
        yield backend


def asked(stage: Stage, upstream: H2cBackend, request: bytes = GET % 1) -> tuple[Peer, H2cPeer]:
    """A client that has sent `request`, and the connection of the backend that got it."""
    stage.serve(upstream)
    client = stage.connect()
    client.send(request)
    return client, upstream.connection()


def test_a_request_is_told_in_the_words_of_http2(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(
        stage,
        upstream,
        b"GET /a?b HTTP/1.1\r\nHost: a.test:1\r\nAccept: */*\r\nX-Hop: 1\r\nTE: trailers\r\n"
        b"Connection: TE, X-Hop\r\nKeep-Alive: 1\r\nAuthorization: secret\r\n\r\n",
    )

    request = peer.next_request()
    peer.answer(request.stream)

    pseudo = [(b":method", b"GET"), (b":path", b"/a?b"), (b":scheme", b"http"), (b":authority", b"a.test:1")]
    assert request.fields[:4] == pseudo
    names = [name for name, _ in request.fields[4:]]
    assert names == [name.lower() for name in names]
    assert request.get("te") == b"trailers"
    assert request.get("authorization") == b"secret"
    assert request.get("x-forwarded-for") == b"127.0.0.1"
    assert request.get("x-request-id")
    assert not {b"host", b"connection", b"keep-alive", b"x-hop", b"transfer-encoding"}.intersection(names)
    assert client.message().body == b"ok"


def test_an_answer_is_told_in_the_words_of_http1(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream)

    request = peer.next_request()
    peer.head(request.stream, [(b"server", b"x"), (b"x-one", b"1"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d")])
    peer.data(request.stream, b"he")
    assert client.until(b"he").startswith(b"HTTP/1.1 200 OK\r\n")
    peer.data(request.stream, b"llo", end=True)

    assert client.until(b"0\r\n\r\n").endswith(b"\r\n3\r\nllo\r\n0\r\n\r\n")
    client.send(GET % 2)
    peer.answer(peer.next_request().stream, b"abc", [(b"content-length", b"3"), (b"set-cookie", b"e=f")])
    again = client.message()
    assert (again.get("content-length"), again.body, again.all("set-cookie")) == (b"3", b"abc", [b"e=f"])


@pytest.mark.parametrize("status", [200, 404])
def test_an_answer_that_ends_with_its_head_has_no_content(stage: Stage, upstream: H2cBackend, status: int) -> None:
    client, peer = asked(stage, upstream)

    peer.answer(peer.next_request().stream, b"", status=status)

    assert client.message().get("content-length") == b"0"


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_an_answer_without_body_is_whole_before_its_stream_ends(
    stage: Stage, upstream: H2cBackend, method: bytes
) -> None:
    client, peer = asked(stage, upstream, (GET % 1).replace(b"GET", method))

    request = peer.next_request()
    peer.head(
        request.stream, [(b"content-length", b"5")] if method == b"HEAD" else [], status=204 - 4 * (method != b"GET")
    )
    answer = client.message(bodiless=True)
    peer.data(request.stream, b"", end=True)
    client.send(GET % 2)
    peer.answer(peer.next_request().stream)

    assert answer.get("content-length") == (b"5" if method == b"HEAD" else None)
    assert client.message().body == b"ok"
    assert request.reset is None


def test_a_body_that_answers_head_harms_nobody(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, (GET % 1).replace(b"GET", b"HEAD"))

    request = peer.next_request()
    peer.answer(request.stream, b"12345", [(b"content-length", b"5")])

    assert client.message(bodiless=True).get("content-length") == b"5"
    client.send(GET % 2)
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"


def test_requests_share_a_connection_and_are_answered_in_any_order(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    clients = [stage.connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(GET % number)
    peer = upstream.connection()
    requests = [peer.next_request() for _ in clients]

    for request in reversed(requests):
        peer.answer(request.stream, request.get(":path") or b"")

    assert [client.message().body for client in clients] == [b"/%d" % number for number in range(5)]
    assert not upstream.is_called()
    assert "0 active, 1 connections, 0 waiting, 0 failures" in stage.pool(upstream.url)


def test_bodies_and_trailers_pass_both_ways(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n")

    request = peer.next_request()
    peer.head(request.stream, [(b"trailer", b"grpc-status")])
    peer.data(request.stream, b"abc")
    peer.trailers(request.stream, [(b"grpc-status", b"0"), (b"grpc-message", b"fine"), (b"content-type", b"x")])
    answer = client.message()

    assert (request.body, request.trailers) == (b"hello", [(b"x-sum", b"1")])
    assert request.get("content-length") is None
    assert (answer.body, answer.get("trailer")) == (b"abc", b"grpc-status")
    assert answer.trailers == [(b"grpc-status", b"0"), (b"grpc-message", b"fine")]


def test_an_answer_may_be_nothing_but_trailers(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream)

    peer.answer(peer.next_request().stream, b"", [(b"grpc-status", b"12"), (b"grpc-message", b"no")])

    assert client.message().get("grpc-status") == b"12"


def test_interim_answers_pass_on(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, (POST % (1, 4)).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))

    request = peer.next_request(whole=False)
    peer.head(request.stream, status=100)
    first = client.message()
    client.send(b"body")
    peer.until(lambda: request.ended)
    peer.head(request.stream, [(b"link", b"</s>")], status=103)
    peer.answer(request.stream)

    assert (first.status, request.get("expect"), request.body) == (100, b"100-continue", b"body")
    assert (client.message().get("link"), client.message().status) == (b"</s>", 200)


def test_a_stream_that_the_backend_does_not_take_stops_its_client_and_no_other(
    stage: Stage, upstream: H2cBackend
) -> None:
    stage.serve(upstream)
    slow = stage.connect()
    slow.send(POST % (1, 16 * MIB))
    peer = upstream.connection({INITIAL_WINDOW: 1000})
    stuck = peer.next_request(whole=False)
    peer.generous = False

    sent = slow.push(bytes(65_536), 16 * MIB)
    other = stage.connect()
    other.send(GET % 2)
    peer.answer(peer.next_request().stream)

    assert other.message().body == b"ok"
    assert sent < 14 * MIB
    assert len(stuck.body) <= 1000
    peer.generous = True
    peer.grant(0, 16 * MIB)
    peer.grant(stuck.stream, 16 * MIB)
    rest = 16 * MIB - sent
    while rest:
        rest -= slow.push(bytes(65_536), rest, 0.0)
        peer.is_quiet(0.001)
    peer.until(lambda: stuck.ended)
    assert len(stuck.body) == 16 * MIB
    peer.answer(stuck.stream)
    assert slow.message().body == b"ok"


def test_an_answer_that_its_client_does_not_take_stops_its_stream_and_no_other(
    stage: Stage, upstream: H2cBackend
) -> None:
    stage.serve(upstream)
    slow = stage.connect(receive_buffer=4096)
    slow.send(GET % 1)
    peer = upstream.connection()
    stuck = peer.next_request()
    peer.head(stuck.stream)
    window = peer.settings[INITIAL_WINDOW]
    sent = 0
    while sent - peer.granted(stuck.stream) < window:
        size = min(16_384, window + peer.granted(stuck.stream) - sent)
        peer.data(stuck.stream, bytes(size))
        sent += size
        peer.ping()
        assert sent < 16 * MIB

    other = stage.connect()
    other.send(GET % 2)
    request = peer.next_request()
    peer.answer(request.stream, bytes(window))

    assert len(other.message().body) == window
    peer.data(stuck.stream, b"", end=True)
    assert len(slow.message().body) == sent


def test_a_client_that_leaves_takes_its_stream_with_it_and_no_other(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    gone, staying = stage.connect(), stage.connect()
    gone.send(GET % 1)
    peer = upstream.connection()
    left = peer.next_request()
    staying.send(GET % 2)
    kept = peer.next_request()

    gone.reset()
    peer.expect_reset(left, CANCEL)
    peer.answer(kept.stream)

    assert staying.message().body == b"ok"
    assert stage.log(2)[0]["status"] == 499


def test_an_early_answer_is_whole_and_the_rest_of_its_request_not_wanted(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, POST % (1, 1000) + b"some")

    request = peer.next_request(whole=False)
    peer.answer(request.stream, b"no", status=413)
    peer.reset(request.stream, NO_ERROR)  # RFC 9113 8.1

    answer = client.message()
    assert (answer.status, answer.body, answer.get("connection")) == (413, b"no", b"close")


def test_a_stream_is_not_left_open_by_an_early_answer(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, POST % (1, 1000) + b"some")

    request = peer.next_request(whole=False)
    peer.answer(request.stream, b"no", status=413)

    assert client.message().status == 413
    peer.expect_reset(request, CANCEL)


def test_a_body_that_is_sent_again_is_whole(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n")

    peer.reset(peer.next_request().stream, REFUSED_STREAM)
    other = upstream.connection()
    again = other.next_request()
    other.answer(again.stream)

    assert (again.body, again.trailers) == (b"hello world", [(b"x-sum", b"1")])
    assert client.message().body == b"ok"


def test_what_is_too_much_to_be_kept_is_not_sent_again(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream)
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"
    client.send(POST % (1, 100_000) + bytes(100_000))

    peer.reset(peer.next_request().stream, REFUSED_STREAM)

    assert client.message().status == 503
    assert not upstream.is_called()


def test_a_client_of_http2_is_passed_on_stream_by_stream(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client: FramePeer = stage.connect_http2()
    first = client.request("/1", [(b"te", b"trailers")], b"up", end=True)
    peer = upstream.connection()
    request = peer.next_request()
    second = client.request("/2")
    left = peer.next_request()

    client.reset(second)
    peer.expect_reset(left, CANCEL)
    peer.head(request.stream, [(b"content-type", b"application/grpc")])
    peer.data(request.stream, b"down")
    peer.trailers(request.stream, [(b"grpc-status", b"0")])
    answer = client.answer(first)

    assert (request.get("te"), request.body) == (b"trailers", b"up")
    assert (answer.body, answer.trailers) == (b"down", [(b"grpc-status", b"0")])


# --- WebSocket (RFC 8441) ---------------------------------------------------------------------------------------------


def test_a_websocket_is_an_extended_connect(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect()
    client.send(UPGRADE)
    peer = upstream.connection({CONNECT: 1})
    request = peer.next_request(whole=False)

    assert request.fields[:2] == [(b":method", b"CONNECT"), (b":protocol", b"websocket")]
    assert request.get(":path") == b"/ws"
    assert request.get("sec-websocket-version") == b"13"
    assert request.get("sec-websocket-key") is None
    peer.head(request.stream, [(b"sec-websocket-protocol", b"chat")])
    answer = client.message()
    assert (answer.status, answer.get("sec-websocket-accept")) == (101, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    assert answer.get("sec-websocket-protocol") == b"chat"
    client.send(b"\x81\x82\0\0\0\0hi")
    peer.until(lambda: request.body == b"\x81\x82\0\0\0\0hi")
    peer.data(request.stream, b"\x81\x02ho")
    assert client.exactly(4) == b"\x81\x02ho"
    client.close()
    peer.until(lambda: request.ended)
    peer.data(request.stream, b"", end=True)
    assert stage.log()[0]["status"] == 101
    assert request.reset is None


def test_a_websocket_ends_with_the_backends_stream(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect()
    client.send(UPGRADE)
    peer = upstream.connection({CONNECT: 1})
    request = peer.next_request(whole=False)

    peer.head(request.stream)
    peer.data(request.stream, b"\x81\x02ho", end=True)

    assert client.message().status == 101
    assert client.rest() == b"\x81\x02ho"
    peer.until(lambda: request.ended)


def test_a_websocket_whose_close_frames_have_passed_is_reset(stage: Stage, upstream: H2cBackend) -> None:
    """Hypercorn's connection would die of an END_STREAM for a stream that it has forgotten by then."""
    stage.serve(upstream)
    client = stage.connect()
    client.send(UPGRADE)
    peer = upstream.connection({CONNECT: 1})
    request = peer.next_request(whole=False)
    peer.head(request.stream)
    assert client.message().status == 101
    client.send(b"\x88\x82\0\0\0\0\x03\xe8")
    peer.until(lambda: request.body == b"\x88\x82\0\0\0\0\x03\xe8")
    peer.data(request.stream, b"\x88\x02\x03\xe8")
    assert client.rest() == b"\x88\x02\x03\xe8"
    peer.until(lambda: request.reset is not None)
    assert (request.reset, request.ended) == (8, False)


def test_a_websocket_that_is_refused_is_an_ordinary_answer(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect()
    client.send(UPGRADE)
    peer = upstream.connection({CONNECT: 1})
    request = peer.next_request(whole=False)

    peer.answer(request.stream, b"no", status=403)

    assert client.message().body == b"no"
    peer.expect_reset(request, CANCEL)


def test_a_backend_that_knows_no_websocket_is_not_asked(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream, UPGRADE)

    answer = client.message()

    assert (answer.status, b"WebSocket" in answer.body) == (502, True)
    assert not peer.requests
    assert "0 failures" in stage.pool(upstream.url)
    other = stage.connect()
    other.send(GET % 1)
    peer.answer(peer.next_request().stream)
    assert other.message().body == b"ok"


def test_bytes_that_end_a_field_do_not_pass(stage: Stage, upstream: H2cBackend) -> None:
    client, peer = asked(stage, upstream)

    request = peer.next_request()
    block = plain_block([(b":status", b"200"), (b"x-evil", b"a\r\nSet-Cookie: b=c")])
    peer.send(frame(HEADERS, block, flags=END_HEADERS, stream=request.stream))

    assert client.message().status == 502
