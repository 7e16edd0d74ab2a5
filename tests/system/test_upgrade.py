"""Upgrades of a real proxy: under clients that must not notice them, to versions that do not come up, under parents.

A parent is whoever knows the proxy by its pid: a shell, an init, a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.system.commands import Said, tlsproxy
from tests.system.pressure import descriptors
from tests.system.regulars import conversing, multiplexing, pressing, returning
from tests.system.running import PATIENCE, Proxy, put, running_proxy, until, write_pair
from tlsproxy.runtime.succession import VARIABLE

pytestmark = pytest.mark.system

UPGRADES = int(os.environ.get("UPGRADES", "3"))  # UPGRADES=10 takes minutes

SCRIPT = f"""#!{sys.executable}
import sys
import tlsproxy
tlsproxy.__version__ = "{{version}}"
from tlsproxy.cli import main
sys.exit(main())
"""


@pytest.fixture
def sites(app: str, tmp_path: Path, authority: trustme.CA) -> str:
    pair = write_pair(tmp_path, authority, "localhost", "127.0.0.1")
    return f"""
        [tls]
        default_host = "localhost"
        [[sites]]
        hosts = ["localhost", "127.0.0.1"]
        certificate = {pair}
        backends = ["{app}"]
    """


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The command as pip installs it: what is written there is the version that is installed now."""
    path = tmp_path / "tlsproxy"
    install(path, SCRIPT.format(version="1.0"))
    return path


def install(script: Path, content: str) -> None:
    put(script, content.encode())
    script.chmod(0o755)


def by_script(script: Path) -> tuple[str, ...]:
    """Execute the script in place of `python -m tlsproxy`."""
    return ("/bin/sh", "-c", f'shift 3; exec {script} "$@"', "sh")


@contextlib.contextmanager
def running(folder: Path, trust: ssl.SSLContext, sites: str, **options: Any) -> Iterator[Proxy]:
    # Else streams of sites that have not changed, and with them the old supervisor, stay for minutes.
    before = ("env", "TLSPROXY_SERVER__DRAIN_STREAMS=2s", *options.pop("before", ()))
    options = {"drain": "2s", "before": before, **options}
    with running_proxy(folder, trust, sites, **options) as proxy:
        yield proxy


def upgrade(proxy: Proxy, *options: str) -> Said:
    return tlsproxy(proxy.folder, "admin", "upgrade", "--socket", str(proxy.folder / "admin.sock"), *options)


def status(proxy: Proxy) -> dict[str, Any]:
    with admin_api(proxy) as client:
        answer = client.get("/status")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def admin_api(proxy: Proxy) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(proxy.folder / "admin.sock"))
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE)


def requests_counted(proxy: Proxy) -> float:
    with admin_api(proxy) as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("tlsproxy_requests_total{"))


def ask(proxy: Proxy) -> str:
    with proxy.client() as client:
        return client.get("/hello").text


def is_running(pid: int) -> bool:
    """Whether there is such a process, dead ones that wait for their parent apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def children(proxy: Proxy) -> list[str]:
    """Dead ones too, until they are reaped."""
    return Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()


def environ_of(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/environ").read_text().split("\0"))


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


# --- nobody notices


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
@pytest.mark.timeout(180 + 30 * UPGRADES)
def test_upgrades_lose_nothing(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    """Counted by the clients: of no kind is one request lost, on no kind of connection."""
    with running(tmp_path, trust, sites, workers=2) as proxy, contextlib.ExitStack() as clients:
        kept = clients.enter_context(pressing(proxy, "-c8"))
        new = clients.enter_context(pressing(proxy, "-c4", "-H", "Connection: close"))
        busy = clients.enter_context(returning(proxy))
        streams = clients.enter_context(multiplexing(proxy))
        words = clients.enter_context(conversing(proxy))
        for number in range(UPGRADES):
            said = upgrade(proxy)
            assert said.code == 0, said
            assert status(proxy)["generation"] == number + 2
        clients.close()
        print(kept, new, busy, streams, words, sep="\n")
        assert (kept.bad, new.bad) == ("", "")
        assert min(kept.good, new.good) > UPGRADES
        assert proxy.count("proxy.upgraded") == UPGRADES


def test_what_is_in_flight_comes_to_its_end(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    before = ("env", "TLSPROXY_SERVER__DRAIN_STREAMS=8s")  # the site has not changed
    with running(tmp_path, trust, sites, before=before) as proxy:
        url = f"ws://localhost:{proxy.port}/ws/echo"
        with connect(url, sock=proxy.open(), proxy=None, open_timeout=PATIENCE) as words:
            words.recv(PATIENCE)
            assert upgrade(proxy).code == 0
            words.send("still there")
            assert words.recv(PATIENCE) == "still there"
            with pytest.raises(ConnectionClosed):
                words.recv(PATIENCE)
        assert words.close_code == 1001
        proxy.wait_for("proxy.left")
        assert ask(proxy) == "hello"


def test_a_stop_gives_what_an_older_supervisor_has_in_flight_its_time(
    tmp_path: Path, trust: ssl.SSLContext, sites: str, app: str
) -> None:
    """The new one is idle and could end at once; the request is the old one's, and server.drain is for both."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        sites = sites.replace(app, f"http://127.0.0.1:{backend.getsockname()[1]}")
        with running(tmp_path, trust, sites, drain="15s") as proxy, proxy.open() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server, _ = backend.accept()
            with server:
                assert server.recv(65536).startswith(b"GET / ")
                assert upgrade(proxy).code == 0
                newest = status(proxy)["pid"]
                os.kill(proxy.pid, signal.SIGTERM)
                proxy.wait_for("proxy.draining", pid=newest)
                client.settimeout(3)
                with pytest.raises(TimeoutError):
                    client.recv(1)  # nothing is cut after the second that an idle proxy needs
                server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert b" 200 OK" in client.recv(65536)
            assert proxy.wait() == 0


def test_a_stream_outlives_two_upgrades_and_no_stop(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    """Its supervisor is then the one before the one before; told to hurry, it says goodbye like the others."""
    before = ("env", "TLSPROXY_SERVER__DRAIN_STREAMS=300s")
    with running(tmp_path, trust, sites, before=before) as proxy:
        url = f"ws://localhost:{proxy.port}/ws/echo"
        with connect(url, sock=proxy.open(), proxy=None, open_timeout=PATIENCE) as words:
            words.recv(PATIENCE)
            for _ in range(2):
                said = upgrade(proxy)
                assert said.code == 0, said
            words.send("still there")
            assert words.recv(PATIENCE) == "still there"
            os.kill(status(proxy)["pid"], signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                words.recv(PATIENCE)
        assert words.close_code == 1001
        assert proxy.wait() == 0


def test_all_that_can_be_is_taken_along(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    """TLS sessions, counters, the plan of operators, when it was started; nothing secret can be seen from outside."""
    with running(tmp_path, trust, sites) as proxy:
        before, command, environ = status(proxy), command_of(proxy.pid), environ_of(proxy.pid)
        client = proxy.connection()
        for _ in range(3):
            client.request("GET", "/hello")
            client.getresponse().read()
        assert isinstance(client.sock, ssl.SSLSocket)
        session = client.sock.session
        client.close()
        counted = until(lambda: n if (n := requests_counted(proxy)) >= 3 else 0, "three requests are counted")
        said = tlsproxy(
            proxy.folder,
            "admin",
            "sites",
            "pause",
            "localhost",
            "--for",
            "60s",
            "--socket",
            str(proxy.folder / "admin.sock"),
        )
        assert said.code == 0, said
        assert upgrade(proxy).code == 0
        after = status(proxy)
        assert (after["started"], after["generation"]) == (before["started"], 2)
        assert requests_counted(proxy) >= counted
        with admin_api(proxy) as admin:
            assert "paused" in json.dumps(admin.get("/sites").json())
        with proxy.open(session=session) as resumed:
            assert resumed.session_reused
        pid = after["pid"]
        assert pid != before["pid"]
        assert command_of(pid)[1:] == command[1:]
        (added,) = environ_of(pid) - environ
        assert re.fullmatch(rf"{VARIABLE}=\d+", added)


def test_nothing_grows(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    with running(tmp_path, trust, sites) as proxy:
        seen: list[tuple[int, int]] = []
        for number in range(4):
            old = status(proxy)["pid"]
            assert upgrade(proxy).code == 0
            until(lambda number=number: proxy.count("proxy.left") > number, "the old one has left")  # type: ignore[misc]
            assert old == proxy.pid or until(lambda old=old: not is_running(old), "it has ended")  # type: ignore[misc]
            seen.append((descriptors(status(proxy)["pid"]), descriptors(proxy.pid)))
        # The stand-in is there from the first one on. Who has just asked for the status may still be connected.
        assert seen[3][1] == seen[1][1]
        until(lambda: descriptors(status(proxy)["pid"]) <= seen[1][0], "nothing more is open than before")
        children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
        assert children == [str(status(proxy)["pid"])]


# --- versions


def test_what_is_installed_now_is_started(tmp_path: Path, trust: ssl.SSLContext, sites: str, script: Path) -> None:
    with running(tmp_path, trust, sites, before=by_script(script)) as proxy:
        assert status(proxy)["version"] == "1.0"
        install(script, SCRIPT.format(version="2.0"))
        said = upgrade(proxy)
        assert said.code == 0, said
        assert "version 2.0 is there" in said.out
        assert status(proxy)["version"] == "2.0"
        assert ask(proxy) == "hello"


BROKEN = {
    "leaves an orphan": (
        "#!/bin/sh\n(sleep 1; exit 0) </dev/null >/dev/null 2>&1 &\nexit 7\n",
        "the new version ended with exit status 7 before it said a word",
    ),
    "exits": ("#!/bin/sh\nexit 7\n", "the new version ended with exit status 7 before it said a word"),
    "hangs": ("#!/bin/sh\nexec sleep 60\n", "the new version had said nothing after 4 s"),
    "is no program": ("nothing\n", "the new version cannot be started"),
    "has no workers": (
        SCRIPT.format(version="2.0").replace("import sys\n", "import sys\nsys.executable = '/bin/false'\n"),
        "certifier ended with exit status 1 before it was ready",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_version_changes_nothing(
    tmp_path: Path, trust: ssl.SSLContext, sites: str, script: Path, how: str
) -> None:
    content, reason = BROKEN[how]
    with running(tmp_path, trust, sites, before=by_script(script)) as proxy:
        workers, open_files = proxy.workers(), descriptors(proxy.pid)
        install(script, content)
        said = upgrade(proxy, "--timeout", "4s")
        assert said.code == 1
        assert reason in said.err
        assert len(said.err.strip().splitlines()) == 1
        assert proxy.workers() == workers
        until(lambda: descriptors(proxy.pid) <= open_files, "nothing more is open than before")
        until(lambda: proxy.workers() == workers and len(children(proxy)) == 2, "no orphan is ours")
        assert ask(proxy) == "hello"
        assert status(proxy)["generation"] == 1
        install(script, SCRIPT.format(version="2.0"))
        assert upgrade(proxy).code == 0


def test_a_configuration_that_is_wrong_changes_nothing(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    with running(tmp_path, trust, sites) as proxy:
        config = tmp_path / "tlsproxy.toml"
        config.write_text(config.read_text().replace("hosts =", "hots =", 1))
        said = upgrade(proxy)
        assert said.code == 1
        assert re.search(r"tlsproxy.toml:\d+: .*hots", said.err), said
        assert ask(proxy) == "hello"


def test_one_at_a_time(tmp_path: Path, trust: ssl.SSLContext, sites: str, script: Path) -> None:
    with running(tmp_path, trust, sites, before=by_script(script)) as proxy:
        install(script, "#!/bin/sh\nexec sleep 60\n")
        os.kill(proxy.pid, signal.SIGUSR2)
        proxy.wait_for("proxy.upgrading")
        for verb in ("upgrade", "reload"):
            said = tlsproxy(proxy.folder, "admin", verb, "--socket", str(tmp_path / "admin.sock"))
            assert (said.code, "an upgrade is under way already" in said.err) == (1, True), said
        # To be stopped meanwhile ends both.
        proxy.stop()
        assert proxy.count("proxy.stopped") == 1


# --- who knows the pid


def test_a_stand_in_stays_and_hands_signals_on(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    with running(tmp_path, trust, sites) as proxy:
        for number in (1, 2):
            os.kill(proxy.pid, signal.SIGUSR2)
            until(lambda number=number: proxy.count("proxy.left") == number, "the old one has left")  # type: ignore[misc]
        until(lambda: any("standin.py" in word for word in command_of(proxy.pid)), "it stands in")
        os.kill(proxy.pid, signal.SIGHUP)
        assert proxy.wait_for("proxy.reloaded")["pid"] == status(proxy)["pid"]
        os.kill(proxy.pid, signal.SIGTERM)
        assert proxy.wait() == 0
        assert proxy.count("proxy.stopped") == 1


def test_a_supervisor_whose_stand_in_is_gone_ends(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    with running(tmp_path, trust, sites) as proxy:
        assert upgrade(proxy).code == 0
        pid = status(proxy)["pid"]
        until(lambda: any("standin.py" in word for word in command_of(proxy.pid)), "it stands in")
        os.kill(proxy.pid, signal.SIGKILL)
        until(lambda: not is_running(pid), "the supervisor has ended")
        assert proxy.wait_for("proxy.stopped")["pid"] == pid


def _has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-p", "-f", "--mount-proc", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_namespaces(), reason="no PID namespace can be made here (root, unshare)")
def test_as_the_first_process_of_a_container(tmp_path: Path, trust: ssl.SSLContext, sites: str) -> None:
    before = ("unshare", "-p", "-f", "--mount-proc", "--kill-child")
    with running(tmp_path, trust, sites, before=before) as proxy:
        first = int(Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text())
        assert status(proxy)["pid"] == 1
        for _ in range(2):
            said = upgrade(proxy)
            assert said.code == 0, said
            assert status(proxy)["pid"] != 1
            assert ask(proxy) == "hello"
        until(lambda: any("standin.py" in word for word in command_of(first)), "it stands in")
        os.kill(first, signal.SIGTERM)
        assert proxy.wait() == 0
        assert proxy.count("proxy.stopped") == 1
