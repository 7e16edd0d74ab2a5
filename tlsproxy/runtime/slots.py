"""Who listens on which slots. Pure: workers are named by their own slot, `Generation` acts on what changes.

A slot is a worker's share of the listening sockets. The kernel gives it connections whether its worker lives or not, so
while the worker is missing another one listens in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from tlsproxy.runtime.messages import AdoptListeners, ReleaseListeners

Listening: TypeAlias = Mapping[int, int]
"""Slot → the worker that listens on it. A slot that is not in there has nobody, and its queue waits."""


def plan_listening(slots: int, live: Collection[int], before: Listening) -> dict[int, int]:
    """Give every slot to its own worker, else to whoever has adopted it already, else to the one with the fewest."""
    plan = {slot: slot for slot in range(slots) if slot in live}
    orphans = [slot for slot in range(slots) if slot not in live]
    kept = {slot: before[slot] for slot in orphans if before.get(slot) in live}
    plan |= kept
    for slot in orphans:
        if slot not in kept and live:
            plan[slot] = min(sorted(live), key=lambda worker: _load(plan, worker))
    return plan


def orders(before: Listening, after: Listening) -> list[tuple[int, AdoptListeners | ReleaseListeners]]:
    """Return what to tell whom, adoptions first, so that no slot is without anybody in between."""
    adopted = _strangers_slots(after, unlike=before)
    released = _strangers_slots(before, unlike=after)
    return [
        *((worker, AdoptListeners(slots)) for worker, slots in adopted),
        *((worker, ReleaseListeners(slots)) for worker, slots in released),
    ]


def _load(plan: Listening, worker: int) -> int:
    return sum(keeper == worker for keeper in plan.values())


def _strangers_slots(listening: Listening, *, unlike: Listening) -> Sequence[tuple[int, tuple[int, ...]]]:
    """Return each worker with the slots of others that it has here and not there; its own is its own affair."""
    slots: dict[int, list[int]] = {}
    for slot, worker in sorted(listening.items()):
        if worker not in (slot, unlike.get(slot)):
            slots.setdefault(worker, []).append(slot)
    return [(worker, tuple(theirs)) for worker, theirs in sorted(slots.items())]
