"""What a driver and a client connection know of each other, and what both know of the worker.

Three contracts and one value. A `ClientStream` carries plain bytes to and from one client: `TlsConnection` seals
them, `PlainConnection` does not. A `Driver` speaks a protocol (HTTP/1.1, later HTTP/2) over such a stream and knows
neither TLS nor sockets. A `ConnectionOwner` is the worker's composition root.

Rule: nothing here acts; the methods say who may call what, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import asyncio

    from tlsproxy.proxy.connection import Connection
    from tlsproxy.proxy.contexts import ContextTable
    from tlsproxy.proxy.router import Site
    from tlsproxy.proxy.sitetls import TlsPolicy

Network = IPv4Network | IPv6Network


class ConnectionInfo:
    """Who the client is and what was negotiated with it. Complete when the driver is made, not edited afterwards.

    `client` and `client_port` are the socket's peer, or what a trusted PROXY header said. The TLS fields are empty
    (`""`, False, None) on a plain connection; `sni` is lower case without a trailing dot. `address` is the one of ours
    that the client called, "" where nobody had to know. `site` is the first host of the site whose certificate and
    `policy` the connection was made with, which need not be the one of `sni`.
    """

    __slots__ = (
        "address",
        "alpn",
        "cipher",
        "client",
        "client_certificate",
        "client_port",
        "log_part",
        "policy",
        "resumed",
        "scheme",
        "server_port",
        "site",
        "sni",
        "tls",
    )

    def __init__(self, client: str, client_port: int, server_port: int, scheme: Literal["https", "http"]) -> None:
        self.client = client
        self.client_port = client_port
        self.server_port = server_port
        self.scheme: Literal["https", "http"] = scheme
        self.tls = ""
        self.cipher = ""
        self.sni = ""
        self.address = ""
        self.alpn = ""
        self.resumed = False
        self.site = ""
        self.policy: TlsPolicy | None = None
        self.client_certificate: bytes | None = None
        self.log_part = ""  # what the access log says of this connection, kept there by it

    def __repr__(self) -> str:
        return f"<ConnectionInfo {self.scheme} {self.client}:{self.client_port} sni={self.sni!r} {self.tls}>"


class ClientStream(Protocol):
    """Plain bytes to and from one client.

    Every method may be called from inside the driver's callbacks, and after the connection is gone (then nothing
    happens). `write` never blocks and never refuses: a driver that wants bounded memory obeys `pause_writing`.
    """

    @property
    def info(self) -> ConnectionInfo: ...

    @property
    def truncated(self) -> bool:
        """True when the client's bytes ended without close_notify: what came may be cut (RFC 8446 6.1)."""
        ...

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self, last: bytes = b"") -> None:
        """Write `last`, flush what is written, then close_notify and FIN, then close. Nothing is delivered any more."""
        ...

    def finish(self) -> None:
        """Lingering close (RFC 9112 9.6): as `close`, but go on reading and discarding for at most 2 s or 1 MiB.

        Without it, bytes of the client that were not read turn our FIN into an RST, which may destroy the answer
        in the client's receive buffer.
        """
        ...

    def abort(self) -> None:
        """Close now, without close_notify: the client must see a truncated stream."""
        ...


class Driver(Protocol):
    """The protocol spoken over one client connection. Called by the stream only, from the event loop.

    An exception out of any of these is logged and aborts this connection, no other.
    """

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> None:
        """No more bytes will come (see `ClientStream.truncated`): the client has left, what it asked for is dropped."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """Called exactly once, last, whoever ended the connection."""
        ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def check_deadline(self, now: float) -> None:
        """Called about once a second with `loop.time()`."""
        ...

    def drain(self) -> None:
        """The worker is leaving: finish what is in flight, accept nothing new, then close. May come twice."""
        ...

    def sites_in_flight(self) -> Sequence[Site | None]:
        """The site of each request and WebSocket that is not over."""
        ...

    @property
    def idle_since(self) -> float | None:
        """Since when nothing is in flight, None while something is."""
        ...


class Registry(Protocol):
    """The open connections of a worker."""

    def add(self, connection: Connection, /) -> None: ...

    def discard(self, connection: Connection, /) -> None: ...

    def identify(self, connection: Connection, client: str, /) -> bool:
        """Whether one more of `client`, whom the PROXY header names, is let in."""
        ...


class ConnectionOwner(Protocol):
    """What a connection needs of its worker. Durations in seconds; `handshake_timeout` runs from the accept."""

    loop: asyncio.AbstractEventLoop
    contexts: ContextTable
    handshake_timeout: float
    write_idle: float

    @property
    def connections(self) -> Registry: ...

    @property
    def proxy_networks(self) -> Sequence[Network]: ...

    def make_driver(self, stream: ClientStream) -> Driver: ...

    def handshake_failed(self, reason: str, info: ConnectionInfo, sni: str, *, is_said: bool = False) -> None:
        """Count it, and log it unless it `is_said`; `sni` is "" when the ClientHello was not understood."""
        ...
