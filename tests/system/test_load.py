"""Many clients at once that mean no good, and one that does: it is served, in time, and nothing is left afterwards.

Own clients where a thousand must do one exact thing, slowhttptest for what others call slow, wrk for sheer load. The
worker that is attacked is also the one that answers: there is only one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import StartProxy
from tests.system.pressure import Honest, cpu_seconds, descriptors, resident
from tests.system.running import PATIENCE, Proxy, until, write_pair

pytestmark = pytest.mark.system

MIB = 1 << 20
BOUND = 1.0  # seconds an honest client may wait; on an idle machine it is a hundredth of that

StartSite = Callable[..., Proxy]


@pytest.fixture
def start(start_proxy: StartProxy, app: str, tmp_path: Path, authority: trustme.CA) -> StartSite:
    def start(limits: str, *, workers: int = 1) -> Proxy:
        site = f"""
            [tls]
            default_host = "localhost"
            [[sites]]
            hosts = ["localhost", "127.0.0.1"]
            certificate = {write_pair(tmp_path, authority, "localhost", "127.0.0.1")}
            backends = ["{app}"]
        """
        return start_proxy(site, head=f"limits = {{ {limits} }}", workers=workers)

    return start


class Crowd:
    """Clients of one kind that are opened together, from several addresses, and end with the context."""

    def __init__(self, proxy: Proxy) -> None:
        self._port = proxy.port
        self._trust = proxy.trust
        self._stack = contextlib.ExitStack()
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, count: int, first: bytes, *, tls: bool = True, between: Callable[[], None] | None = None) -> None:
        """Open `count` connections and send `first` on each; `between` is called after each 50."""
        for number in range(count):
            raw = socket.create_connection(("127.0.0.1", self._port), PATIENCE, (f"127.0.3.{1 + number % 200}", 0))
            sock = self._trust.wrap_socket(raw, server_hostname="localhost") if tls else raw
            self._stack.callback(sock.close)
            if first:
                sock.sendall(first)
            self.sockets.append(sock)
            if between is not None and number % 50 == 49:
                between()

    def drip(self, piece: bytes) -> int:
        """Send one more piece on each connection; return how many took it."""
        alive = 0
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.sendall(piece)
                alive += 1
        return alive


def test_a_thousand_slow_heads(start: StartSite) -> None:
    """Slow loris: a byte now and then gains no time. The limit is from the head's beginning."""
    proxy = start('header_timeout = "2s"')
    (worker,) = proxy.workers()
    honest = Honest(proxy, "/hello")
    honest.ask()
    before = descriptors(worker)
    with Crowd(proxy) as crowd:
        crowd.join(1000, b"GET / HTTP/1.1\r\nHost: localhost\r\n", between=honest.ask)
        began = time.monotonic()

        def are_gone() -> bool:
            crowd.drip(b"X-a: b\r\n")
            honest.ask()
            return descriptors(worker) < before + 5

        until(are_gone, "all are turned out")
        took = time.monotonic() - began
    print(f"all gone {took:.1f} s after the last had come; meanwhile {honest.said()}")
    assert took < 2 + 2 + 3  # two seconds of a lingering close, for clients that go on sending
    assert max(honest.took) < BOUND


def test_a_thousand_slow_bodies(start: StartSite) -> None:
    """Bodies that have stopped hold their backends for body_idle, and no longer."""
    proxy = start('body_idle = "2s"')
    (worker,) = proxy.workers()
    honest = Honest(proxy, "/hello")
    honest.ask()
    before = descriptors(worker)
    head = b"POST /raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nfew"
    with Crowd(proxy) as crowd:
        crowd.join(300, head, between=honest.ask)
        began = time.monotonic()

        def are_gone() -> bool:
            honest.ask()
            return descriptors(worker) < before + 40  # the pool's connections stay

        until(are_gone, "all are turned out")
        took = time.monotonic() - began
        answers = [sock.recv(20) for sock in crowd.sockets]
    print(f"all gone {took:.1f} s after the last had come; meanwhile {honest.said()}")
    assert set(answers) == {b"HTTP/1.1 408 Request"}
    assert max(honest.took) < BOUND


def test_two_thousand_that_say_nothing(start: StartSite) -> None:
    """Half of them do not even begin their handshake. All go when their time is up; memory comes to a few KiB each."""
    proxy = start('handshake_timeout = "4s", header_timeout = "4s", keep_alive = "4s"')
    (worker,) = proxy.workers()
    honest = Honest(proxy, "/hello")
    honest.ask()
    before, memory = descriptors(worker), resident(worker)
    with Crowd(proxy) as crowd:
        crowd.join(1000, b"", tls=False, between=honest.ask)
        crowd.join(1000, b"", between=honest.ask)
        each = (resident(worker) - memory) / 2000
        began = time.monotonic()

        def are_gone() -> bool:
            honest.ask()
            return descriptors(worker) < before + 5

        until(are_gone, "all are turned out")
        took = time.monotonic() - began
    print(f"{each / 1024:.0f} KiB each; all gone {took:.1f} s after the last had come; meanwhile {honest.said()}")
    assert took < 4 + 3
    assert max(honest.took) < BOUND
    assert each < 100 * 1024


def test_more_than_there_is_room_for(start: StartSite) -> None:
    """At the limit those that have been idle longest make room, so that a new client is served all the same."""
    proxy = start("connections = 300")
    (worker,) = proxy.workers()
    honest = Honest(proxy, "/hello")
    honest.ask()
    before = descriptors(worker)
    with Crowd(proxy) as crowd:
        crowd.join(600, b"", tls=False, between=honest.ask)
        crowd.join(400, b"GET / HTTP/1.1\r\nHost: localhost\r\n", between=honest.ask)
        held = descriptors(worker) - before
        for _ in range(80):
            honest.ask()
    print(f"{held} of 1000 are held; meanwhile {honest.said()}")
    assert held <= 310
    assert max(honest.took) < BOUND


def test_too_many_of_one_address(start: StartSite) -> None:
    proxy = start("connections_per_client = 20")
    honest = Honest(proxy, "/hello")
    with contextlib.ExitStack() as stack:
        refused = 0
        for _ in range(100):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, ("127.0.3.1", 0)))
            raw.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                refused += raw.recv(1) == b""
        honest.ask()
    assert refused == 80
    assert proxy.wait_for("connections.turned_away")["count"] > 0


@pytest.mark.skipif(not shutil.which("slowhttptest"), reason="slowhttptest is not installed")
class TestSlowHttpTest:
    """Its own verdict is by a probe of its own; ours is an honest client's."""

    @pytest.mark.parametrize(
        ("kind", "options", "limits"),
        [
            ("headers", ["-H", "-i", "1"], 'header_timeout = "2s"'),
            ("body", ["-B", "-i", "4", "-s", "4096"], 'body_idle = "2s"'),
            ("read", ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32"], 'write_idle = "2s"'),
        ],
    )
    def test_others_are_served(self, start: StartSite, kind: str, options: Sequence[str], limits: str) -> None:
        proxy = start(limits)
        (worker,) = proxy.workers()
        honest = Honest(proxy, "/hello")
        honest.ask()
        memory = resident(worker)
        url = f"https://127.0.0.1:{proxy.port}/" + ("bytes/1000000" if kind == "read" else "raw")
        command = ["slowhttptest", *options, "-c", "200", "-r", "200", "-l", "4", "-p", "3", "-u", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as attack:
            try:
                peak, open_at_most = 0, 0
                while attack.poll() is None:
                    honest.ask()
                    peak = max(peak, resident(worker) - memory)
                    open_at_most = max(open_at_most, descriptors(worker))
                    time.sleep(0.05)  # an honest client is not in a hurry
                assert attack.stdout is not None
                said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", attack.stdout.read())
            finally:
                attack.kill()
        print(f"{kind}: grown by {peak / MIB:.0f} MiB at most, {open_at_most} descriptors; {honest.said()}")
        assert open_at_most > 150, said
        assert re.findall(r"service available:\s+(\w+)", said)[-1] == "YES"
        assert max(honest.took) < BOUND
        assert peak < 200 * 400 * 1024


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_sheer_load_costs_no_error_and_leaves_nothing(start: StartSite) -> None:
    proxy = start("", workers=2)

    def load(seconds: int) -> str:
        command = ["wrk", "-t2", "-c64", f"-d{seconds}s", "--latency", f"https://127.0.0.1:{proxy.port}/hello"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    files = {pid: descriptors(pid) for pid in proxy.workers()}
    load(1)
    memory = {pid: resident(pid) for pid in files}
    said = load(3)
    print(said)
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
    for pid, count in files.items():  # the pool keeps up to 32
        until(lambda pid=pid, count=count: descriptors(pid) <= count + 32, "clients are gone")  # type: ignore[misc]
        assert resident(pid) - memory[pid] < 6 * MIB
        spent = cpu_seconds(pid)
        time.sleep(0.5)
        assert cpu_seconds(pid) - spent < 0.1, "a worker with nothing to do works"
