"""Workers with listening sockets of their own: the kernel deals connections out, and a slot never goes unheard."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import StartProxy
from tests.system.running import PATIENCE, Proxy, until, write_pair

pytestmark = pytest.mark.system

CLIENTS = 4
REQUEST = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LOST = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, EOFError)
"""What a client sees whose own worker is killed."""


@pytest.fixture
def proxy(start_proxy: StartProxy, app: str, tmp_path: Path, authority: trustme.CA) -> Proxy:
    pair = write_pair(tmp_path, authority, "localhost")
    site = f'[[sites]]\nhosts = ["localhost"]\ncertificate = {pair}\nbackends = ["{app}"]'
    return start_proxy(site, workers=2, drain="5s")


def ask(proxy: Proxy) -> None:
    with proxy.open() as client:
        client.settimeout(PATIENCE)
        client.sendall(REQUEST)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    if not answer:
        raise EOFError("no answer")
    assert answer.startswith(b"HTTP/1.1 200 ")


class Stream:
    """Clients that connect anew without a pause; every connection's fate and duration is kept."""

    def __init__(self, proxy: Proxy) -> None:
        self.answered: list[float] = []
        self.lost: list[float] = []
        self.wrong: list[BaseException] = []
        self._proxy = proxy
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_for_more(self, count: int) -> None:
        enough = len(self.answered) + count
        until(lambda: len(self.answered) >= enough, f"{count} more answers")

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            fate = self.answered
            try:
                ask(self._proxy)
            except LOST:
                fate = self.lost
            except Exception as error:  # noqa: BLE001 - judged by the test
                self.wrong.append(error)
            fate.append(time.monotonic() - began)


def test_a_killed_worker_makes_no_connection_wait(proxy: Proxy) -> None:
    stream = Stream(proxy)
    try:
        stream.wait_for_more(50)
        for _ in range(2):
            victim = proxy.workers()[0]
            os.kill(victim, signal.SIGKILL)
            proxy.wait_for("worker.died", child=victim)
            stream.wait_for_more(100)
            until(lambda: len(proxy.workers()) == 2, "the worker is replaced")
            stream.wait_for_more(50)
    finally:
        stream.stop()
    assert stream.wrong == []
    print(f"{len(stream.answered)} answered, the slowest in {max(stream.answered):.2f} s; lost {len(stream.lost)}")
    assert max(stream.answered + stream.lost) < 2
    assert len(stream.lost) <= 2 * CLIENTS  # those the killed workers had accepted


def test_every_worker_gets_its_share(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port))) for _ in range(200)]
        share = collections.Counter(proxy.holders(clients))
    print(sorted(share.values()))
    assert set(share) == set(proxy.workers())
    assert min(share.values()) >= 50


def test_a_worker_that_leaves_alone_hands_its_slot_over(proxy: Proxy) -> None:
    """SIGTERM drains one worker; as long as its client keeps it, the other one listens for both."""
    leaver, stayer = proxy.workers()
    with proxy.alone(leaver), proxy.open() as kept:
        kept.sendall(REQUEST[:20])  # a request that is under way
        os.kill(leaver, signal.SIGTERM)
        until(lambda: _listens_on(stayer) == 2, "the other one has adopted the slot")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port))) for _ in range(20)]
            assert set(proxy.holders(clients)) == {stayer}
        kept.sendall(REQUEST[20:])
        assert kept.recv(12) == b"HTTP/1.1 200"
    proxy.wait_for("worker.replaced")
    until(lambda: _listens_on(stayer) == 1, "it has given the slot back")


def test_a_stop_serves_what_is_queued(proxy: Proxy) -> None:
    """Both workers are held still while clients connect, so all of these are in the queues when the stop comes."""
    for worker in proxy.workers():
        os.kill(worker, signal.SIGSTOP)
    answers: list[bool] = []
    port = proxy.port
    raw = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(10)]
    clients = [threading.Thread(target=lambda sock=sock: answers.append(_answered(proxy, sock))) for sock in raw]
    for client in clients:
        client.start()
    workers = proxy.workers()
    os.kill(proxy.pid, signal.SIGTERM)
    proxy.wait_for("proxy.draining")
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    for client in clients:
        client.join(PATIENCE)
    assert answers == [True] * 10


def _answered(proxy: Proxy, sock: socket.socket) -> bool:
    with proxy.trust.wrap_socket(sock, server_hostname="localhost") as client:
        client.sendall(REQUEST)
        return client.recv(12) == b"HTTP/1.1 200"


def _listens_on(pid: int) -> int:
    """Return how many listening sockets this worker watches: those of its own epoll set, by /proc/PID/fdinfo."""
    files = Path(f"/proc/{pid}/fd")
    watched = {
        int(line.split()[1])
        for fd in files.iterdir()
        if str(fd.readlink()) == "anon_inode:[eventpoll]"
        for line in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().splitlines()
        if line.startswith("tfd:")
    }
    tcp = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in tcp if row[3] == "0A"}
    return sum(str((files / str(fd)).readlink()) in listening for fd in watched)
