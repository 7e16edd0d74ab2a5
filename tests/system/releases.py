"""Releases of an application in processes of their own (uvicorn), to be put behind a proxy and taken away again."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.system.running import Proxy, Server, free_port

APP = "tests.system.apps.released:app"
COMMANDS = {
    "uvicorn": ("uvicorn", APP, "--log-level", "warning", "--port"),
    "hypercorn": ("hypercorn", APP, "--log-level", "warning", "--bind"),
    "granian": ("granian", APP, "--interface", "asgi", "--log-level", "warning", "--port"),
    "gunicorn": ("gunicorn", APP, "-k", "asgi", "--log-level", "warning", "--bind"),
}


class Release:
    """A server that is started at once; `sick` is the file that makes it ill."""

    def __init__(self, folder: Path, name: str, *, port: int = 0, server: str = "uvicorn", sick: bool = False) -> None:
        self.name = name
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.sick = folder / f"{name}.sick"
        if sick:
            self.sick.touch()
        *command, option = COMMANDS[server]
        at = f"127.0.0.1:{self.port}" if option == "--bind" else str(self.port)
        environment = {"RELEASE": name, "SICK": str(self.sick)}
        self._server = Server(
            [sys.executable, "-m", *command, option, at],
            self.url,
            folder / f"{name}.log",
            {**os.environ, **environment},
        )

    def stop(self) -> None:
        self._server.stop()


@contextlib.contextmanager
def released(folder: Path, *names: str) -> Iterator[list[Release]]:
    """These releases, and whatever the block adds to the list; all are stopped at the end."""
    running: list[Release] = []
    try:
        running += [Release(folder, name) for name in names]
        yield running
    finally:
        for release in running:
            release.stop()


def asked(proxy: Proxy, times: int = 1) -> set[str]:
    """Return which releases answer; every answer is good."""
    found = set()
    with proxy.client() as client:
        for _ in range(times):
            answer = client.get("/hello")
            assert answer.status_code == 200, answer.text
            found.add(answer.headers["X-Release"])
    return found
