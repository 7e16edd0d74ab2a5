"""Just enough of RFC 6455 to say goodbye inside a byte tunnel: where frames end, and how a close frame looks. Pure.

A tunnel passes bytes unread; but a close frame may only be put between two frames, so each direction's borders are
counted (a few header bytes per frame; payloads are skipped, not looked at).
"""

from __future__ import annotations

import secrets
from typing import Final

GOING_AWAY: Final = 1001
_CLOSE: Final = 0x8
_FINAL: Final = 0x80
_MASKED: Final = 0x80


class FrameBorders:
    """Follows one direction of a WebSocket connection. `saw_close` is True once a close frame has begun."""

    __slots__ = ("_header", "_left", "saw_close")

    def __init__(self) -> None:
        self._header = b""  # the beginning of a frame header that is not whole yet
        self._left = 0  # payload bytes of the current frame that have not passed
        self.saw_close = False

    @property
    def at_border(self) -> bool:
        """True if the next byte begins a frame."""
        return not self._header and not self._left

    def feed(self, data: bytes) -> int:
        """Follow `data`. Returns the offset of the first border in it (0 if it begins at one), or -1 if it has none."""
        first = 0 if self.at_border else -1
        position = 0
        while position < len(data):
            position = self._skip_payload(position, data) if self._left else self._take_header(position, data)
            if first < 0 and self.at_border:
                first = position
        return first

    def _skip_payload(self, position: int, data: bytes) -> int:
        step = min(self._left, len(data) - position)
        self._left -= step
        return position + step

    def _take_header(self, position: int, data: bytes) -> int:
        """Collect header bytes until the frame's length is known (RFC 6455 5.2)."""
        self._header += data[position : position + 1]
        position += 1
        header = self._header
        if len(header) < 2:
            return position
        short = header[1] & 0x7F
        extended = {126: 2, 127: 8}.get(short, 0)
        if len(header) < 2 + extended:
            return position
        length = int.from_bytes(header[2:], "big") if extended else short
        self._left = length + (4 if header[1] & _MASKED else 0)
        self.saw_close = self.saw_close or header[0] & 0x0F == _CLOSE
        self._header = b""
        return position


def close_frame(code: int, *, masked: bool) -> bytes:
    """A close frame with a status code and no reason. Clients mask, servers do not (RFC 6455 5.1)."""
    payload = code.to_bytes(2, "big")
    if not masked:
        return bytes((_FINAL | _CLOSE, len(payload))) + payload
    mask = secrets.token_bytes(4)
    covered = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((_FINAL | _CLOSE, _MASKED | len(payload))) + mask + covered
