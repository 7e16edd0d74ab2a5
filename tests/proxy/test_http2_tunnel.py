"""WebSocket over HTTP/2 (RFC 8441) through a real Front: an HTTP/1.1 upgrade to the backend, a stream to the client."""

from __future__ import annotations

import base64
import hashlib
import threading

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.frames import CANCEL, Fields, FramePeer, block, headers_frames
from tests.fakes.peer import Message, Peer
from tests.fakes.stage import Stage
from tests.proxy.test_tunnel import CLOSE_1001, to_backend, to_client, unmasked

MIB = 2**20
SMALL = 16 * 1024


@pytest.fixture
def backend(stage: Stage) -> Backend:
    """The one behind a.test."""
    backend = stage.backend(receive_buffer=SMALL)
    stage.serve(backend)
    return backend


def ask(client: FramePeer, more: Fields | None = None) -> int:
    """Send the handshake of RFC 8441 5."""
    stream = client.new_stream()
    fields = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *client.head("/ws?a=b")[1:]]
    client.send(
        *headers_frames(block([*fields, (b"sec-websocket-version", b"13"), *(more or [])]), stream, end_stream=False)
    )
    return stream


def switched(request: Message, more: bytes = b"", *, key: bytes = b"") -> bytes:
    """The 101 that proves to have understood `request` (RFC 6455 4.2.2)."""
    key = key or request.get("sec-websocket-key") or b""
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
    return b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n" + more + b"\r\n"


def open_websocket(stage: Stage, backend: Backend, **options: int) -> tuple[FramePeer, int, Peer]:
    client = stage.connect_http2(settings={4: options["window"]} if options else None)
    stream = ask(client)
    upstream = backend.accept()
    upstream.send(switched(upstream.message()))
    assert client.head_of(stream).status == 200
    return client, stream, upstream


class TestHandshake:
    def test_what_each_side_sees(self, stage: Stage, backend: Backend) -> None:
        """The backend: GET, Upgrade and a fresh key; the client: 200, and nothing of all that."""
        client = stage.connect_http2()
        stream = ask(
            client, [(b"sec-websocket-protocol", b"chat"), (b"sec-websocket-extensions", b"permessage-deflate")]
        )
        upstream = backend.accept()
        request = upstream.message()
        assert request.start == b"GET /ws?a=b HTTP/1.1"
        assert (request.get("upgrade"), request.get("connection")) == (b"websocket", b"Upgrade")
        assert len(base64.b64decode(request.get("sec-websocket-key") or b"")) == 16
        assert request.get("sec-websocket-protocol") == b"chat"
        assert request.get("sec-websocket-extensions") == b"permessage-deflate"
        assert request.all("content-length") == request.all("transfer-encoding") == []
        upstream.send(switched(request, b"Sec-WebSocket-Protocol: chat\r\n"))
        answer = client.head_of(stream)
        assert (answer.status, answer.interim, answer.ended) == (200, [], False)
        assert answer.get("sec-websocket-protocol") == b"chat"
        assert {name for name, _ in answer.fields} <= {b":status", b"date", b"sec-websocket-protocol"}

    def test_every_handshake_has_a_key_of_its_own(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        keys = set()
        for _ in range(3):
            ask(client)
            keys.add(backend.accept().message().get("sec-websocket-key"))
        assert len(keys) == 3

    def test_a_key_of_the_client_is_not_taken(self, stage: Stage, backend: Backend) -> None:
        """RFC 8441 5: it has none; whoever sends one gets no proof that he could compute himself."""
        client = stage.connect_http2()
        ask(client, [(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")])
        request = backend.accept().message()
        assert request.get("sec-websocket-key") != b"dGhlIHNhbXBsZSBub25jZQ=="

    @pytest.mark.parametrize("wrong", ["key", "none", "twice"])
    def test_a_backend_that_did_not_understand_is_502(self, stage: Stage, backend: Backend, wrong: str) -> None:
        client = stage.connect_http2()
        stream = ask(client)
        upstream = backend.accept()
        request = upstream.message()
        answer = switched(request, key=b"another" if wrong == "key" else b"")
        field = next(line for line in answer.split(b"\r\n") if line.startswith(b"Sec-"))
        if wrong != "key":
            answer = answer.replace(field + b"\r\n", (field + b"\r\n") * (2 if wrong == "twice" else 0))
        upstream.send(answer)
        assert client.answer(stream).status == 502
        assert upstream.has_ended()
        assert "Sec-WebSocket-Accept" in stage.log()[0]["error"]

    def test_bytes_that_come_with_it_are_the_first_to_pass(self, stage: Stage, backend: Backend) -> None:
        """In both directions, and nothing of the client's reaches the backend before the 101."""
        client = stage.connect_http2()
        stream = ask(client)
        client.data(stream, to_backend(b"early"))
        upstream = backend.accept()
        request = upstream.message()
        client.ping()
        assert upstream.is_quiet(0.02)
        upstream.send(switched(request) + to_client(b"first"))
        assert upstream.exactly(11) == to_backend(b"early")
        client.until(lambda: client.stream(stream).body == to_client(b"first"))

    def test_a_refusal_is_an_ordinary_answer(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        stream = ask(client)
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        answer = client.answer(stream)
        assert (answer.status, answer.body) == (403, b"no")
        assert upstream.has_ended()  # it may not read HTTP any more
        other = client.request("/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        assert client.answer(other).body == b"ok"

    def test_a_backend_that_dies_is_502(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        stream = ask(client)
        upstream = backend.accept()
        upstream.message()
        upstream.close()
        assert client.answer(stream).status == 502


class TestBytes:
    def test_pass_both_ways_beside_other_streams(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = open_websocket(stage, backend)
        for number in range(3):
            client.data(stream, to_backend(b"up %d" % number))
            assert upstream.exactly(10) == to_backend(b"up %d" % number)
            upstream.send(to_client(b"down %d" % number))
            client.until(lambda number=number: client.stream(stream).body.endswith(b"down %d" % number))  # type: ignore[misc]
            other = client.request(f"/{number}")
            plain = backend.accept()
            plain.message()
            plain.send(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
            assert client.answer(other).body == b"ok"

    def test_a_client_that_takes_nothing_stops_the_backend(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = open_websocket(stage, backend, window=0)
        sent = upstream.push(b"x" * 65_536, 24 * MIB)
        assert 0 < sent < 12 * MIB
        client.generous = True
        client.grant(65_535, stream)
        client.until(lambda: len(client.stream(stream).body) == sent, "all that was sent")

    def test_a_backend_that_takes_nothing_stops_the_client(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = open_websocket(stage, backend)
        sent = 0
        while client.room(stream) > 0:
            size = min(client.room(stream), 16_384)
            client.data(stream, b"x" * size)
            sent += size
            client.ping()
        assert sent < 12 * MIB
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(upstream.exactly(sent)))
        reader.start()
        client.until(lambda: client.room(stream) > 0, "room")
        reader.join()
        assert len(got[0]) == sent


class TestEnds:
    def test_when_the_client_ends_its_stream_what_it_sent_still_arrives(self, stage: Stage, backend: Backend) -> None:
        """RFC 8441 5: END_STREAM stands for the FIN of TCP."""
        client, stream, upstream = open_websocket(stage, backend)
        client.data(stream, to_backend(b"last"), end=True)
        assert upstream.rest() == to_backend(b"last")
        assert client.answer(stream).reset is None
        [line] = stage.log()
        assert (line["status"], line["bytes_in"], line["bytes_out"], line["http"]) == (101, 10, 0, "2")
        client.ping()

    @pytest.mark.parametrize("is_in_time", [True, False])
    def test_a_close_frame_with_the_streams_end_is_answered(
        self, stage: Stage, backend: Backend, *, is_in_time: bool
    ) -> None:
        """Chromium sends both in one frame and waits; the backend has 10 s to say its own."""
        client, stream, upstream = open_websocket(stage, backend)
        goodbye = to_backend(b"\x03\xe9", 0x88)
        client.data(stream, goodbye, end=True)
        assert upstream.exactly(len(goodbye)) == goodbye
        client.ping()
        assert not client.stream(stream).is_over
        if is_in_time:
            upstream.send(CLOSE_1001)
        else:
            stage.tick(after=11)
        answer = client.answer(stream)
        assert (answer.body, answer.reset) == (CLOSE_1001 if is_in_time else b"", None)
        assert upstream.rest() == b""

    def test_when_the_backend_closes_what_it_sent_still_arrives(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = open_websocket(stage, backend)
        upstream.send(to_client(b"last"))
        upstream.close()
        assert client.answer(stream).body == to_client(b"last")
        client.ping()
        assert stage.log()[0]["bytes_out"] == 6

    def test_a_reset_closes_the_connection_to_the_backend(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = open_websocket(stage, backend)
        client.reset(stream, CANCEL)
        assert upstream.has_ended()
        client.ping()
        assert len(stage.log()) == 1

    def test_so_does_the_end_of_the_connection(self, stage: Stage, backend: Backend) -> None:
        client, _, upstream = open_websocket(stage, backend)
        client.close()
        assert upstream.has_ended()

    def test_when_both_are_silent_too_long(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, limits={"tunnel_idle": 60})
        client, stream, upstream = open_websocket(stage, backend)
        stage.tick(after=59)
        client.ping()
        assert not client.stream(stream).is_over
        stage.tick(after=61)
        client.over(stream)
        assert upstream.rest() == b""
        client.ping()

    def test_no_other_deadline_concerns_it(self, stage: Stage) -> None:
        backend = stage.backend()
        limits = {"tunnel_idle": 10_000, "body_idle": 5, "keep_alive": 5, "write_idle": 5}
        stage.serve(backend, limits=limits)
        client, stream, upstream = open_websocket(stage, backend)
        stage.tick(after=1_000)
        client.data(stream, to_backend(b"x"))
        assert upstream.exactly(7) == to_backend(b"x")

    def test_drain_tells_both_sides_1001(self, stage: Stage, backend: Backend) -> None:
        client, stream, upstream = open_websocket(stage, backend)
        end = stage.begin_drain()
        client.until(lambda: client.stream(stream).body == CLOSE_1001)
        assert unmasked(upstream.exactly(8)) == CLOSE_1001
        client.data(stream, to_backend(b"\x03\xe9", 0x88), end=True)
        client.over(stream)
        stage.tick(after=1.1)
        client.expect_closed()
        client.close()
        assert end.result(5) == 0
