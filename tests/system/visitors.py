"""Clients that do not stop while something else happens, and remember everything that went wrong for them.

    with visiting(proxy, "a.test", trust) as visits: …         # a new connection for each request
    with staying(proxy, "a.test", trust) as requests: …        # many requests on one connection that must not end
    with talking(proxy, "a.test", trust) as words: …           # a WebSocket

Each is a thread. When the block ends, at least one more round is made, and the block fails if any round has failed.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cryptography import x509
from websockets.sync.client import connect

from tests.system.running import PATIENCE, Proxy, until

Round = Callable[[], None]


@dataclass
class Tally:
    """How it went so far: `serials` are those of the certificates that were served, in order, each once.

    `renewed` counts the connections that ended as they may, and were followed by another one.
    """

    good: int = 0
    renewed: int = 0
    failures: list[str] = field(default_factory=list)
    serials: list[int] = field(default_factory=list)

    def saw(self, connection: ssl.SSLSocket) -> None:
        serial = serial_of(connection)
        if serial not in self.serials:
            self.serials.append(serial)


def serial_of(connection: ssl.SSLSocket) -> int:
    return certificate_of(connection).serial_number


def certificate_of(connection: ssl.SSLSocket) -> x509.Certificate:
    return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")


@contextlib.contextmanager
def visiting(proxy: Proxy, host: str, trust: ssl.SSLContext) -> Iterator[Tally]:
    """Connect, ask, leave; again and again. The certificate must be one that `trust` accepts for the host."""
    tally = Tally()

    def visit() -> None:
        with _connection(proxy, host, trust, tally) as client:
            _ask(client)

    with repeating(visit, tally):
        yield tally


@contextlib.contextmanager
def staying(proxy: Proxy, host: str, trust: ssl.SSLContext) -> Iterator[Tally]:
    """Ask again and again on one connection."""
    tally = Tally()
    with _connection(proxy, host, trust, tally) as client, repeating(lambda: _ask(client), tally):
        yield tally


@contextlib.contextmanager
def talking(proxy: Proxy, host: str, trust: ssl.SSLContext) -> Iterator[Tally]:
    """Say something on one WebSocket and hear it again, for as long as the block lasts."""
    tally = Tally()
    sock = proxy.open(host, trust)
    tally.saw(sock)
    with connect(f"ws://{host}:{proxy.port}/ws/echo", sock=sock, proxy=None, open_timeout=PATIENCE) as socket:
        socket.recv(PATIENCE)  # it greets

        def say() -> None:
            socket.send(f"word {tally.good}")
            assert socket.recv(PATIENCE) == f"word {tally.good}"

        with repeating(say, tally):
            yield tally


@contextlib.contextmanager
def _connection(proxy: Proxy, host: str, trust: ssl.SSLContext, tally: Tally) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(proxy.connection(host, trust)) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        tally.saw(client.sock)
        yield client


def _ask(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/hello")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"hello")


@contextlib.contextmanager
def repeating(act: Round, tally: Tally, pause: float = 0.01) -> Iterator[None]:
    """Act again and again, with a pause: one of two processors is for those who are visited."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set() and len(tally.failures) < 5:
            try:
                act()
                tally.good += 1
            except Exception as error:  # noqa: BLE001 - all of them count
                tally.failures.append(repr(error))
            over.wait(pause)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
        done = tally.good
        until(lambda: tally.good > done or tally.failures, "one more round")
    finally:
        over.set()
        thread.join(PATIENCE)
    assert tally.failures == []
