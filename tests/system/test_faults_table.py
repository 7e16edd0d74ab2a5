"""The table in docs/faults.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py(?:::\w+)+)`", (ROOT / "docs" / "faults.md").read_text())))


@pytest.mark.parametrize("name", NAMED)
def test_is_there(name: str) -> None:
    file, *parts = name.split("::")
    path = ROOT / file if "/" in file else Path(__file__).parent / file
    inside: list[ast.stmt] = ast.parse(path.read_text()).body
    for part in parts:
        found = [node for node in inside if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part]
        assert found, f"{part} is not in {file}"
        inside = found[0].body


def test_there_are_rows() -> None:
    assert len(NAMED) > 30
