"""The connections of a backend that speaks HTTP/2: how many, who waits, what becomes of them when one goes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.fakes.backend import Backend
from tests.fakes.frames import ENHANCE_YOUR_CALM, HEADERS, INTERNAL_ERROR, NO_ERROR, REFUSED_STREAM, frame
from tests.fakes.h2c_backend import CONNECT, MAX_STREAMS, H2cBackend, H2cPeer
from tests.fakes.stage import Stage
from tlsproxy.proxy import multiplexed, multiplexed_backend
from tlsproxy.proxy.multiplexed_backend import MultiplexedBackend

GET = b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST /%d HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody"


@pytest.fixture
def upstream() -> Iterator[H2cBackend]:
    with H2cBackend() as backend:
        yield backend


def warmed(stage: Stage, upstream: H2cBackend, *, streams: int = 100, **route: int) -> H2cPeer:
    """A connection that has carried a request."""
    stage.serve(upstream, route=route)
    client = stage.connect()
    client.send(GET % 0)
    peer = upstream.connection({MAX_STREAMS: streams})
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"
    return peer


# --- how many ---------------------------------------------------------------------------------------------------------


def test_no_more_streams_than_the_backend_allows(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream, streams=2)
    clients = [stage.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(GET % number)
    other = upstream.connection()

    requests = [peer.next_request(), peer.next_request()]
    third = other.next_request()

    assert len(peer.requests) == 3
    for request in requests:
        peer.answer(request.stream)
    other.answer(third.stream)
    assert [client.message().body for client in clients] == [b"ok"] * 3


def test_a_request_waits_for_a_stream_when_no_more_connections_may_be(
    stage: Stage, upstream: H2cBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplexed_backend, "_MOST", 1)
    peer = warmed(stage, upstream, streams=1)
    first, second = stage.connect(), stage.connect()
    first.send(GET % 1)
    running = peer.next_request()
    second.send(GET % 2)
    stage.wait_for_pool(upstream.url, "1 waiting")

    peer.answer(running.stream)
    peer.answer(peer.next_request().stream)

    assert (first.message().body, second.message().body) == (b"ok", b"ok")
    assert not upstream.is_called()


def test_nobody_waits_longer_than_the_connect_timeout(
    stage: Stage, upstream: H2cBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplexed_backend, "_MOST", 1)
    stage.serve(upstream, limits={"connect_timeout": 0.2})
    first, second = stage.connect(), stage.connect()
    first.send(GET % 1)
    peer = upstream.connection({MAX_STREAMS: 1})
    running = peer.next_request()
    peer.ping()
    second.send(GET % 2)

    assert second.message().status == 503
    peer.answer(running.stream)
    assert first.message().body == b"ok"
    assert "0 waiting, 0 failures" in stage.pool(upstream.url)


def test_who_stops_waiting_leaves_no_gap(stage: Stage, upstream: H2cBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiplexed_backend, "_MOST", 1)
    peer = warmed(stage, upstream, streams=1)
    first, gone, last = stage.connect(), stage.connect(), stage.connect()
    first.send(GET % 1)
    running = peer.next_request()
    gone.send(GET % 2)
    stage.wait_for_pool(upstream.url, "1 waiting")
    last.send(GET % 3)
    stage.wait_for_pool(upstream.url, "2 waiting")

    gone.reset()
    stage.wait_for_pool(upstream.url, "1 waiting")
    peer.answer(running.stream)
    peer.answer(peer.next_request().stream)

    assert last.message().body == b"ok"


def test_requests_that_arrive_while_it_is_made_share_a_connection(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    clients = [stage.connect() for _ in range(20)]
    backend = stage.front._backends[upstream.url]

    def fill() -> None:
        for number, client in enumerate(clients):
            client.send(GET % number)

    fill()
    peer = upstream.connection()
    for _ in clients:
        peer.answer(peer.next_request().stream)

    assert [client.message().body for client in clients] == [b"ok"] * 20
    assert not upstream.is_called()
    assert "1 connections" in stage.call(lambda: repr(backend))


def test_a_connection_by_unix_path(stage: Stage, tmp_path: Path) -> None:
    with H2cBackend(tmp_path / "s") as upstream:
        peer = warmed(stage, upstream)
        assert peer.requests[1].get(":authority") == b"a.test"


def test_nobody_listens(stage: Stage, upstream: H2cBackend) -> None:
    upstream.refuse()
    stage.serve(upstream)
    client = stage.connect()

    client.send(GET % 1)

    assert client.message().status == 502
    assert "0 waiting, 1 failures" in stage.pool(upstream.url)


def test_another_backend_is_asked_where_nobody_listens(stage: Stage, upstream: H2cBackend) -> None:
    with H2cBackend() as away:
        away.refuse()
        stage.serve(away, upstream)
        client = stage.connect()
        for number in range(2):
            client.send(POST % number)
            if not number:
                peer = upstream.connection()
            peer.answer(peer.next_request().stream)
            assert client.message().body == b"ok"


def test_a_connection_that_has_carried_many_requests_is_replaced(
    stage: Stage, upstream: H2cBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiplexed, "_MOST_REQUESTS", 3)
    peer = warmed(stage, upstream)
    first, last, new = stage.connect(), stage.connect(), stage.connect()
    first.send(GET % 1)
    held = peer.next_request()
    last.send(GET % 2)
    peer.answer(peer.next_request().stream)
    assert last.message().body == b"ok"

    new.send(GET % 3)
    other = upstream.connection()
    other.answer(other.next_request().stream)
    peer.answer(held.stream)

    assert (first.message().body, new.message().body) == (b"ok", b"ok")
    peer.expect_end()
    assert [goaway.error_code for goaway in peer.goaways] == [0]


# --- goodbyes ---------------------------------------------------------------------------------------------------------


def test_goaway_lets_what_is_in_flight_end_and_the_rest_go_elsewhere(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    running, beyond, after = stage.connect(), stage.connect(), stage.connect()
    running.send(GET % 1)
    first = peer.next_request()
    beyond.send(POST % 2)
    peer.next_request()

    peer.goaway(first.stream)
    other = upstream.connection()
    again = other.next_request()
    after.send(GET % 3)
    new = other.next_request()
    peer.answer(first.stream, b"one")
    other.answer(again.stream, b"two")
    other.answer(new.stream, b"three")

    assert (again.get(":path"), again.body) == (b"/2", b"body")
    assert [client.message().body for client in (running, beyond, after)] == [b"one", b"two", b"three"]
    peer.expect_end()
    assert {line["path"]: line["retries"] for line in stage.log(4)} == {"/0": 0, "/1": 0, "/2": 1, "/3": 0}
    assert "1 connections, 0 waiting, 0 failures" in stage.pool(upstream.url)


def test_a_first_goaway_that_names_no_stream_ends_none(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(GET % 1)
    running = peer.next_request()

    peer.goaway(2**31 - 1)
    peer.ping()
    peer.goaway(running.stream)
    peer.answer(running.stream)

    assert client.message().body == b"ok"
    peer.expect_end()


def test_goaway_on_an_idle_connection_closes_it(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)

    peer.goaway(1, ENHANCE_YOUR_CALM)

    peer.expect_end()
    stage.wait_for_pool(upstream.url, "0 connections, 0 waiting, 0 failures")


def test_a_refused_request_is_sent_again_once(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(POST % 1)

    peer.reset(peer.next_request().stream, REFUSED_STREAM)
    other = upstream.connection()
    again = other.next_request()
    other.reset(again.stream, REFUSED_STREAM)

    assert (again.get(":method"), again.body) == (b"POST", b"body")
    assert client.message().status == 503
    assert stage.log(2)[1]["retries"] == 1
    assert not upstream.is_called()


def test_a_refused_request_may_be_sent_again_where_others_are_answered(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client, holder = stage.connect(), stage.connect()
    holder.send(GET % 1)
    held = peer.next_request()
    client.send(POST % 2)

    peer.reset(peer.next_request().stream, REFUSED_STREAM)
    peer.answer(peer.next_request().stream)

    assert client.message().body == b"ok"
    peer.answer(held.stream)
    assert holder.message().body == b"ok"


def test_a_refusal_behind_the_head_of_an_answer_is_none(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(GET % 1)
    request = peer.next_request()

    peer.head(request.stream, [(b"content-length", b"10")])
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    peer.reset(request.stream, REFUSED_STREAM)

    assert client.has_ended()
    assert not upstream.is_called()


def test_a_reset_before_the_answer_is_a_502_and_the_connection_lives(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(GET % 1)

    peer.reset(peer.next_request().stream, INTERNAL_ERROR)

    assert client.message().status == 502
    client.send(GET % 2)
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"


def test_a_connection_that_breaks_fails_all_of_its_requests(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    waiting, reading, repeatable = stage.connect(), stage.connect(), stage.connect()
    waiting.send(POST % 1)
    peer.next_request()
    reading.send(GET % 2)
    peer.head(peer.next_request().stream, [(b"content-length", b"10")])
    assert reading.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    repeatable.send(GET % 3)
    peer.next_request()

    peer.close()
    other = upstream.connection()
    other.answer(other.next_request().stream)

    assert waiting.message().status == 502
    assert reading.has_ended()
    assert repeatable.message().body == b"ok"


def test_a_new_connection_that_breaks_is_a_backend_that_broke(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect()
    client.send(GET % 1)
    peer = upstream.connection()
    peer.next_request()

    peer.close()

    assert client.message().status == 502
    assert "1 failures" in stage.pool(upstream.url)


def test_a_worker_that_leaves_lets_answers_end_and_says_goodbye(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(GET % 1)
    request = peer.next_request()

    drained = stage.begin_drain()
    peer.answer(request.stream)

    assert client.message().body == b"ok"
    assert drained.result(5) == 0
    peer.expect_end()
    assert [goaway.error_code for goaway in peer.goaways] == [0]


# --- idle and silent --------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed_with_a_goodbye(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)

    stage.tick(after=59)
    peer.ping()
    stage.tick(after=61)

    peer.expect_end()
    assert [goaway.error_code for goaway in peer.goaways] == [0]
    stage.wait_for_pool(upstream.url, "0 connections")


def test_a_silent_connection_is_asked_for_a_sign_of_life(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(GET % 1)
    request = peer.next_request()

    stage.tick(after=9)
    assert peer.is_quiet()
    stage.tick(after=11)
    peer.until(lambda: len(peer.pings) == 1)
    peer.answer(request.stream)

    assert client.message().body == b"ok"


def test_who_gives_no_sign_gets_no_more_requests_and_is_given_up_at_last(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream, response_timeout=300)
    peer.pongs = False
    client = stage.connect()
    client.send(POST % 1)
    peer.next_request()

    stage.tick(after=11)
    peer.until(lambda: len(peer.pings) == 1)
    stage.tick(after=17)
    new = stage.connect()
    new.send(GET % 2)
    other = upstream.connection()
    other.answer(other.next_request().stream)
    assert new.message().body == b"ok"
    stage.tick(after=72)

    assert client.message().status == 504
    peer.expect_end()


def test_who_falls_silent_after_its_sign_of_life_is_in_doubt_without_another_ping(
    stage: Stage, upstream: H2cBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers of gRPC close on who asks too often; a connection that answers nothing gets no more requests anyhow."""
    monkeypatch.setattr(multiplexed, "_QUIET", 0.05)
    monkeypatch.setattr(multiplexed, "_DOUBT", 0.05)
    peer = warmed(stage, upstream, response_timeout=300)
    first, second = stage.connect(), stage.connect()
    first.send(POST % 1)
    peer.next_request()
    peer.until(lambda: len(peer.pings) == 1)  # and it is answered
    peer.ping()
    second.send(GET % 2)  # no body: nothing comes back for it
    peer.next_request()

    backend = stage.front._backends[upstream.url]
    assert isinstance(backend, MultiplexedBackend)
    stage.wait(lambda: all(connection.room == 0 for connection in backend._connections))

    third = stage.connect()
    third.send(GET % 3)
    other = upstream.connection()
    other.answer(other.next_request().stream)
    assert third.message().body == b"ok"
    assert len(peer.pings) == 1


def test_a_request_that_is_not_answered_in_time_takes_no_other_with_it(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream, route={"response_timeout": 0.2})
    client = stage.connect()
    client.send(GET % 1)
    peer = upstream.connection()
    request = peer.next_request()

    assert client.message().status == 504
    peer.expect_reset(request)
    client.send(GET % 2)
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"


def test_a_websocket_waits_for_the_settings(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect()
    client.send(
        b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    peer = upstream.connection(begin=False)
    peer.until(lambda: bool(peer.settings))
    assert peer.is_quiet()

    peer.begin({CONNECT: 1})

    peer.answer(peer.next_request(whole=False).stream, status=404)
    assert client.message().status == 404


def test_a_server_of_http1_is_told_apart(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with Backend() as upstream:
        upstream.url = upstream.url.replace("http", "h2c")
        stage.serve(upstream)
        client = stage.connect()
        client.send(GET % 1)
        peer = upstream.accept()
        peer.until(b"SM\r\n\r\n")
        peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        assert client.message().status == 502
        assert "it answers in HTTP/1.1" in stage.log()[0]["error"]


def test_a_backend_that_closes_at_once(stage: Stage, upstream: H2cBackend) -> None:
    stage.serve(upstream)
    client = stage.connect()
    client.send(GET % 1)

    peer = upstream.accept()
    peer.sock.shutdown(socket.SHUT_RDWR)

    assert client.message().status == 502


def test_a_head_that_does_not_end_is_not_waited_for(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream, response_timeout=300)
    client = stage.connect()
    client.send(POST % 1)
    request = peer.next_request()

    peer.send(frame(HEADERS, b"\x88", stream=request.stream))
    backend = cast("multiplexed_backend.MultiplexedBackend", stage.front._backends[upstream.url])
    stage.wait(lambda: backend._connections[0].codec.header_block > 0)
    stage.tick()
    stage.tick(after=11)

    assert client.message().status == 502
    peer.expect_end()


def test_a_request_that_comes_too_late_for_a_lower_limit_goes_elsewhere(stage: Stage, upstream: H2cBackend) -> None:
    """The limit falls while the request is on its way into the codec, which would keep it until a stream ends."""
    peer = warmed(stage, upstream)
    client = stage.connect()
    client.send(POST % 1)
    running = peer.next_request()
    backend = cast("multiplexed_backend.MultiplexedBackend", stage.front._backends[upstream.url])
    connection = backend._connections[0]
    late = stage.connect()
    stage.call(lambda: setattr(connection, "_full", True))  # as if the backend took nothing for a moment
    late.send(POST % 2)
    stage.wait(lambda: len(connection._streams) == 2)
    peer.change_settings({MAX_STREAMS: 1})
    stage.wait(lambda: connection.codec.most_streams == 1)
    stage.call(connection.resume_writing)
    other = upstream.connection({MAX_STREAMS: 1})
    other.answer(other.next_request().stream)

    assert late.message().body == b"ok"
    peer.answer(running.stream)
    assert client.message().body == b"ok"


def test_a_small_limit_is_remembered_for_the_next_connection(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream, streams=1)
    clients = [stage.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(GET % number)
    first = peer.next_request()

    others = [upstream.connection(begin=False) for _ in range(2)]  # each is sent one before it has said anything
    requests = [other.next_request() for other in others]  # before an answer makes room for the next on the first
    for other, request in zip(others, requests, strict=True):
        other.begin({MAX_STREAMS: 1})
        other.answer(request.stream)
    peer.answer(first.stream)

    assert [client.message().body for client in clients] == [b"ok"] * 3


def test_a_stream_that_is_closed_without_an_answer_is_asked_again(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    client, other = stage.connect(), stage.connect()
    client.send(GET % 1)
    request = peer.next_request()
    other.send(POST % 2)

    peer.reset(peer.next_request().stream, NO_ERROR)
    peer.reset(request.stream, NO_ERROR)
    again = upstream.connection()
    again.answer(again.next_request().stream)

    assert client.message().body == b"ok"
    assert other.message().status == 502
