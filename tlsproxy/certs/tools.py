"""What every step of the certificate path works with: the store, the clock, threads for what blocks.

Knows: that requests to a CA and calls of the store have threads of their own. Does not know: what is done with them.
Rule: a CA that does not answer must keep neither the event loop nor a lease waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import ParamSpec, TypeVar

from tlsproxy.certs.limiter import PARALLEL
from tlsproxy.store.base import CertificateStore

P = ParamSpec("P")
T = TypeVar("T")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Tools:
    """One set per certifier; whoever makes it closes it."""

    store: CertificateStore
    requests: Executor
    storing: Executor
    now: Clock = utc_now

    @classmethod
    def make(cls, store: CertificateStore, now: Clock = utc_now) -> Tools:
        # Not the loop's default executor: asyncio resolves names in it, and a few CAs that hang would stop that.
        # Threads for the orders that are due, for those that are asked for, and for questions about windows.
        return cls(store, ThreadPoolExecutor(3 * PARALLEL, "acme"), ThreadPoolExecutor(2, "store"), now)

    async def in_store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that blocks on the store for one call."""
        return await asyncio.get_running_loop().run_in_executor(self.storing, partial(call, *args, **kwargs))

    async def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that blocks on a CA for one request, or on the CPU for long."""
        return await asyncio.get_running_loop().run_in_executor(self.requests, partial(call, *args, **kwargs))

    def close(self) -> None:
        """Let the threads end when they are done with what they do now."""
        self.requests.shutdown(wait=False, cancel_futures=True)
        self.storing.shutdown(wait=False, cancel_futures=True)
