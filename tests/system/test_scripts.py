"""The shell part of scripts/: clean by shellcheck, clear when the machine has no Python that is new enough."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = [path for path in (*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run") if path.is_file()]
SHELL = [path for path in SCRIPTS if path.suffix == ".sh" or path.read_bytes().startswith(b"#!/usr/bin/env bash")]


@pytest.mark.system
def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    names = [str(path.relative_to(ROOT)) for path in SHELL]
    assert {"scripts/demo", "scripts/test", "scripts/lint", "scripts/lib.sh", ".ci/run"} <= set(names)
    done = subprocess.run(
        ["shellcheck", "-x", *names], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def shell(script: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines with scripts/lib.sh, in a folder of their own and with exactly this PATH."""
    bash = shutil.which("bash")
    assert bash is not None
    text = f'set -euo pipefail\n. "{ROOT}/scripts/lib.sh"\n{script}'
    environment = {"PATH": path, "HOME": str(folder)}
    return subprocess.run(
        [bash, "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def fake_python(folder: Path, name: str, *, good: bool) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\nexit {0 if good else 1}\n")
    program.chmod(0o755)
    return program


@pytest.mark.system
def test_a_machine_without_python_is_told_what_to_install(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", good=False)
    done = shell("find_python", tmp_path, str(tmp_path))
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


@pytest.mark.system
def test_the_first_python_that_is_good_is_taken(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", good=False)
    wanted = fake_python(tmp_path, "python3.12", good=True)
    fake_python(tmp_path, "python3.11", good=True)
    assert shell("find_python", tmp_path, str(tmp_path)).stdout.strip() == str(wanted)


@pytest.mark.system
def test_a_venv_with_everything_is_left_alone(tmp_path: Path) -> None:
    """The stamp of an extra holds the checksum of what was asked for; if it is right, nothing is installed or said."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("")
    binary = tmp_path / ".venv" / "bin"
    binary.mkdir(parents=True)
    fake_python(binary, "python", good=True)
    stamp = 'cat pyproject.toml constraints.txt | cksum > ".venv/installed-demo"'
    done = shell(f"{stamp}\nmake_venv demo", tmp_path, os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
