"""What is in force and why: every effective key with its value and origin, for `tlsproxy explain`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tlsproxy.settings.layers import dotted
from tlsproxy.settings.loader import Loaded, flatten


@dataclass(frozen=True, slots=True)
class Row:
    """One effective key: its value as JSON can hold it, and where it came from."""

    key: str
    value: Any
    origin: str


def explain(loaded: Loaded) -> list[Row]:
    """Return a row per effective key, in the order of the configuration."""
    return [Row(dotted(path), _plain(value), loaded.origins[dotted(path)]) for path, value in flatten(loaded.settings)]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
