"""What a reader needs to judge figures: date, commit, machine, versions."""

import os
import platform
import re
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from scripts.benchmark.peers import Peer

ROOT = Path(__file__).parents[2]


def describe(peers: Sequence[Peer], *, seconds: float, rounds: int) -> dict[str, str]:
    """Return the facts in the order they are printed."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
        "peers": ", ".join(f"{peer.name} {peer.version()}" for peer in peers),
        "runs": f"{rounds} rounds of {seconds:g} s, interleaved",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def commit() -> str:
    """Return the short commit, with a + when files differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        diff = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if diff.returncode else "")


def cpu_model() -> str:
    """Return the name the processor gives itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
