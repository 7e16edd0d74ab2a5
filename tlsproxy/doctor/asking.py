"""One question to a backend and its answer, over HTTP/1.1 (h11) or HTTP/2 without TLS, as the proxy would ask it.

Knows sockets and both protocols; judges nothing. Rules: GET and nothing else, named as ours by its User-Agent; every
question has a deadline and an answer a largest size; a connection is closed by who asked for it, at the latest when the
question ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import h11

from tlsproxy import __version__
from tlsproxy.doctor.asking_http2 import Http2Question
from tlsproxy.errors import TlsproxyError

USER_AGENT = f"tlsproxy-doctor/{__version__}"
LARGEST_BODY = 4 << 20
_LEFT = "/?%:@!$&()*+,;="
"""What a target keeps as it is. No apostrophe: it would end the quotes of the commands that are printed."""


class Unanswered(TlsproxyError):
    """No answer came. `kind`: refused, missing (no such socket), forbidden, name, timeout, closed, garbage, other."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass
class Answer:
    """`fields` have lower-case names. `pieces`: seconds since the question, and size, of each part of the body."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    pieces: list[tuple[float, int]] = field(default_factory=list)
    head_after: float = 0.0
    is_whole: bool = False

    def get(self, name: str) -> str:
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.fields if key == wanted), "")


class Address:
    """Where a backend listens, from its URL in the configuration: http://, h2c://, unix:, h2c+unix:."""

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, _, path = url.partition("unix:")
        self.path = path if scheme in ("", "h2c+") else ""
        self.is_http2 = url.startswith("h2c")
        host, _, port = ("", "", "0") if self.path else url.partition("://")[2].rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)

    def __repr__(self) -> str:
        return f"<Address {self.url}>"

    @property
    def bind(self) -> str:
        """Where a server would have to listen, as `host:port`; the path of a unix socket."""
        return self.path or f"{in_url(self.host)}:{self.port}"

    async def connect(self, timeout: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises Unanswered, within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                if self.path:
                    return await asyncio.open_unix_connection(self.path)
                return await asyncio.open_connection(self.host, self.port)
        except TimeoutError:
            raise Unanswered("timeout", f"no connection within {timeout:g} s") from None
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise Unanswered(_kind(error), why) from error


def _kind(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "name"
    kinds = {
        errno.ECONNREFUSED: "refused",
        errno.ENOENT: "missing",
        errno.EACCES: "forbidden",
        errno.EPERM: "forbidden",
    }
    # asyncio says "Multiple exceptions" where a name has several addresses: the text holds each.
    fallback = "refused" if "Connect call failed" in str(error) else "other"
    return kinds.get(error.errno or 0, fallback)


def encoded(path: str) -> str:
    """Return a path as a target: what can't stand in a request line is percent-encoded, what is so already is left.

    An application describes its paths as people read them, and so are they typed. Half a surrogate pair is no text, but
    JSON may hold one: it becomes what a client would send for it that does not look.
    """
    return quote(path, safe=_LEFT, errors="surrogatepass")


def split_location(location: str) -> SplitResult:
    """Return the parts of a Location; all of them are empty if it is no URL, for the application wrote it."""
    try:
        return urlsplit(location)
    except ValueError:
        return urlsplit("")


def in_url(host: str) -> str:
    """Return a host as it stands in URLs and in the Host header: IPv6 addresses in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def question(host: str, fields: Mapping[str, str]) -> list[tuple[str, str]]:
    return list({"Host": in_url(host), "User-Agent": USER_AGENT, "Accept": "*/*", **fields}.items())


async def ask(
    address: Address, target: str, host: str, fields: Mapping[str, str] | None = None, *, timeout: float = 5.0
) -> Answer:
    """Return the whole answer to one GET. Raises Unanswered."""
    async with conversation(address, timeout=timeout) as talk:
        return await talk.ask(target, host, fields or {}, timeout=timeout)


@contextlib.asynccontextmanager
async def conversation(address: Address, *, timeout: float = 5.0) -> AsyncIterator[Conversation]:
    """Hold one connection; it is cut at the end."""
    reader, writer = await address.connect(timeout)
    try:
        yield Conversation(address, reader, writer)
    finally:
        writer.transport.abort()


class Conversation:
    """Questions one after the other on one connection. Mutable: what h11 knows, and `_http2` once it was begun."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address, self._reader, self._writer = address, reader, writer
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)

    async def ask(
        self, target: str, host: str, fields: Mapping[str, str], *, timeout: float, most_pieces: int = 0
    ) -> Answer:
        """Return the answer, or as much of it as came until the time was over or `most_pieces` of a body were there.

        Raises Unanswered if not even a head came.
        """
        begin = time.monotonic()
        found: list[Answer] = []
        try:
            async with asyncio.timeout(timeout):
                ask = self._ask_http2 if self._address.is_http2 else self._ask_http1
                await ask(encoded(target), question(host, fields), begin, found, most_pieces)
        except TimeoutError:
            if not found:
                raise Unanswered("timeout", f"no answer within {timeout:g} s") from None
        except h11.RemoteProtocolError as error:
            raise Unanswered("garbage", f"an answer that is no HTTP/1.1 ({error})") from error
        except OSError as error:
            raise Unanswered("closed", error.strerror or str(error)) from error
        return found[0]

    @property
    def own_address(self) -> str:
        """The address from which the other side sees this machine; "" for a unix socket."""
        name = self._writer.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def may_go_on(self) -> bool:
        """Whether another question may follow on this connection."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return self._h11.our_state is h11.IDLE

    async def wait_for_close(self, timeout: float) -> float | None:
        """Return after how many seconds of silence the other side closed; None if it did not within `timeout`."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                while await self._reader.read(4096):
                    pass
        except TimeoutError:
            return None
        except OSError:
            pass
        return time.monotonic() - begin

    def send(self, octets: bytes) -> None:
        """Send bytes as they are, behind an upgrade."""
        self._writer.write(octets)

    async def _ask_http1(
        self, target: str, head: list[tuple[str, str]], begin: float, found: list[Answer], most_pieces: int
    ) -> None:
        request = h11.Request(method="GET", target=target, headers=head)
        self._writer.write((self._h11.send(request) or b"") + (self._h11.send(h11.EndOfMessage()) or b""))
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                octets = await self._reader.read(65536)
                if not octets and not found:
                    raise Unanswered("closed", "the connection was closed instead of an answer")
                self._h11.receive_data(octets)
            elif _takes(event, begin, found, most_pieces):
                return

    async def _ask_http2(
        self, target: str, head: list[tuple[str, str]], begin: float, found: list[Answer], most_pieces: int
    ) -> None:
        asked = Http2Question(target, head)
        self._writer.write(asked.to_send())
        while not asked.is_over:
            octets = await self._reader.read(65536)
            asked.take(octets)
            self._writer.write(asked.to_send())
            if asked.status and not found:
                found.append(Answer(asked.status, asked.fields, head_after=time.monotonic() - begin))
            for piece in asked.pieces():
                _add_piece(found[0], piece, begin)
            if not octets or (most_pieces and found and len(found[0].pieces) >= most_pieces):
                break
        if not found:
            raise Unanswered("garbage", asked.trouble or "no answer in HTTP/2")
        found[0].is_whole = asked.is_over


def _takes(event: Any, begin: float, found: list[Answer], most_pieces: int) -> bool:
    """Add an event to the answer; tell whether that was the last of it."""
    if isinstance(event, h11.Response) or (isinstance(event, h11.InformationalResponse) and event.status_code == 101):
        fields = [(bytes(name).lower(), bytes(value)) for name, value in event.headers]
        found.append(Answer(event.status_code, fields, head_after=time.monotonic() - begin))
        return event.status_code == 101
    if isinstance(event, h11.Data):
        _add_piece(found[0], bytes(event.data), begin)
        return bool(most_pieces) and len(found[0].pieces) >= most_pieces
    if isinstance(event, h11.EndOfMessage):
        found[0].is_whole = True
        return True
    return not isinstance(event, h11.InformationalResponse)


def _add_piece(answer: Answer, piece: bytes, begin: float) -> None:
    if len(answer.body) + len(piece) > LARGEST_BODY:
        raise Unanswered("garbage", f"an answer of more than {LARGEST_BODY >> 20} MiB")
    answer.body += piece
    answer.pieces.append((time.monotonic() - begin, len(piece)))
