"""A backend that writes down what it gets, and misbehaves for those clients whose case says so.

A thread per connection; h11 reads the requests, so that the proxy's codec is not judged by itself. Many cases run at
the same time through one proxy with pooled connections, so a request is known by the client's address in
X-Forwarded-For, which each case has for itself.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import h11

ORDINARY = b"HTTP/1.1 200 OK\r\nX-Backend: yes\r\nContent-Length: 2\r\n\r\nok"
EARLY = b"/early"
"""The path that is answered as soon as the head is there, whatever body is to come."""
PATIENCE = 10.0


@dataclass
class Misbehaviour:
    """What is sent instead of an ordinary answer, and what happens then: see `backend_action` in the list's `about`."""

    raw: bytes
    action: str


@dataclass
class Recorded:
    """A request, as far as it came. `connection` counts the backend's connections; `broken` is what h11 disliked."""

    connection: int
    raw: bytes = b""
    target: bytes = b""
    complete: bool = False
    broken: str = ""


@dataclass
class Log:
    """What one client's requests looked like, in order of arrival."""

    requests: list[Recorded] = field(default_factory=list)

    @property
    def complete(self) -> list[Recorded]:
        return [request for request in self.requests if request.complete]

    @property
    def raw(self) -> bytes:
        return b"".join(request.raw for request in self.requests)


class RecordingBackend:
    """Listens when entered. `misbehave` maps a client's address to what it gets once, on its path /x."""

    def __init__(self) -> None:
        self.misbehave: Mapping[str, Misbehaviour] = {}
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._lock = threading.Lock()
        self._logs: dict[str, Log] = {}
        self._users: dict[int, list[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._open: dict[int, socket.socket] = {}
        self._stopping = threading.Event()

    def __enter__(self) -> RecordingBackend:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        with self._lock:
            for sock in self._open.values():
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def log(self, client: str) -> Log:
        with self._lock:
            return self._logs.setdefault(client, Log())

    def users_of(self, connection: int) -> list[bytes]:
        """The targets that came over one connection, in order."""
        with self._lock:
            return list(self._users.get(connection, ()))

    def say(self, connection: int, data: bytes) -> None:
        """Send on an open connection, asked or not."""
        with self._lock:
            self._open[connection].sendall(data)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        with suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                number += 1
                with self._lock:
                    self._open[number] = sock
                self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        with sock, suppress(OSError):
            while self._serve_one(sock, number):
                pass
        with self._lock:
            self._open.pop(number, None)

    def _serve_one(self, sock: socket.socket, number: int) -> bool:
        """Read one request and answer it; False when the connection is over."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=200_000)
        recorded = Recorded(number)
        client = ""
        while not recorded.complete:
            data = sock.recv(262_144)
            if not data:
                return False
            recorded.raw += data
            try:
                parser.receive_data(data)
                client = self._read(parser, recorded, sock) or client
            except h11.RemoteProtocolError as error:
                recorded.broken = str(error)
                self.log(client).requests.append(recorded)
                return False
        if parser.trailing_data[0]:
            recorded.broken = "bytes behind the request"
        return self._answer(sock, client, recorded)

    def _read(self, parser: h11.Connection, recorded: Recorded, sock: socket.socket) -> str:
        """Take what h11 finds; returns the client's address when the head has come."""
        client = ""
        while (event := parser.next_event()) is not h11.NEED_DATA and event is not h11.PAUSED:
            if isinstance(event, h11.Request):
                recorded.target = bytes(event.target)
                client = next(bytes(value).decode() for name, value in event.headers if name == b"x-forwarded-for")
                self.log(client).requests.append(recorded)
                with self._lock:
                    self._users.setdefault(recorded.connection, []).append(recorded.target)
                if recorded.target == EARLY:
                    sock.sendall(ORDINARY)
                elif parser.they_are_waiting_for_100_continue:
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif isinstance(event, h11.EndOfMessage):
                recorded.complete = True
                return client
        return client

    def _answer(self, sock: socket.socket, client: str, recorded: Recorded) -> bool:
        if recorded.target == EARLY:
            return True
        wrong = self.misbehave.get(client) if recorded.target == b"/x" else None
        if wrong is None or wrong.action == "before-request":
            sock.sendall(ORDINARY)
            return True
        if wrong.action == "dribble":
            return self._dribble(sock, wrong.raw)
        sock.sendall(wrong.raw)
        if wrong.action == "close":
            sock.shutdown(socket.SHUT_WR)
            self._drain(sock)
            return False
        if wrong.action == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        return True  # keep, hang: whatever comes next on this connection is recorded

    def _dribble(self, sock: socket.socket, raw: bytes) -> bool:
        sock.sendall(raw)
        while not self._stopping.wait(0.1):
            sock.sendall(b"a")
        return False

    def _drain(self, sock: socket.socket) -> None:
        """Read until the proxy closes, or the kernel would turn our close into a reset that may overtake the answer."""
        while sock.recv(65_536):
            pass
