"""Pydantic's errors in the user's words: where it is written, what is wrong, what was probably meant.

Knows the layers (for the place) and the models (for the keys there are). Rule: one problem per place and cause; an
error that only follows from another one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from tlsproxy.errors import Problem
from tlsproxy.settings import raw, rules, tree
from tlsproxy.settings.layers import Layer, dotted
from tlsproxy.settings.values import did_you_mean

_UNION_TAGS = frozenset({"word", "file", "files"})
_PLAIN: dict[str, str] = {
    "missing": "is required",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write it as text in quotes",
    "path_type": "write it as a path in quotes",
    "tuple_type": 'write a list, as in ["…", "…"]',
    "too_short": "must not be empty",
}


def find_place(layers: Sequence[Layer], path: raw.Path) -> Layer | None:
    """Return the layer that sets this path: the highest that has it, unless a higher one replaced what it lies in."""
    for layer in layers:
        values: Any = layer.values
        for depth, step in enumerate(path):
            if _has(values, step):
                values = values[step]
            elif isinstance(values, dict) and not _is_inside_list(path[:depth]):
                break  # tables are merged: a lower layer may have it
            else:
                return None  # lists and single values are replaced whole
        else:
            return layer
    return None


def translate(error: ValidationError, layers: Sequence[Layer], merged: dict[str, Any]) -> list[Problem]:
    """Return the problems behind a validation error, in the order of the file."""
    found: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
    paths = [rules.written_path(_without_tags(item["loc"]), merged) for item in found]
    problems: dict[tuple[str, str], Problem] = {}
    for item, path in sorted(_independent(found, paths), key=lambda pair: pair[0]["type"] != "rule"):
        problem = _problem(item, path, layers, merged)
        problems.setdefault((problem.source, problem.key), problem)
    return sorted(problems.values(), key=_file_order)


def _independent(found: list[dict[str, Any]], paths: list[raw.Path]) -> Iterator[tuple[dict[str, Any], raw.Path]]:
    """Drop what follows: a list too short because its items were refused, routes missing because backends are."""
    for item, path in zip(found, paths, strict=True):
        loc = item["loc"]
        follows = item["type"] == "too_short" and any(o["loc"][: len(loc)] == loc != o["loc"] for o in found)
        if not follows and not (item["type"] == "missing" and path[-1] == "routes"):
            yield item, path


def _problem(item: dict[str, Any], path: raw.Path, layers: Sequence[Layer], merged: dict[str, Any]) -> Problem:
    source, key = _place(layers, path)
    return Problem(source, key, _message(item, path, lambda other: _other_place(layers, item, other, merged)))


def _place(layers: Sequence[Layer], path: raw.Path) -> tuple[str, str]:
    """Find the place of a path, or of the nearest thing around it that is written somewhere, and keep the full key."""
    for length in range(len(path), 0, -1):
        layer = find_place(layers, path[:length])
        if layer is not None:
            return layer.place(path)
    return "default", dotted(path)


def _other_place(layers: Sequence[Layer], item: dict[str, Any], other: raw.Path, merged: dict[str, Any]) -> str:
    base = item["loc"][: len(item["loc"]) - item["ctx"]["depth"]]
    path = rules.written_path(_without_tags((*base, *other)), merged)
    return " at ".join(reversed(_place(layers, path)))


def _message(item: dict[str, Any], path: raw.Path, place_of: Callable[[raw.Path], str]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "rule":
        first = f"; first as {place_of(context['other'])}" if context["other"] else ""
        return f"{context['message']}{first}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return "unknown key" + _key_hint(path)
    if kind == "literal_error":
        return _choice_message(item["input"], context["expected"])
    if kind in {"greater_than_equal", "less_than_equal"}:
        return f"must be at {'least' if kind[0] == 'g' else 'most'} {context['ge' if kind[0] == 'g' else 'le']}"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return _table_message(path)
    return _PLAIN.get(kind) or f"{item['msg'][:1].lower()}{item['msg'][1:]}"


def _choice_message(given: Any, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    shown = ", ".join(f'"{choice}"' for choice in choices)
    text = f'"{given}"' if isinstance(given, str) else repr(given)
    return f"{text[:80]} is not one of {shown}{did_you_mean(str(given), choices)}"


def _table_message(path: raw.Path) -> str:
    name = ".".join(step for step in path if isinstance(step, str))
    is_list = f"[[{name}]]" in tree.homes()
    return f"is a table; write [[{name}]]" if is_list else f"is a table; write [{name}] and its keys"


def _key_hint(path: raw.Path) -> str:
    key, section = str(path[-1]), tree.find_section(path[:-1])
    near = did_you_mean(key, tree.known_keys(section)) if section else ""
    if near:
        return near
    home = next((header for header, other in tree.homes().items() if key in tree.known_keys(other)), "")
    if not home or home.startswith("[["):
        return f"; it belongs to {home}" if home else ""
    return f'; it belongs to {home}, did you mean "{home.strip("[]")}.{key}"?'


def _without_tags(loc: raw.Path) -> raw.Path:
    return tuple(
        step
        for step, before in zip(loc, ("", *loc), strict=False)
        if before != "certificate" or step not in _UNION_TAGS
    )


def _has(values: Any, step: int | str) -> bool:
    if isinstance(values, list):
        return isinstance(step, int) and step < len(values)
    return isinstance(values, dict) and step in values


def _is_inside_list(path: raw.Path) -> bool:
    return any(isinstance(step, int) for step in path)


def _file_order(problem: Problem) -> tuple[str, int]:
    source, colon, line = problem.source.rpartition(":")
    return (source, int(line)) if colon and line.isdigit() else (problem.source, 0)
