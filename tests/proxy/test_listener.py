"""How connections are let in: limits, shedding, and running out of file descriptors."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.peer import CUT, Peer
from tests.fakes.stage import Stage

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def redirected(client: Peer) -> bool:
    """Whether this connection of the http listener is served."""
    try:
        client.send(GET)
        return client.message().status == 308
    except (*CUT, EOFError, BrokenPipeError):
        return False


def proxied(stage: Stage, client: str = "") -> Peer:
    """A connection of the http listener behind a PROXY header that names `client`, or nobody."""
    peer = stage.connect_plain()
    peer.send(b"PROXY TCP4 %b 192.0.2.1 5000 80\r\n" % client.encode() if client else b"PROXY UNKNOWN\r\n")
    return peer


def in_flight(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    client = stage.connect()
    client.send(GET)
    upstream = backend.accept()
    upstream.message()
    return client, upstream


class TestTotal:
    def test_the_one_that_is_idle_longest_makes_room(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"connections": 2})
        older, newer = stage.connect_plain(), stage.connect_plain()
        assert redirected(older)
        assert redirected(newer)
        third = stage.connect_plain()
        assert redirected(third)
        assert older.rest() == b""
        assert redirected(newer)

    def test_one_that_has_not_sent_its_head_is_idle_too(self, stage: Stage) -> None:
        """Or a few who send nothing could keep everybody out."""
        stage.serve(stage.backend(), limits={"connections": 2})
        silent = [stage.connect_plain() for _ in range(2)]
        silent[1].send(b"GET / HTTP/1.1\r\nX-Slow: ")
        stage.wait(lambda: len(stage.front.connections) == 2)
        assert redirected(stage.connect_plain())
        assert silent[0].rest() == b""

    def test_nor_one_that_never_begins_its_handshake(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"connections": 2})
        silent = [socket.create_connection(("127.0.0.1", stage.port)) for _ in range(2)]
        stage.wait(lambda: len(stage.front.connections) == 2)
        assert redirected(stage.connect_plain())
        for sock in silent:
            sock.close()

    def test_requests_in_flight_are_never_shed(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        """Then the new client is turned away, and that is said once, with the count."""
        backend = stage.backend()
        stage.serve(backend, limits={"connections": 2})
        served = [in_flight(stage, backend) for _ in range(2)]
        assert not redirected(stage.connect_plain())
        assert not redirected(stage.connect_plain())
        for client, upstream in served:
            upstream.send(OK)
            assert client.message().body == b"ok"
        stage.wait(lambda: "connections.turned_away" in caplog.messages)  # the tick says it
        [record] = [record for record in caplog.records if record.message == "connections.turned_away"]
        assert (vars(record)["count"], vars(record)["limits.connections"]) == (2, 2)


class TestPerClient:
    def test_so_many_and_no_more_until_one_is_closed(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"connections_per_client": 2})
        first, second = stage.connect_plain(), stage.connect_plain()
        assert redirected(first)
        assert redirected(second)
        assert not redirected(stage.connect_plain())
        first.close()
        stage.wait(lambda: len(stage.front.connections) == 1)
        assert redirected(stage.connect_plain())

    @pytest.mark.parametrize("limits", [{"connections_per_client": 2}, {"connections": 2}])
    def test_a_burst_is_counted_while_it_comes_in(self, stage: Stage, limits: dict[str, int]) -> None:
        """However many wait in the queue when the worker looks: none slips in before the others are counted."""
        stage.serve(stage.backend(), limits=limits)
        busy = threading.Event()
        stage.loop.call_soon_threadsafe(busy.wait, 5)
        burst = [stage.connect_plain() for _ in range(12)]
        busy.set()
        stage.wait(lambda: len(stage.front.connections) > 0)
        assert 0 < sum(redirected(client) for client in burst) <= 2

    def test_other_addresses_are_not_concerned(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"connections_per_client": 1})
        assert redirected(stage.connect_plain())
        other = socket.create_connection(("127.0.0.1", stage.http_port), source_address=("127.0.0.2", 0))
        assert redirected(Peer(other))
        other.close()

    def test_a_load_balancer_is_not_the_client(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        """Behind the PROXY protocol those count whom it names; its own health checks (UNKNOWN) do not."""
        stage.serve(stage.backend(), limits={"connections_per_client": 2}, listen={"proxy_protocol": ["127.0.0.0/8"]})
        first, second, third = (proxied(stage, "198.51.100.7") for _ in range(3))
        assert [redirected(first), redirected(second), redirected(third)] == [True, True, False]
        assert all(redirected(proxied(stage, f"198.51.100.{n}")) for n in range(8, 11))
        assert all(redirected(proxied(stage)) for _ in range(3))
        first.close()
        stage.wait(lambda: len(stage.front.connections) == 7)
        assert redirected(proxied(stage, "198.51.100.7"))
        stage.wait(lambda: "connections.turned_away" in caplog.messages)  # the tick says it
        [record] = [record for record in caplog.records if record.message == "connections.turned_away"]
        assert (vars(record)["count"], vars(record)["last_client"]) == (1, "198.51.100.7")
        assert "tls.handshake_failed" not in caplog.messages

    def test_one_too_many_behind_a_load_balancer_gets_no_handshake(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"connections_per_client": 1}, listen={"proxy_protocol": ["127.0.0.0/8"]})
        assert redirected(proxied(stage, "198.51.100.7"))
        with stage.dial() as raw:
            raw.sendall(b"PROXY TCP4 198.51.100.7 192.0.2.1 5000 443\r\n")
            with pytest.raises(ConnectionResetError):
                raw.recv(1)

    @pytest.mark.parametrize("header", [False, True])
    def test_a_trusted_proxy_brings_as_many_as_it_likes(self, stage: Stage, header: bool) -> None:
        stage.serve(
            stage.backend(),
            limits={"connections_per_client": 1},
            server={"trusted_proxies": ["198.51.100.7", "127.0.0.1"]},
            listen={"proxy_protocol": ["127.0.0.1"] if header else []},
        )
        proxies = [proxied(stage, "198.51.100.7") if header else stage.connect_plain() for _ in range(3)]
        assert all(redirected(proxy) for proxy in proxies)
        proxies[0].close()
        stage.wait(lambda: len(stage.front.connections) == 2)


def test_running_out_of_file_descriptors_is_said_once_and_survived(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """For real: the limit is lowered until accept fails, and lifted again. Connections that are open are served on."""
    stage.serve(stage.backend())
    known = stage.connect_plain()
    assert redirected(known)
    late = [socket.socket() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        for sock in late:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", stage.http_port))
        stage.wait(lambda: "listener.exhausted" in caplog.messages)
        begun = time.process_time()
        time.sleep(0.25)  # two more tries
        assert time.process_time() - begun < 0.15  # it waits, it does not spin
        assert redirected(known)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(redirected(Peer(sock)) for sock in late)
    assert caplog.messages.count("listener.exhausted") == 1
    for sock in late:
        sock.close()


def test_what_waits_in_the_queue_when_a_worker_leaves_is_served_by_another(stage: Stage) -> None:
    """The listening socket is shared; closing one worker's copy of it refuses nobody."""
    stage.serve(stage.backend())
    shared = stage.listeners[1].dup()
    stage.begin_drain(1.0).result(5)
    with shared, socket.create_connection(("127.0.0.1", stage.http_port)):
        accepted, _ = shared.accept()
        accepted.close()
