"""The part of the HTTP/1.1 codec that both directions share: the buffer, finding a head, and reading a body. Pure.

Strategy: bodies are counted (Content-Length) or de-chunked (RFC 9112 7.1) here and handed out piece by piece as they
come; a proxy never waits for the end of a chunk. `body_done` tells when the message is complete.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, auto
from typing import Final

from tlsproxy.wire import grammar
from tlsproxy.wire.fields import NO_NAMES, Fields, without
from tlsproxy.wire.messages import Framing, ProtocolError

_LONGEST_CHUNK_LINE: Final = 1024
_CHUNK_OVERHEAD: Final = 16 * 1024  # bytes of chunk extensions in one message
_TRAILER_LIMIT: Final = 8 * 1024


class _ChunkState(Enum):
    SIZE = auto()
    DATA = auto()
    AFTER_DATA = auto()
    TRAILERS = auto()


# A global costs a third of looking a member up on its Enum.
_NO_BODY: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH
_BY_CHUNKS: Final = Framing.CHUNKED
_UNTIL_CLOSE: Final = Framing.UNTIL_CLOSE
_SIZE, _DATA, _AFTER_DATA, _TRAILERS = _ChunkState


class MessageReader:
    """What both directions share: the buffer, and the body of the message whose head was taken last.

    Mutable state: `_buffer` (bytes not yet used), `_framing`/`_left`/`_chunk_state` (where in the body we are),
    `_hop_names` (set by the direction with each chunked head).
    """

    __slots__ = (
        "_buffer", "_checked", "_chunk_state", "_framing", "_hop_names", "_left", "_overhead", "body_done", "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._buffer = b""
        self._checked = 0  # bytes of an unfinished head that were looked at
        self._framing = _NO_BODY
        self._left = 0
        self._chunk_state = _SIZE
        self._overhead = 0
        self._hop_names: Set[bytes] = NO_NAMES  # what `Connection` named in a chunked message's head
        self.body_done = True
        self.trailers: Fields = []

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer."""
        self._buffer = self._buffer + data if self._buffer else data

    @property
    def buffered(self) -> int:
        """Bytes received and not yet used."""
        return len(self._buffer)

    def take_rest(self) -> bytes:
        """Whatever was received and not used: the first bytes of a tunnel."""
        rest, self._buffer = self._buffer, b""
        return rest

    def read_body(self) -> bytes:
        """The body bytes at hand, maybe none. `body_done` tells whether the message is complete."""
        if self._framing is _BY_LENGTH:
            return self._read_length()
        if self._framing is _BY_CHUNKS:
            return self._read_chunks()
        if self._framing is _UNTIL_CLOSE:
            return self.take_rest()
        return b""

    def begin_body(self, framing: Framing, length: int) -> None:
        self._framing = framing
        self._left = length
        self.body_done = framing is _NO_BODY or (framing is _BY_LENGTH and length == 0)
        if self.trailers:
            self.trailers = []  # those of the message before must not end this one
        if framing is _BY_CHUNKS:
            self._chunk_state = _SIZE
            self._overhead = 0

    def _read_length(self) -> bytes:
        data = self._buffer
        if len(data) <= self._left:
            self._buffer = b""
        else:
            data, self._buffer = data[: self._left], data[self._left :]
        self._left -= len(data)
        if not self._left:
            self.body_done = True
        return data

    def _read_chunks(self) -> bytes:
        pieces: list[bytes] = []
        position = 0
        buffer = self._buffer
        while not self.body_done:
            step = self._chunk_step(buffer, position, pieces)
            if step < 0:
                break
            position = step
        self._buffer = buffer[position:]
        self._take_partial_chunk(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _chunk_step(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        """Use one element of the chunked coding at `position`; the position behind it, or -1 if it is not whole."""
        state = self._chunk_state
        if state is _SIZE:
            return self._chunk_size(buffer, position)
        if state is _DATA:
            end = position + self._left
            if len(buffer) < end:
                return -1
            pieces.append(buffer[position:end])
            self._left = 0
            self._chunk_state = _AFTER_DATA
            return end
        if state is _AFTER_DATA:
            return self._chunk_end(buffer, position)
        return self._trailer_section(buffer, position)

    def _take_partial_chunk(self, pieces: list[bytes]) -> None:
        """Hand out what is there of a chunk that is not whole yet: a proxy must not wait for the end of a chunk."""
        if self._chunk_state is _DATA and self._buffer and not self.body_done:
            pieces.append(self._buffer)
            self._left -= len(self._buffer)
            self._buffer = b""

    def _chunk_size(self, buffer: bytes, position: int) -> int:
        end = buffer.find(b"\r\n", position, position + _LONGEST_CHUNK_LINE)
        if end < 0:
            if len(buffer) - position >= _LONGEST_CHUNK_LINE:
                raise ProtocolError(400, f"A chunk header is longer than {_LONGEST_CHUNK_LINE} bytes.")
            if b"\n" in buffer[position:] or b"\r" in buffer[position:-1]:
                raise ProtocolError(400, "A chunk header does not end with CR LF.")
            return -1
        size = grammar.parse_chunk_size(buffer[position:end])
        self._count_overhead(end - position)
        self._left = size
        self._chunk_state = _DATA if size else _TRAILERS
        return end + 2

    def _count_overhead(self, length: int) -> None:
        if length > 16:
            self._overhead += length
            if self._overhead > _CHUNK_OVERHEAD:
                raise ProtocolError(400, "The chunk extensions of this message are too long.")

    def _chunk_end(self, buffer: bytes, position: int) -> int:
        ending = buffer[position : position + 2]
        if ending == b"\r\n":
            self._chunk_state = _SIZE
            return position + 2
        if ending not in (b"", b"\r"):
            raise ProtocolError(400, "A chunk is not as long as its header says.")
        return -1

    def _trailer_section(self, buffer: bytes, position: int) -> int:
        if buffer[position : position + 2] == b"\r\n":
            self.body_done = True
            return position + 2
        end = buffer.find(b"\r\n\r\n", position)
        # Three bytes more while the end is not seen: they may belong to it, and a split must not change the verdict.
        if (end if end >= 0 else len(buffer) - 3) - position > _TRAILER_LIMIT:
            raise ProtocolError(431, f"The trailer section is larger than {_TRAILER_LIMIT} bytes.")
        if end < 0:
            grammar.check_partial_head(buffer[position:])
            return -1
        self.trailers = grammar.parse_trailers(buffer[position:end])
        if self._hop_names:
            self.trailers = without(self.trailers, self._hop_names)  # RFC 9110 7.6.1: trailer fields too
        self.body_done = True
        return end + 4

    def take_head(self, limit: int) -> bytes | None:
        """The next whole head including its empty line, or None."""
        buffer = self._buffer
        # The end may have begun up to three bytes before what is new; a head that drips in is not searched anew.
        end = buffer.find(b"\r\n\r\n", self._checked - 3 if self._checked > 3 else 0)
        if end < 0:
            if len(buffer) - 3 > limit:
                raise self.too_large(buffer, limit)
            self._check_new_bytes(buffer)
            return None
        if end > limit:
            raise self.too_large(buffer[:end], limit)
        end += 4
        self._checked = 0
        if end == len(buffer):
            self._buffer = b""
            return buffer
        self._buffer = buffer[end:]
        return buffer[:end]

    def too_large(self, head: bytes, limit: int) -> ProtocolError:
        """The error for a head, maybe unfinished, that is longer than `limit`."""
        return grammar.head_too_large(head, limit)

    def _check_new_bytes(self, buffer: bytes) -> None:
        grammar.check_partial_head(buffer[self._checked :])
        self._checked = len(buffer) - buffer.endswith(b"\r")
