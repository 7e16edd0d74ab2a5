"""Other backends for a route, without one request that fails: ask the new ones until they are well, switch, let the old
ones end what is under way.

Knows one swap from its beginning to its end; `backends` knows the plan. Rules: before all new ones are well nothing is
changed; from the switch on nothing is taken back; at most one swap of a route is under way, and who asks for the same
follows it; who stops watching ends nothing; what there is of workers, generations and settings may change meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tlsproxy.runtime import plans
from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult, Probe, Probed
from tlsproxy.runtime.rows import still_busy

logger = logging.getLogger(__name__)

PROBE_APART = 1.0
PROBE_GRACE = 2.0
"""Seconds that a worker may take for a probe beyond the time that the probe itself has."""
LOOK_APART = 0.25
LONGEST = 3600.0

_NO_WORKER = "no worker was there to ask"


class SwapFailed(Exception):
    """Nothing was changed, for this reason. `status` is HTTP's."""

    def __init__(self, reason: str, status: int = 502) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Order:
    """What is wanted: `backends` for `route` ("SITE PATH"); times in seconds."""

    route: str
    backends: tuple[str, ...]
    timeout: float
    drain: float


class Swaps:
    """All swaps. Its owner has `probed` called with what workers answer."""

    # Mutable: _calls (by route, the last of each), _tasks, _probes (whom the answer to each open Probe is for).

    def __init__(self, backends: Backends, ask_worker: Callable[[Probe], bool]) -> None:
        """`ask_worker` gives a probe to a worker of the serving generation; False if there is none."""
        self._backends = backends
        self._ask_worker = ask_worker
        self._calls: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._probes: dict[int, asyncio.Future[dict[str, str]]] = {}
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Swaps {len(self._tasks)} under way>"

    def probed(self, answer: Probed) -> None:
        """A worker has asked. Workers are not believed about backends that nobody wanted to know of."""
        future = self._probes.get(answer.id)
        if future is not None and not future.done():
            future.set_result(answer.faults)

    def begin(self, host: str, path: str, backends: Sequence[str], *, timeout: float, drain: float) -> Call:
        """Begin, or find the same that is under way. Raises Refusal."""
        if not 0 <= drain <= LONGEST or not 0 < timeout <= LONGEST:
            raise Refusal(400, f"timeout and drain of a swap have at most {LONGEST:.0f} s")
        order = Order(self._route(host, path), tuple(dict.fromkeys(backends)), timeout, drain)
        if drained := self._drained(order):
            raise Refusal(409, f"{drained[0]} is drained, so it would get no request. Resume it first.")
        under_way = self._calls.get(order.route)
        if under_way is not None and under_way.result is None:
            return _same(under_way, order)
        call = Call(AdminCall(next(self._ids), "swap", order.route, _options(order)))
        self._calls[order.route] = call
        task = asyncio.create_task(self._run(call, order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call

    async def close(self) -> None:
        """The supervisor leaves: end what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _route(self, host: str, path: str) -> str:
        site = self._backends.site(host)
        name = f"{site.hosts[0]} {path.rstrip('/') or '/'}"
        if name not in self._backends.routes:
            raise Refusal(404, f"{host} has no route {path}. There is {', '.join(route.path for route in site.routes)}")
        return name

    def _drained(self, order: Order) -> list[str]:
        return [url for url in order.backends if url in self._backends.plan.drained]

    # --- one swap -----------------------------------------------------------------------------------------------------

    async def _run(self, call: Call, order: Order) -> None:
        status, body = 500, {"error": "this failed in a way that was not foreseen; the log of the proxy shows where"}
        try:
            status, body = 200, await self._swap(call, order)
        except SwapFailed as failure:
            status, body = failure.status, {"error": str(failure)}
            logger.warning("backends.not_swapped", extra={"route": order.route, "why": str(failure)})
        except asyncio.CancelledError:
            status, body = 503, {"error": "the proxy was ended before the swap did; `admin sites list` shows how it is"}
            raise
        except Exception:
            logger.exception("backends.swap_crashed", extra={"route": order.route})
        finally:
            call.finish(AdminResult(call.message.id, status, body))

    async def _swap(self, call: Call, order: Order) -> dict[str, Any]:
        await self._wait_until_well(call, order)
        routes = self._backends.routes
        if order.route not in routes:  # a reload has come between
            raise SwapFailed(f"{order.route} is no route any more: the configuration was changed meanwhile", 409)
        if drained := self._drained(order):  # an operator has come between
            why = f"{drained[0]} was drained meanwhile, so it would get no request"
            raise SwapFailed(f"{order.route}: {why}. Nothing was changed. Resume it first.", 409)
        before = plans.in_use(routes, self._backends.plan)[order.route]
        _tell(call, "switch", f"new requests go to {', '.join(order.backends)}")
        warnings = await self._backends.swap(order.route, order.backends)
        logger.info("backends.swapped", extra={"route": order.route, "before": before, "backends": order.backends})
        left = await self._wait_until_idle(call, order, set(before) - set(order.backends))
        if left != 0:
            number = "not known" if left is None else left
            warnings.append(f"requests still under way at the old backends: {number}. They go on.")
        return {"route": order.route, "backends": list(order.backends), "before": list(before), "warnings": warnings}

    async def _wait_until_well(self, call: Call, order: Order) -> None:
        """Return when all new ones were well often enough, in a row and together. Raises SwapFailed."""
        loop = asyncio.get_running_loop()
        health = plans.health_of(self._backends.sites, order.route)
        asked = f"GET {health.path}" if health else "a connection"
        needed, patience = (health.passes, health.timeout) if health else (1, PROBE_GRACE)
        _tell(call, "check", f"{asked} at {', '.join(order.backends)}, for at most {order.timeout:g} s")
        deadline = loop.time() + order.timeout
        passed, faults = 0, dict.fromkeys(order.backends, "")
        while True:
            begun = loop.time()
            before, faults = faults, await self._probe(order, patience + PROBE_GRACE)
            for url, why in faults.items():
                if why and why != before[url]:
                    _tell(call, "wait", f"{url}: {why}")
            passed = 0 if any(faults.values()) else passed + 1
            if passed >= needed:
                return
            if loop.time() >= deadline:
                raise SwapFailed(_not_well(order, faults))
            await asyncio.sleep(max(0.0, min(begun + PROBE_APART, deadline) - loop.time()))

    async def _probe(self, order: Order, patience: float) -> dict[str, str]:
        """What is wrong with each. A worker that dies meanwhile leaves it open, so nobody waits for it for ever."""
        probe = Probe(next(self._ids), order.route, order.backends)
        answer = self._probes[probe.id] = asyncio.get_running_loop().create_future()
        try:
            if not self._ask_worker(probe):
                return dict.fromkeys(order.backends, _NO_WORKER)
            async with asyncio.timeout(patience):
                faults = await answer
        except TimeoutError:
            return dict.fromkeys(order.backends, f"the worker that was asked has not answered within {patience:g} s")
        finally:
            del self._probes[probe.id]
        return {url: faults.get(url, "the worker that was asked said nothing of it") for url in order.backends}

    async def _wait_until_idle(self, call: Call, order: Order, old: set[str]) -> int | None:
        """Return how many requests are left at the old ones, those apart that other routes have too; None: unknown."""
        others = plans.in_use(self._backends.routes, self._backends.plan).values()
        old = old.difference(*others)
        if not old:
            return 0
        _tell(call, "drain", f"{', '.join(sorted(old))}: what is under way may take {order.drain:g} s")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + order.drain
        while True:
            busy = still_busy(await self._backends.reports(), old)
            if busy == 0:
                return 0
            if loop.time() >= deadline:
                return busy
            await asyncio.sleep(LOOK_APART)


def _same(call: Call, order: Order) -> Call:
    if call.message.options != _options(order):
        wanted = call.message.options["to"]
        raise Refusal(409, f"another swap of {order.route} is under way, to {wanted}. Wait for its end.")
    return call


def _options(order: Order) -> dict[str, str]:
    return {"to": ", ".join(order.backends), "timeout": f"{order.timeout:g}", "drain": f"{order.drain:g}"}


def _tell(call: Call, step: str, text: str) -> None:
    call.add(AdminProgress(call.message.id, step, call.message.name, text))


def _not_well(order: Order, faults: dict[str, str]) -> str:
    bad: Collection[str] = [f"{url}: {why}" for url, why in faults.items() if why]
    reasons = "; ".join(bad) or "they were not well often enough in a row"
    return f"{order.route}: not all new backends were well within {order.timeout:g} s. Nothing was changed. {reasons}"
