"""An application that knows how many requests it has at a time, and says who it is: "PID MOST" after a moment.

What is asked for but "/", as the proxy asks for an OpenAPI document, counts for nothing.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

_TAKES = 0.02  # seconds
_at_once = 0
_most = 0


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    global _at_once, _most
    if scope["type"] != "http":
        return
    if scope["path"] != "/":
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body"})
        return
    _at_once += 1
    _most = max(_most, _at_once)
    try:
        await asyncio.sleep(_TAKES)
    finally:
        _at_once -= 1
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"%d %d" % (os.getpid(), _most)})
