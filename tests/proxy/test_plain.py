from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from tests.proxy.echo import EchoWorker


@pytest.fixture(name="worker")
def _worker() -> Iterator[EchoWorker]:
    with EchoWorker(tls=False) as worker:
        yield worker


def connect(worker: EchoWorker) -> socket.socket:
    return socket.create_connection(("127.0.0.1", worker.port), timeout=5)


def read_all(client: socket.socket) -> bytes:
    got = bytearray()  # joining bytes would be quadratic
    while more := client.recv(65_536):
        got += more
    return bytes(got)


def test_echo_and_what_the_driver_knows(worker: EchoWorker) -> None:
    with connect(worker) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        info = worker.drivers[0].stream.info
        assert (info.scheme, info.tls, info.sni, info.policy) == ("http", "", "", None)
        assert (info.client, info.client_port, info.server_port) == (*client.getsockname(), worker.port)


def test_close_sends_what_is_written(worker: EchoWorker) -> None:
    with connect(worker) as client:
        client.sendall(b"!bigclose 10000000")
        assert len(read_all(client)) == 10_000_000
    worker.wait(lambda: worker.events[-1:] == ["lost"])


def test_abort_can_not_pass_for_an_end(worker: EchoWorker) -> None:
    with connect(worker) as client:
        client.sendall(b"!abort")
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_finish_lets_the_answer_arrive(worker: EchoWorker) -> None:
    with connect(worker) as client:
        client.sendall(b"!finish")
        worker.wait(lambda: "CLOSING" in repr(next(iter(worker.connections))))
        client.sendall(b"x" * 500_000)
        assert read_all(client) == b"bye"


def test_a_fin_is_an_end(worker: EchoWorker) -> None:
    with connect(worker) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"end"
    worker.wait(lambda: worker.events == ["eof", "lost"])


def test_an_exception_costs_one_connection(worker: EchoWorker, caplog: pytest.LogCaptureFixture) -> None:
    with connect(worker) as other, connect(worker) as client:
        client.sendall(b"!raise")
        with pytest.raises(ConnectionResetError):
            read_all(client)
        other.sendall(b"x")
        assert other.recv(1) == b"x"
    assert [record.message for record in caplog.records] == ["connection.crashed"]


def test_the_driver_gets_its_tick(worker: EchoWorker) -> None:
    with connect(worker):
        worker.wait(lambda: len(worker.drivers) == 1)
        worker.tick()
        assert worker.drivers[0].ticks == 1


class TestProxyProtocol:
    @pytest.fixture(name="worker")
    def _worker(self) -> Iterator[EchoWorker]:
        with EchoWorker(tls=False, proxy_networks=(ip_network("127.0.0.0/8"),)) as worker:
            yield worker

    def test_gives_the_client_before_the_driver_is_made(self, worker: EchoWorker) -> None:
        with connect(worker) as client:
            client.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 80\r\n")
            worker.wait(lambda: len(worker.drivers) == 1)
            info = worker.drivers[0].stream.info
            assert (info.client, info.client_port, info.server_port) == ("2001:db8::7", 56324, 80)
            client.sendall(b"x")
            assert client.recv(1) == b"x"

    def test_bytes_behind_the_header_are_the_driver_s(self, worker: EchoWorker) -> None:
        with connect(worker) as client:
            client.sendall(b"PROXY UNKNOWN\r\nhello")
            assert client.recv(5) == b"hello"

    def test_is_owed_and_in_time(self, worker: EchoWorker) -> None:
        with connect(worker) as forger, connect(worker) as silent:
            forger.sendall(b"GET / HTTP/1.1\r\n")
            with pytest.raises(ConnectionResetError):
                read_all(forger)
            worker.wait(lambda: len(worker.connections) == 1)
            worker.tick(after=10.5)
            with pytest.raises(ConnectionResetError):
                read_all(silent)
        assert [reason for reason, *_ in worker.failures] == ["no PROXY header", "timeout"]
