"""The route templates of an application that does not tell them itself: from its /openapi.json, off the request path.

Strategy: the first answer of a server that runs ASGI applications (by its `Server:`) has a task ask it once for its
document; from then on a path is looked up in what was found (wire/templates.py). After five minutes the next request
has it asked again, because applications are deployed anew; one that has no document is asked ever more rarely.

Rules kept: no request waits for it; a document is bounded (`_MOST_BYTES`) and read by a thread; nothing that goes wrong
here is anybody's failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Final

from tlsproxy.wire.forwarding import Peer, outbound_request
from tlsproxy.wire.messages import RequestHead
from tlsproxy.wire.templates import Templates, read_openapi

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.failures import BackendFailure
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.record import Record
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.forwarding import Options
    from tlsproxy.wire.messages import ResponseHead

logger = logging.getLogger(__name__)

_APART: Final = 300.0  # seconds between two questions
_LONGEST_APART: Final = 3600.0
_NEVER: Final = float("inf")
_LOOK_AGAIN: Final = 10.0  # seconds after an answer of something else
_TIMEOUT: Final = 5.0
_MOST_BYTES: Final = 2 * 1024 * 1024
_DOCUMENT: Final = b"/openapi.json"
_SERVERS: Final = (b"uvicorn", b"hypercorn", b"granian", b"gunicorn", b"daphne", b"nginx-unit")


class TemplateSource:
    """The templates of one route's application.

    Mutable state: `known` (None: not, or not yet), `_due` (when to ask, time.monotonic()), `_apart`, `_digest` (of the
    document that `known` was made of), `_task`.
    """

    __slots__ = ("_apart", "_digest", "_due", "_options", "_prefix", "_stripped", "_task", "known")

    def __init__(self, prefix: bytes, options: Options, *, stripped: bool) -> None:
        self._prefix = prefix
        self._stripped = stripped
        self._options = options
        self.known: Templates | None = None
        self._due = 0.0
        self._apart = _APART
        self._digest = b""
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<TemplateSource {self.known}>"

    def find(self, exchange: Record, answer: ResponseHead) -> str:
        """The template of a request that is being answered; "" while none are known."""
        if exchange.started > self._due:
            self._ask_soon(exchange, answer)
        if self.known is None:
            return ""
        return self.known.find(exchange.head.target.partition(b"?")[0], answer.status)

    def close(self) -> None:
        """The worker leaves."""
        self._due = _NEVER
        if self._task is not None:
            self._task.cancel()

    def _ask_soon(self, exchange: Record, answer: ResponseHead) -> None:
        if self._task is not None or exchange.backend is None:
            return
        if not answer.server.lower().startswith(_SERVERS):
            self._due = exchange.started + _LOOK_AGAIN
            return
        self._due = time.monotonic() + self._apart
        question = self._learn(exchange.backend, exchange.head)
        self._task = asyncio.get_running_loop().create_task(question)

    async def _learn(self, backend: Backend, head: RequestHead) -> None:
        try:
            found = False
            async with asyncio.timeout(_TIMEOUT):
                for target in self._targets():
                    document = await self._fetch(backend, head, target)
                    if document and (found := await self._read(document)):
                        break
            self._apart = _APART if found else min(self._apart * 2, _LONGEST_APART)
        except Exception as error:  # noqa: BLE001  # whatever it is, requests go on without templates
            self._apart = min(self._apart * 2, _LONGEST_APART)
            logger.debug("templates.failed", extra={"backend": backend.url, "why": str(error) or type(error).__name__})
        finally:
            if self._due != _NEVER:
                self._due = time.monotonic() + self._apart
            self._task = None

    def _targets(self) -> list[bytes]:
        """Where the document may be: below the prefix, if the application sees it, or at the top of it all."""
        below = b"" if self._stripped else self._prefix
        return [below + _DOCUMENT, _DOCUMENT] if below else [_DOCUMENT]

    async def _fetch(self, backend: Backend, head: RequestHead, target: bytes) -> bytes:
        """The document, b"" if there is none. Asked as requests are, but over a connection that none of them wants."""
        question = RequestHead(b"GET", target, 11)
        question.host, question.authority, question.port = head.host, head.authority, head.port
        question.fields = [(b"Accept", b"application/json"), (b"User-Agent", b"tlsproxy"), (b"Connection", b"close")]
        secret = [(b"X-Tlsproxy-Secret", self._options.secret)] if self._options.secret else []
        peer = Peer("127.0.0.1", "https", self._options, vouched=secret)
        outbound = outbound_request(
            question,
            peer,
            target,
            request_id=b"templates",
            started_ms=int(time.time() * 1000),
            prefix=self._prefix if self._stripped else b"",
        )
        stream = await backend.connect(_TIMEOUT)
        reading = _Reading(stream)
        try:
            stream.begin(reading, outbound, question)
            return await reading.document
        finally:
            reading.leave()

    async def _read(self, document: bytes) -> bool:
        """Take it, if it is new. A large one takes milliseconds to parse."""
        digest = hashlib.sha256(document).digest()
        if digest == self._digest:
            return True
        loop = asyncio.get_running_loop()
        known = await loop.run_in_executor(None, _parse, document, self._prefix, self._stripped)
        if known is None:
            return False
        self.known, self._digest = known, digest
        return True


def _parse(document: bytes, prefix: bytes, stripped: bool) -> Templates | None:
    try:
        return read_openapi(json.loads(document), prefix, stripped=stripped)
    except (ValueError, RecursionError):
        return None


class _Reading:
    """Takes the answer (`backendside.AnswerTaker`): `document` is done when it is whole, or is none."""

    def __init__(self, stream: BackendStream) -> None:
        self.document: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._stream: BackendStream | None = stream
        self._pieces: list[bytes] = []
        self._size = 0

    def leave(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort()

    def answer_head(self, head: ResponseHead) -> None:
        kind = next((value for name, value in head.fields if name.lower() == b"content-type"), b"")
        if head.status != 200 or b"json" not in kind.lower():
            self._end(b"")

    def answer_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _MOST_BYTES:
            self._end(b"")
        else:
            self._pieces.append(data)

    def answer_end(self, trailers: Fields) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.release(request_sent=stream.may_refuse)  # one of HTTP/1.1 was made for this alone: it is closed
        self._end(b"".join(self._pieces))

    def backend_failed(self, failure: BackendFailure) -> None:
        self._stream = None
        self._end(b"")

    def switched(self, head: ResponseHead, rest: bytes) -> None:
        self._end(b"")

    def crash(self) -> None:
        self._end(b"")

    def interim(self, head: ResponseHead) -> None: ...
    def answer_flush(self) -> None: ...
    def backend_full(self) -> None: ...
    def backend_ready(self) -> None: ...

    def _end(self, document: bytes) -> None:
        if not self.document.done():
            self.document.set_result(document)
