"""What a command costs before it does anything: modules that it has no use for stay out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

CA_CLIENTS = {"acme", "josepy", "requests", "urllib3", "dns", "lexicon"}
SLOW = {"rich", "pydantic_settings", "cryptography", "h11", "asyncio", "publicsuffixlist"}


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after this code."""
    last = "print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"import sys\n{code}\n{last}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["admin", "certs", "--help"], ["--version"]])
def test_help_is_quick(arguments: list[str]) -> None:
    found = modules_after(f"import tlsproxy.cli; tlsproxy.cli.main({arguments})")
    assert (CA_CLIENTS | SLOW) & found == set()


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["certs", "list"], ["certs", "why", "localhost"], ["certs", "quota"], ["store", "export", "backup"]],
)
def test_no_admin_command_brings_in_what_talks_to_a_ca(arguments: list[str], folder: Path) -> None:
    found = modules_after(f"import tlsproxy.cli; tlsproxy.cli.main({['admin', *arguments]})")
    assert "pydantic_settings" in found
    assert CA_CLIENTS & found == set()


@pytest.mark.parametrize("module", ["supervisor", "worker"])
def test_neither_does_the_supervisor_nor_a_worker(module: str) -> None:
    found = modules_after(f"import tlsproxy.runtime.{module}, tlsproxy.runtime.preflight")
    assert (CA_CLIENTS | {"rich", "typer"}) & found == set()
