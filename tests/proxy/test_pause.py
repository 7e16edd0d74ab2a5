"""A site that operators have paused: its requests wait in line, others do not."""

from __future__ import annotations

import time

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tests.proxy.lines import GET, ONE, line_of, pause, resume, sweep, wait_for
from tlsproxy.proxy.waiting_line import LONGEST_PAUSE
from tlsproxy.runtime.messages import BackendPlan


def ask(stage: Stage, target: bytes = b"/") -> Peer:
    client = stage.connect()
    client.send(GET % target)
    return client


def test_requests_go_on_in_their_order_when_it_ends(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    pause(stage)
    clients = []
    for number in (1, 2):
        clients.append(ask(stage, b"/%d" % number))
        wait_for(stage, number)
    assert not backend.is_called(0.03)
    resume(stage)
    for number, client in zip((1, 2), clients, strict=True):
        upstream = backend.accept()
        assert upstream.message().target == b"/%d" % number
        upstream.send(OK)
        assert client.message().body == b"ok"
    stage.wait(lambda: not line_of(stage).is_watched)


def test_what_is_under_way_goes_on(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client = ask(stage)
    upstream = backend.accept()
    upstream.message()
    pause(stage)
    upstream.send(OK)
    assert client.message().body == b"ok"
    client.send(GET % b"/2")
    wait_for(stage, 1)
    resume(stage)
    assert upstream.message().target == b"/2"


def test_other_sites_are_served(stage: Stage) -> None:
    backend = stage.backend()
    sites = [{"hosts": [host], "backends": [backend.url]} for host in ("a.test", "b.test")]
    stage.serve(sites=sites)
    pause(stage)
    client = stage.connect("b.test")
    client.send(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    assert client.message().body == b"ok"


def test_it_ends_by_itself(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    pause(stage, 0.2)
    client = ask(stage)
    upstream = backend.accept()  # the tick looks at the time
    upstream.message()
    upstream.send(OK)
    assert client.message().body == b"ok"
    assert not line_of(stage).is_watched


def test_one_that_is_over_by_now_holds_nobody(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    pause(stage, -1.0)
    assert not line_of(stage).is_watched


def test_nobody_waits_longer_than_a_while(stage: Stage) -> None:
    """However long it lasts. The client hears when to come back."""
    backend = stage.backend()
    stage.serve(backend)
    pause(stage, 600)
    client = ask(stage)
    wait_for(stage, 1)
    sweep(stage, LONGEST_PAUSE - 1)
    assert len(line_of(stage)) == 1
    sweep(stage, LONGEST_PAUSE + 1)
    answer = client.message()
    assert answer.status == 503
    assert 560 <= int(answer.get("retry-after") or 0) <= 570
    assert stage.log()[0]["error"] == "/: paused by an operator for longer than 30 s"


def test_when_the_worker_leaves_all_hear_it(stage: Stage) -> None:
    """Nothing of them was sent to a backend: each may ask again, and learns when."""
    stage.serve(stage.backend())
    pause(stage, 600)
    clients = [ask(stage), ask(stage)]
    wait_for(stage, 2)
    end = stage.begin_drain(1.0)
    answers = [client.message() for client in clients]
    assert [(answer.status, answer.get("connection")) for answer in answers] == [(503, b"close")] * 2
    assert all(int(answer.get("retry-after") or 0) > 500 for answer in answers)
    assert end.result(5) == 0
    assert stage.log(2)[0]["error"] == "/: paused, and the process that it waited in left"


def test_no_more_wait_than_may(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend, route={"queue": 1})
    pause(stage)
    ask(stage)
    wait_for(stage, 1)
    answer = ask(stage).message()
    assert answer.status == 503
    assert 50 < int(answer.get("retry-after") or 0) <= 60


def test_who_left_is_not_sent_when_it_ends(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    pause(stage)
    client = ask(stage)
    wait_for(stage, 1)
    client.close()
    wait_for(stage, 0)
    resume(stage)
    assert not backend.is_called(0.05)
    assert stage.log()[0]["status"] == 499


def test_then_come_the_limits(stage: Stage) -> None:
    """A pause ends for all at once, and the backend still has no more requests than it may."""
    backend = stage.backend()
    stage.serve(backend, route={"max_requests": 1}, server=ONE)
    pause(stage)
    clients = [ask(stage) for _ in range(3)]
    wait_for(stage, 3)
    resume(stage)
    upstream = backend.accept()
    for left in (2, 1, 0):
        upstream.message()
        wait_for(stage, left)
        assert upstream.is_quiet(0.02)
        upstream.send(OK)
    assert [client.message().body for client in clients] == [b"ok"] * 3


def test_it_takes_nobody_the_time_to_wait_for_a_place(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend, route={"max_requests": 1, "queue_timeout": 10}, server=ONE)
    clients = [ask(stage)]
    upstream = backend.accept()
    upstream.message()
    clients.append(ask(stage))
    wait_for(stage, 1)
    pause(stage)
    sweep(stage, 11)
    resume(stage)
    sweep(stage, 12)
    assert len(line_of(stage)) == 1
    for client in clients:
        upstream.send(OK)
        assert client.message().body == b"ok"


@pytest.mark.parametrize("restarted", [True, False])
def test_a_pause_and_a_hold_one_after_the_other(stage: Stage, restarted: bool) -> None:
    """As in a migration: pause, stop the application, start it anew, resume."""
    backend = stage.backend()
    stage.serve(backend, route={"hold": 5})
    pause(stage)
    client = ask(stage)
    wait_for(stage, 1)
    backend.refuse()
    if restarted:
        backend = stage.restart(backend)
        resume(stage)
    else:
        resume(stage)
        stage.wait(lambda: line_of(stage).reason.name == "HELD")
        backend = stage.restart(backend)
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    assert client.message().body == b"ok"


def test_bodies_and_streams_wait_too(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    pause(stage)
    client = stage.connect_http2()
    body = b"b" * 200_000
    stream = client.request("/up", end=False)
    wait_for(stage, 1)
    client.data(stream, body[:30_000])
    resume(stage)
    client.upload(stream, body[30_000:])
    upstream = backend.accept()
    request = upstream.message()
    assert (request.target, request.body) == (b"/up", body)
    upstream.send(OK)
    assert client.answer(stream).status == 200


def test_a_worker_that_leaves_ends_the_wait_of_nobody(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    pause(stage)
    client = ask(stage)
    wait_for(stage, 1)
    drained = stage.begin_drain(5.0)
    resume(stage)
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    assert client.message().body == b"ok"
    client.close()
    assert drained.result(5) == 0


def test_the_clock_of_the_wall_may_jump(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = stage.backend()
    stage.serve(backend)
    plan = BackendPlan(paused={"a.test": time.time() + 60})
    stage.call(lambda: stage.front.apply(plan))
    before = time.time()
    monkeypatch.setattr(time, "time", lambda: before + 3600)
    ask(stage)
    wait_for(stage, 1)
    assert not backend.is_called(0.1)
