"""WebSocket through a real Front: handshake, bytes both ways, ends, the polite leave. RFC 6455 frames by hand."""

from __future__ import annotations

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
MASK = b"\x00\x00\x00\x00"  # leaves the payload as it is
CLOSE_1001 = b"\x88\x02\x03\xe9"


def to_client(payload: bytes) -> bytes:
    return bytes((0x82, len(payload))) + payload


def to_backend(payload: bytes, opcode: int = 0x82) -> bytes:
    return bytes((opcode, 0x80 | len(payload))) + MASK + payload


def unmasked(frame: bytes) -> bytes:
    """A short client frame without its mask."""
    mask, payload = frame[2:6], frame[6:]
    return bytes((frame[0], frame[1] & 0x7F)) + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def open_websocket(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    client = stage.connect()
    client.send(UPGRADE)
    upstream = backend.accept()
    upstream.message()
    upstream.send(SWITCHED)
    assert client.message().status == 101
    return client, upstream


class TestHandshake:
    def test_passes_whole(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(UPGRADE)
        upstream = backend.accept()
        request = upstream.message()
        assert (request.get("upgrade"), request.get("connection")) == (b"websocket", b"Upgrade")
        assert request.get("sec-websocket-key") == b"dGhlIHNhbXBsZSBub25jZQ=="
        upstream.send(SWITCHED)
        answer = client.message()
        assert answer.status == 101
        assert (answer.get("upgrade"), answer.get("connection")) == (b"websocket", b"Upgrade")
        assert answer.get("sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

    def test_bytes_that_come_with_it_are_the_first_to_pass(self, stage: Stage) -> None:
        """In both directions, and nothing of the client's reaches the backend before the 101."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(UPGRADE + to_backend(b"early"))
        upstream = backend.accept()
        upstream.message()
        assert upstream.is_quiet(0.02)
        upstream.send(SWITCHED + to_client(b"first"))
        assert upstream.exactly(11) == to_backend(b"early")
        assert client.message().status == 101
        assert client.exactly(7) == to_client(b"first")

    def test_a_refusal_is_an_ordinary_answer(self, stage: Stage) -> None:
        """But the backend's connection is not used again: it may not read HTTP any more."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(UPGRADE)
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        assert client.message().body == b"no"
        assert upstream.has_ended()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        assert upstream.message().target == b"/"
        upstream.send(OK)
        assert client.message().body == b"ok"

    @pytest.mark.parametrize(
        "answer",
        [
            SWITCHED.replace(b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n"),
            SWITCHED.replace(b"Upgrade: websocket\r\n", b"Upgrade: websocket, h2c\r\n"),
            SWITCHED.replace(b"Upgrade: websocket\r\n", b""),
        ],
    )
    def test_another_protocol_than_asked_for_is_502(self, stage: Stage, answer: bytes) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(UPGRADE)
        upstream = backend.accept()
        upstream.message()
        upstream.send(answer)
        assert client.message().status == 502
        assert upstream.has_ended()
        assert "not asked for" in stage.log()[0]["error"]

    @pytest.mark.parametrize(
        "request_bytes",
        [
            UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: foo"),
            UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
            UPGRADE.replace(b"GET", b"PUT"),
            UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ],
    )
    def test_what_is_no_handshake_reaches_the_backend_without_upgrade(self, stage: Stage, request_bytes: bytes) -> None:
        """And a 101 to it is an error: nothing is tunnelled that was not asked for (security rule 4)."""
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(request_bytes)
        upstream = backend.accept()
        assert upstream.message().all("upgrade") == []
        upstream.send(SWITCHED)
        assert client.message().status == 502
        assert upstream.has_ended()


class TestEnds:
    def test_when_the_client_closes_what_it_sent_still_arrives(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        client.send(to_backend(b"last"))
        client.close()
        assert upstream.rest() == to_backend(b"last")
        [line] = stage.log()
        assert (line["status"], line["bytes_in"], line["bytes_out"]) == (101, 10, 0)
        assert "0 active, 0 idle" in stage.pool(backend.url)

    def test_when_the_backend_closes_what_it_sent_still_arrives(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        upstream.send(to_client(b"last"))
        upstream.close()
        assert client.rest() == to_client(b"last")
        assert stage.log()[0]["bytes_out"] == 6

    @pytest.mark.parametrize("first", ["client", "backend"])
    def test_when_both_close_frames_have_passed(self, stage: Stage, first: str) -> None:
        """Whoever began it, and though neither closes its connection (RFC 6455 7.1.1)."""
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        goodbye, reply = to_backend(b"\x03\xe9bye", 0x88), b"\x88\x05\x03\xe9bye"
        if first == "backend":
            upstream.send(reply)
            assert client.exactly(len(reply)) == reply
            client.send(goodbye)
        else:
            client.send(goodbye)
            assert upstream.exactly(len(goodbye)) == goodbye
            upstream.send(reply[:4])
            assert client.exactly(4) == reply[:4]  # half a frame is not the end
            upstream.send(reply[4:])
        assert client.rest() == (b"" if first == "backend" else reply[4:])
        assert upstream.rest() == (goodbye if first == "backend" else b"")

    def test_when_both_are_silent_too_long(self, stage: Stage) -> None:
        """A byte in either direction begins the time anew."""
        backend = stage.backend()
        stage.serve(backend, limits={"tunnel_idle": 60})
        client, upstream = open_websocket(stage, backend)
        stage.tick(after=59)
        upstream.send(to_client(b"x"))
        client.exactly(3)
        stage.tick(after=59)
        client.send(to_backend(b"x"))
        upstream.exactly(7)
        stage.tick(after=61)
        assert client.rest() == b""
        assert upstream.rest() == b""

    def test_no_other_deadline_concerns_it(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, limits={"tunnel_idle": 10_000})
        client, upstream = open_websocket(stage, backend)
        stage.tick(after=9_000)
        client.send(to_backend(b"x"))
        assert upstream.exactly(7) == to_backend(b"x")


class TestDrain:
    def test_both_sides_are_told_1001_and_the_clients_close_ends_it(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        end = stage.begin_drain()
        assert client.exactly(4) == CLOSE_1001
        assert unmasked(upstream.exactly(8)) == CLOSE_1001
        client.send(to_backend(b"\x03\xe9", 0x88))
        assert client.rest() == b""
        assert upstream.rest() == b""  # our close frame was the last thing said to it
        end.result(5)
        assert stage.log_path.read_text().count("\n") == 1

    def test_within_a_frame_to_the_client_it_comes_behind_it(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        frame = to_client(b"a long message")
        upstream.send(frame[:6])
        assert client.exactly(6) == frame[:6]
        stage.begin_drain()
        assert client.is_quiet(0.02)
        upstream.send(frame[6:] + to_client(b"too late"))
        assert client.exactly(len(frame) - 6 + 4) == frame[6:] + CLOSE_1001
        assert client.is_quiet(0.02)

    def test_within_a_frame_to_the_backend_it_comes_behind_it(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        frame = to_backend(b"a long message")
        client.send(frame[:9])
        assert upstream.exactly(9) == frame[:9]
        stage.begin_drain()
        assert upstream.is_quiet(0.02)
        client.send(frame[9:] + to_backend(b"too late"))
        rest = upstream.exactly(len(frame) - 9 + 8)
        assert rest[:-8] == frame[9:]
        assert unmasked(rest[-8:]) == CLOSE_1001
        assert upstream.is_quiet(0.02)

    def test_a_client_that_never_answers_is_cut_at_the_end(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        end = stage.begin_drain(0.1)
        end.result(5)
        assert client.exactly(4) == CLOSE_1001
        assert client.has_ended()
        upstream.exactly(8)
        assert upstream.has_ended()
        assert stage.log_path.read_text().count("\n") == 1

    def test_a_backend_that_leaves_first_does_not_take_the_goodbye_with_it(self, stage: Stage) -> None:
        """A server closes TCP at once after the closing handshake; the client may still be reading."""
        backend = stage.backend()
        stage.serve(backend)
        client, upstream = open_websocket(stage, backend)
        stage.begin_drain()
        upstream.exactly(8)
        upstream.send(CLOSE_1001)
        upstream.close()
        assert client.exactly(4) == CLOSE_1001
        client.send(to_backend(b"\x03\xe9", 0x88))
        assert client.rest() == b""

    def test_a_handshake_that_ends_while_draining_is_told_so_too(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(UPGRADE)
        upstream = backend.accept()
        upstream.message()
        stage.begin_drain()
        upstream.send(SWITCHED)
        assert client.message().status == 101
        assert client.exactly(4) == CLOSE_1001
