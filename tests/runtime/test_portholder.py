"""Reading /proc: a table in, inodes out; what cannot be known is None."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tlsproxy.runtime.portholder import find_port_holder, listening_inodes

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
   3: short
"""


@pytest.mark.parametrize(("port", "inodes"), [(8080, ["4711"]), (80, ["4713"]), (443, [])])
def test_only_listening_sockets_of_the_port_count(port: int, inodes: list[str]) -> None:
    assert listening_inodes(TABLE, port) == inodes


def test_the_holder_is_named() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        assert f"(pid {os.getpid()})" in str(find_port_holder(sock.getsockname()[1]))


def test_no_proc_no_name(tmp_path: Path) -> None:
    assert find_port_holder(443, tmp_path) is None
