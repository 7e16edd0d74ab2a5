"""Whether a backend may be asked: operators, health checks and failures each have their say, and their own end."""

from __future__ import annotations

import pytest

from tlsproxy.proxy import condition, upstream
from tlsproxy.proxy.condition import Condition
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.upstream import Upstream


class Clock:
    """The only one of these tests."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (condition, upstream):
        monkeypatch.setattr(module, "time", clock)
    return clock


def server(*, siblings: bool = True) -> Condition:
    found = Condition("http://10.0.0.1:80")
    found.has_siblings = siblings
    return found


def pair(balance: str = "round_robin") -> tuple[Upstream, Backend, Backend]:
    route = Upstream([Backend(f"http://10.0.0.{n}:80", most_idle=2) for n in range(2)], balance)
    return route, *route.backends  # type: ignore[return-value]


class TestState:
    def test_a_new_one_is_up(self) -> None:
        assert server().state() == ("up", "", 1000.0)

    def test_a_drained_one_gets_nothing_until_it_is_resumed(self, clock: Clock) -> None:
        found = server()
        clock.now += 5
        found.drain()
        assert (found.may_be_asked, found.state()[0], found.state()[2]) == (False, "draining", 1005.0)
        found.resume()
        assert (found.may_be_asked, found.state()[0], found.is_recovering) == (True, "up", False)

    def test_an_operators_word_is_told_before_that_of_a_health_check(self) -> None:
        found = server()
        found.judged("a.test /", "503")
        found.drain()
        assert found.state()[0] == "draining"
        found.resume()
        assert found.state()[:2] == ("down", "503")

    def test_a_failed_health_check_takes_it_out_even_if_it_is_the_only_one(self) -> None:
        found = server(siblings=False)
        found.judged("a.test /", "cannot connect")
        assert (found.is_down, found.down_why, found.may_be_asked) == (True, "cannot connect", False)

    def test_every_route_that_asks_has_to_find_it_well(self) -> None:
        found = server()
        found.judged("a.test /", "503")
        found.judged("b.test /", "404")
        found.judged("a.test /", "")
        assert (found.is_down, found.down_why) == (True, "404")
        found.judged("b.test /", "")
        assert not found.is_down

    def test_a_verdict_that_goes_on_changes_its_reason_and_not_its_time(self, clock: Clock) -> None:
        found = server()
        found.judged("a.test /", "no answer within 2 s")
        clock.now += 5
        found.judged("a.test /", "503")
        assert found.state() == ("down", "503", 1000.0)

    def test_one_that_fails_is_left_alone_and_says_why(self) -> None:
        found = server()
        for _ in range(3):
            found.failed("connection refused")
        assert found.state()[:2] == ("ejected", "connection refused")
        assert found.may_be_asked  # by the one request that tries it

    def test_one_that_its_health_check_finds_well_again_starts_with_a_clean_sheet(self) -> None:
        found = server()
        for _ in range(3):
            found.failed("no")
        found.judged("a.test /", "no")
        found.judged("a.test /", "")
        assert (found.is_left_alone, found.state()[0]) == (False, "recovering")


class TestSlowRecovery:
    def shares(self, route: Upstream, back: Backend, clock: Clock, times: tuple[float, ...]) -> list[float]:
        start, found = clock.now, []
        for after in times:
            clock.now = start + after
            found.append([route.choose("c") for _ in range(2000)].count(back) / 2000)
        return found

    @pytest.mark.parametrize("balance", ["round_robin", "random"])
    def test_its_share_rises_from_a_tenth_of_its_own_to_all_of_it_in_ten_seconds(
        self, balance: str, clock: Clock
    ) -> None:
        route, back, _ = pair(balance)
        back.judged("a.test /", "no")
        assert back not in {route.choose("c") for _ in range(20)}
        back.judged("a.test /", "")
        first, middle, last = self.shares(route, back, clock, (0, 5, 10.1))
        assert 0.02 < first < 0.10
        assert 0.20 < middle < 0.36
        assert 0.40 < last < 0.60
        assert back.state()[0] == "up"

    def test_after_failures_it_is_the_same(self, clock: Clock) -> None:
        route, back, _ = pair()
        for _ in range(3):
            back.failed("no")
        back.succeeded()
        assert self.shares(route, back, clock, (0,))[0] < 0.10

    def test_one_failure_is_no_reason_for_it(self) -> None:
        _, back, _ = pair()
        back.failed("no")
        back.succeeded()
        assert not back.is_recovering

    def test_the_only_one_of_a_route_gets_everything_at_once(self) -> None:
        route = Upstream([Backend("http://10.0.0.1:80", most_idle=2)], "least_conn")
        back = route.backends[0]
        back.judged("a.test /", "no")
        assert route.choose("c") is None
        back.judged("a.test /", "")
        assert {route.choose("c") for _ in range(50)} == {back}

    def test_when_nobody_else_can_be_asked_it_gets_everything_too(self) -> None:
        route, back, other = pair("least_conn")
        back.judged("a.test /", "no")
        back.judged("a.test /", "")
        other.drain()
        assert {route.choose("c") for _ in range(50)} == {back}
