"""The beginning of a request's body, held in hand: while a connection is being made, and for one replay.

Knows sizes, not why. Rule: a body is replayed only if every byte the client has sent of it is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tlsproxy.wire.fields import Fields

_MOST: Final = 64 * 1024


class KeptBody:
    """Body bytes as they came. `is_whole` until something was let go; `trailers` is None until the body's end came."""

    __slots__ = ("_held", "is_whole", "trailers")

    def __init__(self, *, is_whole: bool = True) -> None:
        self._held = bytearray()  # not a list of pieces: of two bytes each, they would take 25 times as much
        self.is_whole = is_whole
        self.trailers: Fields | None = None

    @property
    def is_full(self) -> bool:
        """True if no more should be taken in."""
        return len(self._held) > _MOST

    def add(self, piece: bytes) -> None:
        """Hold one more piece."""
        self._held += piece

    def data(self) -> bytes:
        """Everything held."""
        return bytes(self._held)


NOTHING: Final = KeptBody()  # of a request without a body: always whole
LOST: Final = KeptBody(is_whole=False)  # of a request that can't be sent again
