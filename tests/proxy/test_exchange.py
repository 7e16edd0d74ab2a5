"""One request and its answer: bodies, early answers, aborts, retries, failures, limits, through a real Front."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest

from tests.fakes.backend import OK, Backend, called, url_of
from tests.fakes.peer import CUT, Peer
from tests.fakes.stage import Stage

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody"
PUT = POST.replace(b"POST", b"PUT")
EXPECT = b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
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


class TestBodies:
    def test_a_body_passes_as_it_comes_in_the_framing_it_came(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        upstream = backend.accept()
        head = upstream.until(b"\r\n\r\n")
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert b"Content-Length" not in head
        client.send(b"5;ext=1\r\nhel")
        assert upstream.until(b"hel\r\n") == b"3\r\nhel\r\n"
        client.send(b"lo\r\n0\r\n\r\n")
        assert upstream.until(b"0\r\n\r\n") == b"2\r\nlo\r\n0\r\n\r\n"

    def test_a_large_body_arrives_whole_both_ways(self, stage: Stage) -> None:
        body = bytes(range(256)) * 2_000
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        upstream = backend.accept()
        assert upstream.message().body == body
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert client.message().body == body
        [line] = stage.log()
        assert (line["bytes_in"], line["bytes_out"]) == (len(body), len(body))


class TestInterimAnswers:
    def test_continue_goes_from_end_to_end(self, stage: Stage) -> None:
        """The body is asked for by the backend, not by the proxy (RFC 9110 10.1.1)."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(EXPECT)
        upstream = backend.accept()
        assert b"\r\nExpect: 100-continue" in upstream.until(b"\r\n\r\n")
        assert client.is_quiet(0.02)
        upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"body")
        assert upstream.exactly(4) == b"body"
        upstream.send(OK)
        assert client.message().body == b"ok"
        client.send(GET % b"/2")
        assert upstream.message().target == b"/2"

    def test_a_final_answer_instead_of_continue_ends_the_connection(self, stage: Stage) -> None:
        """Whether the body still comes is unknown, so nothing behind it has a meaning."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(EXPECT)
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        upstream.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        answer = client.message()
        assert (answer.status, answer.get("connection")) == (401, b"close")
        assert client.has_ended()
        assert upstream.has_ended()

    def test_a_continue_nobody_asked_for_is_kept_back(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(POST % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
        assert client.message().status == 200

    @pytest.mark.parametrize(("version", "statuses"), [(b"1.1", [102, 103, 103, 200]), (b"1.0", [200])])
    def test_others_pass_to_a_client_that_can_know_them(
        self, stage: Stage, version: bytes, statuses: list[int]
    ) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/" + version + b"\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        upstream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n" + OK)
        answers = [client.message() for _ in statuses]
        assert [answer.status for answer in answers] == statuses
        links = [(b"Link", b"</a>")], [(b"Link", b"</b>")]
        assert [answer.fields for answer in answers if answer.status == 103] == list(links)[: len(statuses) // 2]

    def test_a_flood_of_them_is_an_error_of_the_backend(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
        assert client.message().status == 502
        assert upstream.has_ended()


class TestEarlyAnswer:
    def test_the_client_gets_all_of_it_though_it_goes_on_sending(self, stage: Stage) -> None:
        """`Connection: close`, then a lingering close: a reset would destroy the answer (RFC 9112 9.6)."""
        body = b"x" * 200_000
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9000000\r\n\r\n" + b"b" * 1000)
        upstream = backend.accept()
        upstream.until(b"b" * 1000)
        upstream.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert upstream.has_ended()  # it is not used again: the rest of the body will never come
        client.send(b"b" * 500_000)
        answer = client.message()
        assert (answer.status, answer.get("connection"), answer.body) == (413, b"close", body)
        assert client.rest() == b""

    def test_the_body_still_flows_while_the_answer_does(self, stage: Stage) -> None:
        """Both directions of one exchange are independent: an application may stream an echo."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        upstream = backend.accept()
        upstream.until(b"1\r\na\r\n")
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n")
        assert b"Connection: close" in client.until(b"\r\n\r\n")
        client.until(b"1\r\nA\r\n")
        client.send(b"1\r\nb\r\n0\r\n\r\n")
        assert upstream.until(b"0\r\n\r\n") == b"1\r\nb\r\n0\r\n\r\n"
        upstream.send(b"1\r\nB\r\n0\r\n\r\n")
        assert client.rest() == b"1\r\nB\r\n0\r\n\r\n"


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
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "ambiguous"),
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "not asked for"),
            (b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 70_000, "header limit"),
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

    def test_a_dead_idle_connection_is_forgiven_after_a_refused_connect_too(self, stage: Stage) -> None:
        """Two different troubles of two backends: the request was still not processed by anybody."""
        dead, alive = stage.backend(), stage.backend()
        stage.serve(dead, alive, route={"balance": "round_robin"})
        client, other = stage.connect(), stage.connect()
        stale: dict[Backend, Peer] = {}
        for one in (client, other):
            one.send(GET % b"/")
            backend = called([b for b in (dead, alive) if b not in stale])
            stale[backend] = backend.accept()
            stale[backend].message()
            stale[backend].send(OK)
            one.message()
        stale[dead].close()
        dead.refuse()
        stage.wait_for_pool(dead.url, "0 idle")
        for _ in range(2):  # one of the two begins with the dead one
            client.send(GET % b"/")
            stale[alive].message()
            stale[alive].close()
            stale[alive] = alive.accept()
            stale[alive].message()
            stale[alive].send(OK)
            assert client.message().status == 200

    def test_no_backend_left_is_502_with_the_last_reason(self, stage: Stage) -> None:
        dead, gone = stage.backend(), stage.backend()
        stage.serve(dead, gone)
        dead.refuse()
        gone.refuse()
        client = stage.connect()
        client.send(GET % b"/")
        assert client.message().status == 502
        [line] = stage.log()
        assert line["retries"] == 2
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


class TestBodyLimit:
    @pytest.mark.parametrize(
        "framing", [b"Content-Length: 11\r\n\r\n", b"Content-Length: 11\r\nExpect: 100-continue\r\n\r\n"]
    )
    def test_a_length_that_is_too_large_never_reaches_the_backend(self, stage: Stage, framing: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"max_body": 10})
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + framing)
        answer = client.message()
        assert (answer.status, answer.get("connection")) == (413, b"close")
        assert not backend.is_called(0)
        assert stage.log()[0]["error"] == "max_body 10 bytes exceeded"

    def test_chunks_are_counted(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"max_body": 10})
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n")
        upstream = backend.accept()
        upstream.until(b"0123456789\r\n")
        client.send(b"1\r\nx\r\n0\r\n\r\n")
        assert client.message().status == 413
        assert upstream.has_ended()

    def test_what_fits_passes(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"max_body": 4})
        stage.connect().send(POST % b"/")
        assert backend.accept().message().body == b"body"


class TestErrorsOfOurOwn:
    def test_a_program_gets_a_problem_and_a_browser_a_page(self, stage: Stage) -> None:
        """With the request id, and with a Date (RFC 9110 6.6.1)."""
        backend = stage.backend()
        stage.serve(backend, limits={"connect_timeout": 0.1})
        backend.refuse()
        client = stage.connect()
        client.send(GET % b"/")
        problem = client.message()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nAccept: text/html,*/*;q=0.8\r\n\r\n")
        page = client.message()
        first, second = stage.log(2)
        assert json.loads(problem.body)["request_id"] == first["request_id"]
        assert json.loads(problem.body)["status"] == 502
        assert second["request_id"].encode() in page.body
        assert page.get("content-type") == b"text/html; charset=utf-8"
        for answer in (problem, page):
            date = time.strptime((answer.get("date") or b"").decode(), "%a, %d %b %Y %H:%M:%S GMT")
            assert abs(time.mktime(date) - time.mktime(time.gmtime())) < 60

    def test_head_gets_the_fields_without_the_body(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        backend.refuse()
        client = stage.connect()
        client.send(b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        answer = client.message(bodiless=True)
        assert answer.status == 502
        assert int(answer.get("content-length") or 0) > 50
        assert client.is_quiet(0.02)
