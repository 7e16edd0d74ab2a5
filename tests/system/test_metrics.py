"""Metrics of a real proxy: right across workers, their deaths and reloads; deaf to what strangers make up."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

from tests.system.commands import admin
from tests.system.conftest import StartProxy
from tests.system.running import PATIENCE, Proxy, free_port, running_proxy, until, write_pair
from tests.system.scraping import Scrape, get_from_socket, scrape

pytestmark = pytest.mark.system

REQUESTS = "tlsproxy_requests_total"


@pytest.fixture
def sites(app: str, tmp_path: Path, authority: trustme.CA) -> str:
    pair = write_pair(tmp_path, authority, "localhost", "other.test")
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {pair}
        backends = ["{app}"]
        [[sites]]
        hosts = ["other.test"]
        certificate = {pair}
        backends = ["{app}"]
    """


def ask(proxy: Proxy, count: int, path: str = "/hello") -> None:
    """One connection and handshake each, so that every worker gets some."""
    for _ in range(count):
        client = proxy.connection()
        client.request("GET", path)
        client.getresponse().read()
        client.close()


def kill_workers(proxy: Proxy) -> None:
    """kill -9, one after the other; return when all have a successor."""
    for worker in proxy.workers():
        before = proxy.count("worker.replaced")
        os.kill(worker, signal.SIGKILL)
        until(lambda seen=before: proxy.count("worker.replaced") > seen, f"worker {worker} is replaced")  # type: ignore[misc]


def assert_never_back(seen: Sequence[Scrape]) -> None:
    fallen = [now.fallen_since(before) for before, now in pairwise(seen)]
    assert [each for each in fallen if each] == []


def answered(seen: Scrape) -> float:
    return seen.sum(REQUESTS, site="localhost", status="200")


def test_nothing_is_lost_or_counted_twice(start_proxy: StartProxy, sites: str) -> None:
    """What was scraped is safe: workers may be killed, generations and supervisors may come and go."""
    proxy = start_proxy(sites, workers=2)
    ask(proxy, 12)
    seen = [scrape(proxy)]
    assert answered(seen[0]) == 12
    kill_workers(proxy)
    ask(proxy, 5)
    seen.append(scrape(proxy))
    assert answered(seen[1]) == 17
    assert seen[1].sum("tlsproxy_process_deaths_total", role="worker") == 2
    admin(proxy, "reload")
    ask(proxy, 3)
    seen.append(scrape(proxy))
    assert answered(seen[2]) == 20
    assert seen[2].sum("tlsproxy_request_duration_seconds_count", site="localhost") == 20
    assert seen[2].sum("tlsproxy_backend_duration_seconds_count", site="localhost") == 20
    assert seen[2].sum("tlsproxy_tls_handshakes_total", result="ok") == 20
    assert (seen[2].sum("tlsproxy_generation"), seen[2].sum("tlsproxy_reloads_total", result="ok")) == (2, 1)
    assert seen[2].sum("tlsproxy_workers") == seen[2].sum("tlsproxy_workers_wanted") == 2
    admin(proxy, "upgrade")
    ask(proxy, 2)
    seen.append(scrape(proxy))
    assert answered(seen[3]) == 22
    assert seen[3].sum("tlsproxy_start_time_seconds") == seen[0].sum("tlsproxy_start_time_seconds")
    assert_never_back(seen)


@contextlib.contextmanager
def pressed(proxy: Proxy) -> Iterator[list[int]]:
    """Meanwhile clients ask without a pause; yields how many answers came whole, per client."""
    answers, over = [0, 0, 0], threading.Event()

    def press(number: int) -> None:
        while not over.is_set():
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(proxy.connection()) as client,
            ):
                for _ in range(20):  # unless its worker is killed
                    client.request("GET", "/hello")
                    answers[number] += client.getresponse().read() != b""

    threads = [threading.Thread(target=press, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_counters_never_go_back_under_load(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites, workers=2)
    seen = [scrape(proxy)]
    with pressed(proxy) as answers:
        until(lambda: sum(answers) > 100, "some answers")
        os.kill(proxy.workers()[0], signal.SIGKILL)
        while not proxy.count("worker.replaced"):
            seen.append(scrape(proxy))
        os.kill(proxy.pid, signal.SIGHUP)
        while not proxy.count("proxy.reloaded"):
            seen.append(scrape(proxy))
    seen.append(scrape(proxy))
    assert_never_back(seen)
    assert 0 < answered(seen[-1]) <= sum(answers) + 40 * len(answers)


def test_no_stranger_makes_a_series(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites, workers=1, http="127.0.0.1:0")

    def strange(number: int) -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            proxy.open(f"made-up-{number}.test").close()
        with proxy.client() as client:
            client.get(f"/made/up/{number}", headers={"X-Tlsproxy-Route": f"/{number}", "User-Agent": f"me/{number}"})
            client.get("/hello", headers={"Host": f"made-up-{number}.test"})
            client.request("PROPFIND" if number % 2 else f"MADEUP{number}", "/hello")
        plain = http.client.HTTPConnection("127.0.0.1", proxy.http_port, timeout=PATIENCE)
        plain.request("GET", "/", headers={"Host": f"made-up-{number}.test"})
        plain.getresponse().read()
        plain.close()

    for number in range(2):
        strange(number)
    before = scrape(proxy)
    for number in range(2, 10):
        strange(number)
    after = scrape(proxy)
    assert after.samples.keys() == before.samples.keys()
    assert after.values(REQUESTS, "site") == {"localhost", "other"}
    assert after.values(REQUESTS, "method") == {"GET", "other"}
    assert after.sum("tlsproxy_tls_unknown_sni_total") == 10
    assert b"made" not in repr(after.samples).encode()


def test_a_worker_that_hangs_holds_no_scrape(start_proxy: StartProxy, sites: str) -> None:
    proxy = start_proxy(sites, workers=2)
    first, second = proxy.workers()
    with proxy.alone(first):
        ask(proxy, 2)
    with proxy.alone(second), contextlib.closing(proxy.connection()) as client:
        before = scrape(proxy)
        os.kill(first, signal.SIGSTOP)
        try:
            client.request("GET", "/hello")
            client.getresponse().read()
            seen = scrape(proxy)
        finally:
            os.kill(first, signal.SIGCONT)
    assert (answered(before), answered(seen), seen.fallen_since(before)) == (2, 3, {})


def test_certificates_and_backends_are_shown(start_proxy: StartProxy, sites: str, app: str) -> None:
    proxy = start_proxy(sites, workers=2)
    ask(proxy, 1)
    seen = scrape(proxy)
    name = "tlsproxy_certificate_not_after_seconds"
    assert seen.values(name, "name") == {"file/localhost", "file/other.test"}
    life = seen.sum(name) - seen.sum("tlsproxy_certificate_not_before_seconds")
    assert life == 2 * 90 * 86400
    assert seen.sum("tlsproxy_certificates", status="valid") == 2
    assert seen.sum("tlsproxy_backend_up", site="localhost", backend=app) == 1
    assert seen.sum("tlsproxy_process_resident_memory_bytes", role="worker") > 1 << 20


class TestPort:
    @pytest.fixture
    def port(self) -> int:
        return free_port()

    @pytest.fixture
    def proxy(self, tmp_path: Path, trust: ssl.SSLContext, sites: str, port: int) -> Iterator[Proxy]:
        before = ["env", f"TLSPROXY_ADMIN__METRICS=127.0.0.1:{port}"]
        with running_proxy(tmp_path, trust, sites, before=before) as proxy:
            yield proxy

    def ask(self, port: int, target: str, method: str = "GET") -> tuple[int, str]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request(method, target, headers={"Host": "metrics.example"})
        answer = client.getresponse()
        body = answer.read().decode()
        client.close()
        return answer.status, body

    def test_it_has_what_the_socket_has_and_nothing_more(self, proxy: Proxy, port: int) -> None:
        ask(proxy, 2)
        status, body = self.ask(port, "/metrics")
        assert (status, answered(Scrape(body))) == (200, 2)
        named = {line.split("{")[0].split(" ")[0] for line in body.splitlines() if line[:1] != "#"}
        on_socket = get_from_socket(proxy.folder / "admin.sock", "/metrics")
        assert named == {line.split("{")[0].split(" ")[0] for line in on_socket.splitlines() if line[:1] != "#"}
        assert self.ask(port, "/healthz")[0] == 200
        for target, method in (("/status", "GET"), ("/certs", "GET"), ("/reload", "POST"), ("/stop", "POST")):
            assert self.ask(port, target, method)[0] == 404
        promtool = shutil.which("promtool")
        if promtool is not None:
            command = [promtool, "check", "metrics"]
            said = subprocess.run(command, input=body.encode(), capture_output=True, timeout=30)
            assert (said.returncode, said.stdout + said.stderr) == (0, b"")

    def test_a_port_that_is_taken_keeps_it_from_starting(self, proxy: Proxy, port: int, tmp_path: Path) -> None:
        config = tmp_path / "second.toml"
        config.write_text((proxy.folder / "tlsproxy.toml").read_text().replace("admin.sock", "second.sock"))
        said = subprocess.run(
            [sys.executable, "-m", "tlsproxy", "run", "--config", config],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TLSPROXY_ADMIN__METRICS": f"127.0.0.1:{port}"},
        )
        assert said.returncode != 0
        assert f"admin.metrics: cannot listen on 127.0.0.1:{port}: the port is taken by" in said.stderr
        assert self.ask(port, "/healthz")[0] == 200
