"""What happens while a certificate is obtained, told step by step to whoever watches.

Knows: the words of a step. Does not know: who listens (the log, `admin certs obtain`, nobody).
Rule: a step never carries a key, a token or a challenge's answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

StepKind = Literal["store", "account", "order", "challenge", "validation", "finalize", "download", "served", "wait"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done now. `host` is the identifier concerned, "" for all; `text` goes on after "host: "."""

    kind: StepKind
    host: str
    text: str

    def __str__(self) -> str:
        return f"{self.host}: {self.text}" if self.host else self.text


Progress = Callable[[Step], None]
"""Takes a step at once, without blocking and without raising. Called on the event loop."""


def unwatched(step: Step) -> None:
    """Be a Progress that nobody reads."""
