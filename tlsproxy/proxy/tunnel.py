"""An upgraded connection: bytes both ways with back-pressure, an idle limit, and a polite end. Knows no HTTP.

It begins after the 101 was sent and ends when either side closes, stays silent too long, or the worker drains: then
both sides get a WebSocket close frame with 1001 at their next frame border, and the client's own close frame ends it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from tlsproxy.wire.websocket import GOING_AWAY, FrameBorders, close_frame

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.exchange import Exchange
    from tlsproxy.proxy.router import Site
    from tlsproxy.proxy.services import Services

_FAREWELL: Final = 10.0  # seconds in which a backend answers a close frame, or has closed the connection


class TunnelClient(Protocol):
    """Where a tunnel writes for its client: an HTTP/1.1 connection, or an HTTP/2 stream."""

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...


class Tunnel:
    """See the module's text. Mutable state: `_active` (when a byte last moved), `_leaving`, `_said_*`, `_over`."""

    __slots__ = (
        "_active", "_backend", "_bytes_in", "_bytes_out", "_exchange", "_from_backend", "_from_client", "_idle",
        "_leaving", "_over", "_said_to_backend", "_said_to_client", "_services", "_stream",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, stream: TunnelClient, backend: BackendStream, services: Services) -> None:
        self._exchange = exchange
        self._stream = stream
        self._backend = backend
        self._idle = services.tunnel_idle
        self._active = time.monotonic()
        self._from_client = FrameBorders()
        self._from_backend = FrameBorders()
        self._bytes_in = 0
        self._bytes_out = 0
        self._services = services
        self._leaving = False
        self._said_to_client = False
        self._said_to_backend = False
        self._over = False

    def start(self, from_client: bytes, from_backend: bytes) -> None:
        """Take over both connections; bytes that came behind the handshake are the first to pass."""
        self._backend.become_tunnel(self)
        if from_client:
            self.client_data(from_client)
        if from_backend:
            self.backend_data(from_backend)
        if self._services.draining:
            self.drain()

    @property
    def site(self) -> Site | None:
        return self._exchange.site

    # --- the client's side --------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        self._active = time.monotonic()
        self._bytes_in += len(data)
        border = self._from_client.feed(data)
        if not self._said_to_backend:
            if self._leaving and border >= 0:
                data = data[:border] + close_frame(GOING_AWAY, masked=True)
                self._said_to_backend = True
            self._backend.send(data)
        if self._from_client.saw_close and (self._said_to_client or self._is_finished()):
            self._end()

    def client_closed(self) -> None:
        """EOF or loss: what came before it still reaches the backend."""
        self._end()

    def client_ended(self) -> None:
        """It sends no more and still listens (RFC 8441 5): Chromium ends its stream with its close frame."""
        if self._from_client.saw_close:
            self._idle = min(self._idle, _FAREWELL)
        else:
            self._end()

    def client_full(self) -> None:
        self._backend.pause_reading()

    def client_ready(self) -> None:
        self._backend.resume_reading()

    # --- the backend's side (TunnelEnd) -------------------------------------------------------------------------------

    def backend_data(self, data: bytes) -> None:
        self._active = time.monotonic()
        border = self._from_backend.feed(data)
        if self._said_to_client:
            return
        if self._leaving and border >= 0:
            data = data[:border] + close_frame(GOING_AWAY, masked=False)
            self._said_to_client = True
        self._bytes_out += len(data)
        self._stream.write(data)
        if self._from_backend.saw_close and self._is_finished():
            self._end()

    def backend_closed(self) -> None:
        if not self._leaving or not self._said_to_client:
            self._end()

    def backend_full(self) -> None:
        self._stream.pause_reading()

    def backend_ready(self) -> None:
        self._stream.resume_reading()

    # --- the worker's side --------------------------------------------------------------------------------------------

    def check_deadline(self, now: float) -> None:
        """End a tunnel that has been silent longer than `limits.tunnel_idle`."""
        if now - self._active > self._idle:
            self._end()

    def drain(self) -> None:
        """Say 1001 to both sides: now where no frame is under way, else at the end of that frame.

        Not yet if it belongs to a site that stays: then it is asked again when that is over.
        """
        if self._leaving or self._services.lets_stay(self.site):
            return
        self._leaving = True
        if not self._said_to_client and self._from_backend.at_border:
            self._said_to_client = True
            self._stream.write(close_frame(GOING_AWAY, masked=False))
        if not self._said_to_backend and self._from_client.at_border:
            self._said_to_backend = True
            self._backend.send(close_frame(GOING_AWAY, masked=True))

    def _is_finished(self) -> bool:
        """Both close frames have passed: nothing may follow (RFC 6455 7.1.1), and not every server closes then."""
        ours, theirs = self._from_client, self._from_backend
        return ours.saw_close and theirs.saw_close and ours.at_border and theirs.at_border

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self._backend.close(said_goodbye=self._from_client.saw_close or self._from_backend.saw_close)
        self._stream.close()
        self._exchange.tunnel_ended(self._bytes_in, self._bytes_out)
