"""What a client sends on one stream: pieces on their way to whoever takes them, and the window for more.

Knows the codec's account of the stream, not who takes the pieces. Rule kept: a piece is acknowledged, and so replaced
in the client's window, when its taker has room for more; what is not acknowledged is all that can pile up here.

Made for streams with a body only. Mutable state: `early` (what came before there was a taker; None: there is one, or
none is needed) with `trailers` (None: the end did not come with them), `_held` (bytes not acknowledged),
`_received`, `_is_paused`, `_has_grown`, `_since` (when something last moved; 0: nothing is waited for).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tlsproxy.proxy.http2 import Http2Driver
    from tlsproxy.wire.fields import Fields

_WORTH_IT: Final = 32 * 1024  # bytes to acknowledge: libnghttp2 opens a window by half of it or not at all
_GROWS_AFTER: Final = 48 * 1024  # bytes of a request that flowed
_GROWN: Final = 1024 * 1024  # its window from then on: 64 KiB a round trip is little on a long way
_MOST_GROWN: Final = 4  # streams of a connection at a time: each may come to hold as much


class Inflow:
    """See the module's text."""

    __slots__ = (
        "_driver", "_has_grown", "_held", "_is_paused", "_number", "_received", "_since", "early", "trailers",
    )  # fmt: skip

    def __init__(self, driver: Http2Driver, number: int) -> None:
        self._driver = driver
        self._number = number
        self.early: bytearray | None = bytearray()  # small pieces would take many times their size
        self.trailers: Fields | None = None
        self._held = 0
        self._received = 0
        self._is_paused = False
        self._has_grown = False
        self._since = 0.0

    def count(self, size: int) -> None:
        """A piece of `size` bytes has come."""
        self._held += size
        self._received += size

    def taken(self, *, flows: bool) -> None:
        """What came has gone on. While its taker is full, the client gets no window for more.

        `flows`: to a backend, and not only into our hands until there is a connection to one.
        """
        if self._is_paused or self._held < _WORTH_IT:
            return
        self.acknowledge()
        if flows and self._received > _GROWS_AFTER and not self._has_grown:
            self._grow()

    def acknowledge(self) -> None:
        """Give the client its window back."""
        if self._held:
            held, self._held = self._held, 0
            self._driver.codec.acknowledge(self._number, held)
            self._driver.schedule()

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self._since:
                self._since = time.monotonic()
            self.acknowledge()

    def wait(self) -> None:
        """More is due from the client."""
        self._since = time.monotonic()

    def is_late(self, now: float, limit: float) -> bool:
        """Whether the client has sent nothing for longer than `limit` seconds; true once."""
        if not self._since or self._is_paused or now - self._since <= limit:
            return False
        self._since = 0.0
        return True

    def end(self) -> None:
        """The body is complete, or nobody wants more of it."""
        self._since = 0.0
        if not self._is_paused:
            self.acknowledge()
        if self._has_grown:
            self._has_grown = False
            self._driver.grown -= 1

    def drop(self) -> None:
        """What comes from now on is taken by nobody: no window of the connection must be lost to it."""
        self.early = None
        self._is_paused = False
        self.end()

    def _grow(self) -> None:
        if self._driver.grown < _MOST_GROWN:
            self._has_grown = True
            self._driver.grown += 1
            self._driver.codec.grow_window(self._number, _GROWN)
