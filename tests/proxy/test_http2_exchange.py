"""One request and its answer over HTTP/2, through a real Front: what each side is told, and who learns of whose end."""

from __future__ import annotations

import gc
import json
import re
import socket
import time

import pytest

from tests.fakes.backend import OK, Backend, url_of
from tests.fakes.frames import CANCEL, INTERNAL_ERROR, NO_ERROR, Fields, FramePeer, block, headers_frames
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tlsproxy.proxy.http2_stream import Http2Stream

BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


@pytest.fixture
def backend(stage: Stage) -> Backend:
    """The one behind a.test."""
    backend = stage.backend()
    stage.serve(backend)
    return backend


def asked(
    stage: Stage, backend: Backend, path: str = "/", headers: Fields | None = None
) -> tuple[FramePeer, int, Peer]:
    """A client, the stream of its GET, and the connection on which the backend has read it."""
    client = stage.connect_http2()
    stream = client.request(path, headers or [])
    upstream = backend.accept()
    upstream.message()
    return client, stream, upstream


def upload(stage: Stage, backend: Backend, headers: Fields | None = None) -> tuple[FramePeer, int, Peer]:
    """The same for a POST whose content is still to come; its head has been read."""
    client = stage.connect_http2()
    stream = client.request("/", headers or [], end=False)
    upstream = backend.accept()
    upstream.until(b"\r\n\r\n")
    return client, stream, upstream


def all_streams() -> list[Http2Stream]:
    return [each for each in gc.get_objects() if isinstance(each, Http2Stream)]


class TestWhatABackendIsTold:
    def test_every_field(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        fields = [(b"accept", b"*/*"), (b"x-own", b"1"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"proxy", b"x")]
        client.request("/a?b", [*fields, (b"x_odd", b"1"), (b"x-own", b"2"), (b"te", b"trailers")])
        request = backend.accept().message()
        assert request.start == b"GET /a?b HTTP/1.1"
        volatile = {b"X-Request-ID", b"X-Request-Start"}
        assert sorted(field for field in request.fields if field[0] not in volatile) == sorted(
            [
                (b"Host", b"a.test"),
                (b"accept", b"*/*"),
                (b"x-own", b"1"),
                (b"x-own", b"2"),
                (b"cookie", b"a=1; b=2"),
                (b"TE", b"trailers"),
                (b"Connection", b"TE"),
                (b"X-Forwarded-For", b"127.0.0.1"),
                (b"X-Real-IP", b"127.0.0.1"),
                (b"X-Forwarded-Proto", b"https"),
                (b"X-Forwarded-Host", b"a.test"),
                (b"X-Forwarded-Port", b"443"),
            ]
        )
        assert re.fullmatch(rb"[0-9a-f]{24}", request.get("x-request-id") or b"")
        started = re.fullmatch(rb"t=(\d+)", request.get("x-request-start") or b"")
        assert started
        assert abs(int(started[1]) / 1000 - time.time()) < 5

    def test_what_a_stranger_says_about_itself_is_dropped(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        forged = {
            b"x-forwarded-for": b"203.0.113.9", b"x-forwarded-proto": b"http", b"x-forwarded-host": b"forged.test",
            b"x-forwarded-port": b"1", b"x-real-ip": b"203.0.113.9", b"forwarded": b"for=203.0.113.9",
            b"x-forwarded-prefix": b"/forged", b"x-request-id": b"mine-1", b"x-request-start": b"t=1",
        }  # fmt: skip
        client.request("/", forged.items())
        request = backend.accept().message()
        for name, value in forged.items():
            assert value not in request.all(name.decode())
        assert request.get("x-forwarded-for") == b"127.0.0.1"

    def test_what_a_trusted_proxy_says_is_continued(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server={"trusted_proxies": ["127.0.0.0/8"], "via": True})
        client = stage.connect_http2()
        client.request("/", [(b"x-forwarded-for", b"203.0.113.9"), (b"x-request-id", b"theirs")])
        request = backend.accept().message()
        assert request.get("x-forwarded-for") == b"203.0.113.9, 127.0.0.1"
        assert request.get("x-request-id") == b"theirs"
        assert request.get("via") == b"2 tlsproxy"  # RFC 9110 7.6.3: the protocol it was received by

    def test_the_port_of_the_authority(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        client.host = b"A.test:8443"
        client.request("/")
        request = backend.accept().message()
        assert request.get("host") == request.get("x-forwarded-host") == b"A.test:8443"
        assert request.get("x-forwarded-port") == b"8443"

    def test_a_stripped_prefix(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"path": "/api/v1", "strip_prefix": True})
        stage.connect_http2().request("/api/v1/x%2Fy?z")
        request = backend.accept().message()
        assert (request.target, request.get("x-forwarded-prefix")) == (b"/x%2Fy?z", b"/api/v1")

    @pytest.mark.parametrize(
        ("method", "length"), [(b"GET", None), (b"DELETE", None), (b"POST", b"0"), (b"PUT", b"0"), (b"PATCH", b"0")]
    )
    def test_no_body_is_no_body(self, stage: Stage, backend: Backend, method: bytes, length: bytes | None) -> None:
        """RFC 9110 8.6: a method that usually has content says that there is none."""
        stage.connect_http2().request("/", method=method)
        request = backend.accept().message()
        assert (request.get("content-length"), request.get("transfer-encoding")) == (length, None)


class TestRequestBodies:
    def test_a_body_passes_as_it_comes(self, stage: Stage, backend: Backend) -> None:
        """In chunks: HTTP/2 needs no length (RFC 9113 8.1.1), HTTP/1.1 does."""
        client = stage.connect_http2()
        stream = client.request("/", end=False)
        upstream = backend.accept()
        head = upstream.until(b"\r\n\r\n")
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert b"ontent-" not in head
        client.data(stream, b"hel")
        assert upstream.until(b"hel\r\n") == b"3\r\nhel\r\n"
        client.data(stream, b"lo", end=True)
        assert upstream.until(b"0\r\n\r\n") == b"2\r\nlo\r\n0\r\n\r\n"

    def test_with_a_length_it_is_counted(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        stream = client.request("/", [(b"content-length", b"5")], end=False)
        upstream = backend.accept()
        head = upstream.until(b"\r\n\r\n")
        assert b"\r\nContent-Length: 5\r\n" in head
        assert b"ransfer-" not in head
        client.data(stream, b"hel")
        assert upstream.exactly(3) == b"hel"
        client.data(stream, b"lo", end=True)
        assert upstream.exactly(2) == b"lo"
        upstream.send(OK)
        assert client.answer(stream).body == b"ok"

    def test_end_of_stream_may_come_alone(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = upload(stage, backend)
        client.data(stream, b"all")
        assert upstream.until(b"all\r\n") == b"3\r\nall\r\n"
        client.data(stream, end=True)
        assert upstream.until(b"0\r\n\r\n") == b"0\r\n\r\n"

    def test_trailers_go_on_less_those_that_must_not(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = upload(stage, backend)
        client.data(stream, b"all")
        client.trailers(stream, [(b"x-sum", b"3"), (b"content-type", b"text/evil"), (b"host", b"b.test")])
        assert upstream.until(b"\r\n\r\n") == b"3\r\nall\r\n0\r\nx-sum: 3\r\n\r\n"

    def test_trailers_of_a_counted_body_have_no_place(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = upload(stage, backend, [(b"content-length", b"3")])
        client.data(stream, b"all")
        client.trailers(stream, [(b"x-sum", b"3")])
        assert upstream.exactly(3) == b"all"
        upstream.send(OK)
        assert client.answer(stream).body == b"ok"
        client.request("/next")
        assert upstream.message().target == b"/next"  # nothing was left between the two

    def test_a_large_body_arrives_whole_both_ways(self, stage: Stage, backend: Backend) -> None:
        body = bytes(range(256)) * 2_000
        client = stage.connect_http2()
        client.generous = True
        stream = client.request("/", [(b"content-length", b"%d" % len(body))], end=False)
        upstream = backend.accept()
        client.upload(stream, body)
        assert upstream.message().body == body
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert client.answer(stream).body == body
        [line] = stage.log()
        assert (line["bytes_in"], line["bytes_out"]) == (len(body), len(body))


class TestAnswers:
    def test_fields_and_body(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(
            b"HTTP/1.1 200 Fine\r\nContent-Type: text/plain\r\nSet-Cookie: a=1\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
            b'Keep-Alive: timeout=5\r\nSet-Cookie: b=2\r\nETag: "x"\r\nContent-Length: 4\r\n\r\nbody'
        )
        answer = client.answer(stream)
        date = answer.get("date") or b""
        assert sorted(answer.fields) == sorted(
            [
                (b":status", b"200"),
                (b"content-type", b"text/plain"),
                (b"set-cookie", b"a=1"),
                (b"set-cookie", b"b=2"),
                (b"etag", b'"x"'),
                (b"content-length", b"4"),
                (b"date", date),
            ]
        )
        assert date.endswith(b" GMT")  # RFC 9110 6.6.1
        assert answer.body == b"body"

    def test_a_date_of_the_backend_is_kept(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 0\r\n\r\n")
        assert client.answer(stream).get("date") == b"Tue, 15 Nov 1994 08:12:31 GMT"

    def test_chunks_become_frames_as_they_come(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.head_of(stream)
        for text in (b"one", b"two"):
            upstream.send(b"3\r\n%b\r\n" % text)
            client.until(lambda text=text: client.stream(stream).body.endswith(text))  # type: ignore[misc]
        upstream.send(b"0\r\n\r\n")
        answer = client.answer(stream)
        assert (answer.body, answer.get("content-length"), answer.get("transfer-encoding")) == (b"onetwo", None, None)

    def test_an_answer_that_ends_with_its_connection(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        upstream.close()
        assert client.answer(stream).body == b"to the end"

    def test_trailers(self, stage: Stage, backend: Backend) -> None:
        """As gRPC has them: announced or not, behind content or none; what must not be one is dropped."""
        client, stream, upstream = asked(stage, backend, headers=[(b"te", b"trailers")])
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n1\r\nx\r\n")
        upstream.send(b"0\r\nGrpc-Status: 0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n")
        answer = client.answer(stream)
        assert answer.trailers == [(b"grpc-status", b"0"), (b"x-sum", b"1")]
        assert answer.get("trailer") == b"Grpc-Status"

    def test_trailers_without_content(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend, headers=[(b"te", b"trailers")])
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGrpc-Status: 5\r\n\r\n")
        answer = client.answer(stream)
        assert (answer.body, answer.trailers) == (b"", [(b"grpc-status", b"5")])

    @pytest.mark.parametrize(
        ("method", "answer", "length"),
        [
            (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n", b"700"),
            (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
            (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", None),
            (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"0"),
        ],
    )
    def test_no_content(
        self, stage: Stage, backend: Backend, method: bytes, answer: bytes, length: bytes | None
    ) -> None:
        """The head ends the stream, and the backend's connection is as good as before."""
        client = stage.connect_http2()
        stream = client.request("/", method=method)
        upstream = backend.accept()
        upstream.message()
        upstream.send(answer)
        seen = client.answer(stream)
        assert (seen.get("content-length"), seen.pieces) == (length, [])
        client.request("/next")
        assert upstream.message().target == b"/next"

    def test_a_head_that_needs_several_frames(self, stage: Stage, backend: Backend) -> None:
        """CONTINUATION, when the fields are larger than a frame (RFC 9113 6.10)."""
        client, stream, upstream = asked(stage, backend)
        fields = b"".join(b"X-%d: %b\r\n" % (number, b"v" * 1000) for number in range(50))
        upstream.send(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 2\r\n\r\nok")
        answer = client.answer(stream)
        assert all(answer.get(f"x-{number}") == b"v" * 1000 for number in range(50))
        assert client.kinds(stream) == ["HEADERS", "CONTINUATION", "CONTINUATION", "DATA"]

    @pytest.mark.parametrize("status", [200, 404, 502])
    def test_hsts(self, stage: Stage, status: int) -> None:
        backend = stage.backend()
        route = {"backends": [backend.url]}
        stage.serve(sites=[{"hosts": ["a.test"], "routes": [route], "hsts": "1y"}])
        client, stream, upstream = asked(stage, backend)
        if status == 502:
            upstream.close()
        else:
            upstream.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
        answer = client.answer(stream)
        assert answer.status == status
        assert answer.get("strict-transport-security") == b"max-age=31536000"


class TestInterimAnswers:
    def test_continue_goes_from_end_to_end(self, stage: Stage, backend: Backend) -> None:
        """The body is asked for by the backend, not by the proxy (RFC 9110 10.1.1)."""
        client = stage.connect_http2()
        stream = client.request("/", [(b"expect", b"100-continue"), (b"content-length", b"4")], end=False)
        upstream = backend.accept()
        assert b"\r\nExpect: 100-continue" in upstream.until(b"\r\n\r\n")
        client.ping()
        assert client.kinds(stream) == []
        upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.until(lambda: client.stream(stream).interim == [[(b":status", b"100")]])
        client.data(stream, b"body", end=True)
        assert upstream.exactly(4) == b"body"
        upstream.send(OK)
        assert client.answer(stream).body == b"ok"

    def test_a_final_answer_instead_of_continue(self, stage: Stage, backend: Backend) -> None:
        """The rest of the request is not wanted; other than in HTTP/1.1 that ends nothing else."""
        client, stream, upstream = upload(stage, backend, [(b"expect", b"100-continue"), (b"content-length", b"4")])
        upstream.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        assert client.answer(stream).status == 401
        client.expect_reset(stream, NO_ERROR)  # RFC 9113 8.1
        assert upstream.has_ended()
        client.request("/next")
        assert backend.accept().message().target == b"/next"

    def test_a_continue_nobody_asked_for_is_kept_back(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
        assert client.answer(stream).interim == []

    def test_others_pass_in_order(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        client.until(lambda: len(client.stream(stream).interim) == 2)
        upstream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\nConnection: close\r\n\r\n" + OK)
        assert client.answer(stream).interim == [
            [(b":status", b"102")],
            [(b":status", b"103"), (b"link", b"</a>")],
            [(b":status", b"103"), (b"link", b"</b>")],
        ]


class TestManyStreams:
    def test_each_has_a_connection_to_the_backend_and_is_answered_when_it_is(
        self, stage: Stage, backend: Backend
    ) -> None:
        client = stage.connect_http2()
        streams = [client.request(f"/{number}") for number in range(5)]
        upstreams = {}
        for _ in streams:
            upstream = backend.accept()
            upstreams[upstream.message().target] = upstream
        for number in (3, 0, 4, 1, 2):
            upstreams[b"/%d" % number].send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
            assert client.answer(streams[number]).body == b"%d" % number
        assert len({line["request_id"] for line in stage.log(5)}) == 5

    def test_connections_to_the_backend_are_used_again(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        for number in range(3):
            upstream.send(OK)
            assert client.answer(stream).body == b"ok"
            stream = client.request(f"/{number}")
            assert upstream.message().target == b"/%d" % number
        assert not backend.is_called(0)

    def test_bodies_are_kept_apart(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        streams = [client.request(f"/{number}", end=False) for number in range(3)]
        for round_ in range(4):
            for number, stream in enumerate(streams):
                client.data(stream, b"%d" % number, end=round_ == 3)
        seen = [backend.accept().message() for _ in streams]
        assert sorted((each.target, each.body) for each in seen) == [
            (b"/0", b"0000"),
            (b"/1", b"1111"),
            (b"/2", b"2222"),
        ]

    def test_one_that_repeats_itself_but_for_the_path(self, stage: Stage, backend: Backend) -> None:
        """Heads are remembered: nothing of the last one may stay but what is the same."""
        client = stage.connect_http2()
        upstream: Peer | None = None
        for path, more in (("/1", []), ("/2", []), ("/3?q", [(b"x-a", b"b")]), ("/4", [])):
            stream = client.request(path, more)
            upstream = upstream or backend.accept()
            request = upstream.message()
            assert (request.target, request.get("x-a")) == (path.encode(), b"b" if more else None)
            upstream.send(OK)
            client.answer(stream)
        assert [line["path"] for line in stage.log(4)] == ["/1", "/2", "/3", "/4"]


class TestEarlyAnswer:
    def test_the_answer_is_whole_and_the_rest_of_the_request_is_refused(self, stage: Stage, backend: Backend) -> None:
        """RFC 9113 8.1: END_STREAM, then RST_STREAM with NO_ERROR."""
        client, stream, upstream = upload(stage, backend, [(b"content-length", b"9000000")])
        client.data(stream, b"b" * 1000)
        upstream.exactly(1000)
        upstream.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!")
        answer = client.answer(stream)
        assert (answer.status, answer.body) == (413, b"no!")
        client.expect_reset(stream, NO_ERROR)
        assert upstream.has_ended()  # it is not used again: the rest of the body will never come
        client.data(stream, b"b" * 50_000)
        client.request("/next")
        assert backend.accept().message().target == b"/next"

    def test_not_before_the_client_has_all_of_it(self, stage: Stage, backend: Backend) -> None:
        """A reset overtakes what is queued: it waits until the windows have let everything out."""
        body = b"x" * 100_000
        client, stream, upstream = upload(stage, backend)
        upstream.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.until(lambda: len(client.stream(stream).body) == 65_535)
        client.ping()
        assert client.stream(stream).reset is None
        client.grant(50_000)
        client.grant(50_000, stream)
        assert client.answer(stream).body == body
        client.expect_reset(stream, NO_ERROR)

    def test_a_client_that_ends_its_request_meanwhile_is_not_reset(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = upload(stage, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
        client.until(lambda: len(client.stream(stream).body) == 65_535)
        client.data(stream, b"late", end=True)
        client.grant(50_000)
        client.grant(50_000, stream)
        client.answer(stream)
        client.ping()
        assert client.stream(stream).reset is None

    def test_the_body_still_flows_while_the_answer_does(self, stage: Stage, backend: Backend) -> None:
        """Both directions of one stream are independent, as gRPC needs it."""
        client, stream, upstream = upload(stage, backend)
        client.data(stream, b"a")
        upstream.until(b"1\r\na\r\n")
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n")
        client.until(lambda: client.stream(stream).body == b"A")
        client.data(stream, b"b", end=True)
        assert upstream.until(b"0\r\n\r\n") == b"1\r\nb\r\n0\r\n\r\n"
        upstream.send(b"1\r\nB\r\n0\r\n\r\n")
        assert client.answer(stream).body == b"AB"
        client.ping()
        assert client.stream(stream).reset is None


class TestClientLeaves:
    def test_a_reset_closes_the_connection_to_the_backend(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        client.reset(stream, CANCEL)
        assert upstream.has_ended()
        [line] = stage.log()
        assert line["status"] == 499
        assert "reset" in line["error"]
        assert "0 active, 0 idle" in stage.pool(backend.url)
        client.request("/next")
        assert backend.accept().message().target == b"/next"

    def test_within_an_answer(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(BEGUN)
        client.until(lambda: client.stream(stream).body == b"half")
        client.reset(stream, CANCEL)
        assert upstream.has_ended()
        [line] = stage.log()
        assert (line["status"], line["bytes_out"]) == (200, 4)
        assert "reset" in line["error"]

    def test_within_its_own_body(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = upload(stage, backend)
        client.data(stream, b"half")
        upstream.until(b"half\r\n")
        client.reset(stream)
        assert upstream.has_ended()
        assert stage.log()[0]["status"] == 499

    def test_nothing_is_kept_of_it(self, stage: Stage, backend: Backend) -> None:
        """A connection may live for days; what it holds of a stream ends with the stream."""
        client, stream, upstream = upload(stage, backend)
        client.reset(stream)
        assert upstream.has_ended()
        client.ping()
        assert stage.call(all_streams) == []

    def test_nor_of_an_answer_that_came_early_and_was_not_taken(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2(settings={4: 0})
        stream = client.request("/", end=False)
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        upstream.send(OK)
        client.head_of(stream)
        client.reset(stream)
        client.ping()
        assert stage.call(all_streams) == []

    def test_streams_are_counted_until_they_end(self, stage: Stage, backend: Backend) -> None:
        """By their own end, or by their connection's: what is open decides who gets more on a busy worker."""
        client, stream, _ = asked(stage, backend)
        client.request("/other")
        client.ping()
        assert stage.call(lambda: stage.front._services.open_streams) == 2
        client.reset(stream)
        client.ping()
        assert stage.call(lambda: stage.front._services.open_streams) == 1
        client.close()
        stage.log(2)
        assert stage.call(lambda: stage.front._services.open_streams) == 0

    def test_while_the_backend_is_still_being_connected(self, stage: Stage) -> None:
        """With a full queue of a listener nobody accepts from, a connect waits as long as one likes."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            url = url_of(listener)
            with socket.create_connection(listener.getsockname()):
                stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}])
                client = stage.connect_http2()
                stream = client.request("/")
                stage.wait_for_pool(url, "1 active")
                client.reset(stream)
                assert stage.log()[0]["status"] == 499
                assert "0 active" in stage.pool(url)

    def test_other_streams_do_not_notice(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        first, second = client.request("/1"), client.request("/2")
        upstreams = {each.message().target: each for each in (backend.accept(), backend.accept())}
        client.reset(first)
        assert upstreams[b"/1"].has_ended()
        upstreams[b"/2"].send(OK)
        assert client.answer(second).body == b"ok"

    def test_the_connection_takes_all_its_requests_along(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        for number in range(3):
            client.request(f"/{number}")
        upstreams = [backend.accept() for _ in range(3)]
        for each in upstreams:
            each.message()
        client.close()
        assert all(each.has_ended() for each in upstreams)
        assert [line["status"] for line in stage.log(3)] == [499] * 3

    def test_a_request_that_is_taken_back_at_once_never_begins(self, stage: Stage, backend: Backend) -> None:
        """Rapid reset (CVE-2023-44487) costs no connection to a backend."""
        client = stage.connect_http2()
        head = block(client.head("/taken-back"))
        for number in range(1, 21, 2):
            client.send(*headers_frames(head, number), b"\0\0\4\3\0" + number.to_bytes(4, "big") + b"\0\0\0\x08")
        client.ping()
        assert not backend.is_called(0)


class TestBackendDies:
    @pytest.mark.parametrize("die", [Peer.close, Peer.reset])
    @pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n"])
    def test_in_the_middle_of_an_answer_the_stream_is_reset(
        self, stage: Stage, backend: Backend, framing: bytes, die: object
    ) -> None:
        """It can't be taken for complete (security rule 8); the connection goes on."""
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\n" + framing + b"half")
        client.until(lambda: client.stream(stream).body == b"half")
        die(upstream)  # type: ignore[operator]
        client.expect_reset(stream, INTERNAL_ERROR)
        assert not client.stream(stream).ended
        [line] = stage.log()
        assert line["status"] == 200
        assert "in the middle" in line["error"]
        client.request("/next")
        assert backend.accept().message().target == b"/next"

    @pytest.mark.parametrize(
        ("media_type", "is_call"),
        [(b"application/grpc", True), (b"application/grpc+proto", True), (b"application/grpc-web+proto", False)],
    )
    def test_a_call_of_grpc_is_told_in_its_own_words(
        self, stage: Stage, backend: Backend, media_type: bytes, is_call: bool
    ) -> None:
        client, stream, upstream = asked(stage, backend, "/", [(b"content-type", media_type)])
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        client.until(lambda: client.stream(stream).body == b"half")
        upstream.close()
        if is_call:
            assert client.answer(stream).trailers[0] == (b"grpc-status", b"14")
        else:
            client.expect_reset(stream, INTERNAL_ERROR)

    def test_a_bad_chunk_within_an_answer(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        client.expect_reset(stream, INTERNAL_ERROR)

    @pytest.mark.parametrize(
        "answer", [b"", b"HTTP/1.1 200 O", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"]
    )
    def test_before_an_answer_it_is_502(self, stage: Stage, backend: Backend, answer: bytes) -> None:
        client, stream, upstream = asked(stage, backend)
        upstream.send(answer)
        upstream.close()
        problem = client.answer(stream)
        assert (problem.status, problem.get("content-type")) == (502, b"application/problem+json")
        [line] = stage.log()
        assert json.loads(problem.body)["request_id"] == line["request_id"]
        assert backend.url in line["error"]

    def test_within_an_upload_it_is_502_and_the_rest_is_not_wanted(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = upload(stage, backend)
        upstream.close()
        assert client.answer(stream).status == 502
        client.expect_reset(stream, NO_ERROR)

    def test_a_dead_idle_connection_costs_nothing(self, stage: Stage, backend: Backend) -> None:
        """One silent retry on a new connection, the body included while it is in hand (RFC 9110 9.2.2)."""
        client, stream, stale = asked(stage, backend)
        stale.send(OK)
        client.answer(stream)
        stream = client.request("/2", body=b"again", method=b"PUT")
        first = stale.message()
        stale.close()
        fresh = backend.accept()
        assert fresh.message() == first
        fresh.send(OK)
        assert client.answer(stream).body == b"ok"
        assert stage.log(2)[1]["retries"] == 1

    def test_what_might_be_done_twice_is_not_repeated(self, stage: Stage, backend: Backend) -> None:
        client, stream, stale = asked(stage, backend)
        stale.send(OK)
        client.answer(stream)
        stream = client.request("/2", body=b"once")
        stale.message()
        stale.close()
        assert client.answer(stream).status == 502
        assert not backend.is_called(0)

    def test_others_on_the_connection_do_not_notice(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        first, second = client.request("/1"), client.request("/2")
        upstreams = {each.message().target: each for each in (backend.accept(), backend.accept())}
        upstreams[b"/1"].reset()
        assert client.answer(first).status == 502
        upstreams[b"/2"].send(OK)
        assert client.answer(second).body == b"ok"


def test_a_connection_whose_answer_filled_the_client_is_used_again(stage: Stage, backend: Backend) -> None:
    """The end of an answer may be what pauses the backend: that must not outlast the answer."""
    body = b"x" * 200_000
    client, stream, upstream = asked(stage, backend)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    client.generous = True
    assert client.answer(stream).body == body
    other = client.request("/next")
    assert upstream.message().target == b"/next"
    upstream.send(OK)
    assert client.answer(other).body == b"ok"
