"""Requests that wait instead of failing, with real servers and clients that never stop asking.

Nothing a client has asked for may be lost: not by a server that is started anew, not by a pause.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import StartProxy
from tests.system.http2_client import Http2Client
from tests.system.pressure import Load
from tests.system.running import PATIENCE, ROOT, Proxy, Server, free_port, until, write_pair
from tlsproxy.runtime.adminclient import AdminClient

pytestmark = pytest.mark.system

_PROGRAM = """
import sys, uvicorn
from tests.system.apps.counted import app
print("prepared", flush=True)
sys.stdin.readline()
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


class Uvicorn:
    """uvicorn in a process that has loaded everything and serves when it is told to: a deploy with a short gap."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "prepared\n"

    def serve(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self, by: signal.Signals) -> None:
        self._process.send_signal(by)
        self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def uvicorns(port: int) -> Iterator[Iterator[Uvicorn]]:
    """One after the other, all on this port."""
    with contextlib.ExitStack() as stack:

        def prepare() -> Iterator[Uvicorn]:
            while True:
                server = Uvicorn(port)
                stack.callback(server.close)
                yield server

        yield prepare()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[str]]:
    """Two servers of one application."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(2):
            port = free_port()
            command = [sys.executable, "-m", "uvicorn", "tests.system.apps.counted:app", "--port", str(port)]
            server = Server([*command, "--log-level", "warning"], f"http://127.0.0.1:{port}", tmp_path / f"log{number}")
            stack.callback(server.stop)
            found.append(server.address)
        yield found


def site(folder: Path, authority: trustme.CA, backends: list[str], more: str) -> str:
    return f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(folder, authority, "localhost")}
        backends = {backends!r}
        {more}
    """


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_only_server_loses_no_request(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, by: signal.Signals
) -> None:
    """Whether it is asked to end or killed with requests in hand.

    uvicorn writes head and body of an answer one after the other: what is killed between the two can only be cut.
    """
    port = free_port()
    with uvicorns(port) as prepared:
        serving = next(prepared)
        serving.serve()
        proxy = start_proxy(site(tmp_path, authority, [f"http://127.0.0.1:{port}"], 'hold = "5s"'), workers=2)
        until(lambda: _answers(proxy), "the first answer")
        with Load(proxy, 16, "/") as load:
            for _ in range(3):
                following = next(prepared)
                load.more(100)
                serving.end(by)
                following.serve()
                serving = following
                load.more(100)
        cut = [each for each in load.failed if by is signal.SIGKILL and "IncompleteRead" in each.why]
        assert (load.failed, load.turned_away) == (cut, [])
        until(lambda: len(_cut(proxy)) == len(cut), f"a line for each of {cut}")
        assert len({body.split()[0] for body in load.bodies}) == 4


def _cut(proxy: Proxy) -> list[str]:
    """What the proxy says of answers whose server ended within them."""
    errors = [line.get("error", "") for line in proxy.request_lines()]
    return [error for error in errors if "in the middle of the answer" in error]


def test_a_pause_under_load_loses_no_request(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, servers: list[str]
) -> None:
    proxy = start_proxy(site(tmp_path, authority, servers, ""), workers=2)
    operator = AdminClient(proxy.folder / "admin.sock", patience=PATIENCE)
    with Load(proxy, 16, "/") as load:
        for _ in range(3):
            load.more(100)
            operator.post("sites", "localhost", "pause", options={"for": "60s"})
            until(lambda: all(row["active"] == 0 for row in operator.get("backends")), "what was under way has ended")
            before = load.answered
            assert [row["paused_for"] > 0 for row in operator.get("sites")] == [True]
            assert load.answered - before < 16  # whose last answers were under way to them
            operator.post("sites", "localhost", "resume")
        load.more(100)
    assert (load.failed, load.turned_away) == ([], [])


def test_a_server_never_has_more_requests_than_it_may(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, servers: list[str]
) -> None:
    """Over all workers, of HTTP/1.1 and HTTP/2; and all are answered."""
    more = 'max_requests = 4\n queue = 1000\n queue_timeout = "60s"'
    proxy = start_proxy(site(tmp_path, authority, servers[:1], more), workers=2)
    with Load(proxy, 24, "/", keep_alive=True) as load:
        load.more(50)
        with contextlib.closing(Http2Client(proxy)) as client:
            streams = [client.request("/") for _ in range(50)]
            assert {client.wait(stream).status for stream in streams} == {200}
        load.more(200)
    assert load.failed == []
    assert max(int(body.split()[1]) for body in load.bodies) <= 4


def test_a_client_meets_the_same_server_in_every_worker(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, servers: list[str]
) -> None:
    proxy = start_proxy(site(tmp_path, authority, servers, 'sticky = "who"'), workers=2)
    found = set()
    with proxy.client() as client:
        first = client.get("/")
        cookie = first.headers["set-cookie"].partition(";")[0]
    for _ in range(15):
        with proxy.client() as client:
            answer = client.get("/", headers={"Cookie": cookie})
            assert "set-cookie" not in answer.headers
            found.add(answer.text.split()[0])
    assert found == {first.text.split()[0]}


def _answers(proxy: Proxy) -> bool:
    client = proxy.connection()
    with contextlib.closing(client):
        client.request("GET", "/")
        return client.getresponse().status == 200
