"""Leases that are lost, and work that is ended, at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from tlsproxy.certs.leasing import _Keeper
from tlsproxy.certs.tools import Tools
from tlsproxy.store.base import LeaseLost, open_store


async def _end_when_the_block_is_over(*, is_lost: bool, more: int = 0) -> None:
    tools = Tools.make(open_store("memory:"))
    lease = tools.store.acquire("acme/a.test")
    assert lease
    keeper, task = _Keeper(tools, lease), asyncio.current_task()
    assert task
    try:
        async with keeper:
            keeper.is_lost = is_lost
            for _ in range(1 + more):
                task.cancel()  # comes to effect at the next await, and that is not in the block any more
    finally:
        tools.close()


def test_a_lease_lost_at_the_end_is_a_lost_lease() -> None:
    with pytest.raises(LeaseLost):
        asyncio.run(_end_when_the_block_is_over(is_lost=True))


@pytest.mark.parametrize(("is_lost", "more"), [(False, 0), (True, 1)])
def test_who_was_cancelled_by_somebody_else_is_cancelled(is_lost: bool, more: int) -> None:
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_end_when_the_block_is_over(is_lost=is_lost, more=more))
