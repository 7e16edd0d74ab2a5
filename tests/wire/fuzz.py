"""The properties of the codec over as many generated messages as one has time for; started by scripts/fuzz."""

from __future__ import annotations

import sys
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.codec import read_answer, read_requests, split
from tests.fakes.generated import ANSWERS, STREAMS
from tests.wire.test_differential import compare_answer, compare_requests
from tests.wire.test_http2 import ANY_FRAME, check_conversation
from tests.wire.test_http2_heads import ANY_FIELD, ANY_PSEUDO, is_one_request

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

    @many
    @given(ANY_PSEUDO, st.lists(ANY_FIELD, max_size=3), st.booleans())
    def http2_heads(pseudo: dict[bytes, bytes], fields: list[tuple[bytes, bytes]], ended: bool) -> None:
        passed = is_one_request([*pseudo.items(), *fields], ended=ended)
        outcomes["heads of HTTP/2 accepted" if passed else "heads of HTTP/2 refused"] += 1

    @many
    @given(st.lists(ANY_FRAME, max_size=12), st.binary(max_size=20), CUTS)
    def http2_frames(frames: list[bytes], noise: bytes, places: list[float]) -> None:
        data = b"".join(frames) + noise
        check_conversation(split(data, [int(place * len(data)) for place in places]))
        outcomes["conversations of HTTP/2"] += 1

    requests()
    answers()
    http2_heads()
    http2_frames()
    print(", ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
