"""Flow control over HTTP/2, both ways: who is slow slows the one who sends to it, and nobody else on the connection.

The kernel's buffers take a few MiB each; what the proxy itself holds is read from its codec.
"""

from __future__ import annotations

import socket
import threading
import tracemalloc
from contextlib import suppress

import pytest

from tests.fakes.backend import OK, Backend, url_of
from tests.fakes.frames import FramePeer, frame
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage
from tlsproxy.proxy.http2 import Http2Driver

pytestmark = pytest.mark.system  # no process, but it moves much and waits long

MIB = 2**20
DATA = 0
WHOLE = 8 * MIB
BOUND = 4 * MIB
MOST_OF_A_KERNEL = 12 * MIB
MOST_HELD = 5 * MIB  # the limit of a connection, and what was under way when it was reached
PIECE = bytes(range(256)) * 256
WINDOW = 65_535
SMALL = 16 * 1024  # buffer of the one who does not read


@pytest.fixture
def backend(stage: Stage) -> Backend:
    """The one behind a.test; its kernel buffers are small."""
    backend = stage.backend(receive_buffer=SMALL)
    stage.serve(backend)
    return backend


def held(stage: Stage) -> int:
    """Bytes of answers that the proxy holds for its one client of HTTP/2."""
    return stage.call(lambda: held_now(stage))


def download(client: FramePeer, backend: Backend, path: str, size: int) -> tuple[int, Peer]:
    """Ask for `size` bytes; the backend has sent the head."""
    stream = client.request(path)
    upstream = backend.accept()
    assert upstream.message().target == path.encode()
    upstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SMALL)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    return stream, upstream


def upload(client: FramePeer, backend: Backend, path: str) -> tuple[int, Peer]:
    """Begin a request with content; the backend has read its head."""
    stream = client.request(path, end=False)
    upstream = backend.accept()
    upstream.until(b"\r\n\r\n")
    return stream, upstream


def in_background(send: Peer, data: bytes) -> threading.Thread:
    """Send it all, however long that takes; a connection that is closed meanwhile is no error here."""

    def run() -> None:
        with suppress(OSError):
            send.send(data)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def fill(client: FramePeer, stream: int) -> int:
    """Upload until the window stays closed; returns how much that was."""
    sent = 0
    while client.room(stream) > 0:
        size = min(client.room(stream), 16_384)
        client.data(stream, b"x" * size)
        sent += size
        client.ping()  # what was acknowledged until now is known then
        assert sent < MOST_OF_A_KERNEL
    return sent


class TestDownloads:
    def test_a_stream_that_is_not_taken_stops_its_backend(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        stream, upstream = download(client, backend, "/", WHOLE)
        sent = upstream.push(PIECE, WHOLE)
        assert 0 < sent < BOUND
        client.ping()
        assert len(client.stream(stream).body) == WINDOW
        assert held(stage) < MIB // 2
        rest = in_background(upstream, (PIECE * (WHOLE // len(PIECE)))[sent:])
        client.generous = True
        client.grant(WINDOW)
        client.grant(WINDOW, stream)
        assert client.answer(stream).body == PIECE * (WHOLE // len(PIECE))
        rest.join()

    def test_and_no_other(self, stage: Stage, backend: Backend) -> None:
        """The first stream's window is used up; the connection's has room for the second."""
        client = stage.connect_http2()
        client.grant(MIB)
        slow, upstream = download(client, backend, "/slow", 4 * MIB)
        upstream.push(PIECE, 4 * MIB)
        client.until(lambda: len(client.stream(slow).body) == WINDOW)
        quick, other = download(client, backend, "/quick", MIB // 2)
        sending = in_background(other, b"q" * (MIB // 2))
        client.grant(MIB, quick)
        assert client.answer(quick).body == b"q" * (MIB // 2)
        assert len(client.stream(slow).body) == WINDOW
        sending.join()

    def test_many_streams_that_are_not_taken_hold_a_bounded_amount_together(
        self, stage: Stage, backend: Backend
    ) -> None:
        client = stage.connect_http2(settings={4: 0})
        pairs = [download(client, backend, f"/{number}", MIB) for number in range(80)]
        senders = [in_background(upstream, b"x" * MIB) for _, upstream in pairs]
        for stream, _ in pairs:
            client.head_of(stream)
        stage.wait(lambda: held_now(stage) > MIB)
        client.ping()
        assert held(stage) < MOST_HELD
        client.close()
        for sender in senders:
            sender.join()

    def test_a_client_that_reads_nothing_stops_all_its_backends(self, stage: Stage, backend: Backend) -> None:
        """Its windows are wide open, but it does not read from the socket."""
        client = stage.connect_http2(settings={4: 2**31 - 1}, receive_buffer=SMALL)
        client.grant(2**31 - 1 - WINDOW)
        pairs = [download(client, backend, f"/{number}", WHOLE) for number in range(2)]
        sent = [upstream.push(PIECE, WHOLE) for _, upstream in pairs]
        assert sum(sent) < MOST_OF_A_KERNEL
        assert held(stage) < MOST_HELD
        rest = [in_background(each, b"y" * (WHOLE - done)) for (_, each), done in zip(pairs, sent, strict=True)]
        for stream, _ in pairs:
            assert len(client.answer(stream).body) == WHOLE
        for each in rest:
            each.join()

    def test_whose_answer_is_not_read_is_not_blamed_for_it(self, stage: Stage) -> None:
        """While the connection holds all it may, no answer is asked for: response_timeout is not the backend's then."""
        backend = stage.backend(receive_buffer=SMALL)
        stage.serve(backend, route={"response_timeout": 9})
        client = stage.connect_http2(settings={4: 0})
        asked = client.request("/asked")
        asked_of = backend.accept()
        asked_of.message()
        pairs = [download(client, backend, f"/{number}", WHOLE) for number in range(80)]
        senders = [in_background(upstream, PIECE * 16) for _, upstream in pairs]
        stage.wait(lambda: held_now(stage) > BOUND)
        asked_of.send(OK)
        stage.tick(after=10)
        client.ping()
        assert client.stream(asked).fields == []
        for stream, _ in pairs:
            client.reset(stream)
        assert client.head_of(asked).status == 200
        for sender in senders:
            sender.join()

    def test_a_reset_gives_back_what_was_held(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2(settings={4: 0})
        stream, upstream = download(client, backend, "/", WHOLE)
        upstream.push(PIECE, WHOLE)
        assert held(stage) > 0
        client.reset(stream)
        client.ping()
        assert held(stage) == 0
        assert upstream.has_ended()

    def test_a_backend_that_pauses_is_waited_for(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        stream, upstream = download(client, backend, "/", 6)
        upstream.send(b"one")
        client.until(lambda: client.stream(stream).body == b"one")
        client.ping()
        upstream.send(b"two")
        assert client.answer(stream).body == b"onetwo"


class TestUploads:
    def test_a_backend_that_takes_nothing_closes_the_window(self, stage: Stage, backend: Backend) -> None:
        client = stage.connect_http2()
        stream, upstream = upload(client, backend, "/")
        sent = fill(client, stream)
        got = 0
        while got < sent:  # as the backend reads, the window opens again
            got += len(upstream.some())
        client.until(lambda: client.room(stream) > 0, "room")
        client.data(stream, b"end", end=True)
        assert upstream.until(b"0\r\n\r\n").endswith(b"3\r\nend\r\n0\r\n\r\n")
        upstream.send(OK)
        assert client.answer(stream).body == b"ok"

    @pytest.mark.parametrize("before", [0, MIB, 2 * MIB])
    def test_other_uploads_of_the_connection_go_on(self, stage: Stage, before: int) -> None:
        """However many are stuck, and whatever went before: all their windows have room in the connection's."""
        backend = stage.backend(receive_buffer=SMALL)
        stage.serve(backend, limits={"http2_streams": 8})
        client = stage.connect_http2()
        stream, upstream = upload(client, backend, "/before")
        reader = threading.Thread(target=lambda: chunks(upstream))
        reader.start()
        client.upload(stream, b"x" * before)
        reader.join()
        for number in range(6):
            fill(client, upload(client, backend, f"/{number}")[0])
        assert client.room(0) > 0
        stream, upstream = upload(client, backend, "/free")
        assert client.room(stream) >= WINDOW
        client.upload(stream, b"y" * WINDOW)
        assert chunks(upstream) == b"y" * WINDOW

    def test_a_stream_that_flows_gets_a_larger_window(self, stage: Stage, backend: Backend) -> None:
        """64 KiB a round trip is little on a long way."""
        client = stage.connect_http2()
        stream, upstream = upload(client, backend, "/")
        reader = threading.Thread(target=lambda: chunks(upstream))
        reader.start()
        assert client.room(stream) < 128 * 1024
        client.upload(stream, b"x" * MIB, end=False)
        client.until(lambda: client.room(stream) > 256 * 1024, "a larger window")
        client.data(stream, end=True)
        reader.join()

    def test_small_pieces_take_little_more_than_their_size(self, stage: Stage, backend: Backend) -> None:
        """Two bytes in a frame are two bytes of window: what an object costs beside them is not the client's to ask."""
        client = stage.connect_http2()
        stream, _ = upload(client, backend, "/")
        still = 0
        while still < 40:  # until more than half of the window is used, and not given back: the backend takes nothing
            room = client.room(stream)
            client.data(stream, b"x" * 16_384)
            client.ping()
            still = still + 1 if client.room(stream) < room else 0
        count = min(client.room(stream) // 2, 10_000)
        assert count == 10_000
        tracemalloc.start()
        try:
            client.send(frame(DATA, b"xy", stream=stream) * count)
            client.ping()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < 300_000  # with an object for each frame it was 800 KB

    def test_so_do_those_that_come_later(self, stage: Stage, backend: Backend) -> None:
        """At most four at a time have one; it is for the next when an upload has ended."""
        client = stage.connect_http2()
        for number in range(5):
            stream, upstream = upload(client, backend, f"/{number}")
            reader = threading.Thread(target=lambda upstream=upstream: chunks(upstream))
            reader.start()
            client.upload(stream, b"x" * 98_304, end=False)
            client.until(lambda stream=stream: client.room(stream) > 256 * 1024, "a larger window")  # type: ignore[misc]
            client.data(stream, end=True)
            reader.join()
            upstream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            client.answer(stream)

    def test_a_body_waits_while_its_backend_is_being_connected(self, stage: Stage) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            with socket.create_connection(listener.getsockname()):
                stage.serve(sites=[{"hosts": ["a.test"], "backends": [url_of(listener)]}])
                client = stage.connect_http2()
                stream = client.request("/", end=False)
                assert fill(client, stream) < 2 * MIB

    def test_a_stream_that_is_over_gives_its_window_back(self, stage: Stage, backend: Backend) -> None:
        """Uploads that are cut with their content unread must not use up the connection's window."""
        client = stage.connect_http2()
        client.request("/")  # something open: the connection does not end
        keeper = backend.accept()
        for number in range(400):
            stream = client.request(f"/{number}", end=False)
            client.data(stream, b"x" * 16_384)
            client.data(stream, b"x" * 16_384)
            client.reset(stream)
        client.ping()
        assert client.room(0) > MIB
        keeper.message()
        keeper.send(OK)
        assert client.answer(1).body == b"ok"


def held_now(stage: Stage) -> int:
    """The same as `held`, in the loop."""
    drivers = [each._driver for each in stage.front.connections]
    return sum(each.codec.queued() for each in drivers if isinstance(each, Http2Driver))


def chunks(upstream: Peer) -> bytes:
    """Read a chunked body."""
    pieces = []
    while size := int(upstream.until(b"\r\n"), 16):
        pieces.append(upstream.exactly(size))
        upstream.exactly(2)
    upstream.exactly(2)
    return b"".join(pieces)
