"""Reloads of a real proxy, under clients that must not notice them, and with configurations that can't be served."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.system.commands import Said, admin, following, tlsproxy
from tests.system.conftest import StartProxy
from tests.system.pressure import Load, descriptors, is_gone, resident
from tests.system.regulars import conversing, multiplexing, pressing, returning
from tests.system.running import PATIENCE, Proxy, free_port, until, write_pair
from tlsproxy.runtime.adminclient import AdminClient, AdminError

pytestmark = pytest.mark.system

RELOADS = int(os.environ.get("RELOADS", "5"))  # RELOADS=50 takes minutes

MIB = 1 << 20


@pytest.fixture
def sites(app: str, tmp_path: Path, authority: trustme.CA) -> str:
    """`localhost` and `other`, at the same application."""
    pair = write_pair(tmp_path, authority, "localhost", "127.0.0.1", "other.test", "new.test")
    return f"""
        [tls]
        default_host = "localhost"
        [[sites]]
        hosts = ["localhost", "127.0.0.1"]
        certificate = {pair}
        backends = ["{app}"]
        [[sites]]
        hosts = ["other.test"]
        certificate = {pair}
        backends = ["{app}"]
    """


def configure(proxy: Proxy, old: str, new: str) -> None:
    path = proxy.folder / "tlsproxy.toml"
    text = path.read_text()
    assert old in text, f"{old} is not in\n{text}"
    path.write_text(text.replace(old, new, 1))


def reload(proxy: Proxy) -> None:
    admin(proxy, "reload")


def fail_to_reload(proxy: Proxy, code: int = 1) -> Said:
    """Reload, which must fail, and change nothing; return what the command has said. Code 2: by the configuration."""
    workers, open_files = proxy.workers(), descriptors(proxy.pid)
    said = tlsproxy(proxy.folder, "admin", "reload", "--socket", str(proxy.folder / "admin.sock"))
    assert said.code == code, said
    assert proxy.workers() == workers
    # The thread that has read the configuration stays, and with it nothing.
    until(lambda: descriptors(proxy.pid) <= open_files, "nothing more is open than before")
    assert ask(proxy) == "hello"
    reason = proxy.events[-1]["error"] if proxy.events[-1]["event"] == "proxy.reload_failed" else ""
    assert reason, proxy.events[-1]
    assert reason.partition("\n")[0] in said.err
    return said


def talk(proxy: Proxy, host: str = "localhost") -> contextlib.AbstractContextManager[ClientConnection]:
    url = f"ws://{host}:{proxy.port}/ws/echo"
    return connect(url, sock=proxy.open(host), proxy=None, open_timeout=PATIENCE)


def ask(proxy: Proxy, host: str = "localhost") -> str:
    with proxy.client(host) as client:
        return client.get("/hello").text


def is_served(proxy: Proxy, port: int, host: str = "localhost") -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
            proxy.trust.wrap_socket(raw, server_hostname=host).close()
    except (ConnectionRefusedError, ssl.SSLError):
        return False
    return True


# --- nobody notices ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
@pytest.mark.timeout(180 + 30 * RELOADS)
def test_reloads_lose_nothing(start_proxy: StartProxy, sites: str) -> None:
    """Counted by the clients: of no kind is one request lost, on no kind of connection."""
    proxy = start_proxy(sites, workers=2, drain="9.5s")
    with contextlib.ExitStack() as clients:
        kept = clients.enter_context(pressing(proxy, "-c8"))
        new = clients.enter_context(pressing(proxy, "-c4", "-H", "Connection: close"))
        busy = clients.enter_context(returning(proxy))
        slow = clients.enter_context(returning(proxy, pause=1.2))  # as long as an idle connection is left in peace
        streams = clients.enter_context(multiplexing(proxy))
        words = clients.enter_context(conversing(proxy))
        for _ in range(RELOADS):
            reload(proxy)
    print(kept, new, busy, slow, streams, words, sep="\n")
    assert (kept.bad, new.bad) == ("", "")
    assert kept.good > RELOADS
    assert new.good > RELOADS
    assert proxy.count("proxy.reloaded") == RELOADS


def test_nothing_grows(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)

    def reload_and_settle() -> None:
        os.kill(proxy.pid, signal.SIGHUP)
        count = proxy.count("proxy.reloaded") + 1
        until(lambda: proxy.count("generation.ended") >= count, "the old generation is gone")

    for _ in range(3):  # a thread is made, and memory that is there for all reloads
        reload_and_settle()
    open_files, memory = descriptors(proxy.pid), resident(proxy.pid)
    for _ in range(20):
        reload_and_settle()
    assert descriptors(proxy.pid) == open_files
    assert len(proxy.workers()) == 1
    assert resident(proxy.pid) - memory < MIB * 3 // 8  # 0.1 MiB; a generation that is kept costs 30 KiB each time


# --- what changes -----------------------------------------------------------------------------------------------------


def test_a_site_comes_and_another_goes(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    configure(proxy, '["other.test"]', '["new.test"]')
    configure(proxy, 'default_host = "localhost"', "")
    os.kill(proxy.pid, signal.SIGHUP)
    proxy.wait_for("proxy.reloaded", generation=2)
    assert ask(proxy, "localhost") == "hello"
    assert ask(proxy, "new.test") == "hello"
    assert not is_served(proxy, proxy.port, "other.test")


def test_a_hangup_during_a_reload_is_remembered(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    os.kill(proxy.pid, signal.SIGHUP)
    proxy.wait_for("proxy.reloading")
    for _ in range(3):
        os.kill(proxy.pid, signal.SIGHUP)
    proxy.wait_for("proxy.reloaded", generation=3)
    assert proxy.count("proxy.reloaded") == 2


def test_a_reload_during_a_reload_is_refused(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    with following(proxy, "reload") as lines:
        next(lines)
        operator = AdminClient(proxy.folder / "admin.sock", patience=PATIENCE)  # there before a command would be
        with pytest.raises(AdminError, match=r"^a reload is under way already\. Wait for its end, then ask again\.$"):
            list(operator.work("reload"))
        assert "generation 2 serves" in list(lines)[-1]


def test_listeners_stay_come_and_go(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    first, second = proxy.port, free_port()
    configure(proxy, '["127.0.0.1:0"]', f'["127.0.0.1:0", "127.0.0.1:{second}"]')
    reload(proxy)
    assert is_served(proxy, first)
    assert is_served(proxy, second)
    configure(proxy, f'["127.0.0.1:0", "127.0.0.1:{second}"]', f'["127.0.0.1:{second}"]')
    reload(proxy)
    assert is_served(proxy, second)
    until(lambda: not is_served(proxy, first), "the first port is closed")


def test_workers_come_and_go(start_proxy: StartProxy, sites: str) -> None:
    """With fewer workers, somebody accepts what the kernel still gives to the sockets of the others."""
    proxy = start_proxy(sites)
    with returning(proxy), returning(proxy, pause=0.2):
        for before, workers in ((1, 3), (3, 1), (1, 2)):
            configure(proxy, f"workers = {before}", f"workers = {workers}")
            reload(proxy)
            until(lambda: len(proxy.workers()) == workers, f"{workers} workers")  # noqa: B023
            for _ in range(12):
                assert ask(proxy) == "hello"


def test_the_admin_socket_moves(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    before, after = proxy.folder / "admin.sock", proxy.folder / "moved.sock"
    configure(proxy, str(before), str(after))
    said = tlsproxy(proxy.folder, "admin", "reload", "--socket", str(before))
    assert said.code == 0, said
    assert not before.exists()
    assert json.loads(admin(proxy, "status", "--json").out)["generation"] == 2


# --- what is in flight ------------------------------------------------------------------------------------------------


def test_streams_and_websockets_of_unchanged_sites_stay(start_proxy: StartProxy, sites: str, app: str) -> None:
    """Beyond `drain`; those of a changed site are told at once, or cut when its time is over."""
    proxy = start_proxy(sites, drain="1s")
    with (
        talk(proxy) as stays,
        talk(proxy, "other.test") as leaves,
        proxy.client() as here,
        proxy.client("other.test") as there,
        here.stream("GET", "/stream/stays?count=2") as answer,
        there.stream("GET", "/stream/cut?count=2") as cut,
    ):
        pieces, doomed = answer.iter_text(), cut.iter_text()
        assert (next(pieces), next(doomed)) == ("piece 0\n", "piece 0\n")
        configure(proxy, 'hosts = ["other.test"]', 'hosts = ["other.test"]\n        hsts = "1y"')
        reload(proxy)
        leaves.recv(PATIENCE)
        with pytest.raises(ConnectionClosed) as closed:
            leaves.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        proxy.wait_for("drain.staying", connections=2, sites=["localhost"])
        with pytest.raises(httpx.RemoteProtocolError):
            next(doomed)
        stays.recv(PATIENCE)
        stays.send("still there")
        assert stays.recv(PATIENCE) == "still there"
        httpx.post(f"{app}/go/stays", trust_env=False)
        httpx.post(f"{app}/go/stays", trust_env=False)
        assert "".join(pieces) == "piece 1\n"
    proxy.wait_for("generation.ended", generation=1, cut=1, killed=[])


def test_unchanged_sites_stay_no_longer_than_they_may(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites, drain='1s", drain_streams = "2s')
    with talk(proxy) as stays:
        stays.recv(PATIENCE)
        reload(proxy)
        proxy.wait_for("drain.staying")
        with pytest.raises(ConnectionClosed) as closed:
            stays.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    proxy.wait_for("generation.ended", generation=1, cut=0)


def test_a_stop_ends_what_stays(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    with talk(proxy) as stays:
        stays.recv(PATIENCE)
        reload(proxy)
        proxy.wait_for("drain.staying")
        said = admin(proxy, "stop")
        assert said.lines[-1] == "stopped"
        with pytest.raises(ConnectionClosed) as closed:
            stays.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert proxy.wait() == 0


# --- what can't be served ---------------------------------------------------------------------------------------------


def test_what_cannot_be_served_changes_nothing(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    path, certificate = proxy.folder / "tlsproxy.toml", proxy.folder / "site.pem"
    good = path.read_text()

    path.write_text(f"{good}\nnonsense")
    assert f"{path}:" in fail_to_reload(proxy, 2).err

    path.write_text(good.replace("hosts = ", "hots = ", 1))
    assert "hots" in fail_to_reload(proxy, 2).err

    path.write_text(good)
    certificate.rename(certificate.with_suffix(".away"))
    assert "site.pem" in fail_to_reload(proxy, 2).err
    certificate.with_suffix(".away").rename(certificate)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(good.replace('"127.0.0.1:0"', f'"127.0.0.1:0", "127.0.0.1:{port}"', 1))
        said = fail_to_reload(proxy).err
        assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in said
        assert "another port (listen.https in the configuration).\nThe proxy goes on with the configuration" in said

    path.write_text(good.replace("admin.sock", "tlsproxy.toml", 1))
    assert "is no socket" in fail_to_reload(proxy).err

    path.write_text(good.replace("drain = ", 'user = "nobody", drain = ', 1))
    fail_to_reload(proxy, 2)

    path.write_text(good)
    reload(proxy)
    assert proxy.count("proxy.reloaded") == 1


@pytest.mark.parametrize("part", ["worker", "certifier"])
def test_a_child_that_dies_at_its_start_changes_nothing(start_proxy: StartProxy, sites: str, part: str) -> None:
    proxy = start_proxy(sites)
    before = children(proxy)
    with following_failure(proxy) as lines:
        new = until(lambda: next((pid for pid in children(proxy, part) if pid not in before), 0), "a new child")
        os.kill(new, signal.SIGKILL)
        name = "worker 0" if part == "worker" else "certifier"
        assert f"{name} ended with signal SIGKILL before it was ready" in "".join(lines)
    until(lambda: children(proxy) == before, "only the old ones are left")
    assert ask(proxy) == "hello"


def test_a_generation_that_does_not_come_to_serve_cuts_nobody(start_proxy: StartProxy, sites: str) -> None:
    """Its other worker has long been ready when this one dies."""
    proxy = start_proxy(sites, workers=2)
    before = children(proxy)
    with following_failure(proxy) as lines, Load(proxy, 4, "/hello") as load:
        new = until(lambda: sorted(set(children(proxy, "worker")) - set(before))[1:], "the new workers")[-1]
        os.kill(new, signal.SIGSTOP)
        load.more(3000)
        os.kill(new, signal.SIGKILL)
        assert "ended with signal SIGKILL before it was ready" in "".join(lines)
        load.more(100)
    assert load.failed == []
    assert load.turned_away == []


def test_a_stop_during_a_reload_ends_both(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    before = children(proxy)
    os.kill(proxy.pid, signal.SIGHUP)
    until(lambda: children(proxy) != before, "the new generation has begun")
    every = children(proxy)
    os.kill(proxy.pid, signal.SIGTERM)
    assert proxy.wait() == 0
    assert all(is_gone(pid) for pid in every)
    proxy.wait_for("proxy.reload_failed", error="the proxy was stopped meanwhile")


def test_a_supervisor_that_is_killed_during_a_reload_leaves_nobody(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites)
    before = children(proxy)
    os.kill(proxy.pid, signal.SIGHUP)
    until(lambda: children(proxy) != before, "the new generation has begun")
    every = children(proxy)
    os.kill(proxy.pid, signal.SIGKILL)
    until(lambda: all(is_gone(pid) for pid in every), "all children have left")


def children(proxy: Proxy, part: str = "") -> list[int]:
    """The processes of all generations, or the workers or the certifiers among them."""
    pids = map(int, Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split())
    return sorted(pid for pid in pids if f"tlsproxy.runtime.{part}".encode() in _command(pid))


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def following_failure(proxy: Proxy) -> Iterator[Iterator[str]]:
    """Run `admin reload`, which must fail, and yield what it says, at once and in the end."""
    command = [sys.executable, "-m", "tlsproxy", "admin", "reload", "--socket", str(proxy.folder / "admin.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        yield iter(process.stdout)
        assert process.wait(PATIENCE) == 1
