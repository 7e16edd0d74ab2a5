"""The port that `admin.metrics` opens: /metrics, /healthz and /readyz for scrapers and orchestrators, nothing else.

Plain HTTP for whoever can connect, so what it answers is only what such clients need; every other route of the admin
API is not there. Knows sockets and which paths are public; the answers are the admin API's. Rules: what the port is
refused for is said before anything else is done; a reload that wants another port has it before the old one goes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tlsproxy.runtime import adminhttp
from tlsproxy.runtime.adminhttp import Answer, Handler, LastCall, Lines, Request
from tlsproxy.runtime.generations import NothingServes
from tlsproxy.runtime.sockets import ListenError, bind_entry, while_running
from tlsproxy.settings import Settings

MAX_CLIENTS: Final = 16
_MOST_CONNECTIONS: Final = 64  # with those that are being told that there are too many

_PUBLIC: Final = frozenset({("metrics",), ("healthz",), ("readyz",)})
_NOT_HERE: Final = "there is nothing but /metrics, /healthz and /readyz on this port"
_READ_ONLY: Final = "this port only answers GET and HEAD"
_FULL: Final = f"there are {MAX_CLIENTS} clients of this port already. Try again in a moment."


@dataclass(frozen=True)
class _Opened:
    """Sockets that are bound, and what will accept from them."""

    address: str
    sockets: tuple[socket.socket, ...] = ()
    servers: tuple[asyncio.Server, ...] = ()

    def close(self) -> None:
        for server in self.servers:
            server.close()  # and with it the socket
        for sock in self.sockets:
            sock.close()


class MetricsPort:
    """See the module's text. A `reload.Movable`. `answer` is the admin API's.

    Mutable: `_open` (what is listened on), `_inherited` (of the supervisor before us, until it is used), `_clients`,
    `_last_call` (made once).
    """

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self._open = _Opened("")
        self._inherited = _Opened("")
        self._clients: set[asyncio.Task[None]] = set()
        self._last_call = LastCall()

    def __repr__(self) -> str:
        return f"<MetricsPort {self._open.address or 'closed'} {len(self._clients)} clients>"

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Of the sockets that the next supervisor is to `inherit`, with the `address`."""
        return tuple(sock.fileno() for sock in self._open.sockets)

    @property
    def address(self) -> str:
        """As the configuration says it; "" while there is no port."""
        return self._open.address

    @property
    def bound(self) -> tuple[tuple[str, int], ...]:
        """Where it really listens: port 0 lets the kernel choose."""
        return tuple(sock.getsockname()[:2] for sock in self._open.sockets)

    def inherit(self, address: str, descriptors: Sequence[int]) -> None:
        """Take over what the supervisor before us listens on, for a `prepare` that wants the same address."""
        sockets = tuple(socket.socket(fileno=number) for number in descriptors)
        for sock in sockets:
            sock.set_inheritable(False)
            sock.setblocking(False)
        self._inherited = _Opened(address, sockets)

    async def prepare(self, settings: Settings) -> Move | None:
        """Bind what these settings want; None if nothing changes. Raises ListenError."""
        wanted = settings.admin.metrics
        if wanted == self._open.address:
            return None
        sockets = self._take_inherited(wanted) or _bind(wanted)
        servers = [await asyncio.start_server(self._welcome, sock=sock, start_serving=False) for sock in sockets]
        return Move(self, _Opened(wanted, sockets, tuple(servers)))

    async def exchange(self, opened: _Opened) -> None:
        """Accept there from now on, and no longer where it was. Clients stay."""
        before, self._open = self._open, opened
        before.close()
        for server in opened.servers:
            await server.start_serving()

    def leave(self) -> None:
        """Take no more clients, and have those who are there ask who listens there too."""
        self.close()
        self._last_call.make()

    def close(self) -> None:
        """Take no more clients. Those who are there stay until `kill`."""
        self._open.close()
        self._inherited.close()
        self._open = self._inherited = _Opened("")

    async def kill(self) -> None:
        """Part with everybody."""
        self.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def answer(self, request: Request) -> Answer | Lines:
        """Answer one request."""
        if request.path not in _PUBLIC:
            return Answer(404, {"error": _NOT_HERE})
        if request.method not in ("GET", "HEAD"):
            return Answer(405, {"error": _READ_ONLY}, (("Allow", "GET, HEAD"),))
        try:
            return await self._answer(Request("GET", request.path, accept=request.accept))
        except NothingServes as error:
            return Answer(503, {"error": str(error)})

    def _take_inherited(self, wanted: str) -> tuple[socket.socket, ...]:
        inherited, self._inherited = self._inherited, _Opened("")
        if wanted and wanted == inherited.address:
            return inherited.sockets
        inherited.close()
        return ()

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) < MAX_CLIENTS:
            serving = adminhttp.serve(reader, writer, self.answer, is_public=True, last_call=self._last_call)
        elif len(self._clients) >= _MOST_CONNECTIONS:
            writer.transport.abort()  # a flood: the supervisor needs its descriptors for the children
            return
        else:
            serving = adminhttp.turn_away(reader, writer, 503, _FULL)
        client = asyncio.create_task(serving)
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)


@dataclass(frozen=True)
class Move:
    """A port that is bound and not yet served. A `reload.Move`."""

    port: MetricsPort
    opened: _Opened

    async def commit(self) -> None:
        await self.port.exchange(self.opened)

    def undo(self) -> None:
        self.opened.close()


def _bind(address: str) -> tuple[socket.socket, ...]:
    if not address:
        return ()
    try:
        return tuple(listener.socket for listener in bind_entry("http", address, 0, 1))
    except ListenError as error:
        raise ListenError(f"admin.metrics: {while_running(error)}") from error  # no option leads here, ever
