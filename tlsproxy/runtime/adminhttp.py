"""One client of the admin API: bytes of a unix socket <-> requests and answers, in h11.

Knows HTTP, its limits and who must not be let in; knows no route. A unix socket is out of reach for a browser, but
people forward it to a port: then a page the user looks at could write to it. So a request that a browser made is
refused (Origin, Sec-Fetch-Site; RFC 6454 7, Fetch Metadata), and so is one for a host that is not this machine (DNS
rebinding). Rules: every wait has a deadline, every body a limit; every failure is answered with {"error": sentence}.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from tlsproxy import __version__

logger = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024
MAX_BODY = 64 * 1024
READ_TIME = 10.0
"""Seconds for a request to arrive, and for the next one on the same connection to begin."""
WRITE_TIME = 10.0
"""Seconds for a client to take what it was sent."""

_PARTING_TIME = 1.0

_LOCAL_NAMES = frozenset({"", "localhost", "tlsproxy", "unix"})
_CLOSE = ("Connection", "close")
_JSON = "application/json"
_LINES = "application/x-ndjson"


@dataclass(frozen=True)
class Request:
    """What was asked: `path` is the decoded segments, `options` come from the query and from a JSON object as body.

    `accept` is what the client wants to read; of use where there is a choice.
    """

    method: str
    path: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    accept: str = ""


@dataclass(frozen=True)
class Answer:
    """A whole answer; `body` becomes JSON, bytes are sent as the `kind` they are."""

    status: int
    body: Any
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = _JSON


class Refusal(Exception):
    """A request that gets no further. The connection ends with the answer, what is left of the request is not read."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Lines: TypeAlias = AsyncGenerator[Mapping[str, Any] | None, None]
"""A long answer, line by line; None is an empty line, which says that all is well and finds out who has left."""

Handler: TypeAlias = Callable[[Request], Awaitable[Answer | Lines]]


class LastCall:
    """Ends the connections of one place, once another process is to be asked there.

    Each ends with the answer it owes, one that waits for its next request at once. One on which nothing was asked yet
    stays for its first: who has just connected is not sent away without a word.
    """

    # Mutable: _is_made, _connections (of who is being served).

    def __init__(self) -> None:
        self._is_made = False
        self._connections: set[_Connection] = set()

    def __repr__(self) -> str:
        return f"<LastCall {'made' if self._is_made else 'to come'}, {len(self._connections)} connections>"

    @property
    def is_made(self) -> bool:
        return self._is_made

    def make(self) -> None:
        self._is_made = True
        for connection in self._connections:
            connection.end_idleness()

    @contextlib.contextmanager
    def told_to(self, connection: _Connection) -> Iterator[None]:
        self._connections.add(connection)
        try:
            yield
        finally:
            self._connections.discard(connection)


async def serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handle: Handler,
    *,
    is_public: bool = False,
    last_call: LastCall | None = None,
) -> None:
    """Answer one client until either side has had enough, or the last call comes. Closes the writer; never raises.

    `is_public`: for anybody who can connect, by whatever name; so nothing may be changed there, or told, that matters.
    """
    last_call = last_call or LastCall()
    connection = _Connection(reader, writer, last_call, is_public=is_public)
    try:
        with last_call.told_to(connection):
            while await connection.exchange(handle):
                pass
        writer.close()
        async with asyncio.timeout(WRITE_TIME):
            await writer.wait_closed()
    except (OSError, TimeoutError, h11.ProtocolError):
        pass  # the client has left, or takes nothing: there is nobody to tell
    finally:
        writer.transport.abort()  # nothing, if it is closed already


async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, message: str) -> None:
    """Answer a client whatever it asks for, and close."""
    body = _json({"error": message})
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    try:
        # A socket that is closed with something unread in it resets its peer.
        async with asyncio.timeout(_PARTING_TIME):
            await reader.read(MAX_HEAD)
    except (OSError, TimeoutError):
        pass  # it has left, or says nothing
    finally:
        writer.close()


class _Connection:
    # Mutable: the states inside h11, _is_head (of the request at hand), _is_first (until something was answered),
    # _reading (while a request is waited for).

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last_call: LastCall, *, is_public: bool
    ) -> None:
        self._is_public = is_public
        self._last_call = last_call
        self._reading: asyncio.Timeout | None = None
        self._is_first = True
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._is_head = False

    async def exchange(self, handle: Handler) -> bool:
        """Serve one request; return whether another may follow."""
        try:
            request = await self._read_in_time()
            if request is None:
                return False
            answer = await self._ask(handle, request)
        except Refusal as refusal:
            await self._send(Answer(refusal.status, {"error": str(refusal)}, (_CLOSE,)))
            return False
        except h11.RemoteProtocolError as error:
            refused = Answer(error.error_status_hint, {"error": f"this is not HTTP/1.1: {error}"})
            await self._send(refused)
            return False
        await (self._send(answer) if isinstance(answer, Answer) else self._send_lines(answer))
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE or self._last_call.is_made:
            return False
        self._h11.start_next_cycle()
        self._is_first = False
        return True

    def end_idleness(self) -> None:
        """Wait no longer for another request, unless it has begun."""
        if self._is_idle and not self._is_first and self._reading is not None and not self._reading.expired():
            self._reading.reschedule(0)

    @property
    def _is_idle(self) -> bool:
        return self._h11.their_state is h11.IDLE and not self._h11.trailing_data[0]

    async def _ask(self, handle: Handler, request: Request) -> Answer | Lines:
        try:
            return await handle(request)
        except Refusal:
            raise
        except Exception:
            logger.exception("admin.crashed", extra={"path": "/".join(request.path)})
            return Answer(
                500, {"error": "this failed in a way that was not foreseen; the log of the proxy shows where"}
            )

    async def _read_in_time(self) -> Request | None:
        """Raises Refusal for a request that began and did not arrive; an idle client is left without a word."""
        try:
            async with asyncio.timeout(READ_TIME) as self._reading:
                return await self._read()
        except TimeoutError:
            if self._is_idle:
                return None
            raise Refusal(408, f"the request did not arrive within {READ_TIME:g} seconds") from None
        finally:
            self._reading = None

    async def _read(self) -> Request | None:
        """Return the next request, None when the client has closed. Raises Refusal."""
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return None
        self._is_head = head.method == b"HEAD"
        if not self._is_public:
            _refuse_browsers(head)
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise Refusal(413, f"the body is longer than {MAX_BODY} bytes")
        return _build_request(head, bytes(body))

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            self._h11.receive_data(await self._reader.read(MAX_HEAD))
        return event

    async def _send(self, answer: Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else _json(answer.body)
        head = self._head(answer.status, answer.kind, ("Content-Length", str(len(body))), *answer.headers)
        content = () if self._is_head else (h11.Data(body),)
        await self._write(head, *content, h11.EndOfMessage())

    async def _send_lines(self, lines: Lines) -> None:
        async with contextlib.aclosing(lines):
            await self._write(self._head(200, _LINES))
            async for line in lines:
                await self._write(h11.Data(b"\n" if line is None else _json(line)))
            await self._write(h11.EndOfMessage())

    def _head(self, status: int, kind: str, *headers: tuple[str, str]) -> h11.Response:
        last = (_CLOSE,) if self._last_call.is_made and _CLOSE not in headers else ()
        return _response(status, kind, [*headers, *last])

    async def _write(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._h11.send(event) or b"")
        async with asyncio.timeout(WRITE_TIME):
            await self._writer.drain()


def _refuse_browsers(head: h11.Request) -> None:
    headers = {name.lower(): value.decode("latin-1") for name, value in head.headers}
    if b"origin" in headers or headers.get(b"sec-fetch-site", "none") != "none":
        raise Refusal(403, "this came from a web page, and web pages may not talk to the admin API")
    host = headers.get(b"host", "")
    if not _is_local(host):
        raise Refusal(403, f'the admin API does not answer for "{host}"; write http://localhost/…')


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in _LOCAL_NAMES:
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


def _build_request(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("latin-1").partition("?")
    if not path.startswith("/"):
        raise Refusal(400, "the target of the request must be a path")
    try:
        segments = tuple(unquote(segment, errors="strict") for segment in path[1:].split("/"))
        options = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
    except ValueError as error:
        raise Refusal(400, f"the target of the request cannot be decoded: {error}") from error
    accept = ",".join(value.decode("latin-1") for name, value in head.headers if name == b"accept")
    return Request(head.method.decode(), segments, {**options, **dict(_options(body))}, accept)


def _options(body: bytes) -> Iterator[tuple[str, str]]:
    """Read {"force": true, "reason": "superseded"}. Objects and arrays have no meaning here."""
    if not body:
        return
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not isinstance(fields, dict) or any(isinstance(value, dict | list) for value in fields.values()):
        raise Refusal(400, 'the body must be a JSON object of plain values, like {"force": true}')
    for name, value in fields.items():
        yield name, value if isinstance(value, str) else json.dumps(value)


def _response(status: int, kind: str, headers: list[tuple[str, str]]) -> h11.Response:
    own = [("Content-Type", kind), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    named = [("Server", f"tlsproxy/{__version__}"), *own, *headers]
    return h11.Response(status_code=status, reason=HTTPStatus(status).phrase, headers=named)


def _json(value: Any) -> bytes:
    """One line: a reader of lines may take any answer."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
