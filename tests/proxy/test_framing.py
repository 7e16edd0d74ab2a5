"""How bodies, answers without one, trailers and old versions pass, through a real Front."""

from __future__ import annotations

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Message
from tests.fakes.stage import Stage

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"
NO_BODY = b"Content-Length: 0\r\n\r\n"


def answer_of(stage: Stage, request: bytes, answer: bytes, *, close: bool = False, bodiless: bool = False) -> Message:
    """What a client gets for one request that one backend answers so."""
    backend = stage.backend()
    stage.serve(backend)
    client = stage.connect()
    client.send(request)
    upstream = backend.accept()
    upstream.message()
    upstream.send(answer)
    if close:
        upstream.close()
    return client.message(bodiless=bodiless)


class TestFraming:
    @pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"200 OK"])
    def test_an_answer_without_a_body_leaves_the_connection_in_step(self, stage: Stage, status: bytes) -> None:
        """204 and 304 end with their head, and so does every answer to HEAD, whatever their fields say."""
        method = b"HEAD" if status == b"200 OK" else b"GET"
        length = b"" if status.startswith(b"204") else b"Content-Length: 999\r\n"
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(method + b" / HTTP/1.1\r\nHost: a.test\r\n\r\n" + GET % b"/2")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 " + status + b"\r\n" + length + b"ETag: x\r\n\r\n")
        answer = client.message(bodiless=True)
        assert answer.start == b"HTTP/1.1 " + status
        assert answer.get("content-length") == (b"999" if length else None)
        assert answer.get("transfer-encoding") is None
        if status.startswith(b"304"):  # the backend may not have been in step, so its connection is not used again
            upstream = backend.accept()
        assert upstream.message().target == b"/2"
        upstream.send(OK)
        assert client.message().body == b"ok"

    def test_head_to_a_streaming_resource_announces_nothing_wrong(self, stage: Stage) -> None:
        request = b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n"
        answer = answer_of(
            stage, request, b"HTTP/1.1 200 OK\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n", bodiless=True
        )
        assert (answer.all("transfer-encoding"), answer.all("content-length")) == ([], [])

    def test_no_length_is_sent_with_204(self, stage: Stage) -> None:
        """RFC 9110 8.6."""
        assert answer_of(stage, GET % b"/", b"HTTP/1.1 204 No Content\r\n" + NO_BODY).all("content-length") == []

    def test_a_chunked_answer_stays_chunked_and_passes_as_it_comes(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 200 OK\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n"
        for event in (b"data: 1\n\n", b"data: 2\n\n"):
            upstream.send(b"%x\r\n%b\r\n" % (len(event), event))
            assert client.until(b"\n\n\r\n") == b"%x\r\n%b\r\n" % (len(event), event)
        upstream.send(b"5\r\nhal")  # half a chunk waits for nothing
        assert client.until(b"hal\r\n") == b"3\r\nhal\r\n"
        upstream.send(b"ve\r\n0\r\n\r\n")
        assert client.until(b"0\r\n\r\n") == b"2\r\nve\r\n0\r\n\r\n"

    def test_trailers_of_an_answer_pass_but_not_those_that_are_forbidden(self, stage: Stage) -> None:
        """RFC 9110 6.5.1."""
        answer = answer_of(
            stage,
            GET % b"/",
            b"HTTP/1.1 200 OK\r\nDate: d\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n2\r\nok\r\n0\r\n"
            b"Digest: abc\r\nContent-Length: 3\r\nSet-Cookie: a=b\r\nTransfer-Encoding: x\r\n\r\n",
        )
        assert (answer.body, answer.trailers) == (b"ok", [(b"Digest", b"abc")])
        assert answer.get("trailer") == b"Digest"

    def test_trailers_of_a_request_pass_but_not_those_that_are_forbidden(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        stage.connect().send(
            b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\nTE: trailers\r\n\r\n"
            b"2\r\nok\r\n0\r\nDigest: abc\r\nHost: b.test\r\nX-Forwarded-For: 1.2.3.4\r\nAuthorization: x\r\n\r\n"
        )
        request = backend.accept().message()
        assert (request.body, request.trailers) == (b"ok", [(b"Digest", b"abc")])
        assert (request.get("te"), request.get("connection")) == (b"trailers", b"TE")

    def test_an_answer_that_ends_with_its_connection_is_chunked_for_http_1_1(self, stage: Stage) -> None:
        answer = answer_of(stage, GET % b"/", b"HTTP/1.1 200 OK\r\nDate: d\r\n\r\nto the end", close=True)
        assert (answer.get("transfer-encoding"), answer.body) == (b"chunked", b"to the end")
        assert answer.get("connection") is None

    def test_hop_by_hop_fields_of_an_answer_end_here(self, stage: Stage) -> None:
        answer = answer_of(
            stage,
            GET % b"/",
            b"HTTP/1.1 200 OK\r\nDate: d\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n"
            b"X-Accel-Buffering: no\r\nX-Ok: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n" + NO_BODY,
        )
        assert answer.fields == [
            (b"Date", b"d"), (b"X-Ok", b"1"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"),
            (b"Content-Length", b"0"),
        ]  # fmt: skip


class TestHttp10:
    def test_a_client_without_keep_alive(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        assert upstream.message().start == b"GET / HTTP/1.1"
        upstream.send(b"HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 2\r\n\r\nok")
        assert client.rest() == b"HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

    def test_a_client_with_keep_alive(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        request = b"GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n"
        client.send(request)
        upstream = backend.accept()
        for _ in range(2):
            upstream.message()
            upstream.send(OK)
            assert client.message().get("connection") == b"keep-alive"
            client.send(request)

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nto \r\n7\r\nthe end\r\n0\r\nX: y\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nDate: d\r\n\r\nto the end",
            b"HTTP/1.0 200 OK\r\nDate: d\r\n\r\nto the end",
        ],
    )
    def test_a_body_of_unknown_length_ends_with_the_connection(self, stage: Stage, answer: bytes) -> None:
        """A client of HTTP/1.0 knows no chunks; it may even have asked for keep-alive."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(answer)
        upstream.close()
        assert client.rest() == b"HTTP/1.1 200 OK\r\nDate: d\r\nConnection: close\r\n\r\nto the end"

    def test_no_host_means_the_name_that_tls_asked_for(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        stage.connect().send(b"GET / HTTP/1.0\r\n\r\n")
        assert backend.accept().message().target == b"/"

    @pytest.mark.parametrize(
        ("answer", "is_kept"),
        [
            (b"HTTP/1.0 200 OK\r\nDate: d\r\nContent-Length: 2\r\n\r\nok", False),
            (b"HTTP/1.0 200 OK\r\nDate: d\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", True),
        ],
    )
    def test_a_backend(self, stage: Stage, answer: bytes, *, is_kept: bool) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/1")
        upstream = backend.accept()
        upstream.message()
        upstream.send(answer)
        assert client.message() == Message(b"HTTP/1.1 200 OK", [(b"Date", b"d"), (b"Content-Length", b"2")], b"ok")
        client.send(GET % b"/2")
        assert (upstream if is_kept else backend.accept()).message().target == b"/2"
