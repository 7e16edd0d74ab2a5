"""The same application as servers need it that do not believe X-Forwarded-* by themselves (docs/fastapi.md)."""

from __future__ import annotations

import os
from typing import Any

from tests.system.apps import everything

app: Any = everything.app  # every server writes the type of an ASGI application in its own way


def _wrap(server: str) -> Any:
    match server:
        case "hypercorn":
            from hypercorn.middleware import ProxyFixMiddleware

            return ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)
        case "granian":
            from granian.utils.proxies import wrap_asgi_with_proxy_headers

            return wrap_asgi_with_proxy_headers(app, trusted_hosts="*")
        case _:
            from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

            return ProxyHeadersMiddleware(app, trusted_hosts="*")


wrapped = _wrap(os.environ["SERVER"])
