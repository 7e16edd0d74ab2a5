"""Secrets out of files: `KEY_file = "/run/secrets/x"` beside or instead of `KEY = "…"`, in whichever layer.

Replaces each twin by what the file holds, before the layers are laid on each other: so a file named in a higher layer
wins over a text in a lower one. Rule: the text of a secret file never comes near a message.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlsproxy.settings import raw, tree

_LONGEST = 64 * 1024
# What stands for a secret that could not be read, so that nothing else is wrong because of it. Never used.
_UNREAD: dict[str, Any] = {"webhook": "https://unread.invalid/", "options": {}}
_UNREAD_KEY = "unread-0123456789-abcdefghijklmnop"


@dataclass(slots=True)
class Outcome:
    """What was found: where each replaced key is really written, and what is wrong with which path."""

    written: dict[raw.Path, raw.Path] = field(default_factory=dict)
    faults: list[raw.Fault] = field(default_factory=list)


def resolve(values: dict[str, Any]) -> Outcome:
    """Put the secrets in place of the names of their files, in `values` itself."""
    outcome = Outcome()
    for path, table, section in list(tree.find_tables(values)):
        for key in section.SECRETS:
            if isinstance(name := table.get(f"{key}_file"), str):
                del table[f"{key}_file"]
                _replace(outcome, path, table, key, name)
    return outcome


def _replace(outcome: Outcome, path: raw.Path, table: dict[str, Any], key: str, name: str) -> None:
    place = (*path, f"{key}_file")
    if not name:
        return  # as in an example that shows every key
    try:
        secret = _read(key, name)
        if key == "options":
            table[key] = _joined(table.get(key, {}), secret)
            return
        if table.get(key):
            raise ValueError(f"{key} is given twice, here and as a text; keep one of them")  # noqa: TRY301
        table[key] = secret
    except ValueError as error:
        outcome.faults.append(raw.Fault(place, str(error)))
        table[key] = _UNREAD.get(key, _UNREAD_KEY)
    outcome.written[(*path, key)] = place


def _read(key: str, name: str) -> Any:
    """Return what the file holds: a text, a list of lines (newest key first), or a table of options."""
    text = _text(Path(name))
    if key == "options":
        return _options(name, text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{name} is empty; write the secret into it")
    if key == "encryption_keys":
        return lines
    if len(lines) > 1:
        raise ValueError(f"{name} has more than one line; write the secret alone into it")
    return lines[0]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text") from None
    if len(raw) > _LONGEST:
        raise ValueError(f"{path} is too long for a secret")
    return text


def _options(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = str(error).rpartition(" (")[2].rstrip(")")
        raise ValueError(f'{name} holds no options; write them as in auth_token = "…" ({place})') from None


def _joined(inline: Any, read: dict[str, Any]) -> dict[str, Any]:
    inline = inline if isinstance(inline, dict) else {}
    if twice := next((option for option in read if option in inline), ""):
        raise ValueError(f"{twice} is given twice, in the file and in options; keep one of them")
    return {**inline, **read}
