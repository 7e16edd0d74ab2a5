"""Where the name of a path comes from: the middleware's word if there is a secret, else the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.backend import Backend
from tests.fakes.h2c_backend import H2cBackend
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tlsproxy.proxy import templates

SECRET = "the-secret-of-this-stage-is-long"
PROVEN = {"backend_secret": SECRET}
DOCUMENT = {"openapi": "3.1.0", "paths": {"/items/{item_id}": {}, "/files/{path}": {}}}


def ask(client: Peer, upstream: Peer, path: str, *more: str, status: int = 200) -> None:
    client.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
    upstream.message()
    lines = "".join(f"{line}\r\n" for line in more)
    upstream.send(f"HTTP/1.1 {status} OK\r\n{lines}Content-Length: 0\r\n\r\n".encode())
    assert client.message().status == status


def begin(stage: Stage, backend: Backend, path: str, *more: str) -> tuple[Peer, Peer]:
    """The first request, and the connections it came by."""
    client = stage.connect()
    client.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
    upstream = backend.accept()
    upstream.message()
    lines = "".join(f"{line}\r\n" for line in more)
    upstream.send(f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n".encode())
    assert client.message().status == 200
    return client, upstream


def hand_out(backend: Backend, document: Any = DOCUMENT, kind: str = "application/json") -> bytes:
    """Answer the question for the document; return its head."""
    upstream = backend.accept()
    head = upstream.until(b"\r\n\r\n")
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    upstream.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return head


def source(stage: Stage) -> Any:
    inspector = stage.front._sites[0].forwards[0].route.inspector
    assert inspector is not None
    return inspector._source


def wait_until_asked(stage: Stage) -> None:
    stage.wait(lambda: source(stage)._task is None)


def logged(stage: Stage, count: int) -> list[str | None]:
    return [line.get("template") for line in stage.log(count)]


class TestFromTheMiddleware:
    def test_it_is_believed_of_whom_we_share_a_secret_with(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        client, upstream = begin(stage, backend, "/items/1", "Server: uvicorn", "X-Tlsproxy-Route: /items/{item_id}")
        ask(client, upstream, "/items/2", "x-tlsproxy-route: /items/{item_id}")
        ask(client, upstream, "/none", "Server: uvicorn", status=404)
        assert logged(stage, 3) == ["/items/{item_id}", "/items/{item_id}", "other"]
        assert not backend.is_called(0.05)  # no need for a document
        labels = 'site="a.test",route="/items/{item_id}",method="GET",status="200"'
        assert stage.call(stage.front.series)[f"tlsproxy_requests_total{{{labels}}}"] == 2

    @pytest.mark.parametrize("server", [{}, PROVEN])
    @pytest.mark.parametrize("value", ["/items/{item_id}", "items", '/a"b', "/a b", "/" * 300])
    def test_of_nobody_else_and_not_anything(self, stage: Stage, value: str, server: dict[str, str]) -> None:
        backend = stage.backend()
        stage.serve(backend, server=server)
        begin(stage, backend, "/items/1", f"X-Tlsproxy-Route: {value}")
        expected = None if not server else value if value == "/items/{item_id}" else "other"
        assert logged(stage, 1) == [expected]

    def test_a_middleware_gone_mad_fills_no_memory(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        client, upstream = begin(stage, backend, "/", "X-Tlsproxy-Route: /0")
        inspector: Any = stage.front._sites[0].forwards[0].route.inspector
        stage.call(lambda: [inspector._learn(b"/%d" % number) for number in range(5000)])
        assert len(inspector._told) == 1000
        ask(client, upstream, "/", "X-Tlsproxy-Route: /one-more")
        assert logged(stage, 2)[1] == "other"

    def test_without_templates_nothing_is_named(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN, route={"templates": False})
        begin(stage, backend, "/items/1", "Server: uvicorn", "X-Tlsproxy-Route: /items/{item_id}")
        assert logged(stage, 1) == [None]
        assert not backend.is_called(0.05)


class TestFromTheDocument:
    def test_it_is_asked_for_once_by_itself(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        client, upstream = begin(stage, backend, "/items/1", "Server: uvicorn")
        head = hand_out(backend)
        assert head.startswith(b"GET /openapi.json HTTP/1.1\r\nHost: a.test\r\n")
        for line in (
            b"X-Forwarded-Proto: https",
            b"X-Tlsproxy-Secret: " + SECRET.encode(),
            b"Accept: application/json",
        ):
            assert b"\r\n" + line + b"\r\n" in head
        wait_until_asked(stage)
        ask(client, upstream, "/items/2?a=/b", "Server: uvicorn")
        ask(client, upstream, "/files/a/b", "Server: uvicorn")
        ask(client, upstream, "/files/a/b", "Server: uvicorn", status=404)
        ask(client, upstream, "/none", "Server: uvicorn", status=404)
        assert logged(stage, 5) == [None, "/items/{item_id}", "/files/{path}", "other", "other"]
        assert not backend.is_called(0.05)

    def test_a_stripped_prefix_comes_before_it(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"path": "/api", "strip_prefix": True})
        client, upstream = begin(stage, backend, "/api/items/1", "Server: granian")
        head = hand_out(backend, {**DOCUMENT, "servers": [{"url": "/api"}]})
        assert head.startswith(b"GET /openapi.json ")
        assert b"\r\nX-Forwarded-Prefix: /api\r\n" in head
        wait_until_asked(stage)
        ask(client, upstream, "/api/items/1")
        assert logged(stage, 2) == [None, "/api/items/{item_id}"]

    def test_an_unstripped_one_is_asked_below_it_first(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"path": "/api"})
        client, upstream = begin(stage, backend, "/api/items/1", "Server: hypercorn-h11")
        assert hand_out(backend, {"detail": "Not Found"}).startswith(b"GET /api/openapi.json ")
        assert hand_out(backend, {"paths": {"/api/items/{i}": {}}}).startswith(b"GET /openapi.json ")
        wait_until_asked(stage)
        ask(client, upstream, "/api/items/1")
        assert logged(stage, 2) == [None, "/api/items/{i}"]

    def test_after_a_while_it_is_asked_for_anew(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = begin(stage, backend, "/items/1", "Server: uvicorn")
        hand_out(backend)
        wait_until_asked(stage)
        assert stage.call(lambda: source(stage)._apart) == 300
        stage.call(lambda: setattr(source(stage), "_due", 0.0))
        ask(client, upstream, "/items/1", "Server: uvicorn")
        hand_out(backend, {"paths": {"/items/{renamed}": {}}})
        wait_until_asked(stage)
        ask(client, upstream, "/items/1")
        assert logged(stage, 3) == [None, "/items/{item_id}", "/items/{renamed}"]

    @pytest.mark.parametrize(
        ("document", "kind"),
        [
            (b"<html>", "text/html"),
            (b"{", "application/json"),
            (b"[" * 100_000, "application/json"),
            (b"[]", "application/json"),
            (b'{"paths": 5}', "application/json"),
            (b" " * (templates._MOST_BYTES + 1), "application/json"),
        ],
    )
    def test_who_has_none_is_asked_ever_more_rarely(self, stage: Stage, document: bytes, kind: str) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = begin(stage, backend, "/items/1", "Server: uvicorn")
        upstream_of_document = backend.accept()
        upstream_of_document.until(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(document)}\r\n\r\n"
        upstream_of_document.push(head.encode() + document, 1)
        wait_until_asked(stage)
        assert stage.call(lambda: source(stage)._apart) == 600
        ask(client, upstream, "/items/1", "Server: uvicorn")
        assert logged(stage, 2) == [None, None]
        assert not backend.is_called(0.05)

    def test_a_backend_that_closes_or_refuses_harms_nobody(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = begin(stage, backend, "/items/1", "Server: uvicorn")
        backend.accept().close()
        wait_until_asked(stage)
        stage.call(lambda: setattr(source(stage), "_due", 0.0))
        backend.refuse()
        ask(client, upstream, "/items/1", "Server: uvicorn")
        wait_until_asked(stage)
        assert stage.call(lambda: source(stage)._apart) == 1200
        assert "0 failures" in stage.pool(backend.url)

    def test_servers_that_run_no_asgi_applications_are_not_asked(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = begin(stage, backend, "/items/1", "Server: nginx/1.25")
        ask(client, upstream, "/items/1")
        assert not backend.is_called(0.05)

    def test_over_http2(self, stage: Stage) -> None:
        with H2cBackend() as backend:
            stage.serve(route={"backends": [backend.url]})
            client = stage.connect_http2()
            stream = client.request("/items/1")
            upstream = backend.connection()
            fields = [(b"server", b"hypercorn-h2"), (b"content-type", b"application/json")]
            upstream.answer(upstream.next_request().stream, fields=fields)
            assert client.answer(stream).status == 200
            question = upstream.next_request()
            assert question.get(":path") == b"/openapi.json"
            upstream.answer(question.stream, json.dumps(DOCUMENT).encode(), fields)
            wait_until_asked(stage)
            stream = client.request("/items/2")
            upstream.answer(upstream.next_request().stream, fields=fields)
            assert client.answer(stream).status == 200
            assert logged(stage, 2) == [None, "/items/{item_id}"]

    def test_the_worker_leaves_while_it_asks(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, _ = begin(stage, backend, "/items/1", "Server: uvicorn")
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        client.close()
        asked = source(stage)
        stage.begin_drain().result(5)
        assert upstream.has_ended()
        stage.wait(lambda: asked._task is None)
        assert asked._due == float("inf")  # nor is it asked again


class TestWithoutAnAnswer:
    """Which endpoints fail is worth knowing: what is known already names requests that nobody answered."""

    def test_from_what_the_middleware_has_said_before(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        client, upstream = begin(stage, backend, "/items/1", "X-Tlsproxy-Route: /items/{item_id}")
        client.send(b"POST /items/2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")
        upstream.message()
        upstream.close()
        assert client.message().status == 502
        client.send(b"POST /none HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")
        backend.accept().close()
        assert client.message().status == 502
        assert logged(stage, 3) == ["/items/{item_id}", "/items/{item_id}", "other"]

    def test_from_the_document(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = begin(stage, backend, "/items/1", "Server: uvicorn")
        hand_out(backend)
        wait_until_asked(stage)
        client.send(b"POST /items/2?a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n")
        upstream.message()
        upstream.close()
        assert client.message().status == 502
        assert logged(stage, 2) == [None, "/items/{item_id}"]
