"""Route templates from the OpenAPI documents that real servers give, under each way of living below a prefix."""

from __future__ import annotations

import itertools
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from tests.system.running import Proxy, Server, free_port, running_proxy, until, write_pair

pytestmark = pytest.mark.system

APP = "tests.system.apps.everything:app"
numbers = itertools.count(1)


def serve(folder: Path, server: str, *options: str, root_path: str = "") -> Server:
    port = free_port()
    bind = ("--bind", f"127.0.0.1:{port}") if server in ("hypercorn", "gunicorn") else ("--port", str(port))
    command = (str(Path(sys.executable).with_name(server)), APP, *bind, *options)
    return Server(command, f"http://127.0.0.1:{port}", folder / f"{server}.log", {"APP_ROOT_PATH": root_path})


@pytest.mark.parametrize(
    ("server", "options", "root_path", "route"),
    [
        ("uvicorn", (), "", ""),
        ("granian", ("--interface", "asgi"), "", ""),
        ("gunicorn", ("-k", "asgi"), "", ""),
        ("uvicorn", ("--root-path", "/api/v1"), "", 'path = "/api/v1"\nstrip_prefix = true'),
        ("uvicorn", (), "/api/v1", 'path = "/api/v1"'),
    ],
)
def test_paths_get_their_names(
    server: str,
    options: tuple[str, ...],
    root_path: str,
    route: str,
    tmp_path: Path,
    authority: trustme.CA,
    trust: ssl.SSLContext,
) -> None:
    backend = serve(tmp_path, server, *options, root_path=root_path)
    prefix = "/api/v1" if route else ""
    site = f"""
        [[sites]]
        hosts = ["a.test"]
        certificate = {write_pair(tmp_path, authority, "a.test")}
          [[sites.routes]]
          {route}
          backends = ["{backend.address}"]
    """
    try:
        with running_proxy(tmp_path, trust, site) as proxy, proxy.client("a.test") as client:

            def named() -> str | None:
                path = f"{prefix}/bytes/{next(numbers)}"
                assert client.get(path).status_code == 200
                return name_of(proxy, path)

            assert until(named, "a template") == f"{prefix}/bytes/{{size}}"
            assert client.get(f"{prefix}/nothing").status_code == 404
            assert name_of(proxy, f"{prefix}/nothing") == "other"
            assert client.get(f"{prefix}/items/").status_code == 200
            assert name_of(proxy, f"{prefix}/items/") == f"{prefix}/items/"
    finally:
        backend.stop()


def name_of(proxy: Proxy, path: str) -> str | None:
    template: str | None = proxy.logged(path=path).get("template")
    return template
