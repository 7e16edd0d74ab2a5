"""Where the memory of TLS handshakes lies: in pages of its own, which go back to the kernel.

OpenSSL takes and zeroes 21.8 KiB for each handshake and frees them at its end. On the heap they leave touched pages
behind, and in these comes to lie what stays: of HTTP/2 the codec's buffer of 16 KiB for frames, of which an idle
connection has used the first hundreds of bytes. Measured on 800 idle HTTP/2 connections: 45 KiB each instead of 58.

Knows mallopt(3) of glibc; with another C library nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Final

_TRIM_THRESHOLD: Final = -1  # malloc.h
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3

_HANDSHAKE: Final = 20 * 1024  # bytes: less than OpenSSL's buffer, more than what stays
# From the first call of mallopt on, glibc no longer learns these by itself, which it does up to 32 MiB: bodies and what
# is read from sockets must not be mapped, and faulted in, time and again.
_OTHERWISE: Final = 4 << 20
_KEPT: Final = 8 << 20  # bytes free at the heap's end before it shrinks


class Apart:
    """A context: what is large and allocated in it gets pages of its own. Costs 1 µs, and some for the pages."""

    __slots__ = ()

    def __enter__(self) -> None:
        _mallopt()(_MMAP_THRESHOLD, _HANDSHAKE)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _mallopt()(_MMAP_THRESHOLD, _OTHERWISE)


@cache
def _mallopt() -> Callable[[int, int], object]:
    """The C library's, after what has to be said once: nothing is mapped while there is room at the heap's end."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return lambda name, value: None
    mallopt(_TOP_PAD, 0)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    found: Callable[[int, int], object] = mallopt
    return found
