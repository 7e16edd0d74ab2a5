"""What months bring: every process dies once, the clock jumps, connections come and go by the ten thousand.

Nothing of that may be lost on clients, nor stay behind in a process. `TLSPROXY_TEST_CONNECTIONS=100000` makes the last
test as long as docs/soak.md tells it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from tests.system.attacked import site_of
from tests.system.conftest import StartProxy
from tests.system.pressure import Application, Load, cpu_seconds, descriptors, is_gone, resident
from tests.system.running import Proxy, running_proxy, until, write_pair
from tests.system.test_faults_certificates import at

pytestmark = pytest.mark.system

CONNECTIONS = int(os.environ.get("TLSPROXY_TEST_CONNECTIONS", "6000"))
MIB = 1 << 20


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    application = Application(tmp_path_factory.mktemp("app"))
    yield application.url
    application.kill()


@pytest.fixture
def site(tmp_path: Path, authority: trustme.CA, app: str) -> str:
    return site_of(write_pair(tmp_path, authority, "localhost"), app)


def child(proxy: Proxy, role: str) -> int:
    pids = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
    return next(int(p) for p in pids if f"tlsproxy.runtime.{role}".encode() in Path(f"/proc/{p}/cmdline").read_bytes())


def test_every_process_is_killed_in_turn_under_load(start_proxy: StartProxy, site: str) -> None:
    """The certifier's death costs nobody anything, a worker's only its own clients, the supervisor's nobody."""
    proxy = start_proxy(site, workers=2)
    with Load(proxy, 8, "/wait/5") as load:
        load.more(50)
        os.kill(child(proxy, "certifier"), signal.SIGKILL)
        proxy.wait_for("certifier.replaced")
        load.more(100)
        assert load.failed == []
        for _ in range(2):
            before, lost = set(proxy.workers()), len(load.failed)
            os.kill(min(before), signal.SIGKILL)
            until(lambda known=before: set(proxy.workers()) - known, "another worker")  # type: ignore[misc]
            until(lambda: proxy.count("worker.replaced") > 0, "the slot is served again")
            load.more(100)
            assert len(load.failed) - lost <= 8  # one request of each client, if the dead one had them all
        lost, workers = len(load.failed), proxy.workers()
        os.kill(proxy.pid, signal.SIGKILL)
        load.join()
    assert len(load.failed) == lost
    assert proxy.wait() == -signal.SIGKILL
    until(lambda: all(map(is_gone, workers)), "the workers have left")


def test_a_clock_that_jumps_times_nobody_out(tmp_path: Path, trust: ssl.SSLContext, site: str) -> None:
    """Ninety days on, then back beyond the start: deadlines go by another clock, and nothing spins."""
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    with running_proxy(tmp_path, trust, site, before=at(clock)) as proxy, Load(proxy, 4, "/wait/5") as load:
        load.more(50)
        for jump in (timedelta(days=91), timedelta(days=-2), timedelta(0)):
            fresh = clock.with_suffix(".new")
            fresh.write_text(f"{jump.total_seconds():+.0f}\n")
            fresh.replace(clock)
            (worker,) = proxy.workers()
            began, answered = cpu_seconds(worker), load.answered
            load.more(200)
            spent = (cpu_seconds(worker) - began) / (load.answered - answered)
            print(f"{jump}: {spent * 1000:.2f} ms of CPU a request")
        assert load.failed == []
        assert load.turned_away == []
        assert proxy.count("worker.replaced") == 0


@pytest.mark.skipif(not shutil.which("ab"), reason="ab is not installed (Debian package apache2-utils)")
def test_connections_that_came_and_went_leave_nothing_behind(start_proxy: StartProxy, site: str) -> None:
    """A connection for each request, until there were enough: descriptors as before, memory nearly."""
    proxy = start_proxy(site)
    (worker,) = proxy.workers()
    family = (worker, proxy.pid, child(proxy, "certifier"))
    files = {pid: descriptors(pid) for pid in family}
    connections(proxy, 1000)  # caches and pools fill once
    until(lambda: descriptors(worker) == files[worker], "it has come to rest")
    memory = {pid: resident(pid) for pid in family}
    connections(proxy, CONNECTIONS)
    until(lambda: {pid: descriptors(pid) for pid in family} == files, "all descriptors are free again")
    grown = {pid: (resident(pid) - memory[pid]) / MIB for pid in family}
    print(f"{CONNECTIONS} connections: grown by {', '.join(f'{growth:.2f}' for growth in grown.values())} MiB")
    assert all(growth < 8 for growth in grown.values())


def connections(proxy: Proxy, count: int) -> None:
    """Have ab open so many TLS connections, each for one request; all must be answered."""
    url = f"https://localhost:{proxy.port}/pid"
    said = subprocess.run(["ab", "-q", f"-n{count}", "-c16", url], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"Complete requests: +{count}\n", said), said
    assert re.search(r"Failed requests: +0\n", said), said
    assert "Non-2xx" not in said, said
