"""The other end of the admin API, for the commands: one request over the unix socket, its answer or its lines.

Knows HTTP (h11) and the forms of an answer, no command and no certificate. Blocking, one connection per request. Rules:
every wait has a limit; an answer that is an error is raised as the sentence it came with; who is not running, and who
may not be talked to, are different things, and the message names the path.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import h11

from tlsproxy.errors import NotRunning, TlsproxyError
from tlsproxy.runtime.adminsocket import connect_admin_socket

PATIENCE = 45.0
"""Seconds without a byte before the proxy is given up: longer than its own limits and its heartbeat."""

MAX_ANSWER = 64 * 1024 * 1024

_MISTAKES = (400, 422)  # 422 is a reload's or an upgrade's: the configuration, or what was said with the command


class NoAccess(NotRunning):
    """There is a socket, and this user may not use it. Whether somebody listens is not known."""


class AdminError(TlsproxyError):
    """The proxy was asked, and this is what it said instead of doing it. `status` is HTTP's."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class AdminMistake(AdminError):
    """What was asked for cannot be had: a wrong word, a value out of its bounds, a mistake in the configuration."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class Progress:
    """A step of some work; `text` goes on after "host: "."""

    step: str
    host: str
    text: str


@dataclass(frozen=True)
class Done:
    """The end of some work that went well."""

    result: Any


class AdminClient:
    """Talks to the proxy whose admin socket lies at `path`."""

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        self.path = path
        self._patience = patience

    def __repr__(self) -> str:
        return f"<AdminClient {self.path}>"

    def get(self, *path: str) -> Any:
        """Return the JSON at a path given by its segments. Raises NotRunning, AdminError."""
        return self._whole("GET", path, {})

    def post(self, *path: str, options: Mapping[str, str] | None = None) -> Any:
        """Have something done that is done at once."""
        return self._whole("POST", path, options or {})

    def delete(self, *path: str, options: Mapping[str, str] | None = None) -> Any:
        return self._whole("DELETE", path, options or {})

    def work(self, *path: str, options: Mapping[str, str] | None = None) -> Iterator[Progress | Done]:
        """Have something done that takes its time; yield its steps, Done last. To stop reading does not stop it."""
        for line in self._lines("POST", path, options or {}):
            if "step" in line:
                yield Progress(line["step"], line["host"], line["text"])
            elif "error" in line:
                raise _refusal(str(line["error"]), int(line.get("status", 500)))
            else:
                yield Done(line.get("result"))
                return
        raise AdminError("the proxy ended before the work did; it goes on with it after its start", 503)

    def _whole(self, method: str, path: tuple[str, ...], options: Mapping[str, str]) -> Any:
        answer = b""
        with _Exchange(self.path, self._patience) as exchange:
            exchange.send(method, path, options)
            for piece in exchange.read():
                answer += piece
                if len(answer) > MAX_ANSWER:
                    raise AdminError(f"the answer at {self.path} is longer than {MAX_ANSWER} bytes", 500)
            return _checked(exchange.status, _parsed(answer, self.path))

    def _lines(self, method: str, path: tuple[str, ...], options: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield every line as an object. An answer that is whole becomes the one line of a result."""
        with _Exchange(self.path, self._patience) as exchange:
            exchange.send(method, path, options)
            rest = b""
            for piece in exchange.read():
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(None, lines):
                    parsed = _parsed(line, self.path)
                    yield parsed if exchange.is_stream else {"result": _checked(exchange.status, parsed)}


class _Exchange:
    """One request and its answer on a connection of its own. Foreign errors become ours here."""

    # Mutable: status, is_stream (once the head is there), is_whole (at the end), the states inside h11.

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._socket = _connect(path, patience)
        self._h11 = h11.Connection(h11.CLIENT)
        self.status = 0
        self.is_stream = False
        self.is_whole = False

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, path: tuple[str, ...], options: Mapping[str, str]) -> None:
        body = json.dumps(dict(options)).encode() if options else b""
        head = h11.Request(
            method=method,
            target="/" + "/".join(quote(segment, safe="") for segment in path),
            headers=[("Host", "localhost"), ("Connection", "close"), ("Content-Length", str(len(body)))],
        )
        events = [head, h11.Data(body), h11.EndOfMessage()]
        try:
            self._socket.sendall(b"".join(self._h11.send(event) or b"" for event in events))
        except OSError as error:
            raise self._failure(error) from error

    def read(self) -> Iterator[bytes]:
        """Yield the body in pieces as they come."""
        try:
            while not self.is_whole:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    self._h11.receive_data(self._socket.recv(65536))
                elif isinstance(event, h11.Response):
                    self._take_head(event)
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
                else:
                    self.is_whole = isinstance(event, h11.EndOfMessage)
                    if not self.is_whole and not isinstance(event, h11.InformationalResponse):
                        return
        except (OSError, h11.RemoteProtocolError) as error:
            raise self._failure(error) from error

    def _take_head(self, head: h11.Response) -> None:
        self.status = head.status_code
        kinds = [value for name, value in head.headers if name == b"content-type"]
        self.is_stream = kinds == [b"application/x-ndjson"]

    def _failure(self, error: Exception) -> TlsproxyError:
        if isinstance(error, TimeoutError):
            return AdminError(f"the proxy at {self._path} has said nothing for {self._patience:.0f} s", 504)
        if self.status:
            return AdminError("the proxy ended before it had answered; look at its log", 503)
        return AdminError(f"what listens at {self._path} does not speak as the proxy does ({error})", 502)


def _connect(path: Path, patience: float) -> socket.socket:
    try:
        return connect_admin_socket(path, patience)
    except PermissionError as error:
        raise NoAccess(
            f"{path}: this user may not talk to the proxy there. Run the command as the user that runs the proxy "
            "(with sudo, if that is root)."
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotRunning(f"no proxy is running: there is no admin socket at {path}. {_HINT}") from error
    except ConnectionRefusedError as error:
        raise NotRunning(f"no proxy is running: nobody listens at {path}. {_HINT}") from error
    except OSError as error:
        raise NotRunning(f"{path}: no proxy can be talked to there ({error.strerror or error}). {_HINT}") from error


_HINT = "Start one (tlsproxy run), or name its configuration (--config FILE) or its socket (--socket PATH)."


def _parsed(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AdminError(f"what listens at {path} does not speak as the proxy does (no JSON)", 502) from error


def _checked(status: int, body: Any) -> Any:
    if status < 400:
        return body
    reason = body.get("error") if isinstance(body, dict) else None
    raise _refusal(str(reason or f"the proxy refused with status {status}"), status)


def _refusal(message: str, status: int) -> AdminError:
    return AdminMistake(message, status) if status in _MISTAKES else AdminError(message, status)
