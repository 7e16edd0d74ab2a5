"""The fixtures for tests of applications, used as a stranger's project uses them: another folder, another pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.system.running import ROOT, until

pytestmark = pytest.mark.system

APP = """
import contextlib, json, urllib.request
from fastapi import FastAPI, Request, WebSocket

def make(name, state=None):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        (state if state is not None else []).append("up")
        yield
        (state if state is not None else []).append("down")
    app = FastAPI(lifespan=lifespan)
    @app.get("/")
    def home(request: Request):
        return {"name": name, "url": str(request.url), "client": request.client.host}
    @app.websocket("/ws")
    async def ws(socket: WebSocket):
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()
    return app

app = make("by name")

def get(server, context=None):
    with urllib.request.urlopen(server.url + "/", context=context or server.ssl_context()) as answer:
        return json.load(answer)
"""


def run_pytest(folder: Path, tests: str, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run these tests in a folder of their own; every warning is an error there."""
    (folder / "shop.py").write_text(APP)
    (folder / "test_shop.py").write_text(tests)
    (folder / "conftest.py").write_text(before)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TLSPROXY_", "PYTEST_"))}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TMPDIR": str(folder), "TLSPROXY_WORKERS": "nonsense"}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "tlsproxy.pytest_plugin", "--rootdir", "."]
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def left_behind(folder: Path) -> list[str]:
    """The folders of servers, and the processes that know one."""
    running = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                running.append(entry.parent.name)
        except OSError:
            continue
    return [*running, *(path.name for path in folder.glob("tlsproxy-pytest-*"))]


def test_the_example_of_the_documents_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    first, second = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "main.py").write_text(APP)
    used = "\n\ndef test_session(site):\n    with urllib.request.urlopen(site.url, context=site.ssl_context()): pass\n"
    ran = run_pytest(tmp_path, first + second + used)
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert left_behind(tmp_path) == []


def test_several_applications_with_one_ca(tmp_path: Path) -> None:
    tests = """
import socket, ssl, pytest
from shop import get, make

def test_two(https_server):
    state = []
    one, two = https_server(make("one", state)), https_server("shop:app")
    assert one.url != two.url and one.ca == two.ca
    assert (get(one)["name"], get(two, one.ssl_context())["name"]) == ("one", "by name")
    assert get(one)["url"] == one.url + "/" and get(one)["client"] == "127.0.0.1"
    with pytest.raises(ssl.SSLError):
        with socket.create_connection(("127.0.0.1", one.port)) as raw:
            ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    assert state == ["up"]
    one.close()
    one.close()
    assert state == ["up", "down"]
    with pytest.raises(OSError):
        get(one)
    assert get(two)["name"] == "by name"

def test_other_names_and_websockets(https_server):
    from websockets.sync.client import connect
    with https_server("shop:app", hosts=["shop.test"]) as server:
        assert server.url == f"https://shop.test:{server.port}"
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            with connect(f"wss://shop.test:{server.port}/ws", sock=raw, ssl=server.ssl_context()) as talk:
                talk.send("hello")
                assert talk.recv() == "hello"
"""
    ran = run_pytest(tmp_path, tests)
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert left_behind(tmp_path) == []


def test_what_does_not_start_says_why(tmp_path: Path) -> None:
    tests = """
import contextlib, sys, pytest
from fastapi import FastAPI
from tlsproxy.pytest_plugin import HttpsServerFailed

def test_no_uvicorn(https_server, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(HttpsServerFailed, match="pip install uvicorn"):
        https_server(FastAPI())

def test_lifespan(https_server, caplog):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no database")
        yield
    with pytest.raises(HttpsServerFailed, match="the application did not start"):
        https_server(FastAPI(lifespan=lifespan))
    assert "no database" in caplog.text

def test_no_such_module(https_server):
    with pytest.raises(HttpsServerFailed, match="the application did not start"):
        https_server("nowhere:app")

def test_proxy(https_server):
    with pytest.raises(HttpsServerFailed, match="the proxy did not start.*not a host"):
        https_server(FastAPI(), hosts=["not a host"])
"""
    ran = run_pytest(tmp_path, tests)
    assert "4 passed" in ran.stdout, ran.stdout + ran.stderr
    assert left_behind(tmp_path) == []


def test_a_pytest_that_is_killed_takes_the_proxy_along(tmp_path: Path) -> None:
    tests = """
import os, signal
from shop import get
def test_killed(https_server):
    get(https_server("shop:app"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_pytest(tmp_path, tests).returncode == -9
    until(lambda: not [pid for pid in left_behind(tmp_path) if pid.isdigit()], "the proxy has left")


def test_pytest_finds_it_and_pays_little_for_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"tlsproxy": "tlsproxy.pytest_plugin"}
    program = "import sys, pytest; a = set(sys.modules); import tlsproxy.pytest_plugin; print(*set(sys.modules) - a)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    strangers = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert strangers == {"tlsproxy"}
    assert {name for name in loaded if name.startswith("tlsproxy.")} == {"tlsproxy.pytest_plugin"}
