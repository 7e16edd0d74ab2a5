"""An application that believes its proxy by a secret (docs/middleware.md), with what can go wrong about it."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import Response

from tlsproxy.asgi import TLSProxyMiddleware

api, sub = FastAPI(), FastAPI()


def facts(scope: Any, url: str) -> dict[str, object]:
    client = scope.get("client")
    return {
        "url": url,
        "client": client[0] if client else None,
        "server": list(scope["server"] or ()),
        "root_path": scope["root_path"],
        "headers": [name.decode() for name, _ in scope["headers"]],
        "tls": scope.get("extensions", {}).get("tls"),
        "text": repr(scope),
    }


@api.get("/scope/{word}")
@sub.get("/scope/{word}")
def tell(request: Request, word: str) -> dict[str, object]:
    return facts(request.scope, str(request.url))


@api.get("/items/")
def items(request: Request) -> str:
    return str(request.url_for("items"))


@api.get("/echo")
def echo(request: Request) -> Response:
    """Send back every header field that came, as debugging pages do."""
    return Response("\n".join(f"{name}: {value}" for name, value in request.headers.items()), headers=request.headers)


@api.websocket("/ws/{room}")
async def talk(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    await websocket.send_json(facts(websocket.scope, str(websocket.url)))
    await websocket.close()


api.mount("/mounted/{tenant}", sub)
app: Any = TLSProxyMiddleware(api, secret=os.environ["SECRET"], reject=bool(os.environ.get("REJECT")))
