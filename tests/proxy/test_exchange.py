"""One request and its answer: bodies, interim and early answers, limits, errors of our own, through a real Front."""

from __future__ import annotations

import json
import time

import pytest

from tests.fakes.backend import OK
from tests.fakes.stage import Stage

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody"
EXPECT = b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


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
