"""What all tests share: names that are the same in every process that collects them."""

from __future__ import annotations

import pytest

_LONGEST = 60


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A long or binary value, a key perhaps that was made just now, is no name for a test: its argument's is."""
    if isinstance(val, bytes | str) and (len(val) > _LONGEST or not _is_plain(val)):
        return argname
    return None


def _is_plain(value: bytes | str) -> bool:
    return value.isascii() and (value.decode("ascii") if isinstance(value, bytes) else value).isprintable()
