"""A GiB in each direction past a peer that is slow at first: the worker holds a few buffers of it and no more.

The peer first takes nothing until whoever sends is stuck, then 64 MiB slowly, then what is left as fast as it comes.
The peak is the kernel's own (VmHWM, reset when the transfer begins), so nothing between two looks is missed.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import StartProxy
from tests.system.running import PATIENCE, Proxy, write_pair

pytestmark = pytest.mark.system

MIB = 1 << 20
TOTAL = 1024 * MIB
SLOW = 64 * MIB
SLOW_RATE = 48 * MIB  # bytes a second, a tenth of what two cores carry
ALLOWED = 8 * MIB
STUCK = 0.5  # seconds in which a sender gets rid of nothing
PIECE = bytes(256 * 1024)
HEAD_END = b"\r\n\r\n"


class RawBackend:
    """An HTTP/1.1 server in a thread: GET is answered with `size` bytes, the body of a PUT is taken.

    With `slow` it takes nothing before `stuck`, which the sender sets: the backend for GET, the test for PUT.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.size = TOTAL
        self.slow = True
        self.stuck = threading.Event()
        self.in_flight = 0  # bytes that were sent when the sender was stuck
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self.stuck.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._socket.close()
        assert self.error is None, self.error

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                with client:
                    client.settimeout(PATIENCE)
                    self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        try:
            head, early = read_head(client)
            if head.startswith(b"GET"):
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d" % self.size + HEAD_END)
                self.in_flight = send(client, self.size, self.stuck)
            else:
                take(client, self.size - len(early), self.stuck if self.slow else None)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4" + HEAD_END + b"done")
        except OSError as error:
            self.error = error


def read_head(source: socket.socket) -> tuple[bytes, bytes]:
    """Return a head and what came behind it."""
    came = b""
    while HEAD_END not in came:
        piece = source.recv(65_536)
        assert piece, came
        came += piece
    head, _, early = came.partition(HEAD_END)
    return head, early


def send(target: socket.socket, size: int, stuck: threading.Event) -> int:
    """Send so many zeros; return how many had gone when nothing moved for the first time; `stuck` tells then."""
    sent = in_flight = 0
    target.setblocking(False)
    while sent < size:
        try:
            sent += target.send(PIECE[: size - sent])
        except (BlockingIOError, ssl.SSLWantWriteError):
            if not select.select([], [target], [], STUCK)[1]:
                in_flight = in_flight or sent
                stuck.set()
                assert select.select([], [target], [], PATIENCE)[1], f"stuck for good at {sent} bytes"
    target.settimeout(PATIENCE)
    return in_flight


def take(source: socket.socket, size: int, stuck: threading.Event | None) -> None:
    """Read exactly so many bytes, slowly at first where there is somebody who can be stuck."""
    buffer = bytearray(256 * 1024)
    if stuck is not None:
        assert stuck.wait(PATIENCE), "the sender never had to wait"
    began, got = time.monotonic(), 0
    while got < size:
        count = source.recv_into(buffer, min(len(buffer), size - got))
        assert count, f"ended after {got} of {size} bytes"
        got += count
        if stuck is not None and got < SLOW:
            time.sleep(max(0.0, got / SLOW_RATE - (time.monotonic() - began)))  # being slow is the matter of the test


class Memory:
    """The most a process held since it was made, beyond what it held then."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")  # proc(5): the peak begins anew
        self._before = self._status("VmRSS")

    def grown(self) -> int:
        return self._status("VmHWM") - self._before

    def _status(self, name: str) -> int:
        rows = (line.split() for line in (self._folder / "status").read_text().splitlines())
        return next(int(row[1]) * 1024 for row in rows if row[0] == f"{name}:")


@pytest.fixture
def backend() -> Iterator[RawBackend]:
    running = RawBackend()
    yield running
    running.close()


@pytest.fixture
def proxy(start_proxy: StartProxy, backend: RawBackend, tmp_path: Path, authority: trustme.CA) -> Proxy:
    return start_proxy(f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(tmp_path, authority, "localhost")}
        backends = ["{backend.url}"]
    """)


def download(proxy: Proxy, backend: RawBackend) -> None:
    with proxy.open() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close" + HEAD_END)
        _, early = read_head(client)
        take(client, backend.size - len(early), backend.stuck if backend.slow else None)
        assert client.recv(1) == b""


def upload(proxy: Proxy, backend: RawBackend) -> None:
    with proxy.open() as client:
        head = f"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {backend.size}\r\nConnection: close"
        client.sendall(head.encode() + HEAD_END)
        backend.in_flight = send(client, backend.size, backend.stuck)
        head_of_answer, body = read_head(client)
        assert head_of_answer.startswith(b"HTTP/1.1 200")
        assert (body or client.recv(10)) == b"done"


@pytest.mark.parametrize("transfer", [download, upload])
def test_memory_stays_where_it_is(proxy: Proxy, backend: RawBackend, transfer: Callable[..., None]) -> None:
    backend.size, backend.slow = 16 * MIB, False
    transfer(proxy, backend)  # whatever is made at first use is there now
    backend.size, backend.slow = TOTAL, True
    backend.stuck.clear()
    (worker,) = proxy.workers()
    memory = Memory(worker)
    began = time.monotonic()
    transfer(proxy, backend)
    took, grown = time.monotonic() - began, memory.grown()
    print(f"{transfer.__name__}: {took:.1f} s, +{grown / MIB:.1f} MiB, stuck at {backend.in_flight / MIB:.1f} MiB")
    assert grown < ALLOWED
    # The kernel's buffers of four sockets and ours.
    assert 0 < backend.in_flight < SLOW
    moved = "bytes_out" if transfer is download else "bytes_in"
    assert proxy.logged(**{moved: TOTAL})["status"] == 200
