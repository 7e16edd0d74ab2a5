"""`hold` of a route: while nobody listens at its backends, requests wait for somebody to."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.h2c_backend import H2cBackend
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tests.proxy.lines import GET, ONE, apply, line_of, sweep, wait_for
from tlsproxy.proxy.pool import Backend as Server
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.proxy.waiting_line import Line, Reason
from tlsproxy.runtime.messages import BackendPlan

POST = b"POST %b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody"


def holding(stage: Stage, *backends: Backend, **route: object) -> None:
    stage.serve(*backends, route={"hold": 5, **route}, server=ONE)


def ask(stage: Stage, request: bytes = GET % b"/") -> Peer:
    client = stage.connect()
    client.send(request)
    return client


def warmed(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    """A client and a connection to the backend that have carried a request."""
    client = ask(stage)
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    assert client.message().body == b"ok"
    stage.wait_for_pool(backend.url, "1 idle")
    return client, upstream


class TestRestart:
    def test_requests_wait_for_a_server_that_comes_back(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend)
        backend.refuse()
        clients = [ask(stage, GET % b"/1"), ask(stage, POST % b"/2")]  # nothing was sent, so any method may wait
        wait_for(stage, 2)
        again = stage.restart(backend)
        upstreams = [again.accept() for _ in clients]
        requests = [upstream.message() for upstream in upstreams]
        for upstream in upstreams:
            upstream.send(OK)
        assert sorted((each.target, each.body) for each in requests) == [(b"/1", b""), (b"/2", b"body")]
        assert [client.message().body for client in clients] == [b"ok"] * 2
        stage.wait_for_pool(backend.url, "0 active")
        assert not line_of(stage).is_watched
        assert [line["status"] for line in stage.log(2)] == [200] * 2

    def test_one_that_took_the_last_place_waits_too(self, stage: Stage) -> None:
        """And nobody knocks but the one caller."""
        backend = stage.backend()
        holding(stage, backend, max_requests=1)
        backend.refuse()
        client = ask(stage)
        stage.wait(lambda: line_of(stage).reason is Reason.HELD)
        assert stage.call(lambda: stage.front._backends[backend.url].requests) == 1
        upstream = stage.restart(backend).accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"

    def test_one_caller_knocks_for_all(self, stage: Stage) -> None:
        """And the first in line gets its connection."""
        backend = stage.backend()
        holding(stage, backend)
        backend.refuse()
        first = ask(stage, GET % b"/1")
        wait_for(stage, 1)
        others = [ask(stage, GET % b"/2") for _ in range(3)]
        wait_for(stage, 4)
        again = stage.restart(backend)
        upstream = again.accept()
        assert upstream.message().target == b"/1"
        upstreams = [again.accept() for _ in others]
        for other in upstreams:
            assert other.message().target == b"/2"
            other.send(OK)
        assert not again.is_called(0.05)
        upstream.send(OK)
        assert [client.message().body for client in (first, *others)] == [b"ok"] * 4

    def test_a_request_that_met_the_end_of_the_server_waits_too(self, stage: Stage) -> None:
        """It went over an idle connection just when the server left: sent again, and held."""
        backend = stage.backend()
        holding(stage, backend)
        client, upstream = warmed(stage, backend)
        client.send(GET % b"/2")
        upstream.message()
        backend.refuse()
        upstream.close()
        wait_for(stage, 1)
        upstream = stage.restart(backend).accept()
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert client.message().body == b"ok"

    def test_so_does_one_whose_connection_was_never_accepted(self, stage: Stage) -> None:
        """The kernel took it, the server was ended before it did: a new connection ends without an answer."""
        backend = stage.backend()
        holding(stage, backend)
        client = ask(stage)
        assert backend.is_called(5)
        backend.refuse()
        wait_for(stage, 1)
        upstream = stage.restart(backend).accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"

    @pytest.mark.parametrize("route", [{}, {"hold": 0}])
    def test_what_may_have_been_done_is_not_done_twice(self, stage: Stage, route: dict[str, int]) -> None:
        backend = stage.backend()
        holding(stage, backend, **route)
        client = ask(stage, POST % b"/")
        upstream = backend.accept()
        upstream.message()
        backend.refuse()
        upstream.close()
        assert client.message().status == 502
        assert not stage.restart(backend).is_called(0.15)

    def test_a_get_is_sent_again_once(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend)
        client = ask(stage)
        for _ in range(2):
            upstream = backend.accept()
            upstream.message()
            upstream.close()
        assert client.message().status == 502
        assert not backend.is_called(0.05)

    def test_streams_of_http2_and_a_server_of_http2(self, stage: Stage) -> None:
        with H2cBackend() as backend:
            holding(stage, backend)
            backend.refuse()
            client = stage.connect_http2()
            streams = [client.request("/1"), client.request("/2", body=b"body")]
            wait_for(stage, 2)
            again = H2cBackend.__new__(H2cBackend)
            Backend.__init__(again, port=int(backend.url.rpartition(":")[2]))
            with again:
                peer = again.connection()
                for _ in streams:
                    peer.answer(peer.next_request().stream)
                assert [client.answer(stream).status for stream in streams] == [200] * 2
                assert sorted(request.body for request in peer.requests.values()) == [b"", b"body"]

    def test_whichever_of_several_comes_back_first(self, stage: Stage) -> None:
        first, second = stage.backend(), stage.backend()
        holding(stage, first, second)
        first.refuse()
        second.refuse()
        client = ask(stage)
        wait_for(stage, 1)
        upstream = stage.restart(second).accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"


class TestTurns:
    """Who has its turn and finds nobody stays in line, or leaves it with an answer."""

    def test_the_server_goes_while_it_waits_for_a_place(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend, max_requests=1)
        first = ask(stage, GET % b"/1")
        upstream = backend.accept()
        upstream.message()
        others = []
        for number in (2, 3):
            others.append(ask(stage, GET % b"/%d" % number))
            wait_for(stage, number - 1)
        apply(stage, BackendPlan(drained=(backend.url,)))
        upstream.send(OK)
        assert first.message().body == b"ok"
        stage.wait(lambda: line_of(stage).reason is Reason.HELD)
        assert len(line_of(stage)) == 2
        apply(stage, BackendPlan())
        upstream = backend.accept()
        for number, client in zip((2, 3), others, strict=True):
            assert upstream.message().target == b"/%d" % number
            upstream.send(OK)
            assert client.message().body == b"ok"
        assert [line["status"] for line in stage.log(3)] == [200] * 3

    def test_without_hold_it_hears_so(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend, hold=0, max_requests=1)
        first = ask(stage, GET % b"/1")
        upstream = backend.accept()
        upstream.message()
        others = []
        for number in (2, 3):
            others.append(ask(stage, GET % b"/%d" % number))
            wait_for(stage, number - 1)
        apply(stage, BackendPlan(drained=(backend.url,)))
        assert [client.message().status for client in others] == [503, 503]
        upstream.send(OK)
        assert first.message().body == b"ok"
        stage.wait_for_pool(backend.url, "0 active")

    def test_who_is_let_go_in_vain_has_no_more_time_than_before(self, stage: Stage) -> None:
        """A server that comes and goes must not keep anybody here for ever."""
        backend = stage.backend()
        holding(stage, backend)
        backend.refuse()
        clients = [ask(stage), ask(stage)]
        wait_for(stage, 2)
        deadlines = stage.call(lambda: list(line_of(stage)._waiting.values())[-1])
        before = dict(deadlines)
        again = stage.restart(backend)
        again.accept().message()
        again.accept()  # the second has its turn
        wait_for(stage, 0)
        again.refuse()
        again.__exit__()
        wait_for(stage, 2)
        assert deadlines == before
        assert any(deadlines is each for each in stage.call(lambda: list(line_of(stage)._waiting.values())))
        sweep(stage, 5.1)
        assert [client.message().status for client in clients] == [503] * 2

    def test_a_swap_in_between_leads_to_the_new_ones(self, stage: Stage) -> None:
        old, new = stage.backend(), stage.backend()
        holding(stage, old)
        old.refuse()
        client = ask(stage)
        wait_for(stage, 1)
        apply(stage, BackendPlan(swapped={"a.test /": (new.url,)}))
        upstream = new.accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"


class TestBounds:
    def test_the_wait_ends(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend)
        backend.refuse()
        client = ask(stage)
        wait_for(stage, 1)
        sweep(stage, 4.0)
        assert len(line_of(stage)) == 1
        sweep(stage, 5.1)
        answer = client.message()
        assert (answer.status, answer.get("retry-after")) == (503, b"5")
        assert stage.log()[0]["error"] == "/: no backend accepted a connection within hold 5 s"
        stage.wait(lambda: not line_of(stage).is_watched)  # nobody knocks any more
        assert line_of(stage).reason is Reason.BUSY

    def test_the_line_has_an_end(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend, queue=1)
        backend.refuse()
        ask(stage)
        wait_for(stage, 1)
        answer = ask(stage).message()
        assert (answer.status, answer.get("retry-after")) == (503, b"5")

    def test_who_leaves_is_not_sent(self, stage: Stage) -> None:
        backend = stage.backend()
        holding(stage, backend)
        backend.refuse()
        client = ask(stage)
        wait_for(stage, 1)
        client.close()
        wait_for(stage, 0)
        again = stage.restart(backend)
        stage.wait(lambda: not line_of(stage).is_watched)
        while again.is_called(0):  # a knock that was under way
            assert again.accept().rest() == b""
        assert stage.log()[0]["status"] == 499

    def test_a_server_that_does_not_answer_the_call_is_not_waited_for(self, stage: Stage) -> None:
        """It is there: a timeout is no refusal."""
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        holder = socket.create_connection(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        site = {"hosts": ["a.test"], "routes": [{"backends": [url], "hold": 5}]}
        stage.serve(sites=[site], limits={"connect_timeout": 0.1})
        assert ask(stage).message().status == 504
        holder.close()
        full.close()

    def test_without_it_a_refusal_is_said_at_once(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        backend.refuse()
        assert ask(stage).message().status == 502

    def test_a_dead_machine_does_not_use_up_the_time_of_the_others(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
            dead = Server(f"http://127.0.0.1:{full.getsockname()[1]}", most_idle=1)
            line = Line("/", Upstream([dead], "round_robin"), hold=5.0)
            began = time.monotonic()
            assert asyncio.run(line._try_all()) is None
            assert time.monotonic() - began < 2
