"""Who listens on which slots: tables of who lives and who did before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.runtime.messages import AdoptListeners, ReleaseListeners
from tlsproxy.runtime.slots import orders, plan_listening

ALL = {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    ("live", "before", "plan"),
    [
        ([0, 1, 2], {}, ALL),
        ([0, 1, 2], ALL, ALL),
        ([0, 2], ALL, {0: 0, 1: 0, 2: 2}),
        ([2], {0: 0, 1: 0, 2: 2}, {0: 2, 1: 2, 2: 2}),  # who had adopted a slot dies: its own and the adopted move on
        ([1, 2], {0: 2, 1: 1, 2: 2}, {0: 2, 1: 1, 2: 2}),  # a second look moves nothing
        ([0, 2], {0: 2, 1: 2, 2: 2}, {0: 0, 1: 2, 2: 2}),  # who is back has its own again, the rest stays
        ([0, 1, 2], {0: 0, 1: 0, 2: 2}, ALL),
        ([], ALL, {}),  # nobody: all queues wait
        ([1], {}, {0: 1, 1: 1, 2: 1}),  # the first one back takes all
    ],
)
def test_every_slot_has_a_worker(live: list[int], before: Mapping[int, int], plan: Mapping[int, int]) -> None:
    assert plan_listening(3, live, before) == plan


def test_orphans_go_to_those_with_the_fewest() -> None:
    assert plan_listening(4, [0, 1], {}) == {0: 0, 1: 1, 2: 0, 3: 1}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, ALL, []),
        (ALL, ALL, []),
        (ALL, {0: 0, 1: 0, 2: 2}, [(0, AdoptListeners((1,)))]),
        ({0: 0, 1: 0, 2: 2}, ALL, [(0, ReleaseListeners((1,)))]),
        (
            {0: 0, 1: 0, 2: 2},
            {0: 2, 1: 2, 2: 2},
            [(2, AdoptListeners((0, 1))), (0, ReleaseListeners((1,)))],
        ),
        (ALL, {}, []),
        ({}, {0: 1, 1: 1, 2: 1}, [(1, AdoptListeners((0, 2)))]),
    ],
)
def test_only_what_changes_is_said(
    before: Mapping[int, int], after: Mapping[int, int], said: list[tuple[int, AdoptListeners | ReleaseListeners]]
) -> None:
    assert orders(before, after) == said


@given(st.lists(st.sets(st.integers(0, 4)), max_size=8))
def test_workers_that_obey_listen_as_planned(history: Iterable[set[int]]) -> None:
    """Whatever dies and comes back, in any order: what each has been told adds up to the plan."""
    before: dict[int, int] = {}
    listening: dict[int, set[int]] = {}
    for live in history:
        after = plan_listening(5, live, before)
        # A dead worker forgets what it adopted; one that is new listens on its own slot.
        listening = {worker: listening.get(worker, {worker}) for worker in live}
        for worker, order in orders(before, after):
            if worker in live and isinstance(order, AdoptListeners):
                listening[worker] |= set(order.slots)
            elif worker in live:
                listening[worker] -= set(order.slots)
        before = after
        assert sorted(slot for slots in listening.values() for slot in slots) == (sorted(range(5)) if live else [])
        assert all(slot in listening[worker] for slot, worker in after.items())
