"""What is in force and why: every effective key with its value and origin, for `tlsproxy explain`. Pure.

Rules: a row says its value twice, as a number that programs can compare and as a person would write it in the file; of
a secret it says only that there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from tlsproxy.settings import raw, values, writing
from tlsproxy.settings.acme_values import Rate
from tlsproxy.settings.layers import dotted
from tlsproxy.settings.loader import Loaded, flatten
from tlsproxy.settings.models import Settings

HIDDEN = "********"
# The parser of a key is what tells a duration from any other number.
_WRITERS: dict[Callable[[object], Any], Callable[[Any], str]] = {
    values.parse_duration: writing.write_duration,
    values.parse_positive_duration: writing.write_duration,
    values.parse_duration_or_off: writing.write_duration_or_off,
    values.parse_size: writing.write_size,
    values.parse_size_or_off: writing.write_size_or_off,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One effective key: its value as JSON can hold it, as one would write it, and where it came from."""

    key: str
    value: Any
    written: Any
    origin: str


def explain(loaded: Loaded) -> list[Row]:
    """Return a row per effective key, in the order of the configuration."""
    return [_row(loaded, path, value) for path, value in flatten(loaded.settings)]


def _row(loaded: Loaded, path: raw.Path, value: Any) -> Row:
    plain = _plain(value)
    writer = _writer(loaded.settings, path)
    return Row(dotted(path), plain, writer(value) if writer else plain, loaded.origins[dotted(path)])


def _writer(settings: Settings, path: raw.Path) -> Callable[[Any], str] | None:
    section: Any = settings
    for step in path[:-1]:
        section = section[step] if isinstance(step, int) else getattr(section, step)
    parsers = (getattr(each, "func", None) for each in type(section).model_fields[path[-1]].metadata)
    return next((_WRITERS[parser] for parser in parsers if parser in _WRITERS), None)


def _plain(value: Any) -> Any:
    if value is None:
        return ""  # how the file says that there is none
    if isinstance(value, SecretStr):
        return HIDDEN if value else ""
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, (Path, Rate)) else value
