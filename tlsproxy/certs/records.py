"""Frozen dataclasses <-> JSON records, by their annotations. PURE.

Knows: text, numbers, instants (ISO 8601 with a zone), tuples, mappings by text, dataclasses inside dataclasses, `None`.
Does not know: what they mean. Rules: a default is not written; a field that is unknown or can't be understood is as if
it were not there, so that processes of two versions can share a record.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Value = TypeVar("Value")
Reader = Callable[[Any], Any]


def write(value: Any) -> dict[str, Any]:
    """Return the record of a dataclass."""
    defaults = _defaults(cast("Hashable", type(value)))
    return {
        name: _plain(content)
        for name, default in defaults.items()
        if (content := getattr(value, name)) is not default and content != default
    }


def read(kind: type[Value], record: Any) -> Value:
    """Rebuild from `write`. Raises ValueError if a field without a default is not there."""
    values: dict[str, Any] = {}
    if isinstance(record, Mapping):
        readers = _readers(cast("Hashable", kind))
        for name in readers.keys() & record.keys():
            try:
                values[name] = readers[name](record[name])
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
def _readers(kind: Hashable) -> dict[str, Reader]:
    # Annotations are taken apart once: a list of ten thousand certificates reads as many records.
    return {name: _reader(each) for name, each in get_type_hints(kind).items()}


@cache
def _defaults(kind: Hashable) -> dict[str, Any]:
    return {each.name: _default(each) for each in fields(cast("Any", kind))}


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


def _reader(kind: Any) -> Reader:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        read_it = _reader(next(each for each in inner if each is not NoneType))
        return lambda value: None if value is None else read_it(value)
    if origin is tuple:
        read_each = _reader(inner[0])
        return lambda value: tuple([read_each(each) for each in _checked(list, value)])
    if origin is Mapping:
        read_each = _reader(inner[1])
        return lambda value: {str(key): read_each(each) for key, each in _checked(dict, value).items()}
    if kind is datetime:
        return instant
    if is_dataclass(kind):
        return lambda value: read(cast("type[Any]", kind), _checked(dict, value))
    return _same if kind is Any else lambda value: _checked(kind, value)


def _same(value: Any) -> Any:
    return value


def _checked(kind: type[Value], value: Any) -> Value:
    # A bool is an int to Python, and a count of True is a mistake of somebody.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{type(value).__name__} is no {kind.__name__}")
    return value
