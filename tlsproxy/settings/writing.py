"""The way back: seconds and bytes in the form in which one would write them. Pure.

Rule: what is written here, `values` reads as the same value; a test holds the two together.
"""

from __future__ import annotations

from decimal import Decimal

_SECONDS = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_BYTES = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}


def write_duration(seconds: float) -> str:
    """Return "2y", "5m", "9.5s", "250ms": the longest unit that leaves no fraction, if there is one."""
    if seconds.is_integer():
        unit = next((unit for unit, factor in _SECONDS.items() if seconds and seconds % factor == 0), "s")
        return f"{int(seconds) // _SECONDS[unit]}{unit}"
    milliseconds = round(seconds * 1000)
    if seconds < 1 and milliseconds * 0.001 == seconds:
        return f"{milliseconds}ms"
    return f"{Decimal(repr(seconds)):f}s"  # never 1e-05


def write_size(size: int) -> str:
    """Return "32KiB", "1MB", "300B": the shortest form without a fraction, powers of two first."""
    return min((f"{size // factor}{unit}" for unit, factor in _BYTES.items() if size % factor == 0), key=len)


def write_duration_or_off(seconds: float) -> str:
    return write_duration(seconds) if seconds else "off"


def write_size_or_off(size: int) -> str:
    return write_size(size) if size else "off"
