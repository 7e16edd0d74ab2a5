"""Reloads of a real proxy, under clients that must not notice them, and with configurations that can't be served."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import trustme

from tests.system.commands import admin
from tests.system.conftest import StartProxy
from tests.system.regulars import conversing, multiplexing, pressing, returning
from tests.system.running import Proxy, write_pair

pytestmark = pytest.mark.system

RELOADS = int(os.environ.get("RELOADS", "8"))  # RELOADS=50 takes minutes


@pytest.fixture
def sites(app: str, tmp_path: Path, authority: trustme.CA) -> str:
    pair = write_pair(tmp_path, authority, "localhost", "127.0.0.1")
    return f'''
        [tls]
        default_host = "localhost"
        [[sites]]
        hosts = ["localhost", "127.0.0.1"]
        certificate = {pair}
        backends = ["{app}"]
    '''


def reload(proxy: Proxy) -> None:
    admin(proxy, "reload")


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
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
