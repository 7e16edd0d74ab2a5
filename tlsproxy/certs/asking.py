"""Ask the application whether a name may have a certificate: one GET, one deadline, over TCP, TLS or a unix socket.

Knows: HTTP/1.1 as a client (h11), where to ask. Does not know: what follows from the answer. Rules: no redirect is
followed; not more is read than a person needs for the log; the deadline holds for all of it, name resolution apart.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import h11

from tlsproxy import __version__

TEXT_LIMIT = 256
"""Bytes of the answer's body that are kept."""

_HEAD_LIMIT = 16 * 1024
_PIECE = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered. `status` is None if nothing was; `text` is then the reason, else the begin of the body."""

    status: int | None
    text: str = ""
    is_down: bool = field(default=False, compare=False)
    """Nobody listens there, so nothing was asked."""


class Asker:
    """Asks at a URL, or at a path of a backend ("http://HOST:PORT", "unix:/path"). Blocks: use it in a thread."""

    def __init__(self, ask: str, backend: str = "", *, timeout: float = 2.0) -> None:
        self._timeout = timeout
        self._is_path = ask.startswith("/")
        self._unix = backend.removeprefix("unix:") if self._is_path and backend.startswith("unix:") else ""
        parts = urlsplit("http://localhost" if self._unix else backend if self._is_path else ask)
        self._host, self._authority, self._is_secure = parts.hostname or "", parts.netloc, parts.scheme == "https"
        self._port = parts.port or (443 if self._is_secure else 80)
        self._target = ask if self._is_path else (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def __call__(self, host: str, client: str) -> Answer:
        """Ask for a name that a client wants. Never raises."""
        ends = time.monotonic() + self._timeout
        try:
            with self._connect(ends) as connection:
                return _exchange(connection, self._request(host, client), ends)
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout:g} s")
        except ssl.SSLCertVerificationError as error:
            return Answer(None, f"its TLS certificate is not trusted ({error.verify_message})")
        except h11.RemoteProtocolError as error:
            return Answer(None, f"the answer is not HTTP ({error})")
        except (ConnectionRefusedError, FileNotFoundError) as error:
            return Answer(None, error.strerror or str(error), is_down=True)
        except OSError as error:
            return Answer(None, error.strerror or str(error))

    def _request(self, host: str, client: str) -> h11.Request:
        query = urlencode({"domain": host, "client_ip": client})
        headers = [
            ("Host", self._authority),
            ("User-Agent", f"tlsproxy/{__version__}"),
            ("Accept", "text/plain, */*"),
            ("Connection", "close"),
        ]
        if self._is_path:  # an application that redirects plain requests to https must not redirect this one
            headers.append(("X-Forwarded-Proto", "https"))
        joint = "&" if "?" in self._target else "?"
        return h11.Request(method="GET", target=f"{self._target}{joint}{query}", headers=headers)

    @contextlib.contextmanager
    def _connect(self, ends: float) -> Iterator[socket.socket]:
        with self._open(ends) as connection:
            connection.settimeout(_remaining(ends))
            if not self._is_secure:
                yield connection
                return
            with ssl.create_default_context().wrap_socket(connection, server_hostname=self._host) as secured:
                yield secured

    def _open(self, ends: float) -> socket.socket:
        if self._unix:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(_remaining(ends))
                connection.connect(self._unix)
            except OSError:
                connection.close()
                raise
            return connection
        return _connect_any(self._host, self._port, ends)

    def __repr__(self) -> str:
        return f"<Asker {self._unix or self._authority}{self._target}>"


class Askers:
    """Asks the same application at one of its backends: the next one where nobody listens at the one before."""

    def __init__(self, ask: str, backends: Sequence[str], *, timeout: float = 2.0) -> None:
        places = backends if ask.startswith("/") else ("",)  # a URL says itself where to ask
        self._askers = [Asker(ask, backend, timeout=timeout) for backend in places]

    def __call__(self, host: str, client: str) -> Answer:
        """Ask for a name that a client wants. Never raises."""
        for asker in self._askers[:-1]:
            answer = asker(host, client)
            if not answer.is_down:
                return answer
        return self._askers[-1](host, client)

    def __repr__(self) -> str:
        return f"<Askers {self._askers}>"


def _connect_any(host: str, port: int, ends: float) -> socket.socket:
    """Try all addresses of a name; the last failure is the one that is told."""
    addresses = [info[4][:2] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection((str(address[0]), port), timeout=_remaining(ends) / 2)
    return socket.create_connection((str(addresses[-1][0]), port), timeout=_remaining(ends))


def _exchange(connection: socket.socket, request: h11.Request, ends: float) -> Answer:
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)
    connection.sendall((peer.send(request) or b"") + (peer.send(h11.EndOfMessage()) or b""))
    status, body = 0, b""
    while len(body) < TEXT_LIMIT:
        event = peer.next_event()
        if event is h11.NEED_DATA:
            try:
                connection.settimeout(_remaining(ends))
                peer.receive_data(connection.recv(_PIECE))
            except TimeoutError:
                if status:
                    break  # the status is the answer
                raise
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            break
    return Answer(status, " ".join(body[:TEXT_LIMIT].decode(errors="replace").split()))


def _remaining(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
