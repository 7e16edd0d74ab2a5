"""Loaded by every Python of a proxy under test (PYTHONPATH): holds the certifier up where it changes its store.

HELD_AT is an audit event (PEP 578, raised before the call does anything) and a piece of a path, as in
`os.rename certificates/acme%2fa.test.json`. When it comes, this process connects to 127.0.0.1:HELD_PORT and waits until
that connection ends. Once in each process; whoever listens lets the later ones pass.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any


def _hold(where: str, port: int) -> None:
    wanted, _, path = where.partition(" ")
    is_done = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_done
        if is_done or event != wanted:
            return
        # os.rename: source, target and a descriptor of the folder of each, -1 for none; os.remove: path, descriptor
        name, folder = (arguments[1], arguments[3]) if event == "os.rename" else arguments
        place = Path(name) if folder == -1 else Path(f"/proc/self/fd/{folder}").readlink() / name
        if path not in f"{place}":
            return
        is_done = True
        with socket.create_connection(("127.0.0.1", port), 60) as held:
            held.recv(1)

    sys.addaudithook(hook)


if "tlsproxy.runtime.certifier" in sys.orig_argv:
    _hold(os.environ["HELD_AT"], int(os.environ["HELD_PORT"]))
