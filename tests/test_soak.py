"""What the soak tells about hours: its arithmetic. The soak itself takes hours and is run by hand (docs/soak.md)."""

from __future__ import annotations

import asyncio
import os
import ssl

import pytest

from scripts.soaking.samples import look, slope
from scripts.soaking.visitors import Place, Tally, stay


def test_the_slope_of_a_line_is_its_own() -> None:
    assert slope([(float(x), 3.0 * x + 7) for x in range(10)]) == pytest.approx(3.0)


def test_a_single_look_has_no_slope() -> None:
    assert slope([(1.0, 5.0)]) == 0.0


def test_what_goes_up_and_down_has_a_small_slope() -> None:
    assert abs(slope([(float(x), float(x % 2)) for x in range(100)])) < 0.01


def test_a_look_at_a_tree_counts_its_memory_and_descriptors() -> None:
    sample = look(os.getpid(), 1.5, 10, 1)
    assert sample.processes >= 1
    assert sample.memory > 1 << 20
    assert sample.descriptors >= 3
    assert (sample.elapsed, sample.requests, sample.failures) == (1.5, 10, 1)


def test_a_visitor_counts_what_nobody_foresaw_and_comes_again() -> None:
    async def scene() -> Tally:
        over, tally = asyncio.Event(), Tally("odd")

        async def visit(_: Place, tally: Tally) -> None:
            if tally.failures.total() == 2:
                over.set()
            raise RuntimeError("not foreseen")

        await stay(visit, Place("a.test", 1, ssl.create_default_context()), tally, over)
        return tally

    assert asyncio.run(scene()).failures == {"RuntimeError: not foreseen": 3}
