"""What is done to the proxy while it is under load: reloads, new certificates, restarts of backends, upgrades.

Each deed says in one line what it did; one that fails is counted and said, and the soak goes on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trustme

from scripts.soaking.samples import stamp

ROOT = Path(__file__).resolve().parent.parent.parent
HOST = "soak.test"
STOP_WITHIN = 30.0

CONFIG = """\
[listen]
https = ["127.0.0.1:{https}"]
http = []

[server]
workers = 2
drain_streams = "3m"

[store]
url = "{store}"

[admin]
socket = "{socket}"

[log]
access = "{access}"

[[sites]]
hosts = ["{host}"]
certificate = {{ chain = "{chain}", key = "{key}" }}
backends = [{backends}]
health = {{ path = "/", interval = "1s" }}
hold = "5s"
{more}
"""

MORE = """
[[sites]]
hosts = ["number-{number}.localhost"]
backends = [{backends}]
"""


class Stage:
    """The folder, the proxy and its backends. Mutable: the processes, how often each deed was done and failed."""

    def __init__(self, folder: Path, https: int, backends: list[int]) -> None:
        self.folder = folder
        self.https = https
        self.authority = trustme.CA()
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._ports = backends
        self._backends: list[subprocess.Popen[bytes] | None] = [None for _ in backends]
        self._proxy: subprocess.Popen[bytes] | None = None
        self._turn = 0
        self._alone = asyncio.Lock()  # the proxy takes one change at a time
        self.new_certificate()
        self.write_config("")

    @property
    def config(self) -> Path:
        return self.folder / "tlsproxy.toml"

    def write_config(self, more: str) -> None:
        text = CONFIG.format(
            https=self.https, store=(self.folder / "store").as_uri(), socket=self.folder / "admin.sock", host=HOST,
            access=self.folder / "access.log", chain=self.folder / "chain.pem", key=self.folder / "key.pem",
            backends=self._urls(), more=more,
        )  # fmt: skip
        self._replace(self.config, text.encode())

    def new_certificate(self) -> None:
        """Key first would be as good: the proxy waits until the two fit."""
        issued = self.authority.issue_cert(HOST, "localhost")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        self._replace(self.folder / "key.pem", issued.private_key_pem.bytes())
        self._replace(self.folder / "chain.pem", chain)

    async def start(self) -> None:
        for number in range(len(self._ports)):
            self.start_backend(number)
        command = [sys.executable, "-m", "tlsproxy", "run", "--config", str(self.config)]
        self._proxy = self._spawn(command, "proxy.log")
        await self.until(lambda: self.admin("status").returncode == 0)

    def start_backend(self, number: int) -> None:
        port = str(self._ports[number])
        app = ["-m", "uvicorn", "--app-dir", str(ROOT / "scripts"), "--port", port, "--no-access-log", "demo_app:app"]
        self._backends[number] = self._spawn([sys.executable, *app], f"backend-{number}.log")

    async def stop_backend(self, number: int) -> None:
        process = self._backends[number]
        if process is not None:
            process.terminate()
            await asyncio.to_thread(_wait, process)

    async def close(self) -> None:
        """End all of it, the proxy first: by its pid now, which an upgrade has changed."""
        await asyncio.to_thread(self.admin, "stop")
        if self._proxy is not None:
            self._proxy.terminate()
            await asyncio.to_thread(_wait, self._proxy)
        for number in range(len(self._ports)):
            await self.stop_backend(number)

    def admin(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tlsproxy", "admin", *words, "--config", str(self.config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    async def until(self, ready: Callable[[], bool], within: float = 30.0) -> None:
        deadline = time.monotonic() + within
        while not await asyncio.to_thread(ready):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready within {within:.0f} s; see {self.folder}")
            await asyncio.sleep(0.1)

    # --- deeds --------------------------------------------------------------------------------------------------------

    async def reload(self) -> None:
        """Every other time with a site more than before."""
        self._turn += 1
        more = MORE.format(number=self._turn, backends=self._urls()) if self._turn % 2 else ""
        self.write_config(more)
        await self._command("reload")

    async def upgrade(self) -> None:
        await self._command("upgrade")

    async def swap_certificate(self) -> None:
        self.new_certificate()

    async def restart_backend(self) -> None:
        number = self.done["restart of a backend"] % len(self._ports)
        await self.stop_backend(number)
        self.start_backend(number)

    async def repeat(self, name: str, deed: Callable[[], Awaitable[None]], every: float) -> None:
        """Do it every so many seconds."""
        while True:
            await asyncio.sleep(every)
            try:
                await deed()
                self.done[name] += 1
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                self.failed[name] += 1
                print(f"{stamp()} {name} failed: {error}", flush=True)

    async def _command(self, *words: str) -> None:
        async with self._alone:
            result = await asyncio.to_thread(self.admin, *words)
        if result.returncode:
            raise RuntimeError(f"exit {result.returncode}: {result.stderr.strip()[-500:]}")

    def _urls(self) -> str:
        return ", ".join(f'"http://127.0.0.1:{port}"' for port in self._ports)

    def _replace(self, path: Path, content: bytes) -> None:
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(content)
        fresh.replace(path)

    def _spawn(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "DEMO_INSTANCE": log},
            )  # fmt: skip


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
