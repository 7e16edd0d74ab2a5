"""Processes that die or starve while they serve (docs/faults.md): what is lost is theirs alone, and what comes back.

The load is real: clients that never pause, half of them on connections they keep, half on a new one each time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import StartProxy
from tests.system.pressure import (
    Application,
    Load,
    client_ports,
    cpu_seconds,
    descriptors,
    has_died,
    is_gone,
    served_by,
    stopped,
)
from tests.system.running import CLIENT, PATIENCE, Proxy, until, write_pair

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def slow_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    application = Application(tmp_path_factory.mktemp("app"))
    yield application.url
    application.kill()


@pytest.fixture
def site(tmp_path: Path, authority: trustme.CA, slow_app: str) -> str:
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(tmp_path, authority, "localhost")}
        backends = ["{slow_app}"]
        templates = false  # asking for them takes a descriptor for a moment, and here all are counted
    """


def test_a_worker_killed_under_load_takes_only_its_own_connections(start_proxy: StartProxy, site: str) -> None:
    """It is stopped first, so that what it holds is known exactly; what waits in the listen queue is not lost."""
    proxy = start_proxy(site, workers=2)
    with Load(proxy, 16, "/wait/5") as load:
        until(lambda: all(client_ports(pid, proxy.port) for pid in proxy.workers()), "both have clients")
        load.more(100)
        victim, survivor = proxy.workers()
        with stopped(victim):
            own = client_ports(victim, proxy.port)
            os.kill(victim, signal.SIGKILL)
        replaced = proxy.wait_for("worker.replaced")
        load.more(300)
        until(lambda: client_ports(replaced["child"], proxy.port), "the new worker has clients")
    print(f"{load.answered} answered, {len(load.failed)} failed of {len(own)} that the worker held")
    assert {failure.port for failure in load.failed} <= own
    assert len(load.turned_away) + len(load.failed) <= len(own)
    assert load.failed
    assert survivor in proxy.workers()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_under_load_fails_no_request(start_proxy: StartProxy, site: str, number: signal.Signals) -> None:
    """SIGKILL of the supervisor is the same to the clients: the workers finish by themselves, and then leave."""
    proxy = start_proxy(site, workers=2)
    workers = proxy.workers()
    with Load(proxy, 16, "/wait/20") as load:
        load.more(200)
        os.kill(proxy.pid, number)
        load.join()
    code = proxy.wait()
    print(f"{load.answered} answered, {len(load.turned_away)} turned away before they could ask, exit {code}")
    assert load.failed == []
    assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    until(lambda: all(map(is_gone, workers)), "the workers have left")
    if number is signal.SIGTERM:
        assert proxy.count("proxy.stopped", cut=0, killed=[]) == 1


class TestOpenFiles:
    """`limits.connections` keeps a worker away from the limit; here it is told to believe in more than there is."""

    @pytest.fixture
    def proxy(self, start_proxy: StartProxy, site: str) -> Proxy:
        return start_proxy(site, head="limits = { connections = 10000 }")

    def test_running_out_is_said_once_waited_out_and_survived(self, proxy: Proxy) -> None:
        (worker,) = proxy.workers()
        with contextlib.closing(proxy.connection()) as known, contextlib.ExitStack() as stack:
            known.request("GET", "/pid")
            assert known.getresponse().read()
            before = descriptors(worker)
            self._limit(worker, before + 5)
            for _ in range(40):
                raw = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, (CLIENT, 0))
                stack.callback(raw.close)
            proxy.wait_for("listener.exhausted")
            began = cpu_seconds(worker)
            for _ in range(20):  # 20 requests on a connection that is open take longer than two tries to accept
                known.request("GET", "/wait/25")
                response = known.getresponse()
                response.read()
                assert response.status == 200
            spent = cpu_seconds(worker) - began
            print(f"{spent * 1000:.0f} ms of CPU while it waited for half a second")
            assert spent < 0.25
        with contextlib.closing(proxy.connection()) as late:
            late.request("GET", "/pid")
            assert late.getresponse().status == 200
        assert proxy.count("listener.exhausted") == 1

    def test_it_does_not_speak_against_the_backends(self, proxy: Proxy) -> None:
        """A client has the last descriptor, so its request can't be sent on; nobody is left alone for that."""
        (worker,) = proxy.workers()
        with contextlib.closing(proxy.connection()) as client:
            self._limit(worker, descriptors(worker))
            for _ in range(4):
                client.request("GET", "/pid")
                response = client.getresponse()
                response.read()
                assert response.status == 503
            self._limit(worker, 1000)
            client.request("GET", "/pid")
            response = client.getresponse()
            response.read()
            assert response.status == 200
        assert proxy.count("backend.left_alone") == 0

    @staticmethod
    def _limit(pid: int, count: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))


def test_a_worker_that_gets_no_more_memory_harms_no_other(tmp_path: Path, trust: ssl.SSLContext, site: str) -> None:
    """What it can't do fails, by handshakes or by its own death. With memory again, or replaced, it serves again."""
    config = tmp_path / "tlsproxy.toml"
    config.write_text(f"""
        listen = {{ https = ["127.0.0.1:0"], http = [] }}
        server = {{ workers = 2, drain = "1s" }}
        store = {{ url = "file://{tmp_path}/store" }}
        admin = {{ socket = "{tmp_path}/admin.sock" }}
        log = {{ format = "json", access = "off" }}
        {site}
    """)
    proxy = Proxy(config, trust)
    try:
        starved, healthy = proxy.workers() if proxy.wait_for("proxy.ready") else []
        resource.prlimit(starved, resource.RLIMIT_AS, (_address_space(starved), resource.RLIM_INFINITY))
        failed = 0
        with contextlib.ExitStack() as stack:
            for _ in range(250):
                try:
                    stack.enter_context(proxy.open())
                except OSError:
                    failed += 1
            assert served_by(proxy, healthy, "/pid") == 200
        assert failed
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(starved, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: len(proxy.workers()) == 2, "there are two workers")
        assert [served_by(proxy, worker, "/pid") for worker in proxy.workers()] == [200, 200]
        print(f"{failed} of 250 handshakes failed, the worker {'died' if has_died(proxy, starved) else 'lived on'}")
    finally:
        proxy.stop()


def _address_space(pid: int) -> int:
    rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return next(int(row[1]) * 1024 for row in rows if row[0] == "VmSize:")


def test_two_proxies_may_share_a_store(start_proxy: StartProxy, slow_app: str) -> None:
    """Two instances are not a mistake: both serve the certificate that one of them made."""
    internal = f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = "internal"
        backends = ["{slow_app}"]
    """
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    seen = set()
    for proxy in (start_proxy(internal), start_proxy(internal)):
        with proxy.open(context=blind) as client:
            seen.add(client.getpeercert(binary_form=True))
    assert len(seen) == 1
