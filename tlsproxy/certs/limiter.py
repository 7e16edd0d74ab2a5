"""Not too fast: at most 10 orders within 10 seconds to one account of one CA. No I/O; seconds are an argument.

Knows: when orders were begun. Does not know: who waits and how. Rule: a sliding window, so no ten seconds of any clock
see more; what limits the number within hours and days is the ledger.
"""

from collections import deque

ORDERS = 10
WINDOW = 10.0
PARALLEL = 4
"""Orders at the same time, over all CAs: each has its own session and a thread that waits for an answer."""


class OrderLimiter:
    """One per CA and account; whoever begins an order asks `delay`, waits so long, asks again, and says `took`.

    `now` is a monotonic clock in seconds.
    """

    # Mutable: _begun (when the latest orders were begun, the oldest first).

    def __init__(self, orders: int = ORDERS, window: float = WINDOW) -> None:
        self._window = window
        self._begun: deque[float] = deque(maxlen=orders)

    def delay(self, now: float) -> float:
        """Return the seconds until an order may begin; 0.0 is now."""
        if self._begun.maxlen is None or len(self._begun) < self._begun.maxlen:
            return 0.0
        return max(0.0, self._begun[0] + self._window - now)

    def took(self, now: float) -> None:
        """Count an order that begins now."""
        self._begun.append(now)

    def __repr__(self) -> str:
        return f"<OrderLimiter {len(self._begun)} of {self._begun.maxlen} in {self._window:g} s>"
