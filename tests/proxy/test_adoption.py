"""A Front that listens in another's place, and the last of all that also serves what is still queued."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage, client_context
from tests.proxy.test_listener import GET, redirected
from tlsproxy.proxy import draining

PATIENCE = 5


@pytest.fixture
def orphan() -> Iterator[socket.socket]:
    """The listening socket of a slot without a worker."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def dial(listener: socket.socket) -> Peer:
    return Peer(socket.create_connection(listener.getsockname(), timeout=PATIENCE))


def test_what_waited_for_an_orphaned_slot_is_served_and_then_left_to_others(
    stage: Stage, orphan: socket.socket
) -> None:
    stage.serve(stage.backend())
    early = dial(orphan)
    stage.call(lambda: stage.front.adopt(1, [("http", orphan.dup())]))
    assert redirected(early)
    later = dial(orphan)
    assert redirected(later)
    [(kind, sock)] = stage.call(lambda: stage.front.release(1))
    with sock:
        assert kind == "http"
        assert redirected(later)  # connections stay
        waiting = dial(orphan)
        accepted, _ = sock.accept()
        accepted.close()
        assert waiting.rest() == b""
        for client in (early, later, waiting):
            client.close()


def test_a_released_slot_can_be_adopted_again(stage: Stage, orphan: socket.socket) -> None:
    stage.serve(stage.backend())
    stage.call(lambda: stage.front.adopt(1, [("http", orphan.dup())]))
    stage.call(lambda: stage.front.adopt(1, stage.front.release(1)))
    client = dial(orphan)
    assert redirected(client)
    client.close()


def test_releasing_what_was_not_adopted_is_nothing(stage: Stage) -> None:
    stage.serve(stage.backend())
    assert stage.call(lambda: stage.front.release(7)) == []


class TestLastDrain:
    def test_serves_what_is_queued(self, stage: Stage) -> None:
        """The loop does not turn between the client's connect and the drain: it is in the queue for certain."""
        stage.serve(stage.backend())
        clients: list[Peer] = []

        async def queue_and_drain() -> int:
            clients.extend(dial(stage.listeners[1]) for _ in range(20))
            return await stage.front.drain(3.0, last=True)

        end = stage._draining = asyncio.run_coroutine_threadsafe(queue_and_drain(), stage.loop)
        stage.wait(lambda: len(stage.front.connections) == 20)
        for client in clients:
            client.send(GET)
            answer = client.message()
            assert (answer.status, answer.get("connection")) == (308, b"close")
            assert client.has_ended()
            client.close()
        assert end.result(PATIENCE) == 0

    def test_serves_what_is_queued_where_nobody_follows(self, stage: Stage) -> None:
        """After a reload that drops an address; what is queued for the other one is its successor's."""
        stage.serve(stage.backend())
        clients: list[Peer] = []

        async def queue_and_drain() -> int:
            clients.extend(dial(stage.listeners[number]) for number in (0, 1, 1))
            return await stage.front.drain(3.0, dropped=[stage.listeners[1].fileno()])

        copy = stage.listeners[0].dup()  # the supervisor's, for the successor
        end = stage._draining = asyncio.run_coroutine_threadsafe(queue_and_drain(), stage.loop)
        for client in clients[1:]:
            client.send(GET)
            assert client.message().status == 308
        stage.wait(lambda: len(clients) == 3)
        copy.accept()[0].close()
        copy.close()
        for client in clients:
            client.close()
        assert end.result(PATIENCE) == 0

    def test_says_how_many_it_cut(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        for _ in range(2):
            client = stage.connect()
            client.send(GET)
            backend.accept().message()
        assert stage.begin_drain(0.05, last=True).result(PATIENCE) == 2

    def test_waits_a_second_at_most_for_one_that_says_nothing(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(draining, "_GRACE", 0.1)  # the second
        stage.serve(stage.backend())
        silent = stage.dial()
        stage.wait(lambda: len(stage.front.connections) == 1)
        assert stage.begin_drain(30.0, last=True).result(PATIENCE) == 0
        assert silent.recv(1) == b""
        silent.close()


def test_one_in_its_handshake_is_served_by_a_draining_worker(stage: Stage) -> None:
    """It connected just before the drain; its first bytes come after it."""
    backend = stage.backend()
    stage.serve(backend)
    raw = stage.dial()
    stage.wait(lambda: len(stage.front.connections) == 1)
    end = stage.begin_drain(10.0)
    client = Peer(client_context().wrap_socket(raw, server_hostname="a.test", suppress_ragged_eofs=False))
    client.send(GET)
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    assert client.message().get("connection") == b"close"
    client.close()
    assert end.result(PATIENCE) == 0
