"""The admin API: requests on the unix socket -> what the supervisor knows, or a call to the certifier.

Knows which requests are quick questions and which are work; not their paths (adminroutes), not HTTP (adminhttp), not
how the proxy is (overview), not certificates (the certifier does). Rules: there is at most one piece of work per
certificate, who asks for the same again follows it; a client that leaves ends nothing; keys never come this way;
nothing that goes wrong here ends the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime import adminhttp
from tlsproxy.runtime.adminhttp import Answer, LastCall, Lines, Refusal, Request
from tlsproxy.runtime.adminroutes import ROUTES, Asked, Way, check_name, unknown
from tlsproxy.runtime.adminsocket import AdminSocket, AdminSocketError, open_admin_socket, start_server
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.exposition import Page
from tlsproxy.runtime.generation import Generation
from tlsproxy.runtime.messages import AdminProgress, AdminResult
from tlsproxy.runtime.overview import Identity, Overview, Sources
from tlsproxy.runtime.reload import Move
from tlsproxy.settings import Settings

logger = logging.getLogger(__name__)

MAX_CLIENTS = 16
QUESTION_LIMIT = 20.0
WORK_LIMIT = 3600.0
"""Seconds for the certifier to answer. Work may wait for the DNS, and for a CA that is busy."""

HEARTBEAT = 10.0
"""Seconds of silence after which a client that follows some work gets an empty line."""

_FULL = f"there are {MAX_CLIENTS} clients of the admin API already. Try again in a moment."
_ELSEWHERE = "another process is the proxy now, ask again"
_FIRST_WORD = 1.0  # seconds in which an error still becomes the status of the answer


class AdminServer:
    """Serves the API until it is closed. `generation` returns the one that serves now."""

    # Mutable: _wanted, _inherited and _prepared (until open), _socket and _server (while open), _last_call (made once),
    # _clients (a task for each), _work (what is open, by certificate).

    def __init__(
        self,
        identity: Identity,
        generation: Callable[[], Generation],
        canonical: Callable[[str], str] = str,
        scrape: Callable[[str], Awaitable[Page]] | None = None,
        deeds: Mapping[str, Callable[[Mapping[str, str]], Call]] | None = None,
        operate: Callable[[str, str, Mapping[str, str]], Awaitable[Any]] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """`canonical` tells which certificate a user's name means, so that two names for one are seen to be one.

        `scrape` returns the metrics in the format that an Accept header asks for. `deeds` are what the proxy can do
        with itself (reload, stop); they raise TlsproxyError when it is not the time for that. `operate` does with
        backends and sites what a verb says (operators.py). `sources` are what status and top are made of.
        """
        self._overview = Overview(generation, sources)
        self._ways: dict[Way, Callable[[Asked], Awaitable[Answer | Lines]]] = {
            "status": self.tell_status,
            "health": self.tell_health,
            "readiness": self.tell_readiness,
            "top": self.tell_top,
            "metrics": self.tell_metrics,
            "ask": self.ask,
            "remove": self.remove,
            "work": self.work,
            "operate": self.operate,
            "do": self.do,
        }
        self._deeds = deeds or {}
        self._operate = operate
        self._scrape = scrape
        self._identity = identity
        self._generation = generation
        self._canonical = canonical
        self._wanted = "off"
        self._inherited: AdminSocket | None = None
        self._prepared: AdminSocket | None = None
        self._socket: AdminSocket | None = None
        self._server: asyncio.Server | None = None
        self._last_call = LastCall()
        self._clients: set[asyncio.Task[None]] = set()
        self._work: dict[str, Call] = {}

    async def inherit(self, inherited: AdminSocket | None, wanted: str) -> None:
        """Take over where the supervisor before us listens, for `open` at `wanted`; until then its name stays.

        If another path is wanted, it is opened at once. Raises AdminSocketError.
        """
        if inherited is None:
            return  # there was none that could be lost
        self._inherited = inherited
        if wanted not in ("off", str(inherited.path)):
            self._prepared = await open_admin_socket(Path(wanted))

    async def open(self, wanted: str) -> None:
        """Serve at this path, if not "off". If that can't be, a warning says why, and the proxy goes on without."""
        self._wanted = wanted
        opened = self._take_inherited(wanted)
        if wanted == "off":
            return
        try:
            self._socket = opened or await open_admin_socket(Path(wanted))
        except AdminSocketError as error:
            logger.warning("admin.unavailable", extra={"socket": wanted, "error": str(error)})
            return
        self._server = await start_server(self._welcome, self._socket)

    @property
    def heirloom(self) -> tuple[str, int] | None:
        """Path and descriptor of the socket, for the supervisor after us."""
        return (str(self._socket.path), self._socket.socket.fileno()) if self._socket else None

    def leave(self) -> None:
        """Take no more clients, and be the proxy no longer for those who are there: somebody else listens there too.

        The name stays.
        """
        self._socket = None
        self.close()
        self._last_call.make()

    def describe(self, identity: Identity, canonical: Callable[[str], str]) -> None:
        """From now on this is what the proxy is."""
        self._identity, self._canonical = identity, canonical

    async def prepare(self, settings: Settings) -> Move | None:
        """Open the socket of these settings beside the one there is. Raises AdminSocketError."""
        wanted = settings.admin.socket
        if wanted == self._wanted:
            return None
        return _SocketMove(self, wanted, None if wanted == "off" else await open_admin_socket(Path(wanted)))

    async def take(self, wanted: str, opened: AdminSocket | None) -> None:
        """Serve there and no longer where it was; those who are connected stay."""
        self.close()
        self._wanted, self._socket, self._server = wanted, opened, None
        if opened is not None:
            self._server = await start_server(self._welcome, opened)

    async def see_off(self, timeout: float) -> None:
        """Let those who wait for a last word have it."""
        if self._clients:
            await asyncio.wait(self._clients, timeout=timeout)

    def close(self) -> None:
        """Take no more clients and give the name free. Those who are there stay until `kill`."""
        if self._socket is not None:
            self._socket.remove()
        if self._server is not None:
            self._server.close()  # and with it the socket

    async def kill(self) -> None:
        """Part with everybody."""
        self.close()
        if self._prepared is not None:
            _discard(self._prepared)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _take_inherited(self, wanted: str) -> AdminSocket | None:
        """Return the socket that is at hand for that path; the name of another one is given free."""
        inherited, prepared = self._inherited, self._prepared
        self._inherited = self._prepared = None
        if inherited is None or str(inherited.path) == wanted:
            return inherited
        _discard(inherited)
        return prepared

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) < MAX_CLIENTS:
            serving = adminhttp.serve(reader, writer, self.answer, last_call=self._last_call)
        else:
            serving = adminhttp.turn_away(reader, writer, 503, _FULL)
        client = asyncio.create_task(serving)
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    # --- routes -------------------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Answer | Lines:
        """Answer one request. Raises Refusal. HEAD is answered as GET, and its body left out elsewhere."""
        method = "GET" if request.method == "HEAD" else request.method
        matches = [(route, name) for route in ROUTES if (name := route.match(request.path)) is not None]
        if not matches:
            return Answer(404, {"error": unknown(request.path), "routes": [str(route) for route in ROUTES]})
        for route, name in matches:
            if route.method == method:
                check_name(name)
                if self._last_call.is_made and route.method != "GET":
                    raise Refusal(503, _ELSEWHERE)  # what is changed here changes nothing any more
                return await self._ways[route.way](Asked(route.verb, name, request.options, request.accept))
        allowed = ", ".join("GET, HEAD" if route.method == "GET" else route.method for route, _ in matches)
        sentence = f"{request.method} has no meaning for /{'/'.join(request.path)}; use {allowed}"
        return Answer(405, {"error": sentence}, (("Allow", allowed),))

    async def tell_status(self, _: Asked) -> Answer:
        return Answer(200, await self._overview.status(self._identity))

    async def tell_health(self, _: Asked) -> Answer:
        return Answer(*self._overview.health())

    async def tell_readiness(self, _: Asked) -> Answer:
        return Answer(*await self._overview.readiness(self._identity))

    async def tell_top(self, _: Asked) -> Answer:
        return Answer(200, await self._overview.top(self._identity))

    async def tell_metrics(self, asked: Asked) -> Answer:
        if self._scrape is None:
            raise Refusal(404, "this proxy has no metrics")
        page = await self._scrape(asked.accept)
        return Answer(200, page.body, kind=page.content_type)

    async def ask(self, asked: Asked) -> Answer:
        """Put a question to the certifier, which answers at once."""
        call = self._generation().call_certifier(asked.verb, asked.name, asked.options, limit=QUESTION_LIMIT)
        result = await call.wait()
        return Answer(result.status, result.body)

    async def remove(self, asked: Asked) -> Answer:
        self._refuse_clash(asked)
        return await self.ask(asked)

    async def work(self, asked: Asked) -> Answer | Lines:
        """Have something done that takes its time, or follow it if it is being done; an early error is an answer."""
        self._refuse_clash(asked)
        place = self._canonical(asked.name)
        call = self._work.get(place)
        if call is None or call.result is not None:
            call = self._generation().call_certifier(asked.verb, asked.name, asked.options, limit=WORK_LIMIT)
            self._work = {key: other for key, other in self._work.items() if other.result is None}
            self._work[place] = call
        result = await _first_word(call)
        return Answer(result.status, result.body) if result else _lines(call)

    async def do(self, asked: Asked) -> Answer | Lines:
        """Have the proxy do something with itself, and follow it."""
        deed = self._deeds.get(asked.verb)
        if deed is None:
            raise Refusal(404, f"this proxy cannot {asked.verb}")
        try:
            call = deed(asked.options)
        except TlsproxyError as error:
            raise Refusal(409, str(error)) from error
        result = await _first_word(call)
        return Answer(result.status, result.body) if result else _lines(call)

    async def operate(self, asked: Asked) -> Answer | Lines:
        """What operators want of backends and sites: an answer, or some work to be followed."""
        if self._operate is None:
            raise Refusal(404, "this proxy has no backends")
        found = await self._operate(asked.verb, asked.name, asked.options)
        if not isinstance(found, Call):
            return Answer(200, found)
        result = await _first_word(found)
        return Answer(result.status, result.body) if result else _lines(found)

    def _refuse_clash(self, asked: Asked) -> None:
        call = self._work.get(self._canonical(asked.name))
        if call is None or call.result is not None:
            return
        under_way = call.message
        if (under_way.verb, under_way.options) != (asked.verb, dict(asked.options)):
            doing = f"{under_way.verb} of {under_way.name}" if under_way.name else under_way.verb
            raise Refusal(409, f"another piece of work is under way: {doing}. Wait for its end, then ask again.")


class _SocketMove:
    """An admin socket that is open, and not yet served."""

    def __init__(self, server: AdminServer, wanted: str, opened: AdminSocket | None) -> None:
        self._server = server
        self._wanted = wanted
        self._opened = opened

    async def commit(self) -> None:
        await self._server.take(self._wanted, self._opened)

    def undo(self) -> None:
        if self._opened is not None:
            _discard(self._opened)


def _discard(opened: AdminSocket) -> None:
    opened.remove()
    opened.socket.close()


async def _first_word(call: Call) -> AdminResult | None:
    """Return the result if it is the first thing that comes; None as soon as a step, or nothing, came."""
    async with contextlib.aclosing(call.follow(_FIRST_WORD)) as events:
        event = await anext(events)
    return event if isinstance(event, AdminResult) else None


async def _lines(call: Call) -> Lines:
    async with contextlib.aclosing(call.follow(HEARTBEAT)) as events:
        async for event in events:
            yield _line(event)


def _line(event: AdminProgress | AdminResult | None) -> dict[str, Any] | None:
    match event:
        case AdminProgress(step=step, host=host, text=text):
            return {"step": step, "host": host, "text": text}
        case AdminResult(status=status, body=body) if status < 400:
            return {"status": status, "result": body}
        case AdminResult(status=status, body=body):
            return {"status": status, **(body if isinstance(body, dict) else {"error": str(body)})}
        case None:
            return None
