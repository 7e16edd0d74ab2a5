"""The lease of a certificate, and a certifier that dies with it in its hands."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.running import until
from tlsproxy.certs.leasing import LIFE
from tlsproxy.store.base import open_store

NAME = "acme/a.test"
CERTIFIER = """
import asyncio, sys
from tlsproxy.certs.dns.exec import ExecProvider
from tlsproxy.certs.leasing import holding
from tlsproxy.certs.tools import Tools
from tlsproxy.store.base import open_store

async def work() -> None:
    tools = Tools.make(open_store(sys.argv[1]))
    async with holding(tools, "acme/a.test") as lease:
        assert lease
        await tools.in_thread(ExecProvider([sys.argv[2]]).create, "_acme-challenge.a.test", "value")

asyncio.run(work())
"""


@pytest.mark.system
def test_a_killed_certifier_is_not_waited_for_though_its_hook_runs_on(tmp_path: Path) -> None:
    """What it has started has none of its open files, so the kernel unlocks the lease."""
    hook, started, url = tmp_path / "hook", tmp_path / "started", f"file://{tmp_path / 'store'}"
    hook.write_text(f'#!/bin/sh\necho $$ > "{started}.new" && mv "{started}.new" "{started}"\nexec sleep 300\n')
    hook.chmod(0o755)
    store = open_store(url)
    with subprocess.Popen([sys.executable, "-c", CERTIFIER, url, str(hook)]) as certifier:
        try:
            until(started.exists, "the hook runs")
            assert store.acquire(NAME, LIFE) is None
        finally:
            certifier.kill()
    child = int(started.read_text())
    try:
        os.kill(child, 0)
        lease = store.acquire(NAME, LIFE)
    finally:
        os.kill(child, signal.SIGKILL)
    assert lease
    assert lease.token == 2
