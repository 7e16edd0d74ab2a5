"""Frozen dataclasses <-> JSON records, by their annotations. PURE.

Knows: text, numbers, instants (ISO 8601 with a zone), tuples, mappings by text, dataclasses inside dataclasses, `None`.
Does not know: what they mean. Rules: a default is not written; a field that is unknown or can't be understood is as if
it were not there, so that processes of two versions can share a record.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Value = TypeVar("Value")


def write(value: Any) -> dict[str, Any]:
    """Return the record of a dataclass."""
    return {
        each.name: _plain(getattr(value, each.name))
        for each in fields(value)
        if getattr(value, each.name) != _default(each)
    }


def read(kind: type[Value], record: Any) -> Value:
    """Rebuild from `write`. Raises ValueError if a field without a default is not there."""
    known = _hints(cast("Hashable", kind))
    values: dict[str, Any] = {}
    for name in known.keys() & (record if isinstance(record, Mapping) else {}):
        try:
            values[name] = _value(known[name], record[name])
        except (ValueError, TypeError):
            continue
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"no {kind.__name__}: {error}") from error


def instant(text: str) -> datetime:
    """Return the instant of ISO 8601 text. Raises ValueError if it has no zone."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("time without zone")
    return when


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return write(value) if is_dataclass(value) else value


def _value(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _value(next(each for each in inner if each is not NoneType), value)
    if kind is datetime:
        return instant(value)
    if origin is tuple:
        return tuple(_value(inner[0], each) for each in _checked(list, value))
    if origin is Mapping:
        return {str(key): _value(inner[1], each) for key, each in _checked(dict, value).items()}
    if is_dataclass(kind) and isinstance(kind, type):
        return read(kind, _checked(dict, value))
    return value if kind is Any else _checked(kind, value)


def _checked(kind: type[Value], value: Any) -> Value:
    # A bool is an int to Python, and a count of True is a mistake of somebody.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{type(value).__name__} is no {kind.__name__}")
    return value
