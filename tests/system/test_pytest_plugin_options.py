"""https_server with its options, in a project of its own that finds the plug-in by its entry point, as all do."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.system.running import until
from tests.system.test_pytest_plugin import APP, left_behind

pytestmark = pytest.mark.system

# What a project with strict settings has: an unclosed socket or a thread that fails is an error of its tests.
SETTINGS = """
[pytest]
filterwarnings = error
addopts = --strict-config --strict-markers
"""


def run_project(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "shop.py").write_text(APP)
    (folder / "test_shop.py").write_text(tests)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TLSPROXY_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q"]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_entry_point_is_installed() -> None:
    found = [each.value for each in entry_points(group="pytest11") if each.name == "tlsproxy"]
    assert found[:1] == ["tlsproxy.pytest_plugin"], "install the project anew: pip install -e . --no-deps"


def test_keys_of_the_route_and_protocols(tmp_path: Path) -> None:
    tests = """
import json, urllib.error, urllib.request
import httpx, pytest
from fastapi import FastAPI, Request

def make():
    app = FastAPI()
    @app.get("/items/")
    def items(request: Request):
        return {"url": str(request.url), "prefix": request.headers.get("x-forwarded-prefix")}
    @app.post("/items/")
    async def add(request: Request):
        return {"size": len(await request.body())}
    return app

def test_prefix_and_limits(https_server):
    health = {"path": "/docs", "interval": "1s"}
    server = https_server(make(), path="/shop", strip_prefix=True, max_body="1KiB", health=health)
    with httpx.Client(base_url=server.url, verify=server.ssl_context()) as client:
        assert client.get("/shop/items/").json()["prefix"] == "/shop"
        assert client.get("/items/").status_code == 404
        assert client.post("/shop/items/", content=bytes(1024)).json() == {"size": 1024}
        assert client.post("/shop/items/", content=bytes(1025)).status_code == 413

@pytest.mark.parametrize(("http2", "spoken"), [(True, "HTTP/2"), (False, "HTTP/1.1")])
def test_protocol(https_server, http2, spoken):
    server = https_server(make(), http2=http2)
    with httpx.Client(http2=True, verify=server.ssl_context()) as client:
        assert client.get(server.url + "/items/").http_version == spoken

def test_log_and_monkeypatch(https_server, monkeypatch):
    app = make()
    server = https_server(app)
    monkeypatch.setattr(app, "dependency_overrides", {})
    assert '"proxy.ready"' in server.log
    server.close()
    assert '"proxy.stopped"' in server.log

def test_unknown_key(https_server):
    from tlsproxy.pytest_plugin import HttpsServerFailed
    with pytest.raises(TypeError, match="wants an ASGI application"):
        https_server(42)
    with pytest.raises(HttpsServerFailed, match="the proxy did not start.*nonsense"):
        https_server(make(), nonsense=1)
"""
    ran = run_project(tmp_path, tests)
    assert "5 passed" in ran.stdout, ran.stdout + ran.stderr
    assert left_behind(tmp_path) == []


def test_the_exception_of_a_start_is_told(tmp_path: Path) -> None:
    tests = """
import contextlib, threading, pytest
from fastapi import FastAPI

def test_lifespan(https_server):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no database")
        yield
    with pytest.raises(Exception, match="the application did not start: RuntimeError: no database"):
        https_server(FastAPI(lifespan=lifespan))
    assert "https_server" not in {thread.name for thread in threading.enumerate()}

def test_module(https_server):
    with pytest.raises(Exception, match='did not start: .*Could not import module "nowhere"'):
        https_server("nowhere:app")
"""
    ran = run_project(tmp_path, tests)
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert left_behind(tmp_path) == []


def test_all_ends_after_a_test_that_fails(tmp_path: Path) -> None:
    """With an answer under way that never ends by itself, and one server of two that does not start."""
    tests = """
import asyncio, socket, threading

async def endless(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(0.01)

def test_fails(https_server):
    server = https_server(endless)
    plain = socket.create_connection(("127.0.0.1", server.port))
    raw = server.ssl_context().wrap_socket(plain, server_hostname="localhost")
    with raw:
        raw.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        assert raw.recv(1)
        https_server("nowhere:app")

def test_nothing_is_left():
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
"""
    ran = run_project(tmp_path, tests)
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "Could not import module" in ran.stdout
    until(lambda: left_behind(tmp_path) == [], "nothing is left")
