"""What an exchange needs of the client's protocol driver: the contract that HTTP/1.1 and HTTP/2 streams keep.

Rule: the exchange says what to send, the driver knows how it is framed on the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.proxy.tunnel import Tunnel, TunnelClient
    from tlsproxy.wire.fields import Fields


class ClientSide(Protocol):
    """What an exchange needs of the client's protocol driver."""

    @property
    def info(self) -> ConnectionInfo: ...
    @property
    def stream(self) -> TunnelClient: ...
    def send_interim(self, status: int, reason: bytes, fields: Fields) -> None: ...
    def send_head(self, status: int, reason: bytes, fields: Fields, length: int, *, has_body: bool) -> None:
        """`length` in bytes, -1 if unknown; `has_body` False for HEAD, 204 and 304, whatever the length says."""
        ...

    def send_data(self, data: bytes) -> None: ...
    def send_end(self, trailers: Fields) -> None: ...
    def flush(self) -> None:
        """Nothing more comes in this turn of the loop: send what was collected."""
        ...

    def pause_request(self) -> None: ...
    def resume_request(self) -> None: ...
    def exchange_done(self, *, request_complete: bool) -> None: ...
    def exchange_cut(self) -> None:
        """The answer can't be completed: the client must see that."""
        ...

    def crashed(self) -> None:
        """Called in an except block: log it, end the exchange with a 500 and the connection with it."""
        ...

    def accept_upgrade(self, fields: Fields) -> str:
        """Tell the client that the backend, whose answer had `fields`, agrees to its WebSocket handshake.

        Returns why that agreement is wrong, "" if it is not; then the client was told.
        """
        ...

    def start_tunnel(self, tunnel: Tunnel) -> bytes:
        """Hand every further byte to `tunnel`; returns those that came already."""
        ...
