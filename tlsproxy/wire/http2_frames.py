"""Where HTTP/2 frames begin and end in what a peer sends, and how many of them are noise. Pure.

libnghttp2 tells of frames that are complete and mean something. What it does not tell is counted here: frames that
cost us and ask for nothing, and whether a header block has begun and does not end. Only the nine bytes of each frame's
header are looked at (RFC 9113 4.1); payloads are stepped over, nothing is copied.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from tlsproxy.wire.http2_base import FRAME_SIZE_ERROR, PROTOCOL_ERROR

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
CONTINUATION: Final = 9

_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_HEADER: Final = 9
_NOT_EMPTY: Final = 1 << 8  # the first two bytes of a frame from here on: the length, the type (DATA)
_MAYBE_EMPTY: Final = (1 + 255 + 1) << 8  # below, padding may be all there is (RFC 9113 6.1)
_STREAM: Final = 0x7FFFFFFF
_LARGEST: Final = 16_384  # the SETTINGS_MAX_FRAME_SIZE that both codecs leave as it is
_read_header: Final = Struct(">IB").unpack_from  # length and type in one number, flags


class FrameWalk:
    """Follows one direction of a connection from its first byte on; `skip` bytes come before the first frame.

    `noise`: frames that are neither a request nor content; `resets`: those of them that are RST_STREAM. Whoever looks
    sets them back to 0. `heads`: HEADERS frames so far. `block`: 0, or the number of the frame whose header, or whose
    header block, is not complete. `data_stream`: 0, or the stream of a DATA frame that is not complete, and
    `data_seen` the bytes of its payload that have come. `fault`: 0, or the error code for a frame that libnghttp2 takes
    and RFC 9113 does not: CONTINUATION of any size (4.2), PRIORITY on stream 0 (6.3).
    """

    __slots__ = (
        "_begun",
        "_frames",
        "_in_block",
        "_kind",
        "_length",
        "_partial",
        "_skip",
        "_stream",
        "block",
        "data_seen",
        "data_stream",
        "fault",
        "heads",
        "noise",
        "resets",
    )

    def __init__(self, skip: int = len(PREFACE)) -> None:
        self._skip = skip  # bytes of the current payload that have not come
        self._partial = b""  # the beginning of a frame header
        self._frames = 0
        self._kind = -1  # of the frame under way
        self._begun = 0  # the frame that began the last header block
        self._in_block = False  # END_HEADERS has not been seen
        self._length = 0  # of its payload
        self._stream = 0
        self.noise = 0
        self.resets = 0
        self.heads = 0
        self.fault = 0
        self.block = 0
        self.data_stream = 0
        self.data_seen = 0

    def feed(self, data: bytes) -> None:
        """Follow `data`, which may end anywhere."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        position = self._skip
        end = len(data)
        at = -1
        while position + _HEADER <= end:
            at = position
            word, flags = _read_header(data, position)
            kind = word & 0xFF
            position += _HEADER + (word >> 8)
            self._frames += 1
            if kind == HEADERS:
                self.heads += 1
                self._begun = self._frames
                self._in_block = not flags & _END_HEADERS
            elif kind != DATA:
                self._note(kind, flags, data, at)
            elif word < _MAYBE_EMPTY and not flags & _END_STREAM and (word < _NOT_EMPTY or flags & _PADDED):
                self.noise += 1
        if at >= 0:
            self._length = int.from_bytes(data[at : at + 3], "big")
            self._kind = data[at + 3]
            self._stream = int.from_bytes(data[at + 5 : at + 9], "big") & _STREAM
        self._stop(data, position, end)

    def _note(self, kind: int, flags: int, data: bytes, at: int) -> None:
        if kind == CONTINUATION:
            self._in_block = self._in_block and not flags & _END_HEADERS
            if int.from_bytes(data[at : at + 3], "big") > _LARGEST:
                self.fault = FRAME_SIZE_ERROR
            return
        self.noise += 1
        if kind == PRIORITY and not int.from_bytes(data[at + 5 : at + 9], "big") & _STREAM:
            self.fault = PROTOCOL_ERROR
        if kind == RST_STREAM:
            self.resets += 1

    def _stop(self, data: bytes, position: int, end: int) -> None:
        """Keep where the next piece goes on."""
        left = position - end  # of the payload under way
        self.block = self.data_stream = 0
        if left < 0:
            self._partial = data[position:]
            left = 0
            self.block = self._frames + 1
        elif left and self._kind == DATA:
            self.data_stream = self._stream
            self.data_seen = self._length - left
        elif left and (self._kind == HEADERS or self._kind == CONTINUATION):
            self.block = self._begun
        if self._in_block:
            self.block = self._begun
        self._skip = left
