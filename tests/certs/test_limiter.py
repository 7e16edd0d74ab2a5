"""Not too fast: ten orders in any ten seconds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tlsproxy.certs.limiter import OrderLimiter


def test_ten_at_once_and_the_eleventh_after_ten_seconds() -> None:
    limiter = OrderLimiter()
    for _ in range(10):
        assert limiter.delay(100.0) == 0.0
        limiter.took(100.0)
    assert limiter.delay(103.0) == 7.0
    assert limiter.delay(110.0) == 0.0
    assert repr(limiter) == "<OrderLimiter 10 of 10 in 10 s>"


@given(st.lists(st.floats(0, 20), max_size=60))
@settings(max_examples=60)
def test_no_ten_seconds_see_more_than_ten(pauses: list[float]) -> None:
    limiter, now, begun = OrderLimiter(), 0.0, []
    for pause in pauses:
        now += pause / 4
        now += limiter.delay(now)
        limiter.took(now)
        begun.append(now)
    assert all(sum(1 for other in begun if start <= other < start + 9.999) <= 10 for start in begun)
