"""Logs that can't be written, stores that can't be changed, certificates that are broken (docs/faults.md).

The request path goes on in every case; what is lost or refused is said once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.store.pki import issue
from tests.system.conftest import StartProxy
from tests.system.pressure import as_mounted, mounted, served_by
from tests.system.running import PATIENCE, Proxy, free_port, put, running_proxy, until, write_pair

pytestmark = pytest.mark.system


def site(pair: str, backend: str, host: str = "localhost") -> str:
    return f"""
        [[sites]]
        hosts = ["{host}"]
        certificate = {pair}
        backends = ["{backend}"]
    """


def ask(proxy: Proxy, times: int = 1, host: str = "localhost") -> None:
    """Every request on one connection must be answered."""
    with contextlib.closing(proxy.connection(host)) as client:
        for _ in range(times):
            client.request("GET", "/hello", headers={"Host": host})
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"hello")


class TestAccessLog:
    """Row 22."""

    @pytest.fixture
    def start(
        self, tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str
    ) -> Iterator[Callable[..., Proxy]]:
        with contextlib.ExitStack() as stack:

            def start(access: str, *, before: tuple[str, ...] = (), stdout: int = subprocess.DEVNULL) -> Proxy:
                config = tmp_path / "tlsproxy.toml"
                config.write_text(f"""
                    listen = {{ https = ["127.0.0.1:0"], http = [] }}
                    server = {{ workers = 1, drain = "1s" }}
                    store = {{ url = "file://{tmp_path}/store" }}
                    admin = {{ socket = "{tmp_path}/admin.sock" }}
                    log = {{ format = "json", access = "{access}" }}
                    {site(write_pair(tmp_path, authority, "localhost"), app)}
                """)
                proxy = Proxy(config, trust, before=before, stdout=stdout)
                stack.callback(proxy.stop)
                proxy.wait_for("proxy.ready")
                return proxy

            yield start

    def test_on_a_full_disk(self, start: Callable[..., Proxy], tmp_path: Path) -> None:
        """A disk of 64 KiB, in a mount namespace. When there is room again the log goes on."""
        disk = tmp_path / "disk"
        disk.mkdir()
        proxy = start(f"{disk}/access.log", before=mounted(f"mount -t tmpfs -o size=64k none {disk}"))

        def is_full() -> bool:
            ask(proxy, 100)
            return proxy.count("access_log.dropped") > 0

        until(is_full, "the disk is full")
        ask(proxy, 50)
        log = as_mounted(proxy.pid, disk / "access.log")
        assert proxy.wait_for("access_log.dropped")["why"] == os.strerror(28)
        os.truncate(log, 0)

        def goes_on() -> bool:
            ask(proxy)
            return b"/hello" in log.read_bytes()

        until(goes_on, "the log goes on")
        assert proxy.count("access_log.dropped") == 1
        assert not [line for line in proxy.lines if "traceback" in line.lower()]

    def test_on_a_device_that_takes_nothing(self, start: Callable[..., Proxy]) -> None:
        proxy = start("/dev/full")
        ask(proxy, 50)
        proxy.wait_for("access_log.dropped")
        ask(proxy, 50)
        os.kill(proxy.pid, signal.SIGTERM)
        assert proxy.wait() == 0
        assert proxy.count("access_log.dropped") == 1

    def test_whose_reader_leaves(self, start: Callable[..., Proxy]) -> None:
        """`tlsproxy run | head -1`: the reader takes a line and is gone; nobody dies of SIGPIPE."""
        readable, writable = os.pipe()
        proxy = start("-", stdout=writable)
        os.close(writable)
        with os.fdopen(readable) as reader:
            ask(proxy)
            assert json.loads(reader.readline())["status"] == 200
        workers = proxy.workers()
        ask(proxy, 50)
        assert proxy.wait_for("access_log.dropped")["why"] == os.strerror(32)
        ask(proxy, 50)
        assert proxy.workers() == workers
        os.kill(proxy.pid, signal.SIGTERM)
        assert proxy.wait() == 0

    def test_whose_reader_sleeps(self, start: Callable[..., Proxy]) -> None:
        """A full pipe holds up the log, not the requests."""
        readable, writable = os.pipe()
        proxy = start("-", stdout=writable)
        os.close(writable)
        with os.fdopen(readable):
            ask(proxy, 600)


def test_the_reader_of_every_stream_leaves(
    tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str
) -> None:
    """`tlsproxy run 2>&1 | head -1`: it serves with nobody to tell, and stops as if nothing was."""
    port = free_port()
    config = tmp_path / "tlsproxy.toml"
    config.write_text(f"""
        listen = {{ https = ["127.0.0.1:{port}"], http = [] }}
        server = {{ workers = 1, drain = "1s" }}
        store = {{ url = "file://{tmp_path}/store" }}
        admin = {{ socket = "{tmp_path}/admin.sock" }}
        log = {{ format = "json" }}
        {site(write_pair(tmp_path, authority, "localhost"), app)}
    """)
    command = [sys.executable, "-m", "tlsproxy", "run", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        while "proxy.ready" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        probe = _Port(port, trust)
        for _ in range(3):
            ask(probe, 30)  # type: ignore[arg-type]
            probe.break_a_handshake()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PATIENCE)


class _Port:
    """As much of a Proxy as `ask` needs, for one that says nothing."""

    def __init__(self, port: int, trust: ssl.SSLContext) -> None:
        self._port = port
        self._trust = trust

    def connection(self, host: str) -> http.client.HTTPConnection:
        return http.client.HTTPSConnection(host, self._port, context=self._trust, timeout=PATIENCE)

    def break_a_handshake(self) -> None:
        """Something that is logged."""
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE) as raw:
            raw.sendall(b"SSH-2.0-x\r\n")
            while raw.recv(100):
                pass


class TestStore:
    """Row 23."""

    INTERNAL = '"internal"'

    def test_one_that_can_only_be_read_is_served_from(
        self, start_proxy: StartProxy, tmp_path: Path, trust: ssl.SSLContext, app: str
    ) -> None:
        """What it holds is enough until a renewal is due; the certificate stays the same."""
        made = start_proxy(site(self.INTERNAL, app))
        serial = self._serial(made)
        made.stop()
        store = tmp_path / "store"
        read_only = mounted(f"mount --bind {store} {store} && mount -o remount,ro,bind {store}")
        with running_proxy(tmp_path, trust, site(self.INTERNAL, app), before=read_only) as proxy:
            assert self._serial(proxy) == serial

    def test_an_empty_one_that_can_only_be_read_is_refused_with_its_place(
        self, tmp_path: Path, trust: ssl.SSLContext, app: str
    ) -> None:
        store = tmp_path / "store"
        store.mkdir(mode=0o700)
        config = tmp_path / "tlsproxy.toml"
        config.write_text(f"""
            listen = {{ https = ["127.0.0.1:0"], http = [] }}
            store = {{ url = "file://{store}" }}
            admin = {{ socket = "{tmp_path}/admin.sock" }}
            log = {{ format = "json", access = "off" }}
            {site(self.INTERNAL, app)}
        """)
        read_only = mounted(f"mount --bind {store} {store} && mount -o remount,ro,bind {store}")
        proxy = Proxy(config, trust, before=read_only)
        assert proxy.wait() == 2
        print(proxy.lines[-1])
        assert str(store) in proxy.lines[-1]
        assert "Traceback" not in "".join(proxy.lines)

    def test_a_key_that_everybody_can_read_is_served_and_warned_of(
        self, start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, app: str
    ) -> None:
        pair = write_pair(tmp_path, authority, "localhost")
        (tmp_path / "site.key").chmod(0o644)
        proxy = start_proxy(site(pair, app))
        ask(proxy)
        assert "chmod o-r" in proxy.wait_for("certificate.file_doubtful")["error"]

    @staticmethod
    def _serial(proxy: Proxy) -> bytes:
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        with proxy.open(context=blind) as client:
            return client.getpeercert(binary_form=True) or b""


class TestBrokenCertificate:
    """Row 25. That a broken new pair changes nothing while it runs is in test_certificates."""

    def test_at_the_start_it_is_refused_with_file_and_reason(
        self, tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str
    ) -> None:
        good = write_pair(tmp_path, authority, "localhost")
        write_pair(tmp_path, authority, "other.test", stem="other")
        cases = {
            "empty": b"",
            "noise": os.urandom(500),
            "not its key": (tmp_path / "other.key").read_bytes(),
        }
        for what, key in cases.items():
            put(tmp_path / "site.key", key)
            config = tmp_path / "tlsproxy.toml"
            config.write_text(f"""
                listen = {{ https = ["127.0.0.1:0"], http = [] }}
                store = {{ url = "file://{tmp_path}/store" }}
                admin = {{ socket = "{tmp_path}/admin.sock" }}
                {site(good, app)}
            """)
            proxy = Proxy(config, trust)
            code = proxy.wait()
            said = "".join(proxy.lines)
            print(what, code, said)
            assert code in (1, 2)
            assert "site.key" in said or "site.pem" in said
            assert "Traceback" not in said

    @pytest.mark.parametrize("flaw", ["key", "names"])
    def test_a_worker_that_starts_with_one_serves_all_other_sites(
        self, start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, app: str, flaw: str
    ) -> None:
        """Broken after the start; then a worker is killed. Its successor refuses that name until the files are good."""
        sites = site(write_pair(tmp_path, authority, "localhost"), app)
        sites += site(write_pair(tmp_path, authority, "b.test", stem="b"), app, "b.test")
        proxy = start_proxy(sites)
        ask(proxy, host="b.test")
        good = {path: path.read_bytes() for path in (tmp_path / "b.pem", tmp_path / "b.key")}
        broken = issue(cn="b.test", raw_names=b"nonsense")
        put(tmp_path / "b.pem", broken.pem)
        put(tmp_path / "b.key", broken.key_pem() if flaw == "names" else b"broken")
        proxy.wait_for("certificate.file_rejected")
        ask(proxy, host="b.test")
        os.kill(proxy.workers()[0], signal.SIGKILL)
        fresh = proxy.wait_for("worker.replaced")["child"]
        proxy.wait_for("certificate.unusable", pid=fresh)
        ask(proxy)
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            proxy.open("b.test").close()
        for path, content in good.items():
            put(path, content)

        def is_back() -> bool:
            with contextlib.suppress(ssl.SSLError):
                ask(proxy, host="b.test")
                return True
            return False

        until(is_back, "the site is served again")
        assert served_by(proxy, fresh, "/hello") == 200

    def test_an_expired_one_is_served_and_said(
        self, start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, app: str
    ) -> None:
        """Clients decide; other sites have nothing to do with it."""
        sites = site(write_pair(tmp_path, authority, "localhost"), app)
        sites += site(write_pair(tmp_path, authority, "old.test", stem="old", days=0), app, "old.test")
        proxy = start_proxy(sites)
        ask(proxy)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            proxy.open("old.test").close()
        assert any("expired" in line for line in proxy.lines)
