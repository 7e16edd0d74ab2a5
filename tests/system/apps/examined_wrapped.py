"""The same application for servers that do not believe X-Forwarded-* by themselves (docs/fastapi.md)."""

from __future__ import annotations

import os
from typing import Any

from tests.system.apps import examined

app: Any = examined.app


def _wrap(server: str) -> Any:
    if server == "hypercorn":
        from hypercorn.middleware import ProxyFixMiddleware

        return ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)
    if server == "middleware":
        from tlsproxy.asgi import TLSProxyMiddleware

        return TLSProxyMiddleware(app, secret=os.environ["SECRET"])
    from granian.utils.proxies import wrap_asgi_with_proxy_headers

    return wrap_asgi_with_proxy_headers(app, trusted_hosts="*")


wrapped = _wrap(os.environ["SERVER"])
