"""The application of the system tests: one route per thing that a proxy can get wrong.

It tells what it received. Where order matters it waits for the test's word (`/go/…`) instead of a time: an event that
is held up anywhere on its way is then never seen, and the test fails instead of being lucky.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Body, FastAPI, Form, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from tests.system.apps import resources

app = FastAPI(title="everything", root_path=os.environ.get("APP_ROOT_PATH", ""))
app.include_router(resources.router)


class Run:
    """What one test and its requests agree on."""

    def __init__(self) -> None:
        self.allowed = asyncio.Semaphore(0)
        self.received = 0
        self.changed = asyncio.Condition()
        self.closed: asyncio.Queue[int] = asyncio.Queue()
        self.given_up = asyncio.Semaphore(0)


runs: defaultdict[str, Run] = defaultdict(Run)


@app.get("/hello")
def hello() -> PlainTextResponse:
    return PlainTextResponse("hello")


@app.get("/careful")
def careful() -> PlainTextResponse:
    """Answer with the headers that scanners want of an application; they are none of the proxy's business."""
    headers = {
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    return PlainTextResponse("careful", headers=headers)


@app.get("/whoami")
def whoami(request: Request) -> dict[str, object]:
    return {
        "scheme": request.url.scheme,
        "url": str(request.url),
        "made_url": str(request.url_for("items")),
        "client": request.client.host if request.client else None,
        "root_path": request.scope.get("root_path"),
        "headers": dict(request.headers),
    }


@app.get("/items/")
def items() -> list[str]:
    """Exist with a slash at the end only: without it FastAPI redirects, with the scheme it believes in."""
    return ["apple"]


@app.post("/json")
def echo(value: Annotated[object, Body()]) -> object:
    return value


@app.post("/form")
def form(name: Annotated[str, Form()], count: Annotated[int, Form()]) -> dict[str, object]:
    return {"name": name, "count": count}


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, object]:
    digest, size = hashlib.sha256(), 0
    while piece := await file.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    return {"name": file.filename, "bytes": size, "sha256": digest.hexdigest()}


@app.post("/raw")
async def raw(request: Request) -> dict[str, object]:
    body = await request.body()
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "headers": dict(request.headers)}


@app.api_route("/bytes/{size}", methods=["GET", "HEAD"])
def sized(size: int) -> Response:
    return Response(b"x" * size, media_type="application/octet-stream")


@app.put("/digest")
async def digest(request: Request) -> dict[str, object]:
    """Take a body of any size, a piece at a time."""
    made, size = hashlib.sha256(), 0
    async for piece in request.stream():
        made.update(piece)
        size += len(piece)
    return {"bytes": size, "sha256": made.hexdigest()}


@app.get("/varied/{mib}")
def varied(mib: int) -> StreamingResponse:
    return StreamingResponse(varied_pieces(mib), media_type="application/octet-stream")


def varied_pieces(mib: int) -> Iterator[bytes]:
    """That many MiB in which a piece that is lost, repeated or in the wrong place can be told."""
    block = random.Random(mib).randbytes(1 << 20)
    for number in range(mib):
        yield number.to_bytes(8, "big") + block[8:]


@app.get("/held/{name}")
async def held(name: str, request: Request) -> None:
    """Answer nothing; count who came, and who has given up."""
    run = runs[name]
    await _count(run, 1)
    while (await request.receive())["type"] != "http.disconnect":
        pass
    run.given_up.release()


@app.get("/given-up/{name}")
async def given_up(name: str, count: int = 1) -> int:
    """Answer when so many have been given up."""
    async with asyncio.timeout(10):
        for _ in range(count):
            await runs[name].given_up.acquire()
    return count


@app.post("/go/{name}")
def go(name: str) -> None:
    """Allow one more event."""
    runs[name].allowed.release()


@app.get("/events/{name}")
async def events(name: str, count: int) -> StreamingResponse:
    return StreamingResponse(_pieces(name, count, "data: {}\n\n"), media_type="text/event-stream")


@app.get("/stream/{name}")
async def stream(name: str, count: int) -> StreamingResponse:
    return StreamingResponse(_pieces(name, count, "piece {}\n"), media_type="text/plain")


async def _pieces(name: str, count: int, form: str) -> AsyncIterator[str]:
    for number in range(count):
        yield form.format(number)
        await runs[name].allowed.acquire()


@app.post("/receive/{name}")
async def receive(name: str, request: Request) -> dict[str, int]:
    """Take a body piece by piece and count what is here already."""
    run = runs[name]
    async for piece in request.stream():
        await _count(run, len(piece))
    return {"bytes": run.received}


@app.post("/hesitate/{name}")
async def hesitate(name: str, request: Request) -> dict[str, int]:
    """Take a MiB of a body, and the rest of it when allowed."""
    run, size = runs[name], 0
    async for piece in request.stream():
        size += len(piece)
        if size - len(piece) < (1 << 20) <= size:
            await _count(run, size)
            await run.allowed.acquire()
    return {"bytes": size}


async def _count(run: Run, size: int) -> None:
    async with run.changed:
        run.received += size
        run.changed.notify_all()


@app.get("/received/{name}")
async def received(name: str, least: int) -> dict[str, int]:
    """Answer when that many bytes of the body have come, or that many requests are held."""
    run = runs[name]
    async with asyncio.timeout(10), run.changed:
        await run.changed.wait_for(lambda: run.received >= least)
    return {"bytes": run.received}


@app.websocket("/ws/echo")
async def ws_echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json(
        {"scheme": socket.url.scheme, "client": socket.client.host if socket.client else None, "path": socket.url.path}
    )
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("bytes") is not None:
                await socket.send_bytes(message["bytes"])
            else:
                await socket.send_text(message["text"])
    except WebSocketDisconnect:
        return


@app.websocket("/ws/close")
async def ws_close(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close(4001, "enough")


@app.websocket("/ws/protocols")
async def ws_protocols(socket: WebSocket) -> None:
    await socket.accept(subprotocol="chat.v2")
    await socket.close()


@app.websocket("/ws/wait/{name}")
async def ws_wait(socket: WebSocket, name: str) -> None:
    """Wait for the client to close, and remember with which code."""
    await socket.accept()
    try:
        await socket.receive_text()
    except WebSocketDisconnect as closed:
        runs[name].closed.put_nowait(closed.code)


@app.get("/closed/{name}")
async def closed(name: str) -> int:
    async with asyncio.timeout(10):
        return await runs[name].closed.get()


@app.get("/page")
def page() -> HTMLResponse:
    """A page that talks to its own server in every way a page can."""
    return HTMLResponse(_PAGE)


@app.get("/npm/{path:path}")
def assets(path: str) -> Response:
    """Stand in for the place where FastAPI's documentation page loads Swagger UI from."""
    return Response(_SWAGGER if path.endswith(".js") else "", media_type="text/javascript")


# Asks for what the page tells it to, then for a route as the document says it is to be addressed.
_SWAGGER = """
function SwaggerUIBundle(options) {
  fetch(options.url).then(answer => answer.json()).then(api => {
    const base = (api.servers || [{url: ""}])[0].url;
    return fetch(base + "/whoami").then(answer => answer.json()).then(tried => {
      document.getElementById("swagger-ui").innerHTML =
        `<h2 id=title></h2><p id=paths></p><p id=from></p><p id=tried></p>`;
      document.getElementById("title").textContent = api.info.title;
      document.getElementById("paths").textContent = Object.keys(api.paths).join(" ");
      document.getElementById("from").textContent = options.url;
      document.getElementById("tried").textContent = tried.url;
    });
  });
  return {initOAuth() {}};
}
SwaggerUIBundle.presets = {apis: null};
SwaggerUIBundle.SwaggerUIStandalonePreset = null;
"""

_PAGE = """<!doctype html><title>page</title><pre id="log"></pre><script>
const say = text => { document.getElementById("log").textContent += text + "\\n"; };
const body = new FormData();
body.append("file", new Blob([new Uint8Array(3 << 20)]), "zeros.bin");
fetch("upload", {method: "POST", body}).then(answer => answer.json()).then(it => say("upload " + it.bytes));
const events = new EventSource("events/page?count=1");
events.onmessage = event => { say("event " + event.data); events.close(); };
const socket = new WebSocket(new URL("ws/echo", location.href).href.replace("http", "ws"));
let first = true;
socket.onmessage = event => {
  if (first) { first = false; say("scheme " + JSON.parse(event.data).scheme); socket.send("ping"); return; }
  say("echo " + event.data);
  socket.close(3001, "done");
};
socket.onclose = event => say("closed " + event.code + " clean " + event.wasClean);
</script>"""
