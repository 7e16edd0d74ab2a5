"""`tlsproxy run` as an operator meets it: real processes, real signals, a real FastAPI application behind it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import trustme
import uvicorn
from fastapi import FastAPI

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Backend:
    """An application whose /hold answers when the test says so."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.release = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self._app(), log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        self.release.set()
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        self._socket.close()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        def hello() -> dict[str, str]:
            return {"hello": "world"}

        @app.get("/hold")
        def hold() -> dict[str, str]:
            self.arrived.release()
            self.release.wait(PATIENCE)
            return {"held": "yes"}

        return app


class Proxy:
    """A running `tlsproxy run`: its events, its children, a client for it."""

    def __init__(self, command: list[str], trust: ssl.SSLContext) -> None:
        self._trust = trust
        self._changed = threading.Condition()
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """Return the first event of that name and with these fields, once it is there."""

        wanted = {"event": event, **fields}

        def find() -> dict[str, Any] | None:
            return next((each for each in self.events if wanted.items() <= each.items()), None)

        with self._changed:
            assert self._changed.wait_for(lambda: find() is not None, PATIENCE), (
                f"no {wanted} in\n{''.join(self.lines)}"
            )
            found = find()
        assert found is not None
        return found

    @property
    def port(self) -> int:
        (listener,) = self.wait_for("proxy.ready")["listeners"]
        return int(listener.rpartition(":")[2])

    def children(self, module: str) -> list[int]:
        """Pids of the children that run this module, as the kernel knows them."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in pids if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def workers(self) -> list[int]:
        return self.children("tlsproxy.runtime.worker")

    def certifier(self) -> int:
        (pid,) = self.children("tlsproxy.runtime.certifier")
        return pid

    def connect(self) -> http.client.HTTPSConnection:
        client = http.client.HTTPSConnection("localhost", self.port, context=self._trust, timeout=PATIENCE)
        client.connect()
        return client

    def get(self, path: str = "/") -> int:
        """Return the status of one request on a connection of its own."""
        with contextlib.closing(self.connect()) as client:
            client.request("GET", path, headers={"Connection": "close"})
            response = client.getresponse()
            response.read()
            return response.status

    def wait_until_refusing(self) -> None:
        """Return when every process has closed its listener: all have heard that it is time to drain."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
            except ConnectionError:
                return
        raise TimeoutError("it goes on accepting")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code; everything it said has been read then."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        for pid in [*self._living_children(), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def _living_children(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [*self.children("tlsproxy.runtime.")]
        return []

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line)
                    with contextlib.suppress(json.JSONDecodeError):
                        self.events.append(json.loads(line))
                    self._changed.notify_all()


Run = Callable[..., Proxy]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def backend() -> Iterator[Backend]:
    running = Backend()
    yield running
    running.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter; pytest's own are for one user, and should stay so."""
    with tempfile.TemporaryDirectory(prefix="tlsproxy-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def write_config(folder: Path, authority: trustme.CA, backend: Backend) -> Callable[..., Path]:
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))

    def write(
        *, key_owner: str = "", server: str = "", listen: str = "127.0.0.1:0", log: str = "", more: str = ""
    ) -> Path:
        if key_owner:
            shutil.chown(folder / "key.pem", key_owner)
        path = folder / "tlsproxy.toml"
        path.write_text(f"""
            [listen]
            https = ["{listen}"]
            http = []
            [server]
            workers = 2
            {server}
            [store]
            url = "file://{folder}/store"
            [admin]
            socket = "{folder}/admin.sock"
            [log]
            format = "json"
            {log}
            [[sites]]
            hosts = ["localhost"]
            certificate = {{ chain = "chain.pem", key = "key.pem" }}
            backends = ["{backend.url}"]
            {more}
        """)
        return path

    return write


@pytest.fixture
def run(write_config: Callable[..., Path], authority: trustme.CA) -> Iterator[Run]:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    started: list[Proxy] = []

    def start(
        *, python: str = sys.executable, before: tuple[str, ...] = (), ready: bool = True, **config: str
    ) -> Proxy:
        command = [*before, python, "-m", "tlsproxy", "run", "--config", str(write_config(**config))]
        proxy = Proxy(command, trust)
        started.append(proxy)
        if ready:
            proxy.wait_for("proxy.ready")
        return proxy

    yield start
    for proxy in started:
        proxy.close()


class Held:
    """A request that has reached the application and is not answered yet."""

    def __init__(self, proxy: Proxy, backend: Backend) -> None:
        self._client = proxy.connect()
        self._client.request("GET", "/hold")
        assert backend.arrived.acquire(timeout=PATIENCE)

    def answer(self) -> http.client.HTTPResponse:
        with contextlib.closing(self._client):
            response = self._client.getresponse()
            response.read()
            return response

    def close(self) -> None:
        self._client.close()


def _wait_gone(*pids: int) -> None:
    """Return when the processes have ended, whoever reaps them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                assert select.select([descriptor], [], [], PATIENCE)[0], f"{pid} is still there"
            finally:
                os.close(descriptor)


def _status(pid: int) -> dict[str, list[str]]:
    rows = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.split() for name, _, value in rows}


def test_it_starts_serves_and_says_so_once(run: Run) -> None:
    proxy = run()
    ready = proxy.wait_for("proxy.ready")
    assert ready["listeners"] == [f"https 127.0.0.1:{proxy.port}"]
    assert (ready["sites"], ready["workers"], ready["pid"]) == (1, 2, proxy.pid)
    assert len(proxy.workers()) == 2
    assert proxy.get() == 200
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert [event["event"] for event in proxy.events].count("proxy.ready") == 1


def test_an_idle_keep_alive_connection_does_not_hold_up_the_stop(run: Run) -> None:
    proxy = run()
    with contextlib.closing(proxy.connect()) as client:
        client.request("GET", "/")
        client.getresponse().read()
        children = [*proxy.workers(), proxy.certifier()]
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert time.monotonic() - began < 5
    _wait_gone(*children)
    stopped = proxy.wait_for("proxy.stopped")
    assert (stopped["cut"], stopped["killed"], stopped["level"]) == (0, [], "info")


def test_a_request_in_flight_is_finished_before_the_stop(run: Run, backend: Backend) -> None:
    proxy = run()
    held = Held(proxy, backend)
    proxy.signal(signal.SIGTERM)
    proxy.wait_until_refusing()
    backend.release.set()
    response = held.answer()
    assert (response.status, response.getheader("Connection")) == (200, "close")
    assert proxy.wait() == 0
    assert proxy.wait_for("proxy.stopped")["cut"] == 0


def test_what_takes_longer_than_the_drain_is_cut_and_counted(run: Run, backend: Backend) -> None:
    proxy = run(server='drain = "1s"')
    held = Held(proxy, backend)
    began = time.monotonic()
    proxy.signal(signal.SIGTERM)
    with pytest.raises((http.client.HTTPException, OSError)):
        held.answer()
    assert proxy.wait() == 0
    assert time.monotonic() - began < 3
    assert proxy.wait_for("proxy.stopped", cut=1, killed=[])["level"] == "warning"


def test_a_second_signal_stops_at_once(run: Run, backend: Backend) -> None:
    proxy = run()
    held = Held(proxy, backend)
    proxy.signal(signal.SIGINT)
    proxy.wait_for("proxy.draining")
    began = time.monotonic()
    proxy.signal(signal.SIGINT)
    assert proxy.wait() == 0
    assert time.monotonic() - began < 3
    assert {"worker 0", "worker 1"} & set(proxy.wait_for("proxy.stopped", during="drain")["killed"])
    held.close()


def test_ctrl_c_reaches_the_whole_group_and_still_drains(run: Run, backend: Backend) -> None:
    proxy = run()
    held = Held(proxy, backend)
    os.killpg(proxy.pid, signal.SIGINT)
    proxy.wait_for("proxy.draining")
    backend.release.set()
    assert held.answer().status == 200
    assert proxy.wait() == 0
    assert not [event for event in proxy.events if event["event"].endswith(".died")]


def test_a_killed_worker_is_replaced_at_once(run: Run) -> None:
    proxy = run()
    victim, survivor = proxy.workers()
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    assert proxy.wait_for("worker.died", status="signal SIGKILL")["retry_in"] == 0
    replaced = proxy.wait_for("worker.replaced")
    # A worker needs 0.3 s to be ready; the rest is for a machine that runs other tests beside this one.
    assert time.monotonic() - began < 4
    assert sorted(proxy.workers()) == sorted([survivor, replaced["child"]])
    assert [proxy.get() for _ in range(10)] == [200] * 10


def test_a_worker_told_to_leave_finishes_its_work_first(run: Run, backend: Backend) -> None:
    proxy = run()
    held = Held(proxy, backend)
    for worker in proxy.workers():
        os.kill(worker, signal.SIGTERM)
    proxy.wait_for("worker.replaced")
    backend.release.set()
    assert held.answer().status == 200
    assert proxy.wait_for("worker.died")["status"] == "exit status 0"


def test_a_killed_certifier_does_not_touch_the_workers(run: Run) -> None:
    proxy = run()
    workers = proxy.workers()
    os.kill(proxy.certifier(), signal.SIGKILL)
    proxy.wait_for("certifier.died")
    assert proxy.get() == 200
    proxy.wait_for("certifier.replaced")
    assert proxy.workers() == workers


def test_children_leave_when_the_supervisor_is_killed_and_finish_first(run: Run, backend: Backend) -> None:
    proxy = run()
    children = [*proxy.workers(), proxy.certifier()]
    port = proxy.port
    held = Held(proxy, backend)
    proxy.signal(signal.SIGKILL)
    backend.release.set()
    assert held.answer().status == 200
    _wait_gone(*children)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    assert run(listen=f"127.0.0.1:{port}").get() == 200


def test_a_taken_port_is_an_error_that_names_the_holder(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        proxy = run(listen=f"127.0.0.1:{port}", ready=False)
        assert proxy.wait() == 1
    said = "".join(proxy.lines)
    assert f"cannot listen on 127.0.0.1:{port}: the port is taken by" in said
    assert f"(pid {os.getpid()})" in said
    assert "Traceback" not in said


def test_a_child_that_cannot_start_stops_everything_with_its_reason(run: Run, folder: Path) -> None:
    """What is seen from outside is refused before any child: here it is in a record that the certifier needs."""
    root = folder / "store" / "certificates" / "internal-ca.json"
    for each in (root.parent.parent, root.parent):
        each.mkdir(mode=0o700)
    root.write_text("{")
    proxy = run(more='[[sites]]\nhosts = ["a.test"]\nbackends = ["127.0.0.1:1"]', ready=False)
    assert proxy.wait() == 1
    assert str(root) in proxy.lines[-1]
    assert "Traceback" not in "".join(proxy.lines)


def test_hangup_reloads(run: Run) -> None:
    proxy = run()
    os.killpg(proxy.pid, signal.SIGHUP)
    proxy.wait_for("proxy.reloaded", generation=2)
    assert proxy.get() == 200


def test_logs_are_reopened_after_rotation(run: Run, folder: Path) -> None:
    log = folder / "access.log"
    proxy = run(log=f'access = "{log}"')
    assert proxy.get() == 200
    log.rename(folder / "access.log.1")
    proxy.signal(signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline
        assert proxy.get() == 200
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert all(json.loads(line)["status"] == 200 for line in log.read_text().splitlines())


def _python_for_everybody() -> str:
    """An interpreter like ours (PYTHONPATH leads to our packages) that any user can read; ours may be below /root."""
    version = sys.version_info
    candidates = [
        sys.executable,
        *(f"{folder}/python{version.major}.{version.minor}" for folder in ("/usr/bin", "/opt")),
    ]
    readable = "import tlsproxy.runtime.privileges as p; p.check_interpreter(p.find_account('nobody'))"
    for python in candidates:
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-c", readable], capture_output=True, timeout=PATIENCE).returncode == 0:
                return python
    pytest.skip("there is no Python here that the user nobody can read")


@needs_root
def test_started_as_root_the_children_are_somebody_else(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder / "access.log"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")]))
    proxy = run(python=_python_for_everybody(), key_owner="nobody", server='user = "nobody"', log=f'access = "{log}"')
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    for pid in (*proxy.workers(), proxy.certifier()):
        status = _status(pid)
        assert status["Uid"] == [nobody] * 4
        assert set(status["CapPrm"] + status["CapEff"]) == {"0" * 16}
        assert status["NoNewPrivs"] == ["1"]
    assert _status(proxy.pid)["Uid"][0] == "0"
    assert proxy.get() == 200
    assert (folder / "store").stat().st_uid == log.stat().st_uid == int(nobody)
    log.rename(folder / "access.log.1")
    proxy.signal(signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline, "".join(proxy.lines)
        assert proxy.get() == 200
    assert not [event for event in proxy.events if event["event"] == "access_log.reopen_failed"]
    assert not [event for event in proxy.events if event["event"] == "privileges.root"]


@needs_root
def test_staying_root_is_said_with_what_to_do(run: Run) -> None:
    assert "server.user" in run().wait_for("privileges.root")["hint"]


def test_the_open_file_limit_is_raised_for_everyone(run: Run) -> None:
    proxy = run(before=("prlimit", "--nofile=256:2048"))
    for pid in (proxy.pid, *proxy.workers()):
        (row,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line]
        assert row.split()[3:5] == ["2048", "2048"]


def test_a_worker_does_not_import_the_command_line() -> None:
    names = "typer, rich, pydantic_settings, dotenv"
    code = f"import sys, tlsproxy.runtime.worker; print([n for n in '{names}'.split(', ') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert said.stdout == "[]\n"
