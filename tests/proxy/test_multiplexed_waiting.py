"""Who waits for a stream of a backend over HTTP/2, when connections go, leave, or can't be had at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fakes.h2c_backend import MAX_STREAMS, H2cBackend, H2cPeer
from tests.fakes.stage import Stage
from tlsproxy.proxy import multiplexed_backend

GET = b"GET /%d HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST /%d HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody"


@pytest.fixture
def upstream() -> Iterator[H2cBackend]:
    with H2cBackend() as backend:
        yield backend


@pytest.fixture(autouse=True)
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiplexed_backend, "_MOST", 1)


def warmed(stage: Stage, upstream: H2cBackend) -> H2cPeer:
    """A connection for one request at a time that has carried one."""
    stage.serve(upstream)
    client = stage.connect()
    client.send(GET % 0)
    peer = upstream.connection({MAX_STREAMS: 1})
    peer.answer(peer.next_request().stream)
    assert client.message().body == b"ok"
    return peer


def test_who_waits_gets_another_connection_when_the_last_is_gone(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    first, second = stage.connect(), stage.connect()
    first.send(POST % 1)
    peer.next_request()
    second.send(GET % 2)
    stage.wait_for_pool(upstream.url, "1 waiting")

    peer.close()
    other = upstream.connection()
    other.answer(other.next_request().stream)

    assert (first.message().status, second.message().body) == (502, b"ok")


def test_a_connection_that_leaves_keeps_no_other_from_being_made(stage: Stage, upstream: H2cBackend) -> None:
    peer = warmed(stage, upstream)
    first, second = stage.connect(), stage.connect()
    first.send(GET % 1)
    running = peer.next_request()
    peer.goaway(running.stream)
    peer.ping()

    second.send(GET % 2)
    other = upstream.connection()
    other.answer(other.next_request().stream)
    assert second.message().body == b"ok"
    peer.answer(running.stream)
    assert first.message().body == b"ok"


def test_a_backend_that_accepts_nothing_is_504_and_to_blame(stage: Stage) -> None:
    """Those who wait give up a moment before the connect that they share does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"h2c://127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()):
            stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}], limits={"connect_timeout": 0.1})
            for number in range(2):
                client = stage.connect()
                client.send(GET % number)
                assert client.message().status == 504
            assert "0 waiting, 2 failures" in stage.pool(url)
