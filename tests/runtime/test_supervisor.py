"""The supervisor's small parts; its whole life is in tests/system/test_processes.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tlsproxy.runtime import sockets
from tlsproxy.runtime.blueprint import https_addresses
from tlsproxy.runtime.host import reap_strangers
from tlsproxy.runtime.sockets import bind_listeners, close_listeners

pytestmark = pytest.mark.system


@pytest.fixture
def zombie() -> subprocess.Popen[bytes]:
    """A child that has ended and is not reaped."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


def test_orphans_are_reaped(zombie: subprocess.Popen[bytes]) -> None:
    reap_strangers(known=set())
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOHANG)
    zombie.wait()


def test_our_own_are_left_to_their_owner(zombie: subprocess.Popen[bytes]) -> None:
    reap_strangers(known={zombie.pid})
    assert os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    zombie.wait()


def test_nothing_to_reap_is_no_error() -> None:
    reap_strangers(known=set())


def test_the_certifier_is_told_where_https_really_is() -> None:
    everywhere = "[::]" if sockets._has_ipv6() else "0.0.0.0"
    listeners = bind_listeners(["127.0.0.1:0", ":0"], ["127.0.0.1:0"], slots=2)
    try:
        first, second = (each.socket.getsockname()[1] for each in listeners if (each.kind, each.slot) == ("https", 0))
        assert https_addresses(listeners) == (f"127.0.0.1:{first}", f"{everywhere}:{second}")
    finally:
        close_listeners(listeners)
