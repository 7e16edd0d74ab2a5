"""curl that trusts the authority alone. Returns what it wrote, checks that it was content."""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

import pytest

from tests.system.running import PATIENCE, Proxy

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


class Curl:
    """`version` is the HTTP version it asks for; over TLS it takes HTTP/1.1 where the server has no other."""

    def __init__(self, proxy: Proxy, version: Literal["1.1", "2"]) -> None:
        self._proxy = proxy
        trust = str(proxy.folder / "ca.pem")
        self.common = [f"--http{version}", "-sS", "--noproxy", "*", "--cacert", trust, "-4"]

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self._proxy.port}{path}"

    def run(self, *arguments: str, sent: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        command = ["curl", *self.common, *arguments]
        done = subprocess.run(command, input=sent, capture_output=True, timeout=PATIENCE, check=False)
        assert done.returncode == code, done.stderr.decode()
        return done

    def get(self, path: str, *arguments: str, sent: bytes = b"") -> bytes:
        return self.run(*arguments, self.url(path), sent=sent).stdout
