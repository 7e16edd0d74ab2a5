"""The properties of the codec over as many generated messages as one has time for; started by scripts/fuzz."""

from __future__ import annotations

import sys
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.codec import read_answer, read_requests, split
from tests.fakes.generated import ANSWERS, STREAMS
from tests.wire.test_differential import compare_answer, compare_requests

CUTS = st.lists(st.floats(0, 1), max_size=4)


def main(examples: int) -> None:
    """Raise AssertionError with the smallest message that means something else to h11, or to us when it is cut."""
    outcomes: Counter[str] = Counter()
    many = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))

    @many
    @given(STREAMS, CUTS)
    def requests(data: bytes, places: list[float]) -> None:
        read = read_requests([data])
        compare_requests(data, read)
        assert read_requests(split(data, [int(place * len(data)) for place in places])).values() == read.values()
        outcomes["requests accepted"] += len(read.complete)
        outcomes["requests refused"] += read.error is not None

    @many
    @given(ANSWERS, CUTS, st.sampled_from([b"GET", b"HEAD"]), st.booleans())
    def answers(data: bytes, places: list[float], method: bytes, eof: bool) -> None:
        read = read_answer([data], method, eof=eof)
        compare_answer(data, method, read, eof=eof)
        pieces = split(data, [int(place * len(data)) for place in places])
        assert read_answer(pieces, method, eof=eof).values() == read.values()
        outcomes["answers accepted"] += read.complete
        outcomes["answers refused"] += read.error is not None

    requests()
    answers()
    print(", ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
