"""Look-ups in raw configuration data, which may be wrong anywhere: no table has no keys, no list has no items.

For the rules between values, which are told together with broken values. Data may be models already: then their fields
are the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tlsproxy.settings import values

Path = tuple[int | str, ...]

# What [listen] has when nothing is written; the models say the same and a test compares them.
DEFAULT_LISTEN = {"https": (":443",), "http": (":80",)}


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule: where, what, and the place it clashes with."""

    path: Path
    message: str
    other: Path | None = None


def get(table: Any, key: str, default: Any = None) -> Any:
    """Return what a table holds under a key."""
    if isinstance(table, BaseModel):
        return getattr(table, key, default)
    return values.as_mapping(table).get(key, default)


def items(value: Any) -> list[Any]:
    """Return the items of a list, which may be written as one text with commas."""
    value = values.split_list(value)
    return list(value) if isinstance(value, (list, tuple)) else []


def parsed(given: Iterable[Any], parse: Callable[[object], str]) -> Iterator[tuple[int, str]]:
    """Yield index and normal form of the items that are right."""
    for index, item in enumerate(given):
        for normal in one(item, parse):
            yield index, normal


def one(item: Any, parse: Callable[[object], str]) -> Iterator[str]:
    """Yield the parsed item, or nothing: what is wrong with a single value is the model's to say."""
    try:
        yield parse(item)
    except ValueError:
        return


def hosts(site: Any) -> Iterator[tuple[int, str]]:
    """Yield index and normal form of the hosts of a site."""
    return parsed(items(get(site, "hosts", ())), values.parse_site_host)


def certificate(site: Any) -> Any:
    """Return where a site's certificate comes from: without a word internal for local names, else a public CA."""
    given = get(site, "certificate")
    if given is not None:
        return given
    return "internal" if all(values.is_local_name(host) for _, host in hosts(site)) else "acme"
