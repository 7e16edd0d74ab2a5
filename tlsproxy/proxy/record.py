"""What is to be known of one exchange when it has ended: the access log's, the metrics' and the spans' view of it.

A value that `Exchange` fills in as it goes; nobody else writes to it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.router import Forward, Site
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.wire.messages import RequestHead


class Record:
    """`started` and `ended` are monotonic, `started_at` is wall-clock, in seconds.

    `backend_ms` (-1 without an answer) is the time from sending the request to the head of the answer. `bytes_in` and
    `bytes_out` count bodies. `template` is the application's own name for the path, as "/items/{item_id}"; "" unknown.
    `trace` begins with the id (32 digits) of the trace that the exchange is part of (tracing.py), b"" without.
    """

    __slots__ = (
        "backend", "backend_ms", "bytes_in", "bytes_out", "client", "ended", "error", "forward", "head", "info",
        "request_id", "retries", "reused", "site", "started", "started_at", "status", "template",
        "trace",
    )  # fmt: skip

    def __init__(self, head: RequestHead, info: ConnectionInfo) -> None:
        self.head = head
        self.info = info
        self.client = info.client
        self.started = time.monotonic()
        self.started_at = time.time()
        self.ended = 0.0
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.request_id = b""
        self.site: Site | None = None
        self.forward: Forward | None = None
        self.backend: Backend | None = None
        self.backend_ms = -1.0
        self.reused = False
        self.retries = 0
        self.error = ""
        self.template = ""
        self.trace = b""
