"""A worker in a thread that speaks the smallest protocol there is, and certificates for it.

The driver echoes what it gets; lines that begin with `!` make it use the rest of its stream.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tlsproxy.proxy.connection import Connection
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.plain import PlainConnection
from tlsproxy.proxy.sitetls import SiteTls
from tlsproxy.proxy.stream import ClientStream, ConnectionInfo, Driver, Network
from tlsproxy.proxy.tls import TlsConnection
from tlsproxy.store.bundle import Bundle

T = TypeVar("T")


def bundle(authority: trustme.CA, *names: str, rsa: bool = False) -> Bundle:
    leaf = authority.issue_cert(*names, key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA)
    chain = [x509.load_pem_x509_certificate(blob.bytes()) for blob in leaf.cert_chain_pems]
    key: Any = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return Bundle.build(chain, key, "file")


class EchoDriver:
    """Commands: !close, !finish, !abort, !big N (write N bytes), !raise, !pause (stop reading)."""

    def __init__(self, stream: ClientStream, events: list[str]) -> None:
        self.stream = stream
        self.events = events
        self.ticks = 0
        self.idle_since: float | None = None

    def sites_in_flight(self) -> tuple[()]:
        return ()

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"!"):
            self.stream.write(data)
            return
        command, *arguments = data.decode().split()
        match command:
            case "!close":
                self.stream.write(b"bye")
                self.stream.close()
            case "!finish":
                self.stream.write(b"bye")
                self.stream.finish()
            case "!abort":
                self.stream.write(b"half")
                self.stream.abort()
            case "!big":
                self.stream.write(b"x" * int(arguments[0]))
            case "!bigclose":
                self.stream.write(b"x" * int(arguments[0]))
                self.stream.close()
            case "!two":
                self.stream.write(b"one ")
                self.stream.write(b"two")
            case "!pause":
                self.stream.pause_reading()
                self.stream.write(b"paused")
            case _:
                raise RuntimeError("asked to")

    def eof_received(self) -> None:
        self.events.append("truncated" if self.stream.truncated else "eof")
        self.stream.write(b"end")
        self.stream.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def check_deadline(self, now: float) -> None:
        self.ticks += 1

    def drain(self) -> None:
        self.events.append("drain")
        self.stream.close()


class Everybody(set[Connection]):
    """A registry without limits."""

    def identify(self, connection: Connection, client: str, /) -> bool:
        return True


class EchoWorker:
    """Serves on 127.0.0.1 from a thread with its own uvloop; implements ConnectionOwner."""

    def __init__(
        self,
        sites: Iterable[SiteTls] = (),
        *,
        contexts: ContextTable | None = None,
        tls: bool = True,
        proxy_networks: tuple[Network, ...] = (),
        default_host: str = "",
        send_buffer: int = 0,
    ) -> None:
        self.contexts = contexts or ContextTable(sites, default_host=default_host)
        self.connections = Everybody()
        self.handshake_timeout = 10.0
        self.write_idle = 60.0
        self.proxy_networks = proxy_networks
        self.failures: list[tuple[str, str, str]] = []
        self.events: list[str] = []
        self.drivers: list[EchoDriver] = []
        self.ended = threading.Condition()
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._factory = TlsConnection if tls else PlainConnection
        self._send_buffer = send_buffer
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> EchoWorker:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            self.loop.create_server(lambda: self._factory(self), "127.0.0.1", 0), self.loop
        )
        self._server = server.result(5)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._server.close)
        self.each(lambda connection: connection.abort())
        self.wait(lambda: not self.connections)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run in the worker's loop and return the result."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    def tick(self, after: float = 0.0) -> None:
        """What the worker does every second, as if `after` seconds had gone by."""
        now = self.loop.time() + after
        self.each(lambda connection: connection.check_deadline(now))

    def each(self, method: Callable[[Connection], None]) -> None:
        def run() -> None:
            for connection in list(self.connections):
                method(connection)

        self.call(run)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the loop has done what makes the condition true."""

        async def watch() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(watch(), self.loop).result(5)

    # ConnectionOwner

    def make_driver(self, stream: ClientStream) -> Driver:
        driver = EchoDriver(stream, self.events)
        self.drivers.append(driver)
        return driver

    def handshake_failed(self, reason: str, info: ConnectionInfo, sni: str, *, is_said: bool = False) -> None:
        if not is_said:
            self.failures.append((reason, info.client, sni))


def client_context(authority: trustme.CA, version: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if version:
        context.minimum_version = context.maximum_version = {
            "1.2": ssl.TLSVersion.TLSv1_2,
            "1.3": ssl.TLSVersion.TLSv1_3,
        }[version]
    return context
