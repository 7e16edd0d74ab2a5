"""An application for `tlsproxy doctor` to look at: a redirect, a WebSocket, a stream, and a collected one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

_HIDDEN: dict[str, Any] = {"docs_url": None, "openapi_url": None, "redoc_url": None}

app = FastAPI(
    root_path=os.environ.get("APP_ROOT_PATH", ""),
    **(_HIDDEN if os.environ.get("HIDDEN") else {}),
)
posted: list[str] = []


@app.get("/items/")
def items() -> list[str]:
    return ["apple"]


@app.post("/items/")
def add() -> None:
    posted.append("something")


@app.get("/posted")
def tell_posted() -> list[str]:
    return posted


@app.websocket("/ws")
async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()


async def _slowly() -> AsyncIterator[bytes]:
    for number in range(4):
        yield b"%d\n" % number
        await asyncio.sleep(0.2)


@app.get("/slowly")
def stream() -> Response:
    return StreamingResponse(_slowly(), media_type="text/plain")


@app.get("/collected")
async def collect() -> Response:
    """What a middleware makes of a stream that reads the answer before it passes it on."""
    await asyncio.sleep(0.5)
    return PlainTextResponse(b"".join([piece async for piece in _slowly()]))
