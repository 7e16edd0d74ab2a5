from __future__ import annotations

from tests.fakes.clock import Clock
from tlsproxy.proxy.rate import Bucket, Quiet


class TestBucket:
    def test_holds_a_burst_and_fills_up_again(self) -> None:
        clock = Clock()
        bucket = Bucket(2, 3, clock=clock)
        assert [bucket.take() for _ in range(4)] == [True, True, True, False]
        clock.now += 0.5
        assert [bucket.take() for _ in range(2)] == [True, False]

    def test_never_holds_more_than_a_burst(self) -> None:
        clock = Clock()
        bucket = Bucket(2, 3, clock=clock)
        clock.now += 1000
        assert [bucket.take() for _ in range(4)] == [True, True, True, False]


class TestQuiet:
    def test_the_same_line_once_in_the_interval(self) -> None:
        clock = Clock()
        quiet = Quiet(60, clock=clock)
        assert [quiet.may_say("a"), quiet.may_say("a"), quiet.may_say("b")] == [True, False, True]
        clock.now += 60
        assert quiet.may_say("a")

    def test_and_no_more_lines_than_it_is_given(self) -> None:
        clock = Clock()
        quiet = Quiet(60, most=2, clock=clock)
        assert [quiet.may_say(line) for line in "abc"] == [True, True, False]
        clock.now += 60
        assert quiet.may_say("c")
