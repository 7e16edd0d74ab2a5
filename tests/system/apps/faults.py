"""An application to be killed: it says which process answers, waits as long as asked, and dies on demand.

What must be remembered beyond a death (which orders were begun) goes to the file that `ORDERS` names.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI, Request, WebSocket

app = FastAPI()


@app.get("/pid")
async def pid() -> int:
    return os.getpid()


@app.get("/wait/{milliseconds}")
async def wait(milliseconds: int) -> int:
    await asyncio.sleep(milliseconds / 1000)
    return os.getpid()


@app.post("/order")
async def order(request: Request) -> None:
    """Begin an order, and die before it is confirmed."""
    body = await request.body()
    _write_down(body)
    os._exit(9)


def _write_down(order: bytes) -> None:
    with Path(os.environ["ORDERS"]).open("ab") as file:
        file.write(order + b"\n")


@app.websocket("/ws")
async def ws(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(str(os.getpid()))
    await socket.receive_text()
