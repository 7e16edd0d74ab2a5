"""Servers that do not believe X-Forwarded-Proto: the proxy says so, says how to mend it, and is right.

Each server is run as people run it by mistake, then as the log told them to; nothing else of its command changes.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.system.running import Proxy, Server, free_port, running_proxy, until, write_pair

pytestmark = pytest.mark.system

APP = "tests.system.apps.fixed:app"
NOBODY = ("--forwarded-allow-ips", "10.9.9.9")
DEAF = ("--no-proxy-headers",)


@dataclass(frozen=True)
class Mistake:
    """A server's command, and what comes behind the address it listens at."""

    name: str
    command: tuple[str, ...]
    unix: bool = False
    mistake: tuple[str, ...] = ()
    scheme: str = "http"

    @property
    def id(self) -> str:
        return f"{self.name}-{'unix' if self.unix else 'tcp'}{'-deaf' if self.mistake == DEAF else ''}"

    def start(self, address: str, log: Path, options: tuple[str, ...], fix: str = "") -> Server:
        server, rest = self.command[0], address.rpartition("/" if not self.unix else "unix:")[2]
        bind = {
            ("uvicorn", False): ("--port", rest.rpartition(":")[2]),
            ("uvicorn", True): ("--uds", rest),
            ("granian", False): ("--port", rest.rpartition(":")[2]),
            ("granian", True): ("--uds", rest),
        }.get((server, self.unix), ("--bind", address if self.unix else rest))
        binary = str(Path(sys.executable).with_name(server))
        at = address.replace("h2c://", "http://")
        return Server((binary, *self.command[1:], *bind, *options), at, log, {"FIX": fix})


UVICORN = ("uvicorn", APP, "--log-level", "warning")
GRANIAN = ("granian", "--interface", "asgi", "--log-level", "warning", APP)
MISTAKES = (
    Mistake("uvicorn", UVICORN, mistake=NOBODY),
    Mistake("uvicorn", UVICORN, unix=True),
    Mistake("uvicorn", UVICORN, mistake=DEAF),
    Mistake("uvicorn", UVICORN, unix=True, mistake=DEAF),
    Mistake("hypercorn", ("hypercorn", APP)),
    Mistake("hypercorn-h2c", ("hypercorn", APP), scheme="h2c"),
    Mistake("granian", GRANIAN),
    Mistake("granian", GRANIAN, unix=True),
    Mistake("gunicorn", ("gunicorn", APP, "-k", "asgi", "--log-level", "warning"), mistake=NOBODY),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downgrade")


@pytest.fixture(scope="module")
def addresses(folder: Path) -> dict[str, str]:
    return {
        each.id: f"unix:{folder}/{each.id}.sock" if each.unix else f"{each.scheme}://127.0.0.1:{free_port()}"
        for each in MISTAKES
    }


@pytest.fixture(scope="module")
def proxy(folder: Path, addresses: dict[str, str], authority: trustme.CA, trust: ssl.SSLContext) -> Iterator[Proxy]:
    names = [f"{each.id}{kind}.test" for each in MISTAKES for kind in ("", ".mended")]
    pair = write_pair(folder, authority, *names)
    sites = "".join(
        f"""
        [[sites]]
        hosts = ["{each.id}{kind}.test"]
        certificate = {pair}
        backends = ["{addresses[each.id]}"]
        repair_redirects = {str(bool(kind)).lower()}
        """
        for each in MISTAKES
        for kind in ("", ".mended")
    )
    with running_proxy(folder, trust, sites) as running:
        yield running


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_the_advice_for_each_server_is_right(
    mistake: Mistake, proxy: Proxy, folder: Path, addresses: dict[str, str]
) -> None:
    address, host = addresses[mistake.id], f"{mistake.id}.test"
    server = mistake.start(address, folder / "bad.log", mistake.mistake)
    try:
        with proxy.client(host) as client:
            assert client.get("/items").headers["location"] == f"http://{host}:{proxy.port}/items/"
        with proxy.client(f"{mistake.id}.mended.test") as client:
            location = client.get("/items").headers["location"]
            assert location == f"https://{mistake.id}.mended.test:{proxy.port}/items/"
    finally:
        server.stop()
    line = proxy.wait_for("backend.scheme_downgrade", backend=address)
    assert proxy.count("backend.scheme_downgrade", backend=address) == 1
    assert line["server"].startswith(mistake.command[0])
    assert _makes_it_believe(mistake, line["fix"], proxy, folder, address)


def _makes_it_believe(mistake: Mistake, fix: str, proxy: Proxy, folder: Path, address: str) -> bool:
    """Do what the log says, to the letter."""
    named = re.search(r"((?:--proxy-headers )?--forwarded-allow-ips) '?([^\s';,]+)", fix.partition("run it")[2])
    expression = re.search(r"wrapped: (.+\)) \(docs/", fix)
    assert (named is None) is not (expression is None), fix
    added = (*named[1].split(), named[2].rstrip(".")) if named else ()
    options = (*mistake.mistake, *added)  # of two contrary options the last one counts
    host = f"{mistake.id}.test"
    server = mistake.start(address, folder / "good.log", options, expression[1] if expression else "")
    try:
        with proxy.client(host) as client:
            until(lambda: client.get("/hello").status_code == 200, "the restarted server answers")
            location = client.get("/items").headers["location"]
        assert location == f"https://{host}:{proxy.port}/items/", server.said()
        return True
    finally:
        server.stop()
