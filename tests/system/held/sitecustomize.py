"""Loaded by every Python of a proxy under test (PYTHONPATH): holds the certifier up where it changes its store.

HELD_AT is an audit event (PEP 578, raised before the call does anything) and a piece of a path, as in
`os.rename certificates/acme%2fa.test.json`. When it comes, this process connects to 127.0.0.1:HELD_PORT and waits until
that connection ends. Once in each process; whoever listens lets the later ones pass.
"""

import os
import socket
import sys


def _hold(place: str, port: int) -> None:
    wanted, _, path = place.partition(" ")
    is_done = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal is_done
        if is_done or event != wanted:
            return
        # os.rename: source, target, two descriptors; os.remove: path, descriptor
        target = arguments[1] if event == "os.rename" else arguments[0]
        if not isinstance(target, str | os.PathLike) or path not in os.fspath(target):
            return
        is_done = True
        with socket.create_connection(("127.0.0.1", port), 60) as held:
            held.recv(1)

    sys.addaudithook(hook)


if "tlsproxy.runtime.certifier" in sys.orig_argv:
    _hold(os.environ["HELD_AT"], int(os.environ["HELD_PORT"]))
