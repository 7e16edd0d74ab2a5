"""What the system tests share: an authority, a proxy with a configuration, and servers behind it."""

from __future__ import annotations

import contextlib
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import trustme

from tests.system.running import Proxy, Server, client_context, free_port, running_proxy

APP = "tests.system.apps.everything:app"


class StartProxy(Protocol):
    def __call__(self, sites: str, *, head: str = "", workers: int = 1, http: str = "", drain: str = "1s") -> Proxy: ...


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The CA of the files; clients trust it and nobody else."""
    return trustme.CA()


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    return client_context(authority)


@pytest.fixture
def start_proxy(tmp_path: Path, trust: ssl.SSLContext) -> Iterator[StartProxy]:
    """Start `tlsproxy run` with the given sites in `tmp_path`; it is stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(sites: str, *, head: str = "", workers: int = 1, http: str = "", drain: str = "1s") -> Proxy:
            return stack.enter_context(
                running_proxy(tmp_path, trust, sites, head=head, workers=workers, http=http, drain=drain)
            )

        yield start


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the application, served by uvicorn."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", APP, "--port", str(port), "--log-level", "warning"]
    server = Server(command, f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("app") / "log")
    yield server.address
    server.stop()
