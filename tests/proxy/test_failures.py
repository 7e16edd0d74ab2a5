"""Clients that leave, backends that die, and what is tried again, through a real Front."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes.backend import OK, Backend, called, url_of
from tests.fakes.peer import CUT, Peer
from tests.fakes.stage import Stage

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody"
PUT = POST.replace(b"POST", b"PUT")
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


def warm_up(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    """A client and the backend connection that its first request has left in the pool."""
    client = stage.connect()
    client.send(GET % b"/warm")
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    client.message()
    return client, upstream


class TestClientAbort:
    @pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
    def test_the_backend_connection_is_closed_at_once(self, stage: Stage, leave: object) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/slow")
        upstream = backend.accept()
        upstream.message()
        leave(client)  # type: ignore[operator]
        assert upstream.has_ended()
        [line] = stage.log()
        assert (line["status"], line["error"]) == (499, "client closed the connection")
        assert "0 active, 0 idle" in stage.pool(backend.url)

    def test_within_an_answer(self, stage: Stage) -> None:
        """The status was sent, so it is what the log says, with the reason why the answer is short."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/slow")
        upstream = backend.accept()
        upstream.message()
        upstream.send(BEGUN)
        client.until(b"half")
        client.reset()
        assert upstream.has_ended()
        [line] = stage.log()
        assert (line["status"], line["error"], line["bytes_out"]) == (200, "client closed the connection", 4)

    def test_within_its_own_body(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        upstream = backend.accept()
        upstream.until(b"half\r\n")
        client.reset()
        assert upstream.has_ended()
        assert stage.log()[0]["status"] == 499

    def test_while_the_backend_is_still_being_connected(self, stage: Stage) -> None:
        """With a full queue of a listener nobody accepts from, a connect waits as long as one likes."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            url = url_of(listener)
            with socket.create_connection(listener.getsockname()):
                stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}])
                client = stage.connect()
                client.send(GET % b"/")
                stage.wait_for_pool(url, "1 active")
                client.close()
                assert stage.log()[0]["status"] == 499
                assert "0 active" in stage.pool(url)


class TestBackendDies:
    @pytest.mark.parametrize("die", [Peer.close, Peer.reset])
    @pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n"])
    def test_in_the_middle_of_an_answer_the_client_sees_that_it_is_cut(
        self, stage: Stage, framing: bytes, die: object
    ) -> None:
        """No last chunk, no close_notify, no orderly FIN: it can't be taken for complete (security rule 8)."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 200 OK\r\n" + framing + b"half")
        client.until(b"half")
        die(upstream)  # type: ignore[operator]
        with pytest.raises(CUT):
            client.rest()
        [line] = stage.log()
        assert line["status"] == 200
        assert "in the middle" in line["error"]

    def test_a_reset_is_no_end_for_an_answer_without_a_length(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        client.until(b"half")
        upstream.reset()
        with pytest.raises(CUT):
            client.rest()

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (b"", "before the answer"),
            (b"HTTP/1.1 200 O", "in the middle"),
            (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
            (b"\0\0\6\4\0\0\0\0\0\0\3\0\0\0\x64", "write its address with"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "ambiguous"),
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "not asked for"),
            (b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 70_000, "limits.header_size"),
        ],
    )
    def test_before_an_answer_it_is_502(self, stage: Stage, answer: bytes, error: str) -> None:
        """With the reason in the log, and neither the reason nor an address in the answer."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(answer)
        upstream.close()
        problem = client.message()
        assert (problem.status, problem.get("content-type")) == (502, b"application/problem+json")
        assert b"127.0.0.1" not in problem.body
        [line] = stage.log()
        assert error in line["error"]
        assert backend.url in line["error"]
        client.send(GET % b"/2")  # the client's connection is as good as before
        assert backend.accept().message().target == b"/2"

    def test_one_that_does_not_answer_in_time_is_504(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"response_timeout": 30})
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        stage.tick(after=29)
        assert client.is_quiet(0.02)
        stage.tick(after=31)
        assert client.message().status == 504
        assert upstream.has_ended()
        assert "response_timeout 30 s" in stage.log()[0]["error"]

    def test_an_answer_that_has_begun_may_take_its_time(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"response_timeout": 30})
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(BEGUN)
        client.until(b"half")
        stage.tick(after=5000)
        upstream.send(b"-whole")
        assert client.exactly(6) == b"-whole"

    def test_one_that_accepts_nothing_is_504_after_connect_timeout(self, stage: Stage) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            with socket.create_connection(listener.getsockname()):
                url = url_of(listener)
                stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}], limits={"connect_timeout": 0.1})
                client = stage.connect()
                client.send(GET % b"/")
                assert client.message().status == 504


class TestRetries:
    @pytest.mark.parametrize("request_bytes", [GET % b"/", PUT % b"/", b"DELETE / HTTP/1.1\r\nHost: a.test\r\n\r\n"])
    def test_a_dead_idle_connection_costs_an_idempotent_request_nothing(
        self, stage: Stage, request_bytes: bytes
    ) -> None:
        """One silent retry on a new connection, the body included while it is still in hand (RFC 9110 9.2.2)."""
        backend = stage.backend()
        stage.serve(backend)
        client, stale = warm_up(stage, backend)
        client.send(request_bytes)
        first = stale.message()
        stale.close()
        fresh = backend.accept()
        assert fresh.message() == first
        fresh.send(OK)
        assert client.message().body == b"ok"
        line = stage.log(2)[1]
        assert (line["status"], line["retries"], line["reused"]) == (200, 1, False)
        assert "error" not in line

    def test_exactly_one(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, stale = warm_up(stage, backend)
        client.send(GET % b"/")
        stale.message()
        stale.close()
        fresh = backend.accept()
        fresh.message()
        fresh.close()
        assert client.message().status == 502
        assert not backend.is_called(0)
        assert stage.log(2)[1]["retries"] == 1

    def test_a_body_that_is_still_coming_is_sent_again_from_its_beginning(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, stale = warm_up(stage, backend)
        client.send(b"PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        stale.until(b"one\r\n")
        stale.close()
        fresh = backend.accept()
        fresh.until(b"one\r\n")
        client.send(b"3\r\ntwo\r\n0\r\n\r\n")
        assert fresh.until(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        fresh.send(OK)
        assert client.message().body == b"ok"

    @pytest.mark.parametrize(
        "request_bytes",
        [
            POST % b"/",
            b"PATCH / HTTP/1.1\r\nHost: a.test\r\n\r\n",
            b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 200000\r\n\r\n"
            + b"b" * 200_000,  # not in hand any more
        ],
    )
    def test_what_might_be_done_twice_is_not_repeated(self, stage: Stage, request_bytes: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, stale = warm_up(stage, backend)
        client.send(request_bytes)
        stale.message()
        stale.close()
        assert client.message().status == 502
        assert not backend.is_called(0)
        assert stage.log(2)[1]["retries"] == 0

    @pytest.mark.parametrize("sent", [b"HTTP/1.1 2", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
    def test_nor_what_was_begun_to_be_answered(self, stage: Stage, sent: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, stale = warm_up(stage, backend)
        client.send(GET % b"/")
        stale.message()
        stale.send(sent)
        stale.close()
        statuses = [client.message().status]
        if statuses == [103]:
            statuses.append(client.message().status)
        assert statuses[-1] == 502
        assert not backend.is_called(0)

    def test_nor_what_a_fresh_connection_did_not_answer(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.close()
        assert client.message().status == 502
        assert not backend.is_called(0)

    @pytest.mark.parametrize("request_bytes", [GET % b"/", POST % b"/"])
    def test_a_refused_connect_goes_to_the_next_backend_whatever_the_method(
        self, stage: Stage, request_bytes: bytes
    ) -> None:
        """Nothing was sent, so nothing can be done twice."""
        dead, alive = stage.backend(), stage.backend()
        stage.serve(dead, alive, route={"balance": "round_robin"})
        dead.refuse()
        client = stage.connect()
        for _ in range(2):  # one of the two begins with the dead one
            client.send(request_bytes.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n", 1))
            upstream = alive.accept()
            upstream.message()
            upstream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            assert client.message().body == b"ok"
        assert max(line["retries"] for line in stage.log(2)) == 1

    def test_the_next_backend_is_asked_on_an_idle_connection(self, stage: Stage) -> None:
        """A backend that is away must not cost a new connection to the other one with every request."""
        dead, alive = stage.backend(), stage.backend()
        stage.serve(dead, alive, route={"balance": "round_robin"})
        dead.refuse()
        client = stage.connect()
        client.send(GET % b"/0")
        upstream = alive.accept()
        for number in range(4):  # every other one begins with the dead one
            assert upstream.message().target == b"/%d" % number
            upstream.send(OK)
            assert client.message().body == b"ok"
            client.send(GET % b"/%d" % (number + 1))
        assert upstream.message().target == b"/4"
        assert not alive.is_called(0)

    def test_a_refused_connect_and_a_dead_idle_connection_together_cost_nothing_either(self, stage: Stage) -> None:
        """Two different troubles of two backends: the request was still not processed by anybody."""
        dead, alive = stage.backend(), stage.backend()
        stage.serve(dead, alive, route={"balance": "round_robin"})
        clients = [stage.connect() for _ in range(2)]
        stale: dict[Backend, Peer] = {}
        for client in clients:
            client.send(GET % b"/")
            backend = called([b for b in (dead, alive) if b not in stale])
            stale[backend] = backend.accept()
            stale[backend].message()
            stale[backend].send(OK)
            client.message()
        stale[dead].close()
        dead.refuse()
        stage.wait_for_pool(dead.url, "0 idle")

        def be_alive() -> None:
            for _ in clients:
                fresh = alive.accept()
                fresh.message()
                fresh.send(OK)

        def be_stale() -> None:
            with suppress(EOFError):
                stale[alive].message()
            stale[alive].close()

        threads = [threading.Thread(target=target) for target in (be_alive, be_stale)]
        for thread in threads:
            thread.start()
        for client in clients:  # one of the two begins with the dead one
            client.send((GET % b"/").replace(b"GET", b"PUT").replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"))
            assert client.message().status == 200
            stage.tick(after=10)  # an idle connection is not used for the second request
        for thread in threads:
            thread.join()

    def test_no_backend_left_is_502_with_the_last_reason(self, stage: Stage) -> None:
        dead, gone = stage.backend(), stage.backend()
        stage.serve(dead, gone)
        dead.refuse()
        gone.refuse()
        client = stage.connect()
        client.send(GET % b"/")
        assert client.message().status == 502
        [line] = stage.log()
        assert line["retries"] == 1
        assert re.search(r"http://127\.0\.0\.1:\d+: cannot connect \(", line["error"])

    def test_backends_that_are_left_alone_are_503_with_retry_after(self, stage: Stage) -> None:
        dead, gone = stage.backend(), stage.backend()
        stage.serve(dead, gone)
        dead.refuse()
        gone.refuse()
        client = stage.connect()
        statuses = []
        for _ in range(4):
            client.send(GET % b"/")
            answer = client.message()
            statuses.append(answer.status)
        assert statuses == [502, 502, 502, 503]
        assert answer.get("retry-after") == b"5"

    def test_a_unix_socket(self, stage: Stage, tmp_path: Path) -> None:
        backend = stage.backend(tmp_path / "app.sock")
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"
        (tmp_path / "app.sock").unlink()
        upstream.close()
        stage.wait_for_pool(backend.url, "0 idle")
        client.send(GET % b"/")
        assert client.message().status == 502
        assert "No such file" in stage.log(2)[1]["error"]
