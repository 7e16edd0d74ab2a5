"""One release of an application: it says which (RELEASE), and that it is well unless there is the file SICK.

`/held` answers when somebody asks for `/go`.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

app = FastAPI()
release = os.environ["RELEASE"]
sick = Path(os.environ["SICK"])
gone_on = asyncio.Event()


@app.get("/healthz")
def health() -> Response:
    return PlainTextResponse("sick" if sick.exists() else "well", 503 if sick.exists() else 200)


@app.get("/hello")
async def hello() -> Response:
    return PlainTextResponse("hello", headers={"X-Release": release})


@app.get("/held")
async def hold() -> Response:
    await gone_on.wait()
    return PlainTextResponse(release)


@app.get("/go")
async def go() -> None:
    gone_on.set()
