"""Limits and deadlines of a client's connection, through a real Front."""

from __future__ import annotations

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage

GET = b"GET %b HTTP/1.1\r\nHost: a.test\r\n\r\n"


class TestLimits:
    @pytest.mark.parametrize(
        ("head", "status", "note"),
        [
            (b"GET /%b HTTP/1.1\r\nHost: a.test\r\n\r\n" % (b"x" * 100), 414, "limits.target_size 64 exceeded"),
            (b"GET / HTTP/1.1\r\nX-Big: %b\r\nHost: a.test\r\n\r\n" % (b"x" * 999), 431, "biggest field: X-Big 1006"),
            (
                b"GET / HTTP/1.1\r\nHost: a.test\r\n" + b"X: y\r\n" * 9 + b"\r\n",
                431,
                "limits.header_count 8 exceeded (10",
            ),
            (b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 2000, 431, "limits.header_size 512"),
            (b"GET /" + b"x" * 300, 414, "limits.target_size"),
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
        assert stage.log()[0]["error"] == "limits.header_timeout exceeded"

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
        assert stage.log()[0]["error"] == "limits.body_idle exceeded"

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


def _is_open(stage: Stage) -> bool:
    return ["OPEN" in repr(connection) for connection in stage.front.connections] == [True]


def _idle_since(stage: Stage) -> list[float | None]:
    return [connection.idle_since for connection in stage.front.connections]


def _whatever_came(upstream: Peer) -> bytes:
    try:
        return upstream.rest()
    except ConnectionResetError:
        return b""
