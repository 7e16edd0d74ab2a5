"""Connections to backends, through a real Front: which one is used again, which one never, and when they are let go."""

from __future__ import annotations

import socket

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.peer import Peer
from tests.fakes.stage import Json, Stage

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"


def ask(client: Peer, backend: Backend, path: bytes = b"/") -> Peer:
    """Send a request that needs a new connection; returns it, the request read."""
    client.send(GET % path)
    upstream = backend.accept()
    assert upstream.message().target == path
    return upstream


class TestPool:
    def test_requests_at_the_same_time_have_connections_of_their_own(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        clients = [stage.connect() for _ in range(3)]
        upstreams = [ask(client, backend) for client in clients]
        for number, upstream in reversed(list(enumerate(upstreams))):
            upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        assert [client.message().body for client in clients] == [b"0", b"1", b"2"]
        assert "0 active, 3 idle" in stage.pool(backend.url)

    def test_the_newest_is_used_first(self, stage: Stage) -> None:
        """The oldest may so grow old enough to be closed by us, not by the server."""
        backend = stage.backend()
        stage.serve(backend)
        first, second = stage.connect(), stage.connect()
        older, newer = ask(first, backend), ask(second, backend)
        older.send(OK)
        first.message()
        newer.send(OK)
        second.message()
        first.send(GET % b"/again")
        assert newer.message().target == b"/again"
        assert older.is_quiet(0.02)

    def test_only_so_many_are_kept(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, limits={"pool_idle_per_backend": 1})
        first, second = stage.connect(), stage.connect()
        surplus, kept = ask(first, backend), ask(second, backend)
        surplus.send(OK)
        first.message()
        kept.send(OK)
        assert second.message().body == b"ok"
        assert surplus.has_ended()  # the one that was not wanted for longer
        assert "1 idle" in stage.pool(backend.url)

    def test_routes_of_several_sites_share_the_connections_of_a_backend(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(sites=[{"hosts": [host], "backends": [backend.url]} for host in ("a.test", "b.test")])
        upstream = ask(stage.connect(), backend)
        upstream.send(OK)
        stage.wait_for_pool(backend.url, "1 idle")
        stage.connect("b.test").send(b"GET /b HTTP/1.1\r\nHost: b.test\r\n\r\n")
        assert upstream.message().target == b"/b"

    def test_one_that_the_server_closes_is_forgotten_without_a_failure(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        upstream.send(OK)
        client.message()
        upstream.close()
        stage.wait_for_pool(backend.url, "0 idle, 0 failures")
        ask(client, backend).send(OK)
        assert client.message().body == b"ok"
        assert stage.log(2)[1]["retries"] == 0

    @pytest.mark.parametrize(
        ("server", "seconds"),
        [(b"uvicorn", 4.0), (b"hypercorn-h11", 4.0), (b"gunicorn/23.0", 1.5), (b"granian", 25.0), (b"", 4.0)],
    )
    def test_one_is_given_up_before_its_server_would_close_it(
        self, stage: Stage, server: bytes, seconds: float
    ) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        upstream.send(b"HTTP/1.1 204 No Content\r\n" + (b"Server: %b\r\n" % server if server else b"") + b"\r\n")
        client.message()
        stage.tick(after=seconds - 0.5)
        assert "1 idle" in stage.pool(backend.url)
        stage.tick(after=seconds + 0.1)
        assert "0 idle" in stage.pool(backend.url)
        assert upstream.has_ended()


class TestNeverUsedAgain:
    """A connection with anything unread would answer the next client with it (security rule 3)."""

    def is_fresh(self, stage: Stage, backend: Backend, client: Peer) -> bool:
        upstream = ask(client, backend, b"/next")
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")
        return client.message().body == b"mine"

    @pytest.mark.parametrize(
        "answer",
        [
            OK + b"x",
            OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nforged",
            b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
        ],
    )
    def test_bytes_behind_an_answer(self, stage: Stage, answer: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        upstream.send(answer)
        assert b"forged" not in client.message().body
        assert upstream.has_ended()
        assert self.is_fresh(stage, backend, client)

    def test_a_body_behind_the_answer_to_head(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        assert client.message(bodiless=True).get("content-length") == b"2"
        assert upstream.has_ended()
        assert self.is_fresh(stage, backend, client)

    def test_an_answer_nobody_asked_for(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        """RFC 9112 9.2. It would be the answer to the next request."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        upstream.send(OK)
        client.message()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        assert upstream.has_ended()
        assert "0 idle" in stage.pool(backend.url)
        assert [record.message for record in caplog.records] == ["backend.unasked_answer"]
        assert self.is_fresh(stage, backend, client)

    def test_an_answer_that_ended_with_the_connection(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        upstream.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        upstream.half_close()
        assert client.message().body == b"to the end"
        assert upstream.has_ended()
        assert self.is_fresh(stage, backend, client)


class TestRepetition:
    """A backend that sends the same head again may be recognised, but every answer is judged by itself."""

    def test_to_head_and_to_get(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        for method, following in ((b"GET", b"HEAD"), (b"HEAD", b"HEAD"), (b"HEAD", b"GET"), (b"GET", b"GET")):
            upstream.send(OK if method == b"GET" else OK[:-2])
            answer = client.message(bodiless=method == b"HEAD")
            assert (answer.get("content-length"), answer.body) == (b"2", b"ok" if method == b"GET" else b"")
            client.send(following + b" / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert upstream.message().start.startswith(following)

    def test_to_clients_of_both_versions_of_several_sites(self, stage: Stage) -> None:
        backend = stage.backend()
        sites: list[Json] = [{"hosts": ["a.test"]}, {"hosts": ["b.test"], "hsts": "1y"}]
        stage.serve(sites=[{**site, "backends": [backend.url]} for site in sites])
        upstream = None
        for host, version in ((b"a", b"1.1"), (b"b", b"1.1"), (b"a", b"1.0"), (b"b", b"1.0"), (b"a", b"1.1")):
            client = stage.connect(host.decode() + ".test")
            client.send(b"GET / HTTP/%b\r\nHost: %b.test\r\n\r\n" % (version, host))
            upstream = upstream or backend.accept()
            upstream.message()
            upstream.send(b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            answer = client.message()
            assert (answer.body, answer.all("x")) == (b"ok", [b"y"])
            assert answer.get("transfer-encoding") == (b"chunked" if version == b"1.1" else None)
            assert len(answer.all("strict-transport-security")) == (host == b"b")

    def test_with_other_trailers(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        for trailers in ([(b"A", b"1")], [], [(b"B", b"2")]):
            lines = b"".join(b"%b: %b\r\n" % field for field in trailers)
            upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + lines + b"\r\n")
            assert client.message().trailers == trailers
            client.send(GET % b"/")
            upstream.message()


def test_a_backend_on_ipv6(stage: Stage) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        url = f"http://[::1]:{listener.getsockname()[1]}"
        stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}])
        stage.connect().send(GET % b"/")
        sock, _ = listener.accept()
        assert Peer(sock).message().target == b"/"
        sock.close()


def test_a_name_is_resolved_when_it_is_connected_to(stage: Stage) -> None:
    backend = stage.backend()
    url = backend.url.replace("127.0.0.1", "localhost")
    stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}])
    client = stage.connect()
    ask(client, backend).send(OK)
    assert client.message().body == b"ok"


class TestPieces:
    def test_an_answer_may_come_byte_by_byte(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        upstream = ask(client, backend)
        answer = b"HTTP/1.1 200 Fine\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: t\r\n\r\n"
        for byte in answer:
            upstream.send(bytes((byte,)))
        message = client.message()
        assert (message.start, message.body, message.trailers) == (b"HTTP/1.1 200 Fine", b"ok", [(b"T", b"t")])
        assert "1 idle" in stage.pool(backend.url)

    def test_a_request_may_come_byte_by_byte(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        for byte in b"POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n":
            client.send(bytes((byte,)))
        assert backend.accept().message().body == b"ok"
