"""The systemd units of config/: systemd understands every line, and the service may do little."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE, SOCKET = ROOT / "config" / "tlsproxy.service", ROOT / "config" / "tlsproxy.socket"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze (package systemd) is missing"),
]


def analyze(*arguments: str) -> str:
    command = ["systemd-analyze", "--no-pager", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """With a program that exists here; a key that systemd does not know is a warning, a value it does not take too."""
    units = [tmp_path / SERVICE.name, tmp_path / SOCKET.name]
    units[0].write_text(SERVICE.read_text().replace("/opt/tlsproxy/bin/tlsproxy", "/bin/true"))
    units[1].write_text(SOCKET.read_text())
    assert analyze("verify", *map(str, units)) == ""


def test_the_check_above_sees_a_wrong_line(tmp_path: Path) -> None:
    unit = tmp_path / SERVICE.name
    unit.write_text("[Service]\nExecStart=/bin/true\nProtectEverything=yes\n")
    assert "ProtectEverything" in analyze("verify", str(unit))


def test_the_service_may_do_little() -> None:
    told = analyze("security", "--offline=true", str(SERVICE))
    found = re.search(r"Overall exposure level for tlsproxy.service: ([0-9.]+)", told)
    if found is None:
        pytest.skip(f"this systemd cannot judge a file: {told[:200]}")
    score = float(found.group(1))
    assert score <= 1.5
    assert f"**{score}**" in (ROOT / "docs" / "deploy-host.md").read_text(), "the score in the docs"
