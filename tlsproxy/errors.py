"""What can go wrong, as types.

Knows the exit code each failure ends a command with, and nothing about how it is shown. Rule: the message of every
error is made for a person: what happened, why, and what to do next. Never key material, never request data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


class TlsproxyError(Exception):
    """A failure with an answer: `str()` is what the user reads, `exit_code` what the shell gets."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration.

    `source` is where it was written ("tlsproxy.toml:12", "environment", "option --site"), `key` the dotted key there
    (for the environment: the variable), `message` what is wrong and how to write it.
    """

    source: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.message) if part)


class ConfigError(TlsproxyError):
    """The configuration can't be used. Carries every problem found, so one run shows all of them."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class CertificateError(TlsproxyError):
    """A certificate, key or bundle that can't be used."""


class StoreError(TlsproxyError):
    """The certificate store can't be opened, read or written."""


class NotRunning(TlsproxyError):
    """There is no running proxy to talk to."""

    exit_code = 3
