"""A backend that does what the test says, byte by byte: a listening socket on 127.0.0.1 or a unix path.

The test is its program: accept, read what the proxy sent, send anything.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.fakes.peer import PATIENCE, Peer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def url_of(sock: socket.socket) -> str:
    return f"http://127.0.0.1:{sock.getsockname()[1]}"


class Backend:
    """Close it to refuse connections; what it accepted is closed with it. `port`: that of one that refuses by now."""

    def __init__(self, path: Path | None = None, *, receive_buffer: int = 0, port: int = 0) -> None:
        self._sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        if receive_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(str(path) if path else ("127.0.0.1", port))
        self._sock.settimeout(PATIENCE)
        self._sock.listen(128)
        self.url = f"unix:{path}" if path else url_of(self._sock)
        self._accepted = ExitStack()

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *exc: object) -> None:
        self.refuse()
        self._accepted.close()

    def accept(self) -> Peer:
        sock, _ = self._sock.accept()
        peer = Peer(sock)
        self._accepted.callback(peer.close)
        return peer

    def is_called(self, seconds: float = 0.1) -> bool:
        """Whether a connection waits; for what must not happen."""
        return bool(select.select([self._sock], [], [], seconds)[0])

    def refuse(self) -> None:
        """From now on connections are refused; those that were accepted stay."""
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()


def called(backends: Sequence[Backend]) -> Backend:
    """The one of several that the proxy has connected to."""
    ready = select.select(backends, [], [], PATIENCE)[0]
    assert len(ready) == 1, ready
    return ready[0]
