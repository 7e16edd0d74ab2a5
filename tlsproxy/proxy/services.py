"""What every exchange of a worker shares: the router, the log, the limits. A plain bundle, no behaviour of its own.

Made once by the worker's composition root (`front`); it exists so that a driver or an exchange takes one reference
instead of ten, and never the settings.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tlsproxy.proxy.inspection import name_unanswered
from tlsproxy.proxy.rate import Quiet
from tlsproxy.wire.forwarding import Options

if TYPE_CHECKING:
    from tlsproxy.proxy.record import Record
    from tlsproxy.proxy.router import Router, Site
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import RequestHead


class Trace(Protocol):
    """What follows requests across services."""

    def begin(self, exchange: Record, head: RequestHead) -> Fields:
        """The request is about to go out; returns the fields that tell the backend which trace it belongs to."""
        ...

    def ended(self, exchange: Record) -> None: ...


class Services:
    """Durations in seconds, sizes in bytes.

    Mutable state: `draining`, `staying` (sites whose requests may take longer then), `open_streams` (of HTTP/2, of all
    clients), the request counters.
    """

    __slots__ = (
        "_id_prefix",
        "_next_id",
        "_write_record",
        "body_idle",
        "connect_timeout",
        "draining",
        "forwarding",
        "header_count",
        "header_size",
        "header_timeout",
        "http2_streams",
        "keep_alive",
        "loop",
        "most_streams",
        "open_streams",
        "quiet",
        "requests",
        "router",
        "staying",
        "tally",
        "target_size",
        "trace",
        "tunnel_idle",
        "write_idle",
    )  # fmt: skip

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        forwarding: Options,
        record: Callable[[Record], None],
        header_size: int,
        header_count: int,
        target_size: int,
        header_timeout: float,
        body_idle: float,
        keep_alive: float,
        connect_timeout: float,
        tunnel_idle: float,
        write_idle: float,
        http2_streams: int,
        most_streams: int,
    ) -> None:
        self.loop = loop
        self.router = router
        self.forwarding = forwarding
        self._write_record = record
        self.header_size = header_size
        self.header_count = header_count
        self.target_size = target_size
        self.header_timeout = header_timeout
        self.body_idle = body_idle
        self.keep_alive = keep_alive
        self.connect_timeout = connect_timeout
        self.tunnel_idle = tunnel_idle
        self.write_idle = write_idle
        self.http2_streams = http2_streams
        self.most_streams = most_streams
        self.tally: Callable[[Record], None] | None = None  # counts exchanges; None: nobody does
        self.trace: Trace | None = None  # None: tracing is off
        self.open_streams = 0
        self.draining = False
        self.staying: frozenset[str] = frozenset()
        self.quiet = Quiet()  # for lines that a client can have written at will
        self.requests = 0
        # 8 random bytes a process and a counter: unique without a system call per request; no secret is made of it.
        self._id_prefix = os.urandom(8).hex().encode()
        self._next_id = 0

    def lets_stay(self, site: Site | None) -> bool:
        """While draining: whether what is in flight there may take longer than the rest."""
        return site is not None and site.name in self.staying

    def next_request_id(self) -> bytes:
        """A new request id: 24 hexadecimal digits."""
        self._next_id += 1
        return b"%b%08x" % (self._id_prefix, self._next_id)

    def record(self, exchange: Record) -> None:
        """An exchange has ended, for better or worse."""
        self.requests += 1
        if exchange.backend_ms < 0:
            name_unanswered(exchange)
        self._write_record(exchange)
        if self.tally is not None:
            self.tally(exchange)
        if self.trace is not None:
            self.trace.ended(exchange)
