"""Have a program of the user make TXT records: `COMMAND present NAME VALUE` and `COMMAND cleanup NAME VALUE`.

Knows: how it is run and what its end means. Does not know: what it does. Rules: no shell ever sees an argument; it has
a deadline, and its children end with it; of what it wrote only the end is kept, without what looks like a secret of its
environment; the proxy's own variables, which hold keys, stay away from it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tlsproxy.certs.dns.base import DnsProviderError

_TAIL = 500  # characters of its output in an error
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_OWN = "TLSPROXY_"
_SECRET_NAME = re.compile(r"TOKEN|SECRET|KEY|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_SHORTEST_SECRET = 6


class ExecProvider:
    """Runs the command once for each record; 0 is success, anything else a failure told by its stderr."""

    def __init__(self, command: Sequence[str], *, timeout: float = 60.0) -> None:
        """`timeout` is in seconds, for one run."""
        self._command, self._timeout = tuple(command), timeout

    def create(self, name: str, value: str) -> None:
        self._run("present", name, value)

    def delete(self, name: str, value: str) -> None:
        self._run("cleanup", name, value)

    def _run(self, verb: str, name: str, value: str) -> None:
        if not self._command:
            raise DnsProviderError("acme.dns.exec.command is empty. Name the program that makes TXT records.")
        environment = {key: text for key, text in os.environ.items() if not key.startswith(_OWN)}
        shown = f"{Path(self._command[0]).name} {verb} {name}"
        # A file, not a pipe: what the program leaves running in the background can't hold us up by keeping it open.
        with tempfile.TemporaryFile() as output:
            code = self._wait([*self._command, verb, name, value], environment, output, shown)
            if code != 0:
                raise DnsProviderError(
                    f"{shown} {_ended(code)}: {_tail(output, environment)}. Run it by hand to see why."
                )

    def _wait(self, command: list[str], environment: Mapping[str, str], output: IO[bytes], shown: str) -> int:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DnsProviderError(
                f"{self._command[0]} can't be started ({reason}). Correct acme.dns.exec.command, or make it executable."
            ) from error
        try:
            return process.wait(self._timeout)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise DnsProviderError(
                f"{shown} was stopped after {self._timeout:g} s: {_tail(output, environment)}. "
                "Run it by hand to see why."
            ) from error

    def __repr__(self) -> str:
        return f"<exec {self._command[0] if self._command else '-'}>"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop it with all its children: it leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ended(code: int) -> str:
    return f"failed with exit code {code}" if code > 0 else f"was ended by signal {-code}"


def _tail(output: IO[bytes], environment: Mapping[str, str]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 4 * _TAIL))
    text = output.read().decode(errors="replace")
    for key, secret in environment.items():
        if len(secret) >= _SHORTEST_SECRET and _SECRET_NAME.search(key):
            text = text.replace(secret, "***")
    return " ".join(text.split())[-_TAIL:] or "it wrote nothing to stderr"
