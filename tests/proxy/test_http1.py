"""The client's connection, through a real Front: keep-alive, pipelining, targets, repetition, faults of our own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Message
from tests.fakes.stage import Stage
from tlsproxy.proxy.backend import BackendConnection
from tlsproxy.proxy.http1 import Http1Driver
from tlsproxy.proxy.router import Router

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"
NO_BODY = b"Content-Length: 0\r\n\r\n"


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
            answer = client.message()
            assert (answer.start, answer.body) == (b"HTTP/1.1 200 OK", b"ok")
            assert (answer.get("date") or b"").endswith(b" GMT")  # RFC 9110 6.6.1: the backend sent none
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

    def test_so_does_one_while_the_answer_is_taken(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """It speaks against the request, not against the backend."""
        backend = stage.backend()
        stage.serve(backend)
        sane = Http1Driver.send_head

        def send_head(driver: Http1Driver, status: int, *arguments: Any, **options: Any) -> None:
            if status == 299:
                raise ZeroDivisionError
            sane(driver, status, *arguments, **options)

        monkeypatch.setattr(Http1Driver, "send_head", send_head)
        client = stage.connect()
        client.send(GET % b"/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 299 Odd\r\n" + NO_BODY)
        assert client.has_ended()  # an answer had begun, as far as the exchange knows: it is cut
        assert upstream.has_ended()
        assert "0 active, 0 idle, 0 failures" in stage.pool(backend.url)
        assert stage.log()[0]["error"] == "internal error"

    def test_so_does_one_when_a_backend_has_just_been_connected(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def begin(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(BackendConnection, "begin", begin)
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET % b"/")
        assert client.message().status == 500
        assert client.has_ended()
        assert backend.accept().has_ended()
        assert "0 active, 0 idle" in stage.pool(backend.url)

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
