"""Choosing a backend, leaving alone the ones that fail, and learning how long a server keeps a connection."""

from __future__ import annotations

from collections import Counter

import pytest

from tlsproxy.proxy import condition, pool, upstream
from tlsproxy.proxy.backend import BackendConnection
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.upstream import Upstream

CLIENTS = [f"198.51.100.{number}" for number in range(256)]


class Clock:
    """The only one of these tests."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (condition, pool, upstream):
        monkeypatch.setattr(module, "time", clock)
    return clock


def make(count: int, balance: str = "round_robin") -> Upstream:
    return Upstream([Backend(f"http://10.0.0.{n}:80", most_idle=2) for n in range(count)], balance)


def fail(backend: Backend, times: int = 3) -> None:
    for _ in range(times):
        backend.failed("no")


class TestBalance:
    def test_round_robin_takes_each_in_turn(self) -> None:
        upstream = make(3)
        chosen = [upstream.choose("c") for _ in range(6)]
        assert set(chosen[:3]) == set(upstream.backends)
        assert chosen[:3] == chosen[3:]

    def test_least_conn_takes_the_one_with_the_fewest_requests(self) -> None:
        upstream = make(3, "least_conn")
        for backend, active in zip(upstream.backends, (2, 1, 2), strict=True):
            backend.active = active
        assert upstream.choose("c") is upstream.backends[1]

    def test_least_conn_takes_turns_among_equals(self) -> None:
        upstream = make(3, "least_conn")
        upstream.backends[0].active = 1
        assert Counter(upstream.choose("c") for _ in range(10)) == dict.fromkeys(upstream.backends[1:], 5)

    def test_random_reaches_all(self) -> None:
        upstream = make(3, "random")
        assert {upstream.choose("c") for _ in range(200)} == set(upstream.backends)

    def test_ip_hash_keeps_a_client_at_its_backend_and_spreads_clients(self) -> None:
        upstream = make(3, "ip_hash")
        chosen = [upstream.choose(client) for client in CLIENTS]
        assert chosen == [upstream.choose(client) for client in CLIENTS]
        assert min(Counter(chosen).values()) > 64

    def test_ip_hash_is_the_same_in_every_worker(self) -> None:
        urls = [
            [b.url for c in CLIENTS if (b := upstream.choose(c))]
            for upstream in (make(3, "ip_hash"), make(3, "ip_hash"))
        ]
        assert urls[0] == urls[1]

    def test_ip_hash_moves_only_the_clients_of_a_backend_that_is_gone(self) -> None:
        upstream = make(3, "ip_hash")
        before = {client: upstream.choose(client) for client in CLIENTS}
        gone = upstream.backends[0]
        fail(gone)
        for client, backend in before.items():
            now = upstream.choose(client)
            assert now is not gone
            assert backend in (now, gone)

    def test_one_that_was_tried_is_not_tried_again(self) -> None:
        upstream = make(2)
        first, second = upstream.backends
        assert upstream.choose("c", [first]) is second
        assert upstream.choose("c", [first, second]) is None
        assert make(1).choose("c", make(1).backends) is not None

    def test_repr(self) -> None:
        upstream = make(2)
        upstream.backends[0].active = 3
        assert repr(upstream) == "<Upstream 2 backends, 3 active, 0 idle>"
        assert repr(upstream.backends[0]) == "<Backend http://10.0.0.0:80 3 active, 0 idle, 0 failures>"


class TestEjection:
    def test_three_failures_in_a_row_and_it_is_left_alone(self, clock: Clock) -> None:
        upstream = make(2)
        bad, good = upstream.backends
        fail(bad, 2)
        bad.succeeded()
        fail(bad, 2)
        assert {upstream.choose("c") for _ in range(2)} == {bad, good}
        fail(bad, 1)
        assert {upstream.choose("c") for _ in range(20)} == {good}

    def test_after_a_pause_one_request_may_try_it(self, clock: Clock) -> None:
        """Not a herd: the next may try again when the outcome is known, or a second later."""
        upstream = make(2)
        bad, good = upstream.backends
        fail(bad)
        clock.now += 0.9
        assert {upstream.choose("c") for _ in range(4)} == {good}
        clock.now += 0.2
        assert [upstream.choose("c") for _ in range(5)].count(bad) == 1
        clock.now += 1.1
        assert [upstream.choose("c") for _ in range(5)].count(bad) == 1

    def test_a_trial_that_succeeds_brings_it_back(self, clock: Clock) -> None:
        upstream = make(2)
        bad, good = upstream.backends
        fail(bad)
        clock.now += 1.1
        assert bad in [upstream.choose("c") for _ in range(2)]
        bad.succeeded()
        clock.now += 10.1  # its share has risen to its own
        assert [upstream.choose("c") for _ in range(4)].count(bad) >= 1
        assert [upstream.choose("c") for _ in range(4)].count(bad) == 2
        fail(bad, 2)
        assert {upstream.choose("c") for _ in range(2)} == {bad, good}

    def test_every_trial_that_fails_doubles_the_pause_up_to_30_seconds(self, clock: Clock) -> None:
        upstream = make(2)
        bad, good = upstream.backends
        fail(bad)
        for pause in (1, 2, 4, 8, 16, 30, 30):
            clock.now += pause - 0.1
            assert {upstream.choose("c") for _ in range(3)} == {good}
            clock.now += 0.2
            assert bad in [upstream.choose("c") for _ in range(2)]
            fail(bad, 1)

    def test_the_only_backend_of_a_route_is_always_tried(self, clock: Clock) -> None:
        upstream = make(1)
        fail(upstream.backends[0], 10)
        assert upstream.choose("c") is upstream.backends[0]

    def test_if_all_are_left_alone_there_is_none(self, clock: Clock) -> None:
        upstream = make(2)
        for backend in upstream.backends:
            fail(backend)
        assert upstream.choose("c") is None
        clock.now += 1.1
        assert {upstream.choose("c"), upstream.choose("c")} == set(upstream.backends)
        assert upstream.choose("c") is None

    def test_if_all_are_left_alone_one_request_a_second_tries_all_the_same(self, clock: Clock) -> None:
        upstream = make(2)
        for backend in upstream.backends:
            for _ in range(8):
                fail(backend)  # a pause of half a minute
        clock.now += 1.1
        assert upstream.choose("c") in upstream.backends

    def test_it_is_said_once_when_it_begins_and_once_when_it_ends(
        self, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "tlsproxy")
        backend = make(2).backends[0]
        fail(backend)
        backend.succeeded()
        backend.succeeded()
        assert [record.message for record in caplog.records] == [
            "backend.failing",
            "backend.left_alone",
            "backend.recovered",
        ]


class TestOnlyBackend:
    def test_is_never_left_alone_and_its_trouble_is_an_error_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "tlsproxy")
        upstream = make(1)
        for _ in range(5):
            upstream.backends[0].failed("refused")
        assert upstream.choose("c") is upstream.backends[0]
        assert [(record.message, record.levelname) for record in caplog.records] == [("backend.failing", "ERROR")]

    def test_failures_at_the_same_time_start_one_pause(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        backend = make(2).backends[0]
        for _ in range(9):
            backend.failed("refused")
        assert [record.message for record in caplog.records].count("backend.left_alone") == 1

    def test_whatever_another_route_makes_of_it(self, clock: Clock) -> None:
        """A route that has siblings for it may leave it alone; with a limit it is tried here all the same."""
        backend = make(2).backends[0]
        only = Upstream([backend], "round_robin", 1)
        fail(backend)
        assert only.choose("c") is backend
        backend.active = 1
        assert only.choose("c") is None
        assert only.is_busy()


class TestBusy:
    def test_one_left_alone_is_not_tried_early_while_a_well_one_is_busy(self, clock: Clock) -> None:
        bad, good = make(2).backends
        upstream = Upstream([bad, good], "round_robin", 1)
        fail(bad)
        clock.now += 1.1
        assert bad.take_trial(clock.now)
        fail(bad, 1)  # a pause of two seconds
        good.active = 1
        clock.now += 1.1
        assert upstream.choose("c") is None
        assert upstream.is_busy()
        assert upstream.choose("c", [good]) is bad


class TestIdleLimit:
    def idle_for(self, backend: Backend, clock: Clock, seconds: float) -> str:
        """What is left in the pool of a connection that was idle for so long, after the tick."""
        backend.close_all_idle()
        backend.put_back(BackendConnection(backend))
        clock.now += seconds
        backend.close_idle(clock.now)
        return repr(backend)

    def closed_after(self, backend: Backend, clock: Clock, seconds: float) -> None:
        """The server closes a connection that was idle for so long."""
        backend.close_all_idle()
        connection = BackendConnection(backend)
        backend.put_back(connection)
        clock.now += seconds
        backend.forget(connection)

    def test_is_learned_from_a_server_that_is_less_patient(self, clock: Clock) -> None:
        backend = make(1).backends[0]
        self.closed_after(backend, clock, 2.0)
        self.closed_after(backend, clock, 2.0)
        assert "1 idle" in self.idle_for(backend, clock, 1.5)
        assert "0 idle" in self.idle_for(backend, clock, 1.7)

    def test_what_was_observed_counts_more_than_a_name(self, clock: Clock) -> None:
        backend = make(1).backends[0]
        self.closed_after(backend, clock, 2.0)
        self.closed_after(backend, clock, 2.1)
        backend.learn_server(b"granian")
        assert "0 idle" in self.idle_for(backend, clock, 1.7)

    def test_nothing_is_learned_from_restarts(self, clock: Clock) -> None:
        """A server that ends closes all it has, whenever that is."""
        backend = make(1).backends[0]
        for lasted in (2.0, 1.0, 3.0):
            self.closed_after(backend, clock, lasted)
            for _ in range(3):
                backend.learn_patience(clock.now - lasted)
        assert "1 idle" in self.idle_for(backend, clock, 3.9)

    def test_nothing_is_learned_from_a_close_that_comes_at_once(self, clock: Clock) -> None:
        """That is a restart or a `Connection: close` that was not announced, not an idle limit."""
        backend = make(1).backends[0]
        self.closed_after(backend, clock, 0.1)
        assert "1 idle" in self.idle_for(backend, clock, 3.9)


class TestIdleConnections:
    def test_a_burst_may_come_again_within_a_second(self, clock: Clock) -> None:
        backend = Backend("http://10.0.0.1:80", most_idle=2)
        for _ in range(10):
            backend.put_back(BackendConnection(backend))
        assert len(backend.idle) == 8  # what is far beyond the limit is not kept at all
        backend.close_idle(clock.now + 0.5)
        assert len(backend.idle) == 8
        backend.close_idle(clock.now + 1)
        assert len(backend.idle) == 2

    def test_those_in_use_all_the_time_stay(self, clock: Clock) -> None:
        backend = Backend("http://10.0.0.1:80", most_idle=2)
        for _ in range(5):
            backend.put_back(BackendConnection(backend))
        fresh = backend.idle[-3:]
        clock.now += 0.9
        for connection in fresh:
            connection.idle_since = clock.now
        backend.close_idle(clock.now + 0.2)
        assert backend.idle == fresh
