"""A client connection without TLS: the http listener. The same stream as `TlsConnection`, nothing in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tlsproxy.proxy.connection import OPEN, Connection

if TYPE_CHECKING:
    import asyncio


class PlainConnection(Connection):
    """Opens at once, or after the PROXY header where the peer owes one."""

    __slots__ = ()
    scheme: Literal["https", "http"] = "http"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._wants_proxy_header:
            self._guard(self._open)

    def data_received(self, data: bytes) -> None:
        if self._state is not OPEN:
            self._guard(self._receive_early, data)
        elif self._driver is not None:
            self._guard(self._driver.data_received, data)

    def write(self, data: bytes) -> None:
        if self._state is OPEN:
            self._send(data)

    def _started(self) -> None:
        first = self._early
        self._open()
        self.data_received(first)

    def _take_proxy_header(self) -> bool:
        if not super()._take_proxy_header():
            if not self._wants_proxy_header:
                self._open()
            return False
        return True

    def _seal(self) -> None:
        """Plain TCP says it with its FIN."""

    def _release(self) -> None:
        """Nothing is held."""
