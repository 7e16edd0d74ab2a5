"""What several checks need to know, found out once: and how blocking work is waited for without being waited out.

Knows tasks and threads, nothing of what is asked. Rules: a fact is asked for once, however many wait for it, and who
stops waiting takes it from nobody; what blocks (disk, resolver, the CA's library) runs in a daemon thread, so that the
end of the examination is not the end of the slowest name server.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Facts:
    """Mutable state: `_tasks`, by what they find out. Belongs to one event loop; `close` ends what is under way."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def once(self, key: Hashable, find: Callable[[], Awaitable[T]]) -> T:
        """Return the fact, or raise what finding it raised."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(_awaited(find))
        found: T = await asyncio.shield(task)
        return found

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def _awaited(find: Callable[[], Awaitable[T]]) -> T:
    return await find()


async def in_thread(work: Callable[[], T]) -> T:
    """Return what blocking work returns. Cancelled, it goes on unheard, and does not keep the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)  # type: ignore[arg-type]
        else:
            done.set_exception(error)

    def run() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is for who asked
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, daemon=True).start()
    return await done
