"""The shape of the configuration: into which section a path leads, and to which one a table of raw data belongs.

Reads the models, never a value. Works on raw data that may be wrong anywhere: what is no table is passed over.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from tlsproxy.settings.models import Settings
from tlsproxy.settings.raw import Path
from tlsproxy.settings.section import Section
from tlsproxy.settings.sites import Site

Table = tuple[Path, dict[str, Any], type[Section]]


def find_section(path: Sequence[int | str]) -> type[Section] | None:
    """Return the section that the keys of a path lead into; Settings for none."""
    section: type[Section] | None = Settings
    for name in (step for step in path if isinstance(step, str)):
        section = _inner(section).get(name) if section else None
    return section


def known_keys(section: type[Section]) -> list[str]:
    """Return what may be written in a section."""
    short = ["backends"] if section is Site else []
    return [*short, *section.model_fields, *(f"{key}_file" for key in section.SECRETS)]


def find_tables(values: Any, path: Path = (), section: type[Section] = Settings) -> Iterator[Table]:
    """Yield every table there is in raw values whose section names files or secrets, with its path and its section."""
    for name, inner in _inner(section).items():
        if not _is_of_interest(inner):
            continue
        found = values.get(name) if isinstance(values, dict) else None
        if isinstance(found, dict):
            yield (*path, name), found, inner
            yield from find_tables(found, (*path, name), inner)
        for index, item in enumerate(found if isinstance(found, list) else ()):
            if isinstance(item, dict):
                yield (*path, name, index), item, inner
                yield from find_tables(item, (*path, name, index), inner)


@functools.cache
def homes() -> dict[str, type[Section]]:
    """Return all sections by what one writes above their keys: "[acme.dns]", "[[sites.routes]]"."""
    return dict(_homes(Settings, ""))


def _homes(section: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    for name, inner in _inner(section).items():
        is_list = get_origin(section.model_fields[name].annotation) is tuple
        yield (f"[[{prefix}{name}]]" if is_list else f"[{prefix}{name}]"), inner
        yield from _homes(inner, f"{prefix}{name}.")


@functools.cache
def _is_of_interest(section: type[Section]) -> bool:
    return bool(section.FILES or section.SECRETS) or any(map(_is_of_interest, _inner(section).values()))


@functools.cache
def _inner(section: type[Section]) -> dict[str, type[Section]]:
    """Return the sections that stand in a section, by key."""
    found = {name: _section_in(info.annotation) for name, info in section.model_fields.items()}
    return {name: inner for name, inner in found.items() if inner is not None}


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for each in get_args(annotation) if (found := _section_in(each))), None)
