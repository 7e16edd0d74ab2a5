"""Hold the lease of one certificate while it is worked on.

Knows: how long a lease lasts and when to renew it. Does not know: what the work is. Rules: who loses the lease stops at
once and drops what it has; a store that can't be reached for a moment costs nothing as long as the lease lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from tlsproxy.certs.tools import Tools
from tlsproxy.errors import StoreError
from tlsproxy.store.base import Lease, LeaseLost

logger = logging.getLogger(__name__)

LIFE = 60.0
RENEWAL = 20.0
"""Seconds: two renewals may fail before the lease runs out. A holder that hangs is waited for, a minute; that one was
killed on this machine the kernel tells at once (store/leases.py)."""


@contextlib.asynccontextmanager
async def holding(tools: Tools, name: str) -> AsyncIterator[Lease | None]:
    """Hold the lease of a certificate, by its name, while the block runs; None if somebody alive has it. StoreError.

    Raises LeaseLost into the block's place when it is lost meanwhile: the block is cancelled where it waits.
    """
    lease = await tools.in_store(tools.store.acquire, name, LIFE)
    if lease is None:
        yield None
        return
    keeper = _Keeper(tools, lease)
    try:
        async with keeper:
            yield lease
    finally:
        with contextlib.suppress(StoreError):
            await tools.in_store(tools.store.release, lease)


class _Keeper:
    """Renews one lease; cancels the task that made it when that is no longer possible."""

    # Mutable: is_lost, _renewing.

    def __init__(self, tools: Tools, lease: Lease) -> None:
        self._tools, self._lease = tools, lease
        self._worker = asyncio.current_task()
        self.is_lost = False

    async def __aenter__(self) -> None:
        self._renewing = asyncio.create_task(self._renew())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._renewing.cancel()
        late: asyncio.CancelledError | None = None
        try:
            await asyncio.gather(self._renewing, return_exceptions=True)
        except asyncio.CancelledError as cancelled:  # ours as well, if the lease was lost when the block had just ended
            late = cancelled
        stop = late or error
        if self.is_lost and isinstance(stop, asyncio.CancelledError) and self._worker and not self._worker.uncancel():
            raise LeaseLost(
                f"the lease {self._lease.name!r} went to somebody else; the work on it was dropped"
            ) from stop
        if late:
            raise late

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            try:
                await self._tools.in_store(self._tools.store.renew, self._lease, LIFE)
            except LeaseLost:
                self.is_lost = True
                if self._worker:
                    self._worker.cancel()
                return
            except StoreError as error:
                logger.warning("certificate.lease_not_renewed", extra={"lease": self._lease.name, "error": str(error)})
