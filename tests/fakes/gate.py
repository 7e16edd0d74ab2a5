"""A place where something is held up until a test has looked, or has killed whoever waits for it.

    gate = ca.gate("finalize", after=True)      # the n-th request of that kind from now on
    gate.wait()                                 # in the test: it is there
    os.kill(pid, signal.SIGKILL)
    gate.open()                                 # or gate.drop(): the connection ends without an answer

Whoever comes before the n-th, or after it, passes. A gate that nobody opens opens by itself, long after the test has
failed, so that no thread stays for ever.
"""

from __future__ import annotations

import threading

PATIENCE = 20.0
LONGEST = 60.0


class Gate:
    """One request at a time is held; see above."""

    # Mutable: _left (requests until it is time), _goes_on (what becomes of it).

    def __init__(self, number: int = 1, what: str = "") -> None:
        self._left, self._what = number, what
        self._lock = threading.Lock()
        self._arrived, self._decided = threading.Event(), threading.Event()
        self._goes_on = True

    def __repr__(self) -> str:
        state = "waited for" if not self._arrived.is_set() else "passed" if self._decided.is_set() else "held"
        return f"<Gate {self._what} {state}>"

    def wait(self, patience: float = PATIENCE) -> None:
        """Return when something is held here."""
        assert self._arrived.wait(patience), f"nothing came within {patience:g} s: {self!r}"

    def open(self) -> None:
        self._decided.set()

    def drop(self) -> None:
        self._goes_on = False
        self._decided.set()

    def pass_through(self) -> bool:
        """Hold the calling thread if it is its turn. Return False if it is to drop what it does."""
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return True
        self._arrived.set()
        self._decided.wait(LONGEST)
        return self._goes_on
