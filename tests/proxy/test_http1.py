"""The client's connection, through a real Front: keep-alive, pipelining, framing, versions, limits and deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Message, Peer
from tests.fakes.stage import Stage
from tlsproxy.proxy.router import Router

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


class TestKeepAlive:
    def test_one_connection_on_each_side_carries_many_requests(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/0")
        upstream = backend.accept()
        for number in range(3):
            assert upstream.message().target == b"/%d" % number
            upstream.send(OK)
            client.send(GET % b"/%d" % (number + 1))
            assert client.message() == Message(b"HTTP/1.1 200 OK", [(b"Content-Length", b"2")], b"ok")
        assert [line["reused"] for line in stage.log(3)] == [False, True, True]

    def test_pipelined_requests_are_answered_in_order_and_go_out_one_by_one(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/1" + GET % b"/2" + GET % b"/3")
        upstream = backend.accept()
        for number in (1, 2, 3):
            assert upstream.message().target == b"/%d" % number
            assert upstream.is_quiet(0.02)
            upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        assert [client.message().body for _ in range(3)] == [b"1", b"2", b"3"]
        assert not backend.is_called(0)

    def test_pipelined_bodies_are_kept_apart(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(
            b"POST /1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\none"
            b"POST /2 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n" + GET % b"/3"
        )
        upstream = backend.accept()
        for body in (b"one", b"two", b""):
            assert upstream.message().body == body
            upstream.send(OK)
            assert client.message().body == b"ok"

    @pytest.mark.parametrize(
        ("second", "status"),
        [(b"GET / HTTP/1.1\r\n\r\n", 400), (b"BREW / HTTP/1.1\r\nHost: a.test\r\n\r\n", 501), (b"\0", 400)],
    )
    def test_an_error_behind_a_good_request_waits_for_its_turn_and_ends_the_connection(
        self, stage: Stage, second: bytes, status: int
    ) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/1" + second + GET % b"/3")
        upstream = backend.accept()
        upstream.message()
        assert client.is_quiet(0.02)
        upstream.send(OK)
        assert client.message().body == b"ok"
        refusal = client.message()
        assert (refusal.status, refusal.get("connection")) == (status, b"close")
        assert client.has_ended()
        assert upstream.is_quiet(0.02)
        assert [line["status"] for line in stage.log(2)] == [200, status]

    def test_a_client_that_says_close_gets_it(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n" + GET % b"/never")
        upstream = backend.accept()
        assert upstream.message().get("connection") is None
        upstream.send(OK)
        assert client.message().get("connection") == b"close"
        assert client.has_ended()
        assert upstream.is_quiet(0.02)

    def test_a_backend_that_says_close_closes_only_its_own_connection(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        for _ in range(2):
            client.send(GET % b"/")
            upstream = backend.accept()
            upstream.message()
            upstream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            assert client.message().get("connection") is None
            assert upstream.has_ended()


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
        answer = answer_of(stage, request, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", bodiless=True)
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
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
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
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n2\r\nok\r\n0\r\n"
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
        answer = answer_of(stage, GET % b"/", b"HTTP/1.1 200 OK\r\n\r\nto the end", close=True)
        assert (answer.get("transfer-encoding"), answer.body) == (b"chunked", b"to the end")
        assert answer.get("connection") is None

    def test_hop_by_hop_fields_of_an_answer_end_here(self, stage: Stage) -> None:
        answer = answer_of(
            stage,
            GET % b"/",
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n"
            b"X-Accel-Buffering: no\r\nX-Ok: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n" + NO_BODY,
        )
        assert answer.fields == [
            (b"X-Ok", b"1"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"Content-Length", b"0"),
        ]  # fmt: skip


class TestHttp10:
    def test_a_client_without_keep_alive(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        assert upstream.message().start == b"GET / HTTP/1.1"
        upstream.send(OK)
        assert client.rest() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

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
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nto \r\n7\r\nthe end\r\n0\r\nX: y\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nto the end",
            b"HTTP/1.0 200 OK\r\n\r\nto the end",
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
        assert client.rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end"

    def test_no_host_means_the_name_that_tls_asked_for(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        stage.connect().send(b"GET / HTTP/1.0\r\n\r\n")
        assert backend.accept().message().target == b"/"

    @pytest.mark.parametrize(
        ("answer", "is_kept"),
        [
            (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
            (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", True),
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
        assert client.message() == Message(b"HTTP/1.1 200 OK", [(b"Content-Length", b"2")], b"ok")
        client.send(GET % b"/2")
        assert (upstream if is_kept else backend.accept()).message().target == b"/2"


class TestTargetsAndMethods:
    @pytest.mark.parametrize(
        ("line", "target"),
        [
            (b"GET https://a.test/x?y HTTP/1.1", b"/x?y"),
            (b"GET HTTP://A.test:443?q HTTP/1.1", b"/?q"),
            (b"OPTIONS * HTTP/1.1", b"*"),
            (b"OPTIONS https://a.test HTTP/1.1", b"*"),
            (b"GET /a%2Fb//c;d=e/%7e?%3f&?x HTTP/1.1", b"/a%2Fb//c;d=e/%7e?%3f&?x"),
            (b"GET //a HTTP/1.1", b"//a"),
        ],
    )
    def test_forms_of_a_target(self, stage: Stage, line: bytes, target: bytes) -> None:
        """Absolute form becomes origin form (RFC 9112 3.2.2); a path goes on byte for byte."""
        backend = stage.backend()
        stage.serve(backend)
        stage.connect().send(line + b"\r\nHost: a.test\r\n\r\n")
        request = backend.accept().message()
        assert request.start == line.split()[0] + b" " + target + b" HTTP/1.1"

    def test_the_authority_of_an_absolute_target_replaces_host(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        stage.connect().send(b"GET https://a.test:8443/ HTTP/1.1\r\nHost: other.test\r\n\r\n")
        request = backend.accept().message()
        assert (request.all("host"), request.get("x-forwarded-host")) == ([b"a.test:8443"], b"a.test:8443")

    @pytest.mark.parametrize("method", [b"PATCH", b"PROPFIND", b"QUERY", b"M-SEARCH", b"PURGE", b"TRACE"])
    def test_a_method_passes(self, stage: Stage, method: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        stage.connect().send(method + b" / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert backend.accept().message().start == method + b" / HTTP/1.1"

    @pytest.mark.parametrize(
        ("line", "status"),
        [
            (b"BREW /pot HTTP/1.1", 501),
            (b"get / HTTP/1.1", 501),
            (b"VERSION-CONTROL / HTTP/1.1", 501),
            (b"CONNECT a.test:443 HTTP/1.1", 405),
            (b"PRI * HTTP/2.0", 505),
            (b"GET / HTTP/1.2", 505),
            (b"GET / HTTX/1.1", 400),
            (b"GET a.test HTTP/1.1", 400),
        ],
    )
    def test_what_is_not_served_is_refused_and_never_misread(self, stage: Stage, line: bytes, status: int) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(line + b"\r\nHost: a.test\r\n\r\n" + GET % b"/next")
        answer = client.message()
        assert (answer.status, answer.get("connection")) == (status, b"close")
        assert (answer.get("allow") is not None) == (status == 405)
        assert client.has_ended()
        assert not backend.is_called(0)


class TestRepetition:
    """A client that sends the same fields again may be recognised, but every request is judged by itself."""

    def told(self, stage: Stage, *requests: bytes, host: str = "a.test", **settings: Any) -> list[Message]:
        """What the backend gets of requests over one connection."""
        backend = stage.backend()
        routes = [{"backends": [backend.url]}, {"path": "/api", "strip_prefix": True, "backends": [backend.url]}]
        stage.serve(sites=[{"hosts": [host], "routes": routes} for host in ("a.test", "b.test")], **settings)
        client = stage.connect(host)
        client.send(requests[0])
        upstream = backend.accept()
        got = []
        for following in (*requests[1:], b""):
            got.append(upstream.message())
            upstream.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            client.message()
            client.send(following)
        return got

    def test_with_another_target_and_another_route(self, stage: Stage) -> None:
        got = self.told(stage, *(GET % path for path in (b"/1", b"/api/2", b"/3?q", b"/api/4", b"/api/4", b"/1")))
        assert [request.target for request in got] == [b"/1", b"/2", b"/3?q", b"/4", b"/4", b"/1"]
        prefixes = [request.get("x-forwarded-prefix") for request in got]
        assert prefixes == [None, b"/api", None, b"/api", b"/api", None]
        assert [line["path"] for line in stage.log(6)] == ["/1", "/api/2", "/3", "/api/4", "/api/4", "/1"]

    def test_with_another_method(self, stage: Stage) -> None:
        block = b" / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n"
        methods = [b"GET", b"HEAD", b"POST", b"GET", b"HEAD"]
        got = self.told(stage, *(method + block for method in methods))
        assert [request.start.split()[0] for request in got] == methods
        assert [line["method"].encode() for line in stage.log(5)] == methods

    def test_with_another_version(self, stage: Stage) -> None:
        fields = b"\r\nHost: a.test\r\nConnection: keep-alive\r\nTE: trailers\r\n\r\n"
        self.told(stage, *(b"GET / HTTP/" + version + fields for version in (b"1.1", b"1.0", b"1.1")))
        assert [line["http"] for line in stage.log(3)] == ["1.1", "1.0", "1.1"]

    def test_with_another_authority_in_the_target(self, stage: Stage) -> None:
        lines = (b"GET / HTTP/1.1", b"GET https://b.test:1/ HTTP/1.1", b"GET / HTTP/1.1")
        got = self.told(stage, *(line + b"\r\nHost: a.test\r\n\r\n" for line in lines))
        assert [request.get("host") for request in got] == [b"a.test", b"b.test:1", b"a.test"]
        assert [request.get("x-forwarded-host") for request in got] == [b"a.test", b"b.test:1", b"a.test"]
        assert [request.get("x-forwarded-port") for request in got] == [b"443", b"1", b"443"]
        assert [line["host"] for line in stage.log(3)] == ["a.test", "b.test", "a.test"]

    def test_with_another_body(self, stage: Stage) -> None:
        head = b"PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n"
        bodies = [b"1\r\na\r\n0\r\nT: 1\r\n\r\n", b"0\r\n\r\n", b"1\r\nb\r\n0\r\nU: 2\r\n\r\n"]
        got = self.told(stage, *(head + body for body in bodies))
        assert [(request.body, request.trailers) for request in got] == [
            (b"a", [(b"T", b"1")]), (b"", []), (b"b", [(b"U", b"2")]),
        ]  # fmt: skip

    def test_with_ids_and_times_of_their_own(self, stage: Stage) -> None:
        got = self.told(stage, *[GET % b"/"] * 3)
        assert len({request.get("x-request-id") for request in got}) == 3
        assert [(request.get("x-request-id") or b"").decode() for request in got] == [
            line["request_id"] for line in stage.log(3)
        ]

    def test_behind_a_trusted_proxy_that_carries_many_clients(self, stage: Stage) -> None:
        requests = [
            b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.%d\r\nX-Request-ID: id-%d\r\n\r\n" % (n, n)
            for n in (1, 2, 1)
        ]
        got = self.told(stage, *requests, server={"trusted_proxies": ["127.0.0.1"]})
        assert [request.get("x-real-ip") for request in got] == [b"203.0.113.1", b"203.0.113.2", b"203.0.113.1"]
        assert [request.get("x-request-id") for request in got] == [b"id-1", b"id-2", b"id-1"]
        assert [line["client"] for line in stage.log(3)] == ["203.0.113.1", "203.0.113.2", "203.0.113.1"]

    def test_by_another_client_from_another_address(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            client = stage.connect(source=address)
            client.send(GET % b"/")
            upstream = backend.accept()
            assert upstream.message().get("x-forwarded-for") == address.encode()
            upstream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            client.message()
        assert [line["client"] for line in stage.log(3)] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]

    @pytest.mark.parametrize("broken", [b"GET / HTTP/1.2", b"BREW / HTTP/1.1", b"GET x HTTP/1.1", b"GET  / HTTP/1.1"])
    def test_a_request_line_that_is_wrong_is_refused_all_the_same(self, stage: Stage, broken: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        client.send(broken + b"\r\nHost: a.test\r\n\r\n")
        assert client.message().status >= 400
        assert client.has_ended()
        assert upstream.is_quiet(0.02)


class TestLimits:
    @pytest.mark.parametrize(
        ("head", "status", "note"),
        [
            (b"GET /%b HTTP/1.1\r\nHost: a.test\r\n\r\n" % (b"x" * 100), 414, "target is longer than 64 bytes"),
            (b"GET / HTTP/1.1\r\nX-Big: %b\r\nHost: a.test\r\n\r\n" % (b"x" * 999), 431, "biggest field: X-Big 1006"),
            (b"GET / HTTP/1.1\r\nHost: a.test\r\n" + b"X: y\r\n" * 9 + b"\r\n", 431, "limit 8 exceeded (10"),
            (b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 2000, 431, "header limit 512 bytes"),
            (b"GET /" + b"x" * 300, 414, "target is longer"),
        ],
    )
    def test_a_head_that_is_too_large(self, stage: Stage, head: bytes, status: int, note: str) -> None:
        """Refused as soon as it can be told; the log names the limit and the biggest field."""
        stage.serve(stage.backend(), limits={"header_size": 512, "header_count": 8, "target_size": 64})
        client = stage.connect()
        client.send(head)
        assert client.message().status == status
        assert client.has_ended()
        [line] = stage.log()
        assert line["status"] == status
        assert note in line["error"]

    def test_a_head_that_does_not_arrive_in_time(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"header_timeout": 9})
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\n")
        stage.wait(lambda: _is_open(stage))
        stage.tick(after=8)
        assert client.is_quiet(0.02)
        stage.tick(after=10)
        assert client.message().status == 408
        assert client.has_ended()
        assert stage.log()[0]["error"] == "header_timeout"

    def test_a_head_that_drips_gains_nothing_by_it(self, stage: Stage) -> None:
        """The time for a head is counted from its first byte, behind a first request too."""
        backend = stage.backend()
        stage.serve(backend, limits={"header_timeout": 9, "keep_alive": 100})
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        before = _idle_since(stage)
        client.send(b"GET / HT")
        stage.wait(lambda: _idle_since(stage) != before)
        client.send(b"TP/1.1\r\n")
        stage.tick(after=10)
        assert client.message().status == 408

    def test_a_client_that_never_says_anything_is_closed_without_a_word(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"header_timeout": 9})
        client = stage.connect()
        stage.wait(lambda: _is_open(stage))
        stage.tick(after=10)
        assert client.rest() == b""
        assert stage.log(0) == []

    def test_an_idle_connection_is_closed_when_its_time_is_over(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, limits={"keep_alive": 20})
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        stage.tick(after=19)
        assert client.is_quiet(0.02)
        stage.tick(after=21)
        assert client.rest() == b""

    @pytest.mark.parametrize(
        "framing", [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    )
    def test_a_body_that_stops(self, stage: Stage, framing: bytes) -> None:
        """408, and the backend never sees a complete request."""
        backend = stage.backend()
        stage.serve(backend, limits={"body_idle": 9})
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + framing)
        upstream = backend.accept()
        upstream.until(b"half")
        stage.tick(after=8)
        assert client.is_quiet(0.02)
        stage.tick(after=10)
        answer = client.message()
        assert (answer.status, answer.get("connection")) == (408, b"close")
        assert upstream.has_ended() or upstream.rest() == b"\r\n"
        assert stage.log()[0]["error"] == "body_idle"

    @pytest.mark.parametrize("body", [b"zz\r\n", b"2\r\nokay\r\n0\r\n\r\n", b"2\nok\r\n"])
    def test_a_body_that_breaks_the_rules(self, stage: Stage, body: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        client.send(body)
        assert client.message().status == 400
        assert client.has_ended()
        assert b"0\r\n\r\n" not in _whatever_came(upstream)


class TestFaultsOfOurOwn:
    def test_an_exception_ends_its_request_with_500_and_no_other_connection(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Security rule 9. It is logged once, with its trace, and the client learns nothing of it."""
        backend = stage.backend()
        stage.serve(backend)
        sane = Router.decide

        def decide(router: Router, head: object, info: object) -> object:
            if b"/boom" in getattr(head, "target", b""):
                raise ZeroDivisionError("secret detail")
            return sane(router, head, info)  # type: ignore[arg-type]

        monkeypatch.setattr(Router, "decide", decide)
        bystander, victim = stage.connect(), stage.connect()
        bystander.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        victim.send(GET % b"/boom")
        answer = victim.message()
        assert (answer.status, b"secret" in answer.body) == (500, False)
        assert victim.has_ended()
        upstream.send(OK)
        assert bystander.message().body == b"ok"
        crashes = [record for record in caplog.records if record.exc_info]
        assert [record.message for record in crashes] == ["exchange.crashed"]
        assert [line["status"] for line in stage.log(2)] == [500, 200]

    def test_so_does_one_in_a_request_that_waited_behind_another(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = stage.backend()
        stage.serve(backend)
        sane = Router.decide

        def decide(router: Router, head: object, info: object) -> object:
            if b"/boom" in getattr(head, "target", b""):
                raise ZeroDivisionError
            return sane(router, head, info)  # type: ignore[arg-type]

        monkeypatch.setattr(Router, "decide", decide)
        client = stage.connect()
        client.send(GET % b"/" + GET % b"/boom")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"
        assert client.message().status == 500
        assert client.has_ended()
        assert [line["status"] for line in stage.log(2)] == [200, 500]


def _is_open(stage: Stage) -> bool:
    return ["OPEN" in repr(connection) for connection in stage.front.connections] == [True]


def _idle_since(stage: Stage) -> list[float | None]:
    return [connection.idle_since for connection in stage.front.connections]


def _whatever_came(upstream: Peer) -> bytes:
    try:
        return upstream.rest()
    except ConnectionResetError:
        return b""
