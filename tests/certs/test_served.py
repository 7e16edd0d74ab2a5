"""What is served is seen as a client sees it: by name, after the PROXY line, from every worker."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.store.pki import Issued, issue, write_pair
from tlsproxy.certs import served
from tlsproxy.certs.served import Mismatch, Result, Served, Unreachable

HOST = "api.example.com"
OLD, NEW = issue(HOST), issue(HOST)


def serial(issued: Issued) -> str:
    return f"{issued.certificate.serial_number:x}"


class Listener:
    """A TLS server whose connections are served by turns, as by workers that share a listening socket.

    `choose` returns the pair to serve for the n-th connection and the SNI of its client, or None to refuse.
    """

    def __init__(self, folder: Path, choose: Callable[[int, str], Issued | None], family: int = socket.AF_INET) -> None:
        self.names: list[str] = []
        self.first_lines: list[bytes] = []
        self.reads_proxy_line = False
        self._folder, self._choose = folder, choose
        self._socket = socket.socket(family)
        self._socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self._socket.listen()
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        if self.reads_proxy_line:
            line = b""
            while not line.endswith(b"\r\n"):
                line += connection.recv(1)
            self.first_lines.append(line)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._swap
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    def _swap(self, tls: ssl.SSLObject, name: str, context: ssl.SSLContext) -> int | None:
        self.names.append(name or "")
        issued = self._choose(len(self.names), name or "")
        if issued is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        swapped = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        write_pair(self._folder, issued)
        swapped.load_cert_chain(self._folder / "chain.pem", self._folder / "key.pem")
        tls.context = swapped
        return None


Make = Callable[..., Listener]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Make]:
    made: list[Listener] = []

    def make(choose: Callable[[int, str], Issued | None], family: int = socket.AF_INET) -> Listener:
        made.append(Listener(tmp_path, choose, family))
        return made[-1]

    yield make
    for each in made:
        each.close()


def look(addresses: Sequence[str], host: str = HOST, networks: Sequence[str] = (), deadline: float = 5.0) -> Result:
    return asyncio.run(served.check(addresses, host, serial(NEW), networks, deadline=deadline))


def test_the_new_certificate_is_served(listen: Make) -> None:
    listener = listen(lambda number, name: NEW)
    for address in (f"127.0.0.1:{listener.port}", f"0.0.0.0:{listener.port}", f":{listener.port}"):
        assert isinstance(look([address]), Served)
    assert set(listener.names) == {HOST}
    assert len(listener.names) == 3 * served.TRIES


def test_the_first_address_that_answers_counts(listen: Make) -> None:
    listener = listen(lambda number, name: NEW)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        assert look([dead, f"127.0.0.1:{listener.port}"]) == Served(f"127.0.0.1:{listener.port}")


def test_a_worker_that_has_not_caught_up_is_waited_for(listen: Make) -> None:
    listener = listen(lambda number, name: OLD if number in (1, 3, 6) else NEW)
    assert isinstance(look([f"127.0.0.1:{listener.port}"]), Served)
    assert len(listener.names) == 6 + served.TRIES


def test_an_old_certificate_that_stays_is_told(listen: Make) -> None:
    listener = listen(lambda number, name: OLD if number % 2 else NEW)
    address = f"127.0.0.1:{listener.port}"
    assert look([address], deadline=2.0) == Mismatch(address, serial(OLD))


def test_the_proxy_line_is_sent_where_it_is_demanded(listen: Make) -> None:
    listener = listen(lambda number, name: NEW)
    listener.reads_proxy_line = True
    assert isinstance(look([f"127.0.0.1:{listener.port}"], networks=["10.0.0.0/8", "127.0.0.0/8"]), Served)
    assert set(listener.first_lines) == {b"PROXY UNKNOWN\r\n"}
    listener.reads_proxy_line = False
    assert isinstance(look([f"127.0.0.1:{listener.port}"], networks=["10.0.0.0/8", "::/0"]), Served)


@pytest.mark.parametrize(
    ("host", "name"),
    [("*.example.com", "certificate-check.example.com"), ("192.0.2.7", ""), ("2001:db8::7", "")],
)
def test_which_name_is_asked_for(host: str, name: str, listen: Make) -> None:
    listener = listen(lambda number, name: NEW)
    assert isinstance(look([f"127.0.0.1:{listener.port}"], host), Served)
    assert set(listener.names) == {name}


def test_why_nothing_is_seen(listen: Make) -> None:
    assert look([]) == Unreachable("there is no https listener")
    refusing = listen(lambda number, name: None)
    result = look([f"127.0.0.1:{refusing.port}"])
    assert isinstance(result, Unreachable)
    assert "the handshake failed (tlsv1 unrecognized name" in result.reason
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert look([address]) == Unreachable(f"{address}: Connection refused")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert look([address], deadline=0.2) == Unreachable(f"{address}: no handshake in time")


def test_over_ipv6(listen: Make) -> None:
    listener = listen(lambda number, name: NEW, socket.AF_INET6)
    assert look([f"[::]:{listener.port}"]) == Served(f"[::]:{listener.port}")
    assert isinstance(look([f"[::1]:{listener.port}"], networks=["10.0.0.0/8"]), Served)
