"""Who is slow slows the one who sends: in all four directions, with bounded memory in between.

The kernel's buffers take a few MiB each (theirs is not our memory), so a sender that was taken less than `BOUND` bytes
from, of the much longer whole, was stopped.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from tests.fakes.backend import Backend, url_of
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage

pytestmark = pytest.mark.system  # no process, but it moves much and waits long

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
MIB = 2**20
WHOLE = 40 * MIB
BOUND = 24 * MIB
PIECE = bytes(range(256)) * 1024
SMALL = 16 * 1024  # receive buffer of the one who does not read


def sum_of(peer: Peer, size: int) -> int:
    """Read `size` bytes, which have to be PIECE over and over."""
    got = 0
    while got < size:
        data = peer.exactly(min(len(PIECE), size - got))
        assert data == PIECE[: len(data)]
        got += len(data)
    return got


def push_rest(peer: Peer, sent: int) -> threading.Thread:
    def run() -> None:
        left = WHOLE - sent
        while left:
            start = (WHOLE - left) % len(PIECE)
            data = PIECE[start : start + left]
            peer.send(data)
            left -= len(data)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def begin_download(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    client = stage.connect(receive_buffer=SMALL)
    client.send(GET)
    upstream = backend.accept()
    upstream.message()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % WHOLE)
    client.until(b"\r\n\r\n")
    return client, upstream


def begin_upload(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    client = stage.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % WHOLE)
    upstream = backend.accept()
    upstream.until(b"\r\n\r\n")
    return client, upstream


def begin_websocket(stage: Stage, backend: Backend) -> tuple[Peer, Peer]:
    client = stage.connect(receive_buffer=SMALL)
    client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    upstream = backend.accept()
    upstream.message()
    upstream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    client.until(b"\r\n\r\n")
    return client, upstream


@pytest.mark.parametrize("begin", [begin_download, begin_upload])
def test_a_body_waits_for_a_slow_reader_and_then_arrives_whole(stage: Stage, begin: object) -> None:
    backend = stage.backend(receive_buffer=SMALL)
    stage.serve(backend)
    client, upstream = begin(stage, backend)  # type: ignore[operator]
    sender, reader = (upstream, client) if begin is begin_download else (client, upstream)
    sent = sender.push(PIECE, WHOLE)
    assert 0 < sent < BOUND
    rest = push_rest(sender, sent)
    assert sum_of(reader, WHOLE) == WHOLE
    rest.join()


@pytest.mark.parametrize("upwards", [True, False])
def test_a_tunnel_waits_for_a_slow_reader_and_then_all_arrives(stage: Stage, *, upwards: bool) -> None:
    backend = stage.backend(receive_buffer=SMALL)
    stage.serve(backend)
    client, upstream = begin_websocket(stage, backend)
    sender, reader = (client, upstream) if upwards else (upstream, client)
    sent = sender.push(PIECE, WHOLE)
    assert 0 < sent < BOUND
    assert sum_of(reader, sent) == sent


def test_a_first_large_piece_of_a_body_does_not_open_the_gate(stage: Stage, tmp_path: Path) -> None:
    """What was held while connecting may fill the backend at once; reading goes on only when it has room."""
    backend = stage.backend(tmp_path / "app.sock")
    stage.serve(backend)
    client = stage.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % WHOLE + PIECE)
    sent = len(PIECE) + client.push(PIECE, WHOLE)
    assert sent < BOUND
    backend.accept().until(b"\r\n\r\n")


def test_a_body_waits_while_its_backend_is_being_connected(stage: Stage) -> None:
    """Only so much is held for a backend that does not accept."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            stage.serve(sites=[{"hosts": ["a.test"], "backends": [url_of(listener)]}])
            client = stage.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % WHOLE)
            assert client.push(PIECE, WHOLE) < BOUND


@pytest.mark.parametrize("over_tls", [True, False])
def test_pipelined_requests_of_a_client_that_reads_no_answers(stage: Stage, *, over_tls: bool) -> None:
    """Answers of our own are small, but a client that never reads them could ask for millions."""
    stage.serve(stage.backend())
    client = stage.connect(receive_buffer=SMALL) if over_tls else stage.connect_plain()
    request = b"GET / HTTP/1.1\r\nHost: %b.test\r\n\r\n" % (b"nobody" if over_tls else b"a")
    sent = client.push(request * 1000, WHOLE)
    assert sent < BOUND
    status = 421 if over_tls else 308
    assert {client.message().status for _ in range(2000)} == {status}


def test_large_answers_to_pipelined_requests_are_asked_for_one_by_one(stage: Stage) -> None:
    """The next request goes to the backend when the client has taken most of the answer before."""
    backend = stage.backend()
    stage.serve(backend)
    client = stage.connect(receive_buffer=SMALL)
    client.send(GET * 200)
    upstream = backend.accept()
    body = PIECE  # small enough to be passed on in one go
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    asked = 0
    while not upstream.is_quiet(0.25):
        upstream.message()
        upstream.send(answer)
        asked += 1
    assert asked * len(body) < BOUND

    def answer_the_rest() -> None:
        for _ in range(200 - asked):
            upstream.message()
            upstream.send(answer)

    rest = threading.Thread(target=answer_the_rest)
    rest.start()
    assert all(client.message().body == body for _ in range(200))
    rest.join()


def test_requests_that_wait_behind_a_slow_one_are_not_collected_without_end(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client = stage.connect()
    client.send(GET)
    upstream = backend.accept()
    upstream.message()
    assert client.push(GET * 1000, WHOLE) < BOUND


def test_a_client_that_takes_nothing_is_cut_after_write_idle(stage: Stage) -> None:
    """And its backend connection with it."""
    backend = stage.backend()
    stage.serve(backend, limits={"write_idle": 30})
    _, upstream = begin_download(stage, backend)
    upstream.push(PIECE, WHOLE)
    stage.tick()
    stage.tick(after=29)
    assert "1 active" in stage.pool(backend.url)
    stage.tick(after=31)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        upstream.send(PIECE * 100)
    assert stage.log()[0]["error"] == "client closed the connection"
