"""The proxy as a service: a socket of our own in the part of systemd, and systemd's own socket activation."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.commands import tlsproxy
from tests.system.running import PATIENCE, Proxy, free_port, running_proxy, until, write_pair

pytestmark = pytest.mark.system


class Manager:
    """Hears what is said at NOTIFY_SOCKET, with the pid of who has said it, as systemd does."""

    # Mutable: fed (who has fed the watchdog), _said.

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fed: set[int] = set()
        self._said: queue.Queue[tuple[int, dict[str, str]]] = queue.Queue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def hear(self) -> tuple[int, dict[str, str]]:
        """Return who says what next, the watchdog's food apart."""
        return self._said.get(timeout=PATIENCE)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._listener.join(PATIENCE)
        self._socket.close()

    def _listen(self) -> None:
        while True:
            words, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            if not words:
                return
            pid = int.from_bytes(ancillary[0][2][:4], "little")
            if words == b"WATCHDOG=1":
                self.fed.add(pid)
            else:
                self._said.put((pid, dict(line.split("=", 1) for line in words.decode().split("\n"))))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def sites(tmp_path: Path, authority: trustme.CA, app: str) -> str:
    pair = write_pair(tmp_path, authority, "localhost")
    return f'[[sites]]\nhosts = ["localhost"]\ncertificate = {pair}\nbackends = ["{app}"]'


def admin(proxy: Proxy, *words: str) -> None:
    said = tlsproxy(proxy.folder, "admin", *words, "--socket", str(proxy.folder / "admin.sock"))
    assert said.code == 0, said


def test_a_life_is_told(tmp_path: Path, trust: ssl.SSLContext, sites: str, manager: Manager) -> None:
    before = ("env", f"NOTIFY_SOCKET={manager.path}", "WATCHDOG_USEC=2000000", "TLSPROXY_SERVER__DRAIN_STREAMS=1s")
    with running_proxy(tmp_path, trust, sites, before=before) as proxy:
        who, said = manager.hear()
        assert (who, said["READY"]) == (proxy.pid, "1")
        assert said["STATUS"] == "1 sites, 1 workers, generation 1"
        until(lambda: proxy.pid in manager.fed, "the watchdog is fed")
        admin(proxy, "reload")
        who, said = manager.hear()
        assert (who, said["RELOADING"]) == (proxy.pid, "1")
        assert int(said["MONOTONIC_USEC"]) > 0
        assert manager.hear()[1]["STATUS"] == "1 sites, 1 workers, generation 2"
        admin(proxy, "upgrade")
        assert manager.hear()[1]["RELOADING"] == "1"
        who, said = manager.hear()
        assert (who, said["READY"]) == (proxy.pid, "1")
        heir = int(said["MAINPID"])
        # Who is the service now speaks for itself, and the old process ends: nobody needs a stand-in here.
        who, said = manager.hear()
        assert (who, said) == (heir, {"READY": "1", "STATUS": "1 sites, 1 workers, generation 3"})
        until(lambda: heir in manager.fed, "the watchdog is fed by the other one")
        proxy.wait_for("proxy.left", stays=False)
        until(lambda: proxy._process.poll() == 0, "the old process has ended")
        os.kill(heir, signal.SIGTERM)
        who, said = manager.hear()
        assert (who, said["STOPPING"]) == (heir, "1")
        proxy.wait_for("proxy.stopped", pid=heir)


def test_a_start_that_fails_says_why(tmp_path: Path, trust: ssl.SSLContext, sites: str, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        before = ("env", f"NOTIFY_SOCKET={manager.path}")
        with pytest.raises(AssertionError), running_proxy(tmp_path, trust, sites, https=address, before=before):
            pass
    assert f"cannot listen on {address}" in manager.hear()[1]["STATUS"]


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_ports_that_systemd_listens_on(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    """One for https, by its name, for two workers; the other one, which is not given, is bound as ever."""
    port = free_port()
    before = ("systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=https")
    config = tmp_path / "tlsproxy.toml"
    config.write_text(f"""
        listen = {{ https = ["127.0.0.1:{port}"], http = ["127.0.0.1:0"] }}
        server = {{ workers = 2, drain = "1s" }}
        store = {{ url = "file://{tmp_path}/store" }}
        admin = {{ socket = "{tmp_path}/admin.sock" }}
        log = {{ format = "json", access = "{tmp_path}/access.log" }}
        {sites}
    """)
    proxy = Proxy(config, trust, before=before)
    try:
        # The first client starts it, and waits in the queue meanwhile.
        until(lambda: "Listening" in "".join(proxy.lines), "systemd-socket-activate listens")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
            proxy.wait_for("proxy.ready", workers=2)
            with trust.wrap_socket(raw, server_hostname="localhost"):
                pass
        assert proxy.port == port
        assert proxy.http_port
        for verb in ("reload", "upgrade"):
            admin(proxy, verb)
            with proxy.client() as client:
                assert client.get("/hello").text == "hello"
    finally:
        proxy.stop()
