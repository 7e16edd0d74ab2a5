"""How often something may be done: a bucket of tokens, and lines of the log that would repeat themselves.

Knows a clock and numbers. For cold paths that a stranger can call at will.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Bucket:
    """Holds `burst` tokens at most and gets `rate` new ones a second. Mutable: how many there are, and since when."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled = clock()

    def take(self) -> bool:
        """Take a token, if there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Buckets:
    """A bucket for each of many, `most` at a time: who has not come for longest begins anew with a full one.

    So they share out a limit, and need one behind them for the sum. Mutable: `_buckets`, the latest used last.
    """

    def __init__(self, rate: float, burst: float, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._clock = clock
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, who: Hashable) -> bool:
        """Take a token of `who`, if there is one."""
        bucket = self._buckets.get(who)
        if bucket is None:
            bucket = self._buckets[who] = Bucket(self._rate, self._burst, clock=self._clock)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(who)
        return bucket.take()


class Quiet:
    """Lets a line about the same thing be said once per `interval` seconds, and `most` lines in all."""

    # Mutable: _said (what was said in the interval), _end (of the interval).

    def __init__(self, interval: float = 60.0, most: int = 100, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._most = most
        self._clock = clock
        self._said: set[Hashable] = set()
        self._end = 0.0

    def may_say(self, what: Hashable) -> bool:
        """Tell whether a line about `what` may be written now; True counts as written."""
        now = self._clock()
        if now >= self._end:
            self._said.clear()
            self._end = now + self._interval
        if what in self._said or len(self._said) >= self._most:
            return False
        self._said.add(what)
        return True
