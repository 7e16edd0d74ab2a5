"""What every client connection has, sealed or not: its transport, its driver, its life, its deadlines, its ways to end.

`TlsConnection` and `PlainConnection` add how bytes become plain. Knows sockets and the PROXY header, neither TLS nor
HTTP. Rule: no exception leaves a callback; it is logged once and costs this connection alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from abc import ABC, abstractmethod
from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from tlsproxy.proxy.stream import ConnectionInfo
from tlsproxy.wire.proxy_protocol import ProxyProtocolError, parse_proxy_header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tlsproxy.proxy.router import Site
    from tlsproxy.proxy.stream import ConnectionOwner, Driver, Network

logger = logging.getLogger(__name__)

WRITE_HIGH: Final = 65_536
WRITE_LOW: Final = 16_384
LINGER_SECONDS: Final = 2.0
_CLOSED_BY_PEER: Final = (7, 8)  # TCP_CLOSE and TCP_CLOSE_WAIT of the kernel's tcp_states.h
LINGER_BYTES: Final = 1_048_576
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class State(Enum):
    """HELLO: deciding by the first bytes what this is. WAITING: for a certificate that is being obtained.

    CLOSING: nothing goes up or down any more but what is queued.
    """

    HELLO = 1
    WAITING = 2
    HANDSHAKE = 3
    OPEN = 4
    CLOSING = 5
    CLOSED = 6


# A global costs half of what looking a member up on its class does, and the pump compares at every read and write.
HELLO, WAITING, HANDSHAKE, OPEN, CLOSING, CLOSED = State


class Connection(asyncio.Protocol, ABC):
    """One client connection. Mutable: everything below.

    The subclass implements `data_received`, `write`, `_started` (the first bytes are there), `_seal` (say in its own
    protocol that no more will be written) and `_release` (let go of what it holds).
    """

    __slots__ = (
        "_accepted",
        "_acknowledged",
        "_deadline",
        "_discarded",
        "_draining",
        "_driver",
        "_early",
        "_ended",
        "_linger_until",
        "_owner",
        "_reading_paused",
        "_state",
        "_transport",
        "_wants_proxy_header",
        "_written",
        "info",
        "truncated",
        "write_stalled_since",
    )
    scheme: Literal["https", "http"]

    def __init__(self, owner: ConnectionOwner, accepted: Accepted | None = None) -> None:
        """`accepted` is what the listener knows already; without it the transport is asked."""
        self._owner = owner
        self._accepted = accepted
        self._state = HELLO
        self._driver: Driver | None = None
        self._early = b""
        self._ended = False  # the client will send no more
        self._draining = False
        self._wants_proxy_header = False
        self._deadline = 0.0
        self._linger_until = 0.0
        self._discarded = 0
        self._written = 0  # bytes given to the transport
        self._acknowledged = 0  # of those, how many the client's kernel had at the last look
        self.write_stalled_since = 0.0  # 0 = not stalled
        self._reading_paused = False
        self.truncated = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.name} {self.info.client}:{self.info.client_port}>"

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        accepted = self._accepted = self._accepted or _ask(transport)
        client, client_port = accepted.peer
        self.info = ConnectionInfo(client, client_port, accepted.server_port, self.scheme)
        networks = self._owner.proxy_networks
        self._wants_proxy_header = bool(networks) and _is_member(self.info.client, networks)
        self._deadline = self._owner.loop.time() + self._owner.handshake_timeout
        self._owner.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._early or self._state is HANDSHAKE:
            self._guard(self._handshake_failed, "connection lost")
        self._state = CLOSED
        self._owner.connections.discard(self)
        driver, self._driver = self._driver, None
        self._release()
        if driver is not None:
            self._guard(driver.connection_lost, exc)

    def eof_received(self) -> bool:
        """Keep the way to the client open (True) while a driver may still answer."""
        if self._state is not OPEN:
            return False
        self._end(truncated=self.scheme == "https")
        return True

    def pause_writing(self) -> None:
        if self._driver is not None and self._state is OPEN:
            self._guard(self._driver.pause_writing)

    def resume_writing(self) -> None:
        if self._driver is not None and self._state is OPEN:
            self._guard(self._driver.resume_writing)

    # -- called by the driver

    def pause_reading(self) -> None:
        if self._state is OPEN and not self._ended:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._state is OPEN and not self._ended:
            self._reading_paused = False
            self._transport.resume_reading()

    def close(self, last: bytes = b"") -> None:
        if self._state is CLOSING or self._state is CLOSED:
            return
        if last:
            self._write_last(last)
        self._seal()
        self._state = CLOSING
        self._transport.close()

    def finish(self) -> None:
        if self._state is CLOSING or self._state is CLOSED:
            return
        if self._ended:  # nothing can come that would have to be discarded
            self.close()
            return
        self._seal()
        self._linger()

    def abort(self) -> None:
        """Reset: a FIN could pass for the end of an answer that ends with the connection (RFC 9112 8)."""
        if self._state is CLOSED:
            return
        self._state = CLOSING
        if not self._transport.is_closing():
            self._set_option(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    # -- called by the worker

    def check_deadline(self, now: float) -> None:
        if self._state is OPEN:
            if self._is_stalled(now) or (self._reading_paused and self._has_left()):
                self.abort()
            elif self._driver is not None:
                self._guard(self._driver.check_deadline, now)
        elif self._state is CLOSING:
            self._check_closing(now)
        elif self._state is not CLOSED and now >= self._deadline:
            self._handshake_failed("timeout")
            self.abort()

    @property
    def idle_since(self) -> float | None:
        """Since when (loop time) this connection has been of no use to anybody, None while it is: for shedding."""
        if self._state is OPEN:
            return self._driver.idle_since if self._driver is not None else None
        if self._state is HELLO or self._state is HANDSHAKE:
            return self._deadline - self._owner.handshake_timeout
        return None

    @property
    def phase(self) -> Literal["handshake", "active", "idle", "closing"]:
        """What it is at, for the metrics."""
        if self._state is OPEN:
            return "active" if self._driver is None or self._driver.idle_since is None else "idle"
        return "closing" if self._state is CLOSING or self._state is CLOSED else "handshake"

    def _has_left(self) -> bool:
        """Whether the client closed or reset while nobody reads: then neither is noticed otherwise."""
        if self._accepted is None:
            return False
        return self._accepted.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _CLOSED_BY_PEER

    def drain(self) -> None:
        self._draining = True
        # A handshake that has begun keeps its deadline: nobody else can end it, and to a slow client it is a reset.
        if self._driver is not None:
            if self._state is OPEN:
                self._guard(self._driver.drain)
        elif self._state is HELLO and not self._early:
            self.close()

    def sites_in_flight(self) -> Sequence[Site | None]:
        return self._driver.sites_in_flight() if self._driver is not None else ()

    # -- for the subclasses

    @abstractmethod
    def write(self, data: bytes) -> None: ...

    @abstractmethod
    def _started(self) -> None: ...

    def _write_last(self, data: bytes) -> None:
        """`write`, with `_seal` to follow at once."""
        self.write(data)

    @abstractmethod
    def _seal(self) -> None: ...

    @abstractmethod
    def _release(self) -> None: ...

    def _set_option(self, level: int, name: int, value: int | bytes) -> None:
        if self._accepted is not None:
            self._accepted.sock.setsockopt(level, name, value)

    def _send(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    def _receive_early(self, data: bytes) -> None:
        """Take the bytes of every state but OPEN and HANDSHAKE."""
        if self._state is HELLO:
            self._early += data
            if not self._wants_proxy_header or self._take_proxy_header():
                self._started()
        elif self._linger_until:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.abort()

    def _take_proxy_header(self) -> bool:
        try:
            header = parse_proxy_header(self._early)
        except ProxyProtocolError as error:
            self._handshake_failed(str(error))
            self.abort()
            return False
        if header is None:
            return False
        if header.source is not None and not self._owner.connections.identify(self, header.source):
            self._early = b""  # else its end would be taken for a failed handshake
            self.abort()
            return False
        self._wants_proxy_header = False
        self._early = self._early[header.size :]
        if header.source is not None:
            self.info.client, self.info.client_port = header.source, header.source_port
            self.info.server_port = header.destination_port
            self.info.address = header.destination or ""
        return bool(self._early)

    def _open(self) -> None:
        """Let the driver begin. The first plain bytes may follow at once."""
        self._early = b""
        self._state = OPEN
        self._driver = self._owner.make_driver(self)
        if self._draining:
            self._driver.drain()

    def _end(self, *, truncated: bool) -> None:
        if self._ended or self._driver is None:
            return
        self._ended = True
        self.truncated = truncated
        self._guard(self._driver.eof_received)

    def _linger(self) -> None:
        self._state = CLOSING
        self._linger_until = self._owner.loop.time() + LINGER_SECONDS
        if self._transport.is_closing():
            return
        self._transport.write_eof()
        self._transport.resume_reading()

    def _handshake_failed(self, reason: str, sni: str = "", *, is_said: bool = False) -> None:
        self._early = b""
        self._owner.handshake_failed(reason, self.info, sni, is_said=is_said)

    def _crash(self) -> None:
        """Called in an except block: an error of ours ends this connection, and no other."""
        logger.exception("connection.crashed", extra={"client": self.info.client, "sni": self.info.sni})
        self.abort()

    def _guard(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:  # noqa: BLE001 - whatever it is, it must not reach the event loop
            self._crash()

    # -- deadlines

    def _check_closing(self, now: float) -> None:
        if self._transport.get_write_buffer_size():
            # The two seconds of a lingering close begin when everything is sent.
            self._linger_until = self._linger_until and now + LINGER_SECONDS
            if self._is_stalled(now):
                self.abort()
        elif self._linger_until and now >= self._linger_until:
            self._transport.abort()

    def _is_stalled(self, now: float) -> bool:
        """True when the client's kernel took nothing for `write_idle` although bytes wait here.

        Counting what the kernel still holds (SIOCOUTQ) as unsent sees a slow reader's progress that the transport's
        own buffer shows only every few MiB.
        """
        waiting = self._transport.get_write_buffer_size()
        if not waiting:
            self.write_stalled_since = 0.0
            return False
        acknowledged = self._written - waiting - _unacknowledged(self._accepted)
        if not self.write_stalled_since or acknowledged != self._acknowledged:
            self._acknowledged = acknowledged
            self.write_stalled_since = now
        return now - self.write_stalled_since >= self._owner.write_idle


def _unacknowledged(accepted: Accepted | None) -> int:
    if accepted is None:
        return 0
    try:
        answer = fcntl.ioctl(accepted.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0
    return int.from_bytes(answer, "little")


class Accepted:
    """A connection as the listener hands it over: its socket, the client's address and port, our port."""

    __slots__ = ("peer", "server_port", "sock")

    def __init__(self, sock: socket.socket, peer: tuple[str, int], server_port: int) -> None:
        self.sock = sock
        self.peer = peer
        self.server_port = server_port


def _ask(transport: asyncio.BaseTransport) -> Accepted:
    peer = transport.get_extra_info("peername")
    here = transport.get_extra_info("sockname")
    port = here[1] if isinstance(here, tuple) else 0
    return Accepted(transport.get_extra_info("socket"), client_address(peer), port)


def client_address(peer: object) -> tuple[str, int]:
    """Address and port of a socket's peer; ("", 0) if it has none (a unix socket)."""
    if not isinstance(peer, tuple):
        return "", 0
    # An IPv4 client on a dual-stack socket is an IPv4 client.
    return peer[0].removeprefix("::ffff:"), peer[1]


def _is_member(client: str, networks: Sequence[Network]) -> bool:
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return False
    return any(address in network for network in networks)
