"""The FastAPI application behind the demo and config/compose.yaml: one route per thing a proxy can get wrong.

Knows nothing of tlsproxy. It says what it received, so that whoever asks can compare it with what was sent.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Body, FastAPI, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

INSTANCE = os.environ.get("DEMO_INSTANCE", "one")
MIB = 1 << 20

app = FastAPI(title="tlsproxy demo")


@app.get("/")
def hello() -> dict[str, str]:
    """Say who answers."""
    return {"message": "Hello from FastAPI behind tlsproxy", "instance": INSTANCE}


@app.get("/whoami")
def whoami(request: Request) -> dict[str, object]:
    """Tell the request as the application sees it: scheme, client, URL and every header."""
    return {
        "instance": INSTANCE,
        "url": str(request.url),
        "scheme": request.url.scheme,
        "client": request.client.host if request.client else None,
        "headers": request.headers.items(),
    }


@app.post("/echo")
def echo(value: Annotated[object, Body()]) -> object:
    """Send the JSON back."""
    return value


@app.get("/items/")
def items() -> list[str]:
    """Exist with a trailing slash only: `/items` makes FastAPI redirect, with the scheme it believes in."""
    return ["apple", "pear"]


@app.get("/events")
async def events(count: int = 5, pause: float = 0.1) -> StreamingResponse:
    """Send server-sent events one by one; each carries the time at which it was sent."""

    async def stream() -> AsyncIterator[str]:
        for number in range(count):
            yield f"id: {number}\ndata: {time.time()}\n\n"
            await asyncio.sleep(pause)

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@app.get("/download")
async def download(mib: int = 1) -> StreamingResponse:
    """Stream that many MiB without a Content-Length."""

    async def stream() -> AsyncIterator[bytes]:
        for number in range(mib * 16):
            yield bytes([number % 256]) * (MIB // 16)

    return StreamingResponse(stream(), media_type="application/octet-stream")


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, object]:
    """Read a multipart upload and tell its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    while piece := await file.read(MIB):
        digest.update(piece)
        size += len(piece)
    return {"name": file.filename, "bytes": size, "sha256": digest.hexdigest()}


@app.websocket("/ws")
async def chat(socket: WebSocket) -> None:
    """Tell the scheme and client first, then echo text and binary messages."""
    await socket.accept()
    client = socket.client.host if socket.client else None
    await socket.send_json({"instance": INSTANCE, "scheme": socket.url.scheme, "client": client})
    try:
        while True:
            message = await socket.receive()
            if message.get("bytes") is not None:
                await socket.send_bytes(message["bytes"])
            elif message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                return
    except WebSocketDisconnect:
        return
