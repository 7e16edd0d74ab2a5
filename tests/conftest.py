"""What all tests share: names that are the same in every process that collects them, and a way for nobody."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

# No test fails on a time, least of all on a machine that has other work.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_LONGEST = 60


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A long or binary value, a key perhaps that was made just now, is no name for a test: its argument's is."""
    if isinstance(val, bytes | str) and (len(val) > _LONGEST or not _is_plain(val)):
        return argname
    return None


def _is_plain(value: bytes | str) -> bool:
    return value.isascii() and (value.decode("ascii") if isinstance(value, bytes) else value).isprintable()


@pytest.fixture(scope="session", autouse=True)
def _way_to_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests of root become another user, who must be able to come as far as the folder of the test."""
    if os.geteuid() != 0:
        return
    base, top = tmp_path_factory.getbasetemp(), Path(tempfile.gettempdir())
    for folder in (base, *base.parents):
        if folder == top or top not in folder.parents:
            return
        folder.chmod(0o755)
