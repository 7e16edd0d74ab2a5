"""What operators say about backends: drained ones get nothing new, swapped ones take over; what runs goes on."""

from __future__ import annotations

from tests.fakes.backend import OK, Backend
from tests.fakes.h2c_backend import H2cBackend
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tests.proxy.lines import GET, ONE, SITE, apply, line_of, wait_for
from tlsproxy.runtime.messages import BackendPlan

ROUTE = f"{SITE} /"


class Closing:
    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def ask(stage: Stage, target: bytes = b"/") -> Peer:
    client = stage.connect()
    client.send(GET % target)
    return client


def served_by(backend: Backend, client: Peer) -> None:
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    assert client.message().body == b"ok"


class TestDrained:
    def test_it_gets_nothing_new_and_ends_what_it_has(self, stage: Stage) -> None:
        leaving, staying = stage.backend(), stage.backend()
        stage.serve(leaving, staying, route={"balance": "round_robin"})
        clients = ask(stage), ask(stage)
        upstreams = [leaving.accept(), staying.accept()]
        for upstream in upstreams:
            upstream.message()
        apply(stage, BackendPlan(drained=(leaving.url,)))
        later = [ask(stage) for _ in range(3)]
        upstreams += [staying.accept() for _ in later]  # all at once, so that none is used twice
        for upstream in upstreams[2:]:
            upstream.message()
        for upstream in upstreams:
            upstream.send(OK)
        assert [client.message().body for client in (*clients, *later)] == [b"ok"] * 5
        assert upstreams[0].has_ended()  # it has no use any more
        apply(stage, BackendPlan(drained=(staying.url,)))
        served_by(leaving, ask(stage))

    def test_when_all_are_clients_hear_when_to_come_back(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        apply(stage, BackendPlan(drained=(backend.url,)))
        answer = ask(stage).message()
        assert (answer.status, answer.get("retry-after")) == (503, b"5")
        assert not backend.is_called(0)

    def test_with_hold_they_wait(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"hold": 5})
        apply(stage, BackendPlan(drained=(backend.url,)))
        client = ask(stage)
        wait_for(stage, 1)
        assert not backend.is_called(0.15)
        apply(stage, BackendPlan())
        served_by(backend, client)

    def test_one_that_is_down_gets_nothing_though_it_is_the_only_one(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        state = stage.front._backends[backend.url]
        stage.call(lambda: state.judged("check", "status 500"))
        assert ask(stage).message().status == 503
        stage.call(lambda: state.judged("check", ""))
        served_by(backend, ask(stage))

    def test_its_requests_in_vain_are_not_sent_there_again(self, stage: Stage) -> None:
        """Nothing of them was processed, and there is another."""
        leaving, staying = stage.backend(), stage.backend()
        stage.serve(leaving, staying)
        apply(stage, BackendPlan(drained=(staying.url,)))
        client = ask(stage)
        upstream = leaving.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        client.send(GET % b"/2")
        assert upstream.message().target == b"/2"
        apply(stage, BackendPlan(drained=(leaving.url,)))
        upstream.close()
        served_by(staying, client)


class TestSwapped:
    def test_new_requests_go_to_the_new_ones_and_back(self, stage: Stage) -> None:
        old, new = stage.backend(), stage.backend()
        stage.serve(old)
        first = ask(stage)
        upstream = old.accept()
        upstream.message()
        swapped = BackendPlan(swapped={ROUTE: (new.url,)})
        apply(stage, swapped)
        served_by(new, ask(stage))
        upstream.send(OK)
        assert first.message().body == b"ok"
        stage.wait_for_pool(old.url, "0 active")
        apply(stage, swapped)  # says nothing new
        upstream.close()
        stage.wait_for_pool(old.url, "0 idle")
        apply(stage, BackendPlan())
        served_by(old, ask(stage))

    def test_idle_connections_to_the_old_ones_are_closed(self, stage: Stage) -> None:
        old, new = stage.backend(), stage.backend()
        stage.serve(old)
        client = ask(stage)
        upstream = old.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        stage.wait_for_pool(old.url, "1 idle")
        apply(stage, BackendPlan(swapped={ROUTE: (new.url,)}))
        assert upstream.has_ended()

    def test_the_old_ones_are_forgotten_when_all_is_closed(self, stage: Stage) -> None:
        """What is being closed has its end from the tick of its backend."""
        configured, old, new = stage.backend(), stage.backend(), stage.backend()
        stage.serve(configured)
        apply(stage, BackendPlan(swapped={ROUTE: (old.url,)}))
        state = stage.front._backends[old.url]
        closing = Closing()
        stage.call(lambda: state.closing.append((stage.loop.time(), closing)))
        apply(stage, BackendPlan(swapped={ROUTE: (new.url,)}))
        assert stage.front._backends[old.url] is state
        stage.call(lambda: state.close_idle(stage.loop.time() + 11))
        assert closing.is_aborted
        apply(stage, BackendPlan())
        assert set(stage.front._backends) == {configured.url}

    def test_to_another_protocol(self, stage: Stage) -> None:
        old = stage.backend()
        stage.serve(old)
        with H2cBackend() as new:
            apply(stage, BackendPlan(swapped={ROUTE: (new.url,)}))
            client = ask(stage)
            peer = new.connection()
            peer.answer(peer.next_request().stream)
            assert client.message().body == b"ok"

    def test_those_in_line_go_to_the_new_ones(self, stage: Stage) -> None:
        """The deploy of an application that takes one request at a time."""
        old, new = stage.backend(), stage.backend()
        stage.serve(old, route={"max_requests": 1}, server=ONE)
        first = ask(stage)
        upstream = old.accept()
        upstream.message()
        second = ask(stage)
        wait_for(stage, 1)
        apply(stage, BackendPlan(swapped={ROUTE: (new.url,)}))
        served_by(new, second)
        upstream.send(OK)
        assert first.message().body == b"ok"

    def test_the_limit_holds_for_the_new_ones(self, stage: Stage) -> None:
        old, new = stage.backend(), stage.backend()
        stage.serve(old, route={"max_requests": 1}, server=ONE)
        apply(stage, BackendPlan(swapped={ROUTE: (new.url,)}))
        first, second = ask(stage, b"/1"), ask(stage, b"/2")
        upstream = new.accept()
        upstream.message()
        wait_for(stage, 1)
        upstream.send(OK)
        upstream.message()
        upstream.send(OK)
        assert [client.message().body for client in (first, second)] == [b"ok"] * 2

    def test_one_alone_has_no_siblings_any_more(self, stage: Stage) -> None:
        """Or it would be left alone though nobody else can be asked."""
        backends = stage.backend(), stage.backend()
        stage.serve(*backends)
        known = stage.front._backends
        assert all(known[backend.url].has_siblings for backend in backends)
        apply(stage, BackendPlan(swapped={ROUTE: (backends[0].url,)}))
        assert not known[backends[0].url].has_siblings

    def test_only_the_route_that_is_named(self, stage: Stage) -> None:
        old, new = stage.backend(), stage.backend()
        routes = [{"path": path, "backends": [old.url]} for path in ("/", "/api")]
        stage.serve(sites=[{"hosts": ["a.test"], "routes": routes}])
        apply(stage, BackendPlan(swapped={"a.test /api": (new.url,)}))
        served_by(new, ask(stage, b"/api/x"))
        served_by(old, ask(stage, b"/x"))


def test_what_is_said_is_said_of_all_routes_with_that_backend(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(sites=[{"hosts": [host], "backends": [backend.url]} for host in ("a.test", "b.test")])
    apply(stage, BackendPlan(drained=(backend.url,)))
    for host in ("a.test", "b.test"):
        client = stage.connect(host)
        client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
        assert client.message().status == 503
    assert not line_of(stage).is_watched
