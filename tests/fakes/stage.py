"""A whole worker on stage: a Front in a thread with its own uvloop, backends and clients around it, all on 127.0.0.1.

Certificates are trustme's and lie in a store in memory; the access log is a file. At the end everything is closed, and
an exception that reached the event loop fails the test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.fakes.backend import Backend
from tests.fakes.frames import FramePeer
from tests.fakes.peer import PATIENCE, Peer
from tlsproxy.proxy import front
from tlsproxy.proxy.front import Front
from tlsproxy.settings import Settings
from tlsproxy.store.base import open_store
from tlsproxy.store.bundle import Bundle

T = TypeVar("T")
Json = dict[str, Any]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@cache
def http2_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    context.set_alpn_protocols(["h2"])
    return context


def issue(*hosts: str) -> Bundle:
    leaf = authority().issue_cert(*hosts, key_type=trustme.KeyType.ECDSA)
    chain = [x509.load_pem_x509_certificate(blob.bytes()) for blob in leaf.cert_chain_pems]
    key: Any = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return Bundle.build(chain, key, "file")


issued = cache(issue)


class Stage:
    """Use as a context; `serve` starts the Front."""

    address = "127.0.0.1"  # of the Front; may be changed before `serve`
    front: Front
    port: int
    http_port: int
    listeners: tuple[socket.socket, socket.socket]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / "access.log"
        self.store = open_store("memory:")
        self.wanted: list[tuple[str, str]] = []  # what the certifier would be asked for: host, client
        self.crashes: list[Json] = []
        self._draining: Future[int] | None = None
        self._stack = ExitStack()
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.crashes.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, name="stage", daemon=True)

    def __enter__(self) -> Stage:
        self._thread.start()
        # Ten times as often as in life: many tests wait for a tick.
        self._stack.enter_context(mock.patch.object(front, "_TICK", 0.05))
        self._stack.callback(self._stop_loop)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        if exc[0] is None:
            assert self.crashes == []

    # --- the cast -----------------------------------------------------------------------------------------------------

    def backend(self, path: Path | None = None, *, receive_buffer: int = 0, port: int = 0) -> Backend:
        return self._stack.enter_context(Backend(path, receive_buffer=receive_buffer, port=port))

    def restart(self, backend: Backend) -> Backend:
        """Another one in the place of `backend`, which refuses connections by now."""
        return self.backend(port=int(backend.url.rpartition(":")[2]))

    def serve(
        self,
        *backends: Backend,
        route: Mapping[str, Any] | None = None,
        sites: Sequence[Json] = (),
        log: Mapping[str, Any] | None = None,
        listen: Mapping[str, Any] | None = None,
        **sections: Mapping[str, Any],
    ) -> Front:
        """Start a Front with one site a.test whose one route has these backends, or with `sites`."""
        self._family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        https, http = (socket.create_server((self.address, 0), family=self._family, backlog=1024) for _ in range(2))
        self.listeners = (https, http)
        self.port, self.http_port = https.getsockname()[1], http.getsockname()[1]
        urls = [backend.url for backend in backends]
        sites = sites or [{"hosts": ["a.test"], "routes": [{"backends": urls, **(route or {})}]}]
        settings = Settings.model_validate(
            {
                "listen": {
                    "https": [f"127.0.0.1:{self.port}"],
                    "http": [f"127.0.0.1:{self.http_port}"],
                    **(listen or {}),
                },
                "sites": [{"certificate": "internal", **site} for site in sites],
                "log": {"access": str(self.log_path), "format": "json", **(log or {})},
                **sections,
            }
        )
        for site in settings.sites:
            if site.certificate == "internal":
                self.store.put(f"internal/{site.hosts[0]}", issued(*site.hosts))
        self.front = self.call(
            lambda: Front(
                settings,
                store=self.store,
                ticket_secret=b"s" * 32,
                loop=self.loop,
                want=lambda host, client: self.wanted.append((host, client)),
            )
        )
        self.call(lambda: self.front.start([("https", https), ("http", http)]))
        self._stack.callback(self._end_front)
        return self.front

    def connect(self, host: str = "a.test", *, receive_buffer: int = 0, source: str = "") -> Peer:
        """A TLS client that trusts the stage's authority."""
        raw = self.dial(receive_buffer, source)
        client = client_context().wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False)
        return self._closed_at_the_end(Peer(client))

    def connect_http2(
        self,
        host: str = "a.test",
        settings: Mapping[int, int] | None = None,
        *,
        begin: bool = True,
        receive_buffer: int = 0,
        source: str = "",
    ) -> FramePeer:
        """A client that speaks HTTP/2 with these SETTINGS; `begin=False`: that has said nothing yet."""
        raw = self.dial(receive_buffer, source)
        peer = FramePeer.over_tls(raw, http2_context(), host, settings, begin=begin)
        self._stack.callback(peer.close)
        return peer

    def dial(self, receive_buffer: int = 0, source: str = "") -> socket.socket:
        """A TCP connection to the https listener. The caller closes it."""
        return self._dial(self.port, receive_buffer, source)

    def connect_plain(self) -> Peer:
        """A client of the http listener."""
        return self._closed_at_the_end(Peer(self._dial(self.http_port, 0)))

    # --- the direction ------------------------------------------------------------------------------------------------

    def call(self, function: Callable[[], T]) -> T:
        """Run in the Front's loop and return the result."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def tick(self, after: float = 0.0) -> None:
        """What the worker does at every tick to its connections and pools, as if `after` seconds had gone by."""

        def run() -> None:
            for connection in self.front.connections:
                connection.check_deadline(self.loop.time() + after)
            for backend in self.front._backends.values():
                backend.close_idle(self.loop.time() + after)

        self.call(run)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the loop has done what makes the condition true."""
        limit = time.monotonic() + PATIENCE
        while not self.call(condition):
            assert time.monotonic() < limit, "it never became true"

    def pool(self, url: str) -> str:
        """What the worker knows of a backend: its active requests, idle connections and failures."""
        return self.call(lambda: repr(self.front._backends[url]))

    def wait_for_pool(self, url: str, text: str) -> None:
        """Wait until `text` is part of it."""
        self.wait(lambda: text in repr(self.front._backends[url]))

    def begin_drain(
        self, timeout: float = 3.0, *, last: bool = False, unchanged: Sequence[str] = (), streams: float = 0.0
    ) -> Future[int]:
        """Start to drain; the result, how many were cut, comes with the end."""
        drain = self.front.drain(timeout, last=last, unchanged=unchanged, streams=streams)
        self._draining = asyncio.run_coroutine_threadsafe(drain, self.loop)
        self.tick()
        return self._draining

    def log(self, count: int = 1) -> list[Json]:
        """The lines of the access log, once there are `count`."""
        limit = time.monotonic() + PATIENCE
        while True:
            self.call(self.front.reopen_logs)  # hands over what has gathered
            text = self.log_path.read_text() if self.log_path.exists() else ""
            lines = text.split("\n")[:-1]  # a long line may be seen half written
            if len(lines) >= count:
                assert len(lines) == count, lines
                return [json.loads(line) for line in lines]
            assert time.monotonic() < limit, lines

    def _dial(self, port: int, receive_buffer: int, source: str = "") -> socket.socket:
        sock = socket.socket(self._family)
        sock.settimeout(PATIENCE)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            if source:
                sock.bind((source, 0))
            sock.connect((self.address, port))
        except OSError:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _closed_at_the_end(self, peer: Peer) -> Peer:
        self._stack.callback(peer.close)
        return peer

    def _end_front(self) -> None:
        (self._draining or self.begin_drain(0.0)).result(PATIENCE)

    def _stop_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
