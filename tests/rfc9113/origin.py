"""A backend that answers by itself and remembers what it was asked: a thread for each connection, h11 inside.

/big/N: an answer of N bytes. /hints: a 103 first. /trailers: an answer with trailers. /status/N: that status. Anything
else is "ok", once the whole request is there.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field

import h11

_PATIENCE = 10.0


@dataclass
class Seen:
    """A request, as far as it has come."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    is_whole: bool = False

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key == name.encode()]


class Origin:
    """Listens when entered."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._seen: list[Seen] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Origin:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for sock in tuple(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_PATIENCE)

    def seen(self, target: str | bytes) -> list[Seen]:
        """The requests for this target, whole or not."""
        target = target.encode() if isinstance(target, str) else target
        return [each for each in tuple(self._seen) if each.target == target]

    def only(self, target: str | bytes) -> Seen:
        """The one request for this target."""
        (seen,) = self.seen(target)
        return seen

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(sock)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError, h11.RemoteProtocolError):
            connection = h11.Connection(h11.SERVER)
            while self._answer(sock, connection, self._read(sock, connection)):
                connection.start_next_cycle()
        self._open.discard(sock)

    def _read(self, sock: socket.socket, connection: h11.Connection) -> Seen | None:
        seen = None
        while True:
            event = connection.next_event()
            match event:
                case h11.NEED_DATA:
                    connection.receive_data(sock.recv(65_536))
                case h11.Request():
                    fields = [(bytes(name), bytes(value)) for name, value in event.headers]
                    seen = Seen(bytes(event.method), bytes(event.target), fields)
                    self._seen.append(seen)
                    if connection.they_are_waiting_for_100_continue:
                        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                case h11.Data() if seen is not None:
                    seen.body += event.data
                case h11.EndOfMessage() if seen is not None:
                    seen.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
                    seen.is_whole = True
                    return seen
                case _:
                    return None

    def _answer(self, sock: socket.socket, connection: h11.Connection, seen: Seen | None) -> bool:
        if seen is None:
            return False
        _, kind, rest, *_ = *seen.target.split(b"/"), b"", b""
        status = int(rest) if kind == b"status" else 200
        body = b"x" * int(rest) if kind == b"big" else b"ok"
        trailers = [(b"x-sum", b"2")] if kind == b"trailers" and seen.method != b"HEAD" else []
        framing = (b"transfer-encoding", b"chunked") if trailers else (b"content-length", b"%d" % len(body))
        events: list[h11.Event] = [h11.Response(status_code=status, headers=[framing])]
        if kind == b"hints":
            events.insert(0, h11.InformationalResponse(status_code=103, headers=[(b"link", b"</a.css>")]))
        if seen.method != b"HEAD" and status not in (204, 304):
            events.append(h11.Data(data=body))
        events.append(h11.EndOfMessage(headers=trailers))
        sock.sendall(b"".join(connection.send(event) or b"" for event in events))
        return True
