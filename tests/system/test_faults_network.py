"""A network that loses packets, takes only short ones, or cuts everything small: answers come late, and right.

The lossy one is a network namespace whose loopback drops one packet of six each way, so that three of ten round trips
lose something; the one that cuts is a relay of our own, which passes ten bytes at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import APP, StartProxy
from tests.system.running import PATIENCE, running_proxy, until, write_pair

pytestmark = pytest.mark.system

LOSS = "0.16"
SHORTEST_MTU = "1280"  # RFC 8200 5
SLICE = 10
SLOW = 120.0  # seconds: a lost SYN alone costs one, and then three


@pytest.fixture
def lossy() -> Iterator[list[str]]:
    """What to put before a command so that its loopback is a bad one."""
    need = [tool for tool in ("ip", "iptables", "curl") if not shutil.which(tool)]
    if need or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(need) or 'nothing else'}")
    name = f"tlsproxy-lossy-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        pytest.skip("network namespaces are not permitted here")
    inside = ["ip", "netns", "exec", name]
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up", "mtu", SHORTEST_MTU], check=True)
        drop = ["iptables", "-A", "INPUT", "-p", "tcp", "-m", "statistic", "--mode", "random", "--probability", LOSS]
        if subprocess.run([*inside, *drop, "-j", "DROP"], capture_output=True).returncode:
            pytest.skip("iptables cannot lose packets at random here")
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def unix_app(tmp_path: Path) -> Iterator[str]:
    """A unix socket is in the file system: the application needs not be in the namespace."""
    path = tmp_path / "app.sock"
    command = [sys.executable, "-m", "uvicorn", APP, "--uds", str(path), "--log-level", "warning"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        until(path.exists, "the application listens")
        yield f"unix:{path}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_three_of_ten_round_trips_lose_a_packet(
    lossy: list[str], tmp_path: Path, authority: trustme.CA, unix_app: str
) -> None:
    """Handshake, head and body of both directions lose their part; six clients get it all the same."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    site = f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(tmp_path, authority, "localhost")}
        backends = ["{unix_app}"]
    """
    body = os.urandom(8_000)
    (tmp_path / "body").write_bytes(body)
    limits = 'limits = { handshake_timeout = "60s", header_timeout = "60s" }'
    with running_proxy(tmp_path, None, site, head=limits, before=lossy) as proxy:  # type: ignore[arg-type]
        url = f"https://localhost:{proxy.port}/raw"
        curl = [*lossy, "curl", "-sS", "--noproxy", "*", "--cacert", str(tmp_path / "ca.pem"), "-4"]
        curl += ["--max-time", f"{SLOW:.0f}", "--data-binary", f"@{tmp_path / 'body'}", url]
        clients = [subprocess.Popen(curl, stdout=subprocess.PIPE) for _ in range(6)]
        said = [client.communicate(timeout=SLOW + PATIENCE)[0] for client in clients]
    assert [client.returncode for client in clients] == [0] * 6
    assert {json.loads(answer)["sha256"] for answer in said} == {hashlib.sha256(body).hexdigest()}


def test_everything_comes_in_slices_of_ten_bytes(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, app: str
) -> None:
    """Both ways: ClientHello, records, heads and chunks are cut wherever it happens."""
    site = f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(tmp_path, authority, "localhost")}
        backends = ["{app}"]
    """
    proxy = start_proxy(site)
    body = os.urandom(5000)
    with Slicer(proxy.port) as slicer, contextlib.closing(slicer.connect()) as raw:
        client = proxy.trust.wrap_socket(raw, server_hostname="localhost")
        for _ in range(3):
            client.sendall(b"POST /raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + body)
            answer = read_answer(client)
            assert json.loads(answer)["sha256"] == hashlib.sha256(body).hexdigest()
        client.close()
    assert slicer.pieces > 2 * len(body) * 3 // SLICE // 2


def read_answer(client: socket.socket) -> bytes:
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += client.recv(4096)
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < size:
        body += client.recv(4096)
    return body


class Slicer:
    """A relay to a port that passes ten bytes at a time, both ways, each in a packet of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.pieces = 0
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []

    def __enter__(self) -> Slicer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        for end in self._ends:
            end.close()

    def connect(self) -> socket.socket:
        client = socket.create_connection(self._listener.getsockname(), PATIENCE)
        inner, _ = self._listener.accept()
        outer = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        self._ends += [inner, outer]
        for sock in (inner, outer):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((inner, outer), (outer, inner)):
            thread = threading.Thread(target=self._relay, args=(source, sink))
            thread.start()
            self._threads.append(thread)
        return client

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(SLICE):
                self.pieces += 1
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
