"""A page of many parts, as a browser loads them: scripts, styles, pictures, and what its script asks for by itself."""

from __future__ import annotations

import base64
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

router = APIRouter()

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
KINDS = ("js", "css", "png", "json")
TYPES = {"js": "text/javascript", "css": "text/css", "png": "image/png", "json": "application/json"}


@router.get("/resources")
def page(count: int) -> HTMLResponse:
    """Show a page that needs so many parts; `done` in it counts those that have come and are right."""
    tags = "".join(_tag(KINDS[number % 4], number) for number in range(count))
    return HTMLResponse(f"<!doctype html><title>resources</title><script>{_COUNT}</script>{tags}<body></body>")


@router.get("/resources/{number}.{kind}")
def part(number: int, kind: Literal["js", "css", "png", "json"]) -> Response:
    content = {"js": f"done({number});\n", "css": f".part-{number} {{ color: red }}\n", "json": f"{number}"}
    filler = "/* some weight */\n" * (number * 7 % 1000) if kind in ("js", "css") else ""
    return Response(PIXEL if kind == "png" else content[kind] + filler, media_type=TYPES[kind])


def _tag(kind: str, number: int) -> str:
    address = f"resources/{number}.{kind}"
    match kind:
        case "js":
            return f'<script src="{address}" defer></script>'
        case "css":
            return f'<link rel="stylesheet" href="{address}" onload="done({number})">'
        case "png":
            return f'<img src="{address}" onload="done({number})">'
        case _:
            return f'<script>ask("{address}", {number})</script>'


_COUNT = """
const arrived = new Set();
const done = number => arrived.add(number);
const ask = (address, number) => fetch(address).then(answer => answer.json()).then(it => it === number && done(number));
"""
