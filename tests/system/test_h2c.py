"""`h2c://` backends in earnest: many requests at once on few connections, and servers that leave while they are asked.

That every server is spoken to rightly is asked in test_servers; here it is what multiplexing adds.
"""

from __future__ import annotations

import itertools
import os
import signal
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.system.running import PATIENCE, Proxy, Server, free_port, running_proxy, until, write_pair

pytestmark = pytest.mark.system

APP = "tests.system.apps.everything:app"
GRANIAN = ("granian", "--interface", "asgi", "--log-level", "warning", APP, "--port")
HYPERCORN = ("hypercorn", APP, "--bind")
names = (f"run-{number}" for number in itertools.count())


class Farm:
    """Servers of one kind behind a proxy."""

    def __init__(self, folder: Path, command: Sequence[str], count: int, authority: trustme.CA, trust: ssl.SSLContext):
        self._stack = ExitStack()
        self._folder = folder
        self._command = (str(Path(sys.executable).with_name(command[0])), *command[1:])
        self.ports = [free_port() for _ in range(count)]
        self.servers = [self.start(port) for port in self.ports]
        backends = ", ".join(f'"h2c://127.0.0.1:{port}"' for port in self.ports)
        site = f"""
            [[sites]]
            hosts = ["localhost"]
            certificate = {write_pair(folder, authority, "localhost")}
            backends = [{backends}]
        """
        self.proxy: Proxy = self._stack.enter_context(running_proxy(folder, trust, site))

    def start(self, port: int) -> Server:
        where = str(port) if self._command[-1] == "--port" else f"127.0.0.1:{port}"
        server = Server((*self._command, where), f"http://127.0.0.1:{port}", self._folder / next(names))
        self._stack.callback(server.stop)
        return server

    def stop(self) -> None:
        self._stack.close()

    def connections(self) -> int:
        """How many the proxy has to these servers now."""
        table = Path(f"/proc/{self.proxy.pid}/net/tcp").read_text().splitlines()
        ends = tuple(f":{port:04X} 01" for port in self.ports)
        return sum(any(end in line for end in ends) for line in table)


@pytest.fixture
def farm(
    request: pytest.FixtureRequest, tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext
) -> Iterator[Farm]:
    command, count = request.param
    farm = Farm(tmp_path, command, count, authority, trust)
    yield farm
    farm.stop()


class Crowd:
    """Clients in threads, each on a connection of its own, half of them posting; `statuses` of all answers."""

    def __init__(self, proxy: Proxy, clients: int, requests: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._proxy = proxy
        self._requests = requests
        self._lock = threading.Lock()
        self._pool = futures.ThreadPoolExecutor(clients)
        self._done = [self._pool.submit(self._work, number) for number in range(clients)]

    @property
    def answered(self) -> int:
        return self.statuses.total()

    def finish(self) -> None:
        for each in self._done:
            each.result(PATIENCE * 3)
        self._pool.shutdown()

    def _work(self, number: int) -> None:
        with self._proxy.client(http2=number % 4 > 1) as client:
            for turn in range(self._requests):
                if number % 2:
                    answer = client.post("/json", json=[number, turn])
                    assert answer.status_code != 200 or answer.json() == [number, turn]
                else:
                    answer = client.get("/hello")
                with self._lock:
                    self.statuses[answer.status_code] += 1


@pytest.mark.parametrize("farm", [(GRANIAN, 1), (HYPERCORN, 1)], indirect=True, ids=["granian", "hypercorn"])
def test_many_requests_share_few_connections(farm: Farm) -> None:
    """More than hypercorn answers on one connection, too."""
    crowd = Crowd(farm.proxy, clients=16, requests=100)

    until(lambda: crowd.answered > 1400, "most requests are answered")
    assert farm.connections() < 2 * 4  # seen from both ends
    crowd.finish()

    assert crowd.statuses == {200: 1600}


@pytest.mark.parametrize("farm", [(GRANIAN, 2)], indirect=True, ids=["granian"])
def test_a_server_that_leaves_in_order_takes_no_request_with_it(farm: Farm) -> None:
    crowd = Crowd(farm.proxy, clients=8, requests=200)
    until(lambda: crowd.answered > 300, "the crowd is at work")

    os.kill(farm.servers[0].pid, signal.SIGTERM)
    crowd.finish()

    assert crowd.statuses == {200: 1600}


@pytest.mark.parametrize("farm", [(GRANIAN, 1), (HYPERCORN, 1)], indirect=True, ids=["granian", "hypercorn"])
def test_a_server_is_asked_again_as_soon_as_it_is_back(farm: Farm) -> None:
    with farm.proxy.client() as client:
        assert client.get("/hello").status_code == 200
        farm.servers[0].stop()
        assert client.get("/hello").status_code == 502
        farm.start(farm.ports[0])
        assert client.post("/json", json=[1]).status_code == 200
