"""A worker that lives and does nothing (kill -STOP): its slot goes to another one, then it is ended and replaced."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
import trustme

from tests.system.attacked import site_of
from tests.system.conftest import StartProxy
from tests.system.pressure import Load, client_ports, is_gone
from tests.system.running import until, write_pair

pytestmark = pytest.mark.system

LONG = 60.0  # seconds: it has twenty to answer in


@pytest.fixture
def site(tmp_path: Path, authority: trustme.CA, app: str) -> str:
    return site_of(write_pair(tmp_path, authority, "localhost"), app)


def test_a_stopped_worker_is_set_aside_then_replaced(start_proxy: StartProxy, site: str) -> None:
    """Those it holds are lost with it, as with one that dies; new ones are served by others long before that."""
    proxy = start_proxy(site, workers=2)
    victim, survivor = proxy.workers()
    os.kill(victim, signal.SIGSTOP)
    try:
        until(lambda: proxy.count("worker.silent", child=victim) == 1, "it is found to be silent", LONG)
        with Load(proxy, 8, "/hello", keep_alive=False) as load:
            load.more(300)
        # Connections that were queued for it before are accepted by the other one, too.
        assert load.failed == []
        assert load.turned_away == []
        until(lambda: proxy.count("worker.hung", child=victim) == 1, "it is ended", LONG)
        until(lambda: proxy.count("worker.replaced") == 1, "another one takes its place", LONG)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
    assert is_gone(victim)
    assert survivor in proxy.workers()
    with Load(proxy, 8, "/hello") as load:
        load.more(50)
        until(lambda: all(client_ports(pid, proxy.port) for pid in proxy.workers()), "both serve")
    assert load.failed == []


def test_a_worker_that_wakes_in_time_goes_on(start_proxy: StartProxy, site: str) -> None:
    proxy = start_proxy(site, workers=2)
    victim, _ = proxy.workers()
    with Load(proxy, 8, "/hello", keep_alive=False) as load:
        until(lambda: client_ports(victim, proxy.port), "it serves")
    os.kill(victim, signal.SIGSTOP)
    until(lambda: proxy.count("worker.silent", child=victim) == 1, "it is found to be silent", LONG)
    os.kill(victim, signal.SIGCONT)
    until(lambda: proxy.count("worker.back", child=victim) == 1, "it is heard again", LONG)
    assert proxy.wait_for("worker.stalled")["seconds"] > 1
    with Load(proxy, 8, "/hello") as load:
        load.more(50)
        until(lambda: client_ports(victim, proxy.port), "it gets connections")
    assert load.failed == []
    assert proxy.count("worker.hung") == 0
