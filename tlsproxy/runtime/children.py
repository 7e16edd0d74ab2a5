"""When to replace a child that died. Pure: no clock, no process; `Generation` acts on it."""

from __future__ import annotations

import signal
from typing import NamedTuple

FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
HEALTHY_AFTER = 60.0


class Replacement(NamedTuple):
    """Wait `delay` seconds, then start anew; `failures` is to be handed in at the next death."""

    delay: float
    failures: int


def plan_replacement(failures: int, healthy_for: float) -> Replacement:
    """Decide after a death: at once the first time, then 1, 2, 4 … 30 s.

    `failures` counts the deaths in a row, `healthy_for` is how many seconds the dead child had served (0: it never
    became ready). A minute of service makes the next death a first one again.
    """
    if healthy_for >= HEALTHY_AFTER:
        failures = 0
    if failures == 0:
        return Replacement(0.0, 1)
    # The exponent is cut before the delay is: 2 ** 5000 is no float.
    return Replacement(min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 10)), failures + 1)


def describe_exit(returncode: int) -> str:
    """Return `exit status 3` or `signal SIGKILL` for what subprocess calls a return code."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
