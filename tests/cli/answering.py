"""A proxy for the commands to talk to: a real admin socket and real HTTP, with answers that a test has written."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tlsproxy.runtime import adminhttp
from tlsproxy.runtime.adminhttp import Answer, Lines, Request
from tlsproxy.runtime.adminsocket import open_admin_socket

Answers: TypeAlias = Mapping[str, Answer | Sequence[Mapping[str, Any] | None]]
"""By "GET /certs": an answer, or the lines of one, where None is silence until the end. What is missing is a 404."""


@contextlib.contextmanager
def answering(path: Path, answers: Answers) -> Iterator[list[Request]]:
    """Answer at `path` meanwhile; yield the list to which requests are added as they come."""
    asked: list[Request] = []
    ready = threading.Event()
    stop: list[asyncio.Event] = []
    loop = asyncio.new_event_loop()

    async def handle(request: Request) -> Answer | Lines:
        asked.append(request)
        answer = answers.get(f"{request.method} /{'/'.join(request.path)}")
        if answer is None:
            return Answer(404, {"error": "nothing was prepared for this"})
        return answer if isinstance(answer, Answer) else lines(answer)

    async def lines(answer: Sequence[Mapping[str, Any] | None]) -> Lines:
        for line in answer:
            if line is None:
                await stop[0].wait()
            yield line

    async def serve() -> None:
        admin = await open_admin_socket(path)
        clients: set[asyncio.Task[None]] = set()

        def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            clients.add(asyncio.create_task(adminhttp.serve(reader, writer, handle)))

        server = await asyncio.start_unix_server(welcome, sock=admin.socket)
        stop.append(asyncio.Event())
        ready.set()
        await stop[0].wait()
        admin.remove()
        server.close()
        await asyncio.gather(*clients)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield asked
    finally:
        loop.call_soon_threadsafe(stop[0].set)
        thread.join(20)
        loop.close()
