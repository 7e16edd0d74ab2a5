"""What an examination says: one finding per question, in three states. Pure.

Knows words, no check. Rules: what can't be seen is `unknown`, never `bad`, since people act on `bad`; whoever says
`bad` says the command to run or the line to write; where `unknown` can be cleared up, it says how as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MACHINE = "this machine"


class State(StrEnum):
    OK = "ok"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question. `about`: a host, a backend's URL or MACHINE; `check`: the question, as "DNS".

    `fix` is one command or line, to be used as it stands. `details` are lines that show how it was found.
    """

    about: str
    check: str
    state: State
    text: str
    fix: str = ""
    details: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "check": self.check,
            "state": self.state.value,
            "text": self.text,
            "fix": self.fix or None,
            "details": list(self.details),
        }


class Report:
    """Makes the findings about one thing. Mutable state: `findings`."""

    def __init__(self, about: str) -> None:
        self.about = about
        self.findings: list[Finding] = []

    def ok(self, check: str, text: str, *, details: Iterable[str] = ()) -> None:
        self._add(check, State.OK, text, "", details)

    def bad(self, check: str, text: str, *, fix: str, details: Iterable[str] = ()) -> None:
        self._add(check, State.BAD, text, fix, details)

    def unknown(self, check: str, text: str, *, fix: str = "", details: Iterable[str] = ()) -> None:
        self._add(check, State.UNKNOWN, text, fix, details)

    def _add(self, check: str, state: State, text: str, fix: str, details: Iterable[str]) -> None:
        self.findings.append(Finding(self.about, check, state, text, fix, tuple(details)))


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def count(findings: Iterable[Finding]) -> dict[State, int]:
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in State}
