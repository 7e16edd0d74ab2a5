"""`scripts/demo`: it shows what it promises, explains a taken port, and leaves no process behind."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN = 60.0


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture
def environment() -> dict[str, str]:
    https, http = free_ports()
    return {**os.environ, "DEMO_HTTPS": str(https), "DEMO_HTTP": str(http)}


def demo(folder: Path, *arguments: str) -> list[str]:
    """What scripts/demo runs once the virtual environment is made: here it is the one the tests run in."""
    return [sys.executable, str(ROOT / "scripts" / "demo.py"), "--dir", str(folder), *arguments]


def test_check_sees_everything_right(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        demo(tmp_path, "--check"), env=environment, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^(\d+) of \1 checks passed$", done.stdout, re.MULTILINE)
    assert "FAILED" not in done.stdout


def test_a_taken_port_is_explained(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment["DEMO_HTTPS"] = str(port)
        done = subprocess.run(
            demo(tmp_path, "--check"), env=environment, capture_output=True, text=True, timeout=WITHIN, check=False
        )
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 can't be used" in done.stderr
    assert "DEMO_HTTPS=" in done.stderr


@pytest.fixture
def running(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        demo(tmp_path),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(WITHIN)
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    """Read the output up to the line that holds `wanted`; the deadline is select's, so a silent demo fails the test."""
    assert process.stdout is not None
    seen = ""
    while wanted not in seen:
        ready, _, _ = select.select([process.stdout], [], [], WITHIN)
        line = os.read(process.stdout.fileno(), 4096).decode() if ready else ""
        assert line, f"no {wanted!r} in:\n{seen}"
        seen += line
    return seen


def test_ctrl_c_ends_every_process(running: subprocess.Popen[str], environment: dict[str, str]) -> None:
    said = read_until(running, "Ctrl-C stops everything")
    assert f"https://localhost:{environment['DEMO_HTTPS']}/whoami" in said
    assert "curl --cacert " in said
    running.send_signal(signal.SIGINT)
    assert running.wait(WITHIN) == 0
    ports = [environment["DEMO_HTTPS"], environment["DEMO_HTTP"], *re.findall(r"http://127\.0\.0\.1:(\d+)", said)]
    assert len(ports) == 4
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
