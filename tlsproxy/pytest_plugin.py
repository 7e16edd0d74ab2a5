"""For the tests of applications: fixtures that run an ASGI application behind this proxy, with a certificate to trust.

    def test_login(https_server):
        server = https_server(app)
        assert httpx.get(server.url, verify=ssl.create_default_context(cafile=server.ca)).status_code == 200

The application runs in a thread of the test's own process, under uvicorn, so that a test may look into it; the proxy is
the real one, as processes of its own, on a free port, with an internal CA in a folder that goes away with it. pytest
imports this file in every project that has tlsproxy installed: it imports nothing but the standard library and pytest.
Rules: whatever was started ends with the test, and with pytest if that is killed; what did not start says why.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import uvicorn

START_TIME = 30.0
STOP_TIME = 10.0
"""Seconds for the application, and for the proxy."""

HOSTS = ("localhost", "127.0.0.1")

# The proxy goes when the thread goes that has started it (prctl(2), PR_SET_PDEATHSIG): also after kill -9 of pytest.
_LEASH = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.executable, sys.argv[1:])"
_NO_UVICORN = "https_server runs the application under uvicorn, which is not installed here: pip install uvicorn"
_CONFIG = """\
[listen]
https = ["127.0.0.1:0"]
http = []
http2 = {http2}
[server]
workers = 1
drain = "1s"
[admin]
socket = "off"
[store]
url = {store}
[log]
access = "off"
format = "json"
[[sites]]
hosts = {hosts}
certificate = "internal"
[[sites.routes]]
{route}
"""


class HttpsServerFailed(Exception):
    """The application or the proxy did not start; the message has what they said."""


class HttpsServer:
    """An application behind the proxy, until `close` or the end of a `with` block.

    `url` is where it is ("https://localhost:40123"), `ca` the file (PEM) of the CA that has certified it.
    """

    def __init__(
        self,
        app: Any,
        folder: Path,
        hosts: Sequence[str] = HOSTS,
        http2: bool = True,
        route: Mapping[str, Any] | None = None,
    ) -> None:
        """`app` is an ASGI application, or where it is ("package.module:app"). `folder` keeps the CA.

        `route` has further keys of `[[sites.routes]]`.
        """
        self._stack = contextlib.ExitStack()
        own = Path(tempfile.mkdtemp(dir=folder))
        self._log = own / "proxy.log"
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(_running(app))
            keys = {"path": "/", "backends": [f"http://127.0.0.1:{backend}"], **(route or {})}
            _write_config(own, store=f"file://{folder}/store", hosts=list(hosts), http2=http2, route=keys)
            self.port = stack.enter_context(_proxy(own / "tlsproxy.toml", self._log))
            self.ca = str(_write_root(folder))
            self._stack = stack.pop_all()
        self.host = hosts[0]
        self.url = f"https://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<HttpsServer {self.url}>"

    def __enter__(self) -> HttpsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> str:
        """What the proxy has logged so far, JSON lines; until the fixture ends."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End the proxy, then the application. May be called twice."""
        self._stack.close()

    def ssl_context(self) -> ssl.SSLContext:
        """Return what trusts this server and nobody else: httpx.Client(verify=…), websockets.connect(ssl=…)."""
        return ssl.create_default_context(cafile=self.ca)


@contextlib.contextmanager
def https_servers() -> Iterator[Callable[..., HttpsServer]]:
    """Yield the factory of the fixtures; for fixtures of another scope. All servers have the same CA."""
    folder = Path(tempfile.mkdtemp(prefix="tlsproxy-pytest-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def serve(app: Any, *, hosts: Sequence[str] = HOSTS, http2: bool = True, **route: Any) -> HttpsServer:
            if not callable(app) and not isinstance(app, str):
                raise TypeError(f'https_server(app) wants an ASGI application or "module:app"; this is {app!r}')
            return stack.enter_context(HttpsServer(app, folder, hosts, http2, route))

        yield serve


@pytest.fixture
def https_server() -> Iterator[Callable[..., HttpsServer]]:
    """https_server(app): the application behind a real HTTPS proxy until the test ends (tlsproxy)."""
    with https_servers() as serve:
        yield serve


@pytest.fixture(scope="session")
def https_server_session() -> Iterator[Callable[..., HttpsServer]]:
    """As https_server, until all tests have ended: for fixtures that start an application once (tlsproxy)."""
    with https_servers() as serve:
        yield serve


# --- the application --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(app: Any) -> Iterator[int]:
    """Run the application in a thread; yield its port."""
    try:
        import uvicorn
    except ImportError as error:
        raise HttpsServerFailed(_NO_UVICORN) from error
    # Its own configuration of logging writes to the terminal behind pytest's back; without it caplog has the lines.
    patience = int(STOP_TIME / 2)  # then uvicorn cancels what still runs, as streams without end
    config = uvicorn.Config(app, log_config=None, forwarded_allow_ips="127.0.0.1", timeout_graceful_shutdown=patience)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        trouble: list[BaseException] = []
        thread = threading.Thread(target=_run, args=(server, listener, trouble), name="https_server", daemon=True)
        try:
            with _errors_of(thread) as errors:
                thread.start()
                _wait_for(server, thread, trouble, errors)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(STOP_TIME)
    if thread.is_alive():
        raise HttpsServerFailed(
            f"the application did not stop within {STOP_TIME:.0f} s: something in it blocks its loop"
        )


def _run(server: uvicorn.Server, listener: socket.socket, trouble: list[BaseException]) -> None:
    try:
        server.run(sockets=[listener])
    except BaseException as error:  # noqa: BLE001 - uvicorn leaves with SystemExit; the test is told, not the thread
        trouble.append(error)


class _Errors(logging.Handler):
    def __init__(self, thread: threading.Thread) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        self._thread = thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread.ident:
            self.lines.append(self.format(record))


@contextlib.contextmanager
def _errors_of(thread: threading.Thread) -> Iterator[list[str]]:
    """Collect what uvicorn logs as an error in this thread: the only place where it tells why a start failed."""
    handler = _Errors(thread)
    servers = logging.getLogger("uvicorn.error")
    servers.addHandler(handler)
    try:
        yield handler.lines
    finally:
        servers.removeHandler(handler)


def _wait_for(
    server: uvicorn.Server, thread: threading.Thread, trouble: Sequence[BaseException], errors: Sequence[str]
) -> None:
    deadline = time.monotonic() + START_TIME
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            why = repr(trouble[0]) if trouble and not isinstance(trouble[0], SystemExit) else _last_line(errors)
            raise HttpsServerFailed(f"the application did not start: {why}")
        time.sleep(0.01)


def _last_line(errors: Sequence[str]) -> str:
    """Return the exception itself: the end of the traceback that uvicorn logs first, or its one line."""
    return errors[0].strip().rpartition("\n")[2] if errors else f"it said nothing for {START_TIME:.0f} s"


# --- the proxy --------------------------------------------------------------------------------------------------------


def _write_config(folder: Path, *, route: Mapping[str, Any], **values: Any) -> None:
    lines = "\n".join(f"{key} = {_toml(value)}" for key, value in route.items())
    text = _CONFIG.format(route=lines, **{name: _toml(value) for name, value in values.items()})
    (folder / "tlsproxy.toml").write_text(text, encoding="utf-8")


def _toml(value: Any) -> str:
    """JSON is TOML but for tables, as in health = { path = "/" }."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _proxy(config: Path, log: Path) -> Iterator[int]:
    """Run the proxy with this configuration; yield its port."""
    command = [sys.executable, "-P", "-m", "tlsproxy", "run", "--config", str(config)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TLSPROXY_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _LEASH, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=config.parent,
            start_new_session=True,  # Ctrl-C is pytest's to answer
        )
    try:
        yield _wait_until_ready(process, log)
    finally:
        _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_TIME
    while (port := _find_port(log)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()
            raise HttpsServerFailed(f"the proxy did not start; it said: {said or 'nothing'}")
        time.sleep(0.02)
    return port


def _find_port(log: Path) -> int | None:
    """Return what the line of the log says that tells of the start; None while it is not there."""
    for line in log.read_text(errors="replace").splitlines():
        if '"proxy.ready"' in line and line.endswith("}"):
            (listener,) = json.loads(line)["listeners"]
            return int(listener.rpartition(":")[2])
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIME)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _write_root(folder: Path) -> Path:
    """The proxy has made its CA by now; this reads it."""
    from tlsproxy.certs.trust import root_certificate
    from tlsproxy.store.base import open_store

    store = open_store(f"file://{folder}/store")
    try:
        path = folder / "ca.pem"
        path.write_bytes(root_certificate(store, make=False).pem)
        return path
    finally:
        store.close()
