"""`max_requests` of a route: how many requests its backends have at a time, and who waits for a place."""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.h2c_backend import H2cBackend
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tests.proxy.lines import GET, ONE, line_of, sweep, wait_for
from tlsproxy.proxy.failures import BackendFailure, OutOfResources
from tlsproxy.proxy.pool import Backend as PooledBackend
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.proxy.waiting_line import Line

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def limited(stage: Stage, *backends: Backend, most: int = 1, **route: object) -> None:
    stage.serve(*backends, route={"max_requests": most, **route}, server=ONE)


class NoDescriptors:
    """A `dialing.Place` for a process that has none left."""

    async def connect(self, factory: object, timeout: float) -> NoReturn:
        raise OutOfResources("http://out.test", "Too many open files")


class Waiter:
    """In line; takes others with it when it is sent away, as a connection that ends does with its streams."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.friends: list[Waiter] = []
        self.heard: list[str] = []

    def take_turn(self) -> bool:
        return False

    def waited_in_vain(self, failure: BackendFailure) -> None:
        self.heard.append(type(failure).__name__)
        for friend in self.friends:
            self.line.leave(friend)

    def take_over(self, backend: object, connection: object) -> None:
        raise AssertionError

    def crash(self) -> None:
        raise AssertionError


def test_who_is_sent_away_may_take_others_along() -> None:
    """The tick, which does so, goes on to the next."""
    upstream = Upstream([PooledBackend("http://10.0.0.1:80", most_idle=1)], "random", 1)
    line = Line("/", upstream, is_limited=True)
    waiters = [Waiter(line) for _ in range(3)]

    async def wait_in_vain() -> None:
        for waiter in waiters:
            assert line.join(waiter, {}) is None
        waiters[0].friends = [waiters[1]]
        line.sweep(time.monotonic() + 60)

    asyncio.run(wait_in_vain())
    assert [waiter.heard for waiter in waiters] == [["QueueTimedOut"], [], ["QueueTimedOut"]]
    assert len(line) == 0


def ask(stage: Stage, target: bytes) -> Peer:
    client = stage.connect()
    client.send(GET % target)
    return client


class TestOrder:
    def test_one_after_the_other_as_they_came(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        assert upstream.message().target == b"/1"
        others = []
        for number in (2, 3):
            others.append(ask(stage, b"/%d" % number))
            wait_for(stage, number - 1)
        assert upstream.is_quiet(0.03)
        assert not backend.is_called(0)
        for number, client in zip((2, 3), (first, others[0]), strict=True):
            upstream.send(OK)
            assert client.message().body == b"ok"
            assert upstream.message().target == b"/%d" % number
        upstream.send(OK)
        assert others[1].message().body == b"ok"
        stage.wait_for_pool(backend.url, "0 active")
        assert [line["status"] for line in stage.log(3)] == [200] * 3

    def test_the_next_of_a_connection_does_not_overtake_those_in_line(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        first.send(GET % b"/3")  # begins in the very turn in which the answer to /1 ends
        upstream.send(OK)
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert upstream.message().target == b"/3"
        upstream.send(OK)
        assert [first.message().body, first.message().body, second.message().body] == [b"ok"] * 3

    def test_every_backend_has_places_of_its_own(self, stage: Stage) -> None:
        backends = stage.backend(), stage.backend()
        limited(stage, *backends)
        clients = [ask(stage, b"/%d" % number) for number in range(3)]
        upstreams = [backend.accept() for backend in backends]
        for upstream in upstreams:
            upstream.message()
        wait_for(stage, 1)
        for upstream in upstreams:
            upstream.send(OK)
        third = next(upstream for upstream in upstreams if not upstream.is_quiet(0.05))
        assert third.message().target == b"/2"
        third.send(OK)
        assert [client.message().status for client in clients] == [200] * 3

    def test_the_limit_is_that_of_all_workers_together(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"max_requests": 5}, server={"workers": 4})
        assert stage.front._sites[0].forwards[0].route.upstream.limit == 2

    def test_streams_of_one_client_wait_too(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        client = stage.connect_http2()
        streams = [client.request(f"/{number}") for number in range(3)]
        upstream = backend.accept()
        targets = []
        for _ in streams:
            targets.append(upstream.message().target)
            upstream.send(OK)
        assert sorted(targets) == [b"/0", b"/1", b"/2"]
        assert [client.answer(stream).status for stream in streams] == [200] * 3

    def test_a_backend_of_http2_has_a_limit_too(self, stage: Stage) -> None:
        with H2cBackend() as backend:
            limited(stage, backend)
            clients = [ask(stage, b"/1")]
            peer = backend.connection()
            request = peer.next_request()
            clients.append(ask(stage, b"/2"))
            wait_for(stage, 1)
            assert len(peer.requests) == 1
            peer.answer(request.stream)
            peer.answer(peer.next_request().stream)
            assert [client.message().body for client in clients] == [b"ok"] * 2


class TestPlaces:
    """A place is free again when its request has ended, however that was."""

    def test_of_a_client_that_went_away(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        backend.accept().message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        first.close()
        upstream = backend.accept()
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert second.message().body == b"ok"

    def test_of_a_backend_that_broke_off(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        upstream.close()
        assert first.message().status == 502
        upstream = backend.accept()
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert second.message().body == b"ok"

    def test_of_a_backend_that_refused_while_another_was_busy(self, stage: Stage) -> None:
        """Who finds nobody there waits for the one that is busy."""
        good, bad = stage.backend(), stage.backend()
        limited(stage, good, bad)
        bad.refuse()
        first = ask(stage, b"/1")
        upstream = good.accept()
        assert upstream.message().target == b"/1"
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        upstream.send(OK)
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert [client.message().body for client in (first, second)] == [b"ok"] * 2

    def test_of_the_only_backend_that_refused(self, stage: Stage) -> None:
        """It was this request that took the last place: it does not wait for itself."""
        backend = stage.backend()
        limited(stage, backend)
        backend.refuse()
        assert ask(stage, b"/1").message().status == 502
        stage.wait_for_pool(backend.url, "0 active")
        assert stage.call(lambda: stage.front._backends[backend.url].requests) == 1

    def test_where_no_descriptor_is_left_it_hears_so(self, stage: Stage) -> None:
        """Though another one is busy: its turn would come at once, again and again."""
        good, out_of_reach = stage.backend(), stage.backend()
        limited(stage, good, out_of_reach, balance="round_robin")
        stage.call(lambda: setattr(stage.front._backends[out_of_reach.url], "_place", NoDescriptors()))
        clients = [ask(stage, b"/1"), ask(stage, b"/2")]
        upstream = good.accept()
        upstream.message()
        stage.wait(lambda: stage.front._services.requests == 1)
        upstream.send(OK)
        assert sorted(client.message().status for client in clients) == [200, 503]

    def test_a_websocket_has_one_while_it_is_open(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        socket = stage.connect()
        socket.send(UPGRADE)
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        upstream.send(SWITCHED)
        assert socket.message().status == 101
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        assert not backend.is_called(0.03)
        socket.close()
        upstream = backend.accept()
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert second.message().body == b"ok"

    def test_a_websocket_waits_for_one(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        socket = stage.connect()
        socket.send(UPGRADE + b"\x81\x85\0\0\0\0early")  # a frame, without waiting for the 101
        wait_for(stage, 1)
        upstream.send(OK)
        assert first.message().body == b"ok"
        assert b"GET /ws" in upstream.until(b"\r\n\r\n")
        upstream.send(SWITCHED)
        assert socket.message().status == 101
        assert upstream.until(b"early").endswith(b"early")


class TestBounds:
    def test_a_full_line_is_said_at_once(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend, queue=1)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        answer = ask(stage, b"/3").message()
        assert (answer.status, answer.get("retry-after")) == (503, b"1")
        upstream.send(OK)
        upstream.message()
        upstream.send(OK)
        assert [client.message().body for client in (first, second)] == [b"ok"] * 2
        assert stage.log(3)[0]["error"] == "/: 1 requests wait already (queue)"

    def test_without_a_line_nobody_waits(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend, queue=0)
        ask(stage, b"/1")
        backend.accept().message()
        assert ask(stage, b"/2").message().status == 503

    def test_the_wait_ends(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend, queue_timeout=7)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        sweep(stage, 6.0)
        assert len(line_of(stage)) == 1
        sweep(stage, 7.1)
        answer = second.message()
        assert (answer.status, answer.get("retry-after")) == (503, b"1")
        upstream.send(OK)
        assert first.message().body == b"ok"
        stage.wait_for_pool(backend.url, "0 active")
        assert upstream.is_quiet(0.03)
        assert stage.log(2)[0]["error"] == "/: its turn did not come within queue_timeout 7 s"

    def test_who_leaves_is_never_asked_for(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        second.close()
        wait_for(stage, 0)
        upstream.send(OK)
        assert first.message().body == b"ok"
        assert upstream.is_quiet(0.03)
        assert [line["status"] for line in stage.log(2)] == [499, 200]

    def test_a_stream_that_is_reset_leaves_the_line(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        client = stage.connect_http2()
        first = client.request("/1")
        upstream = backend.accept()
        upstream.message()
        second = client.request("/2")
        wait_for(stage, 1)
        client.reset(second)
        wait_for(stage, 0)
        upstream.send(OK)
        assert client.answer(first).status == 200
        assert upstream.is_quiet(0.03)


class TestBodies:
    @pytest.mark.parametrize("size", [5, 300_000])
    def test_a_body_comes_whole_though_it_had_to_wait(self, stage: Stage, size: int) -> None:
        """Beyond what is kept the client has to wait; nothing of it piles up here."""
        body = bytes(range(256)) * (size // 256 + 1)
        body = body[:size]
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = stage.connect()
        second.send(b"POST /2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % size)
        wait_for(stage, 1)
        second.send(body)
        upstream.send(OK)
        assert first.message().body == b"ok"
        request = upstream.message()
        assert (request.target, request.body) == (b"/2", body)
        upstream.send(OK)
        assert second.message().body == b"ok"


class TestDrain:
    def test_who_waits_is_served_before_the_worker_leaves(self, stage: Stage) -> None:
        backend = stage.backend()
        limited(stage, backend)
        first = ask(stage, b"/1")
        upstream = backend.accept()
        upstream.message()
        second = ask(stage, b"/2")
        wait_for(stage, 1)
        drained = stage.begin_drain()
        upstream.send(OK)
        assert first.message().body == b"ok"
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        answer = second.message()
        assert (answer.body, answer.get("connection")) == (b"ok", b"close")
        first.close()
        second.close()
        assert drained.result(5) == 0
