"""Load that counts: honest clients in threads, and what the kernel says about a process while they ask.

A request counts as failed when its client had a connection, sent it, and did not get a whole answer with status 200. A
connection that was never established is not a failed request and is counted apart.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.running import PATIENCE, Proxy, Server, free_port, until

_ESTABLISHED = "01"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Failure:
    """A request that was sent and not answered with 200; `port` is the client's."""

    port: int
    why: str


class Load:
    """So many clients that ask for `path` without a pause, while the context lasts or until connects are refused.

    Half of them keep their connection, the others make a new one for each request (`keep_alive`: all keep it).
    """

    def __init__(self, proxy: Proxy, clients: int, path: str, *, keep_alive: bool = False) -> None:
        self._proxy = proxy
        self._path = path
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.answered = 0
        self.bodies: Counter[bytes] = Counter()
        self.failed: list[Failure] = []
        self.turned_away: list[str] = []
        self.slowest = 0.0
        self._threads = [
            threading.Thread(target=self._ask, args=(keep_alive or number % 2 == 0,)) for number in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def join(self) -> None:
        """Return when every client has given up."""
        for thread in self._threads:
            thread.join(PATIENCE * 2)

    def more(self, count: int) -> None:
        """Wait until so many more have been answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal, f"{count} more answers, {self.failed} {self.turned_away}")

    def _ask(self, keep_alive: bool) -> None:
        while not self._over.is_set():
            try:
                client = self._proxy.connection()
            except ConnectionRefusedError:
                self._over.set()
                return
            except OSError as error:
                with self._lock:
                    self.turned_away.append(repr(error))
                continue
            port = client.sock.getsockname()[1]
            try:
                self._converse(client, port, keep_alive=keep_alive)
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failed.append(Failure(port, repr(error)))
            finally:
                client.close()

    def _converse(self, client: http.client.HTTPConnection, port: int, *, keep_alive: bool) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            client.request("GET", self._path, headers={} if keep_alive else {"Connection": "close"})
            with contextlib.closing(client.getresponse()) as response:  # also if it is cut: it holds the socket
                closing = response.will_close
                body = response.read()
            with self._lock:
                self.slowest = max(self.slowest, time.monotonic() - began)
                if response.status == 200:
                    self.answered += 1
                    self.bodies[body] += 1
                else:
                    self.failed.append(Failure(port, f"{response.status} {body!r}"))
            if closing:
                return


class Application:
    """uvicorn with `apps.faults` on one port, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._log = folder / f"uvicorn-{self._port}.log"
        self.orders = folder / f"orders-{self._port}"
        self.url = f"http://127.0.0.1:{self._port}"
        self._server: Server | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "tests.system.apps.faults:app", "--port", str(self._port)]
        command += ["--log-level", "warning"]
        self._server = Server(command, self.url, self._log, {"ORDERS": str(self.orders)})

    def restart_if_dead(self) -> bool:
        """Return True when it lives."""
        assert self._server is not None
        if is_gone(self._server.pid):
            self._server.stop()
            self.start()
        return True

    def kill(self) -> None:
        """By SIGKILL: its kernel ends the connections, nothing else does."""
        if self._server is not None:
            os.kill(self._server.pid, signal.SIGKILL)
            self._server.stop()
            self._server = None


class Honest:
    """One client that asks now and then, on a new connection each time; remembers how long each answer took."""

    def __init__(self, proxy: Proxy, path: str) -> None:
        self._proxy = proxy
        self._path = path
        self.took: list[float] = []

    def ask(self) -> None:
        began = time.monotonic()
        with contextlib.closing(self._proxy.connection()) as client:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as http.client does by itself
            client.request("GET", self._path, headers={"Connection": "close"})
            response = client.getresponse()
            response.read()
        assert response.status == 200
        self.took.append(time.monotonic() - began)

    def said(self) -> str:
        ordered = sorted(self.took)
        median, slowest = ordered[len(ordered) // 2], ordered[-1]
        return f"{len(ordered)} answers, median {median * 1000:.0f} ms, slowest {slowest * 1000:.0f} ms"


def served_by(proxy: Proxy, worker: int, path: str) -> int:
    """Ask one worker on a connection of its own; return the status."""
    with proxy.alone(worker), contextlib.closing(proxy.connection()) as client:
        client.request("GET", path, headers={"Connection": "close"})
        response = client.getresponse()
        response.read()
        return response.status


def client_ports(pid: int, port: int) -> set[int]:
    """Return the client's port of every established connection that the process holds on its own `port`."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(str(entry.readlink()))
    rows = (row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    return {
        int(remote.rpartition(":")[2], 16)
        for _, local, remote, state, *rest in rows
        if state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port and f"socket:[{rest[5]}]" in held
    }


def has_died(proxy: Proxy, pid: int) -> bool:
    return pid not in proxy.workers()


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident(pid: int) -> int:
    rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return next(int(row[1]) * 1024 for row in rows if row[0] == "VmRSS:")


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie that nobody has reaped counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold the process still; it goes on at the end if it still lives."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T", f"{pid} is stopped")
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def mounted(mount: str) -> tuple[str, ...]:
    """A command that mounts in a namespace of its own and becomes what follows; skips where that is not permitted."""
    command = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here")
    return command


def as_mounted(pid: int, path: Path) -> Path:
    """Return where this process sees a file of the namespace that `pid` lives in."""
    return Path(f"/proc/{pid}/root{path}")
