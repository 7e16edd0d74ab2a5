"""Clients that stay with their backend by a cookie."""

from __future__ import annotations

import pytest

from tests.fakes.backend import OK, Backend, called
from tests.fakes.peer import Message, Peer
from tests.fakes.stage import Stage
from tests.proxy.lines import GET, ONE, apply, wait_for
from tests.proxy.test_queue import SWITCHED, UPGRADE
from tlsproxy.proxy.condition import Condition
from tlsproxy.runtime.messages import BackendPlan

NAME = b"tlsproxy_backend"
WITH = b"GET /app HTTP/1.1\r\nHost: a.test\r\nCookie: %b\r\n\r\n"


def sticking(stage: Stage, count: int = 3, **route: object) -> list[Backend]:
    backends = [stage.backend() for _ in range(count)]
    stage.serve(*backends, route={"sticky": NAME.decode(), "balance": "round_robin", **route}, server=ONE)
    return backends


def answered_by(backends: list[Backend], client: Peer, request: bytes, answer: bytes = OK) -> tuple[Backend, Message]:
    """Who got the request over a new connection, and the answer."""
    client.send(request)
    backend = called(backends)
    upstream = backend.accept()
    upstream.message()
    upstream.send(answer)
    answer_ = client.message()
    upstream.close()  # so that the next request needs a connection, which shows where it goes
    return backend, answer_


def cookie_of(answer: Message) -> bytes:
    """What a client sends back."""
    value = answer.get("set-cookie")
    assert value is not None
    return value.partition(b";")[0]


def state_of(stage: Stage, backend: Backend) -> Condition:
    return stage.front._backends[backend.url]


def test_a_client_comes_back_to_its_backend(stage: Stage) -> None:
    backends = sticking(stage)
    backend, answer = answered_by(backends, stage.connect(), GET % b"/")
    cookie = cookie_of(answer)
    for _ in range(4):
        again, answer = answered_by(backends, stage.connect(), WITH % (b"other=1; " + cookie))
        assert again is backend
        assert answer.all("set-cookie") == []


def test_the_cookie_tells_nothing_and_is_for_us_alone(stage: Stage) -> None:
    backends = sticking(stage, path="/app")
    backend, answer = answered_by(backends, stage.connect(), GET % b"/app/x")
    cookie, *attributes = (answer.get("set-cookie") or b"").split(b"; ")
    assert attributes == [b"Path=/app", b"Secure", b"HttpOnly", b"SameSite=Lax"]
    name, _, value = cookie.partition(b"=")
    assert name == NAME
    assert len(bytes.fromhex(value.decode())) == 12
    assert backend.url.rpartition(":")[2].encode() not in value


def test_the_cookies_of_the_application_stay(stage: Stage) -> None:
    backends = sticking(stage)
    own = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\n\r\n"
    _, answer = answered_by(backends, stage.connect(), GET % b"/", own)
    assert [value.partition(b"=")[0] for value in answer.all("set-cookie")] == [b"session", NAME]


@pytest.mark.parametrize("cookie", [NAME + b"=0123456789abcdef01234567", NAME + b"=", b"x" + NAME + b"=1", NAME])
def test_one_that_was_made_up_means_nothing(stage: Stage, cookie: bytes) -> None:
    backends = sticking(stage)
    _, answer = answered_by(backends, stage.connect(), WITH % cookie)
    assert cookie_of(answer).startswith(NAME + b"=")


@pytest.mark.parametrize("why", ["drained", "down", "ejected"])
def test_a_backend_that_may_not_be_asked_hands_its_clients_on(stage: Stage, why: str) -> None:
    backends = sticking(stage)
    backend, answer = answered_by(backends, stage.connect(), GET % b"/")
    cookie = cookie_of(answer)
    state = state_of(stage, backend)
    if why == "drained":
        apply(stage, BackendPlan(drained=(backend.url,)))
    elif why == "down":
        stage.call(lambda: state.judged("a.test /", "500"))
    else:
        for _ in range(3):
            stage.call(lambda: state.failed("no"))
    other, answer = answered_by(backends, stage.connect(), WITH % cookie)
    assert other is not backend
    assert cookie_of(answer) != cookie


def test_so_does_one_that_refuses(stage: Stage) -> None:
    backends = sticking(stage, 2)
    backend, answer = answered_by(backends, stage.connect(), GET % b"/")
    cookie = cookie_of(answer)
    backend.refuse()
    [left] = [each for each in backends if each is not backend]
    other, answer = answered_by([left], stage.connect(), WITH % cookie)
    assert other is left
    assert cookie_of(answer) != cookie


def test_a_client_waits_for_a_place_at_its_backend(stage: Stage) -> None:
    """Its session is there; a place at another is of no use. Others pass who need not have that one."""
    backends = sticking(stage, 2, max_requests=1)
    backend, answer = answered_by(backends, stage.connect(), GET % b"/")
    cookie = cookie_of(answer)
    stage.wait_for_pool(backend.url, "0 active")
    first, second = stage.connect(), stage.connect()
    first.send(WITH % cookie)
    upstream = backend.accept()
    upstream.message()
    second.send(WITH % cookie)
    wait_for(stage, 1)
    anybody = stage.connect()
    anybody.send(GET % b"/free")
    [left] = [each for each in backends if each is not backend]
    elsewhere = left.accept()
    assert elsewhere.message().target == b"/free"
    elsewhere.send(OK)
    assert anybody.message().body == b"ok"
    upstream.send(OK)
    assert first.message().body == b"ok"
    assert upstream.message().target == b"/app"
    upstream.send(OK)
    assert second.message().body == b"ok"


def test_over_http2_the_field_may_come_in_pieces(stage: Stage) -> None:
    """RFC 9113 8.2.3."""
    backends = sticking(stage)
    client = stage.connect_http2()
    stream = client.request("/")
    backend = called(backends)
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    value = client.answer(stream).get("set-cookie")
    assert value is not None
    cookie = value.partition(b";")[0]
    for _ in range(3):
        stream = client.request("/", [(b"cookie", b"a=1"), (b"cookie", cookie)])
        upstream.message()
        upstream.send(OK)
        assert client.answer(stream).get("set-cookie") is None


def test_a_websocket_gets_it_with_its_101(stage: Stage) -> None:
    backends = sticking(stage)
    client = stage.connect()
    client.send(UPGRADE)
    backend = called(backends)
    upstream = backend.accept()
    upstream.until(b"\r\n\r\n")
    upstream.send(SWITCHED)
    answer = client.message()
    assert answer.status == 101
    again, answer = answered_by(backends, stage.connect(), WITH % cookie_of(answer))
    assert again is backend
    assert answer.all("set-cookie") == []


def test_the_value_is_the_key_s(stage: Stage) -> None:
    """All workers and generations have the same one; with another it means nothing any more."""
    backends = sticking(stage)
    apply(stage, BackendPlan(key="01" * 32))
    backend, answer = answered_by(backends, stage.connect(), GET % b"/")
    cookie = cookie_of(answer)
    apply(stage, BackendPlan(key="02" * 32))
    _, answer = answered_by(backends, stage.connect(), WITH % cookie)
    assert cookie_of(answer) != cookie
    apply(stage, BackendPlan(key="01" * 32))
    again, _ = answered_by(backends, stage.connect(), WITH % cookie)
    assert again is backend
