"""`tlsproxy …` as a person or a script calls it: a process, its output, its exit code.

    assert admin(proxy, "certs", "why", "a.test").out == …
    rows = admin_json(proxy, "certs", "list")
    with following(proxy, "certs", "renew", "a.test") as lines: …      # as they come

Each is a process of its own with the configuration of the proxy, which need not run any more. None outlives its test.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.running import Proxy

LIMIT = 60.0


@dataclass(frozen=True)
class Said:
    """What a command has said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def tlsproxy(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
    """Run a command with the configuration in `folder`."""
    done = subprocess.run(
        _command(folder, arguments),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    return Said(done.returncode, done.stdout, done.stderr)


def admin(proxy: Proxy | Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
    """Run `tlsproxy admin …`, which must succeed."""
    folder = proxy if isinstance(proxy, Path) else proxy.folder
    said = tlsproxy(folder, "admin", *arguments, environment=environment)
    assert said.code == 0, said
    return said


def admin_json(proxy: Proxy | Path, *arguments: str) -> Any:
    return json.loads(admin(proxy, *arguments, "--json").out)


def row(proxy: Proxy | Path, name: str) -> dict[str, Any]:
    """Return what `admin certs list --json` says about one certificate."""
    found: dict[str, Any] = next(each for each in admin_json(proxy, "certs", "list") if each["name"] == name)
    return found


@contextlib.contextmanager
def following(proxy: Proxy, *arguments: str) -> Iterator[Iterator[str]]:
    """Run `tlsproxy admin …` and yield its lines as they come; it must succeed in the end."""
    command = _command(proxy.folder, ("admin", *arguments))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            yield (line.rstrip("\n") for line in process.stdout)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


def _command(folder: Path, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "tlsproxy", *arguments, "--config", str(folder / "tlsproxy.toml")]
