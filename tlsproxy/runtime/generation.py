"""A generation: the children that serve one configuration, from their start to their end.

start → ready → serve (replacing what dies) → drain. The listeners are not its own: they belong to the supervisor, so
that an old and a new generation can hold them at the same time. Two generations share nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tlsproxy.runtime.calls import Call, OpenCalls
from tlsproxy.runtime.children import describe_exit, plan_replacement
from tlsproxy.runtime.control import ControlError
from tlsproxy.runtime.messages import (
    AdminProgress,
    AdminResult,
    BackendPlan,
    CertificateRefused,
    CertificatesChanged,
    CertificateWanted,
    Drain,
    Drained,
    Leaving,
    Message,
    PlanChanged,
    Probed,
    Serve,
    Stats,
)
from tlsproxy.runtime.metrics import Collector
from tlsproxy.runtime.process import ChildFailed, ChildProcess, ChildSpec
from tlsproxy.runtime.slots import orders, plan_listening

logger = logging.getLogger(__name__)

KILL_WAIT = 1.0
"""Seconds to wait for the kernel after SIGKILL; only a process in uninterruptible sleep takes longer."""

RESTART_TIME = 2.0
"""Seconds after which a client may ask again for a certificate that no certifier was there to obtain."""

_NO_CERTIFIER = "the certifier is not running at the moment, it is being started again. Try again in a few seconds."
_CERTIFIER_DIED = "the certifier ended before it had an answer; it is being started again, and goes on by itself."


@dataclass(frozen=True)
class DrainOutcome:
    """What a drain cost: connections cut by the workers themselves, and children killed in the middle of it."""

    cut: int
    killed: tuple[str, ...]


@dataclass(frozen=True)
class Ears:
    """Who hears what children of all generations tell. Called from the event loop, must not raise.

    `announced` is for what a certifier says, instead of its own workers; `wished` for what workers that leave want of
    a certifier, instead of their own, which leaves too.
    """

    collector: Collector = field(default_factory=Collector)
    probed: Callable[[Probed], None] = lambda probed: None
    announced: Callable[[CertificatesChanged | CertificateRefused], None] | None = None
    wished: Callable[[CertificateWanted], None] | None = None


class Generation:
    """The certifier and the workers of one configuration. The owner calls `poll` after each SIGCHLD."""

    # Mutable: _children (not yet ended), _prepared (ready, until `serve`), _lives (a task for each of them), _keepers
    # (a task for each role and slot), _serving (from `serve` on until it leaves), _listening (slot → worker, while
    # serving), _calls, _plan, _is_leaving, _limit and _latest (of the drain).

    def __init__(
        self,
        number: int,
        certifier: ChildSpec,
        workers: Sequence[ChildSpec],
        *,
        slots: int = 0,
        plan: BackendPlan | None = None,
        ears: Ears | None = None,
    ) -> None:
        """There may be more `slots` of listeners than workers: some of these then have several."""
        self.number = number
        self._certifier = certifier
        self._workers = tuple(workers)
        self._slots = max(slots, len(self._workers))
        self._plan = plan or BackendPlan()
        self._ears = ears or Ears()
        self._children: set[ChildProcess] = set()
        self._prepared: tuple[ChildProcess, ...] = ()
        self._limit: asyncio.Timeout | None = None
        self._latest = math.inf
        self._is_leaving = False
        self._lives: set[asyncio.Task[None]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._serving = False
        self._listening: dict[int, int] = {}
        self._calls = OpenCalls()

    def __repr__(self) -> str:
        return f"<Generation {self.number} {', '.join(self.names())}>"

    async def start(self) -> None:
        """`prepare` and `serve`."""
        await self.prepare()
        self.serve()

    async def prepare(self) -> None:
        """Start the certifier, then the workers (they need its certificates); return when all are ready.

        The processes of all are there from the beginning: what they import takes as long as what they do then.
        Raises ChildFailed with the first reason; the caller then calls `kill`.
        """
        certifier, *workers = [await self._spawn(spec) for spec in (self._certifier, *self._workers)]
        await self._begin(certifier)
        beginnings = [asyncio.create_task(self._begin(worker)) for worker in workers]
        try:
            await asyncio.gather(*beginnings)
        finally:
            for beginning in beginnings:
                beginning.cancel()
        self._prepared = (certifier, *workers)

    def serve(self) -> None:
        """Go on by ourselves: everything is listened on, and what dies is replaced."""
        children, self._prepared = self._prepared, ()
        self._keepers = [asyncio.create_task(self._keep(child)) for child in children]
        self._serving = True
        for child in children:
            child.channel.send(Serve())
        self.spread()

    def names(self) -> list[str]:
        """The children that live, as `worker 0`."""
        return sorted(child.spec.name for child in self._children)

    def pids(self) -> set[int]:
        return {child.pid for child in self._children}

    def children(self) -> tuple[ChildProcess, ...]:
        """All that have not ended."""
        return tuple(self._children)

    def worker_pids(self) -> list[int]:
        return sorted(child.pid for child in self._children if child.spec.is_worker)

    def send_to_workers(self, message: Message) -> None:
        """Also to those that are still starting: they read it after their Start, and without that there is no need."""
        for child in self._children:
            if child.spec.is_worker and child.is_started:
                child.channel.send(message)

    def change_plan(self, plan: BackendPlan) -> None:
        """Have all workers go by this plan, those too that are yet to be started."""
        self._plan = plan
        self.send_to_workers(PlanChanged(plan))

    def count_ready_workers(self) -> int:
        return sum(child.spec.is_worker and child.is_ready for child in self._children)

    def count_listening_workers(self) -> int:
        return len(set(self._listening.values()))

    def certifier_pid(self) -> int | None:
        """None while there is none that could be asked."""
        certifier = self._find_certifier()
        return certifier.pid if certifier else None

    async def worker_stats(self, timeout: float) -> dict[int, dict[str, int] | None]:
        """Return the counters of every worker by pid; None of one that did not answer within `timeout` seconds."""
        workers = sorted((child for child in self._children if child.spec.is_worker), key=lambda child: child.pid)
        answers = await asyncio.gather(*(worker.ask_stats(timeout) for worker in workers))
        return dict(zip((worker.pid for worker in workers), answers, strict=True))

    async def backend_reports(self, timeout: float) -> dict[int, list[dict[str, Any]] | None]:
        """What workers that are ready say of their backends, by pid; None of one that says nothing for `timeout` s."""
        ready = [child for child in self._children if child.spec.is_worker and child.is_ready]
        answers = await asyncio.gather(*(child.ask_stats(timeout) for child in ready))
        return {
            child.pid: child.told.backends if answer is not None and child.told is not None else None
            for child, answer in zip(ready, answers, strict=True)
            if child.is_ready
        }

    def ask_one_worker(self, message: Message) -> bool:
        """Send it to a worker that is ready, not always the same one; False if there is none."""
        ready = [child for child in self._children if child.spec.is_worker and child.is_listening]
        if ready:
            random.choice(ready).channel.send(message)  # noqa: S311
        return bool(ready)

    async def refresh_stats(self, timeout: float) -> None:
        """Have all children tell the collector what they have counted; return when they have, or the time is up."""
        await asyncio.gather(*(child.ask_stats(timeout) for child in self._children))

    def call_certifier(
        self, verb: str, name: str = "", options: Mapping[str, str] | None = None, *, limit: float
    ) -> Call:
        """Ask the certifier. The call ends after `limit` seconds at the latest, at once if nobody is there."""
        call = self._calls.open(verb, name, options or {}, limit)
        certifier = self._find_certifier()
        if certifier is None:
            self._calls.take(AdminResult(call.message.id, 503, {"error": _NO_CERTIFIER}))
        else:
            certifier.channel.send(call.message)
        return call

    def poll(self) -> None:
        """Look which children have ended."""
        for child in self._children:
            child.poll()

    def retire(self) -> None:
        """Replace nobody any more; `drain` follows."""
        self._serving = False
        self._is_leaving = True
        for keeper in self._keepers:
            keeper.cancel()

    async def drain(self, timeout: float, order: Drain | None = None) -> DrainOutcome:
        """End all children within `timeout` seconds, as the order says: ask, wait, kill what is left."""
        self.retire()
        order = order or Drain(time_for_children(timeout))
        children = list(self._children)
        for child in children:
            child.channel.send(order if child.spec.is_worker else replace(order, unchanged=(), streams=0.0))
        with contextlib.suppress(TimeoutError):
            end = min(asyncio.get_running_loop().time() + timeout, self._latest)
            async with asyncio.timeout_at(end) as self._limit:
                if children:
                    await asyncio.wait([child.exited for child in children])
        # One that has said Drained has nothing left to lose, however long its interpreter takes to end.
        late = [child for child in children if child.cut is None and not child.exited.done()]
        await self.kill()
        return DrainOutcome(
            cut=sum(child.cut or 0 for child in children), killed=tuple(sorted(child.spec.name for child in late))
        )

    def hasten(self, timeout: float) -> None:
        """Have a drain that is under way, or about to begin, done within `timeout` seconds at the latest."""
        self._latest = min(self._latest, asyncio.get_running_loop().time() + timeout)
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(min(self._limit.when() or math.inf, self._latest))
        for child in self._children:
            child.channel.send(Drain(time_for_children(timeout), last=True))

    def seconds_left(self) -> float:
        """Return how long the drain that is under way may still take."""
        end = self._limit.when() if self._limit is not None else None
        return max(0.0, (end or 0.0) - asyncio.get_running_loop().time())

    async def kill(self) -> None:
        """End all children now and every task of this generation. Safe at any time, also twice."""
        self.retire()
        for child in self._children:
            child.kill()
        if self._lives:
            await asyncio.wait(self._lives, timeout=KILL_WAIT)
        tasks = [*self._keepers, *self._lives]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _spawn(self, spec: ChildSpec) -> ChildProcess:
        spec = replace(spec, start=replace(spec.start, plan=self._plan)) if spec.is_worker else spec
        child = await ChildProcess.spawn(spec)
        self._children.add(child)
        child.exited.add_done_callback(lambda _: self._forget(child))
        life = asyncio.create_task(child.live(self._handle))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return child

    async def _begin(self, child: ChildProcess) -> None:
        """Have it do what it is for; return when it is ready."""
        try:
            await child.start()
            if child.spec.is_worker and child.spec.start.plan != self._plan:  # it has changed before its Start
                child.channel.send(PlanChanged(self._plan))
        except Exception:
            child.kill()
            raise

    def _handle(self, child: ChildProcess, message: Message) -> None:
        match message:
            case Drained(cut=cut):
                child.cut = cut
            case Stats():
                self._ears.collector.take(child.pid, message)
            case Leaving() if child.spec.is_worker:
                child.leaving = True
                self.spread()
            case CertificateWanted() if child.spec.is_worker:
                (self._ears.wished if self._is_leaving and self._ears.wished else self.pass_wish)(message)
            # A worker, which strangers talk to, is not believed when it speaks as the certifier.
            case CertificatesChanged(names=()) if not child.spec.is_worker:
                self.send_to_workers(message)  # a certifier that begins, and is nobody else's
            case CertificatesChanged() | CertificateRefused() if not child.spec.is_worker:
                self._announce(message)
            case Probed() if child.spec.is_worker:
                self._ears.probed(message)
            case AdminProgress() | AdminResult() if not child.spec.is_worker:
                self._calls.take(message)
            case _:
                raise ControlError(f"{type(message).__name__} is not for the supervisor")

    def _announce(self, message: CertificatesChanged | CertificateRefused) -> None:
        (self._ears.announced or self.send_to_workers)(message)

    def pass_wish(self, wish: CertificateWanted) -> None:
        certifier = self._find_certifier()
        if certifier is None:
            self._announce(CertificateRefused(wish.host, _NO_CERTIFIER, RESTART_TIME))
        else:
            certifier.channel.send(wish)

    def _find_certifier(self) -> ChildProcess | None:
        return next((child for child in self._children if child.is_ready and not child.spec.is_worker), None)

    async def _keep(self, child: ChildProcess) -> None:
        """Watch over one slot for as long as the generation serves."""
        failures = 0
        while True:
            # Shielded: cancelling a task also cancels the bare future it awaits, and this one is not ours.
            returncode = await asyncio.shield(child.exited)
            delay, failures = plan_replacement(failures, child.healthy_for())
            _log_death(child, returncode, delay)
            self._ears.collector.count("tlsproxy_process_deaths_total", role=child.spec.role)
            child, failures = await self._replace(child.spec, delay, failures)

    async def _replace(self, spec: ChildSpec, delay: float, failures: int) -> tuple[ChildProcess, int]:
        """Try until one is ready; each failed try lengthens the pause."""
        while True:
            await asyncio.sleep(delay)
            try:
                child = await self._spawn(spec)
                await self._begin(child)
            except Exception as error:  # noqa: BLE001 - a keeper that ended would leave its slot empty for good
                delay, failures = plan_replacement(failures, healthy_for=0.0)
                _log_failure(spec, error, delay)
            else:
                child.channel.send(Serve())
                self.spread()
                logger.info("%s.replaced", spec.role, extra={"slot": spec.start.slot, "child": child.pid})
                return child, failures

    def _forget(self, child: ChildProcess) -> None:
        self._children.discard(child)
        self._ears.collector.forget(child.pid)
        if not child.spec.is_worker:
            self._calls.fail(_CERTIFIER_DIED)
        self.spread()

    def spread(self) -> None:
        """Have every slot listened on, also while its own worker is missing."""
        if not self._serving:
            return
        workers = {child.spec.start.slot: child for child in self._children if child.spec.is_worker}
        live = {slot for slot, worker in workers.items() if worker.is_listening}
        before, self._listening = self._listening, plan_listening(self._slots, live, self._listening)
        for worker, order in orders(before, self._listening):
            if worker in workers:
                workers[worker].channel.send(order)


def time_for_children(timeout: float) -> float:
    """A little less than the whole, so that a worker cuts its last connections itself, with a goodbye."""
    return timeout - min(0.5, timeout / 10)


def _log_failure(spec: ChildSpec, error: Exception, delay: float) -> None:
    """ChildFailed has the child's reason; anything else is a flaw of ours, and where it came from is of use."""
    extra = {"slot": spec.start.slot, "error": str(error) or type(error).__name__, "retry_in": delay}
    logger.error("%s.failed", spec.role, extra=extra, exc_info=None if isinstance(error, ChildFailed) else error)


def _log_death(child: ChildProcess, returncode: int, delay: float) -> None:
    extra = {"slot": child.spec.start.slot, "child": child.pid, "status": describe_exit(returncode), "retry_in": delay}
    logger.error("%s.died", child.spec.role, extra=extra)
