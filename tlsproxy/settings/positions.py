"""Where each key of a TOML text stands: path -> line. Pure.

tomllib reads values and forgets their places; this scanner finds places and ignores values. It is given text that
tomllib has accepted, so it only has to know where keys, strings, arrays and inline tables begin and end. Rule: it
never raises; where it loses its way it returns what it has, and a look-up answers with the nearest enclosing place.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from contextlib import suppress

Path = tuple[int | str, ...]
_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def scan_positions(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every table, key and array element."""
    scanner = _Scanner(text)
    with suppress(_LostError, RecursionError):
        scanner.scan()
    return scanner.lines


class Lines:
    """The lines of a text, looked for when the first one is asked for: a configuration without a fault has no need."""

    # Mutable: _lines (None until asked for).
    def __init__(self, text: str = "") -> None:
        self._text = text
        self._lines: dict[Path, int] | None = None

    def find(self, path: Path) -> int | None:
        """Return the line of the path, or of the nearest thing around it that has one."""
        if self._lines is None:
            self._lines = scan_positions(self._text)
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return self._lines[path[:length]]
        return None


def _unquoted(text: str) -> str:
    try:
        return str(tomllib.loads(f"key = {text}")["key"])
    except tomllib.TOMLDecodeError as error:
        raise _LostError from error


class _LostError(Exception):
    """The text is not what the scanner expected here."""


class _Scanner:
    # Mutable: `_at` moves through the text, `_table` is what plain keys belong to, `_counts` the newest index of
    # each array of tables.
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._table: Path = ()
        self._counts: dict[Path, int] = {}
        self._breaks = [index for index, char in enumerate(text) if char == "\n"]

    def scan(self) -> None:
        self._skip_blank()
        while self._at < len(self._text):
            if self._peek() == "[":
                self._header()
            else:
                self._key_value(self._table)
            self._skip_blank()

    def _header(self) -> None:
        start = self._at
        is_array = self._text.startswith("[[", start)
        self._at += 2 if is_array else 1
        keys = self._keys()
        self._expect("]]" if is_array else "]")
        path = (*self._enclosing(keys[:-1]), keys[-1])
        if is_array:
            self._counts[path] = self._counts.get(path, -1) + 1
            self.lines.setdefault(path, self._line(start))
            path = (*path, self._counts[path])
        elif path in self._counts:
            path = (*path, self._counts[path])
        self._table = path
        self._note(path, start)

    def _enclosing(self, keys: Path) -> Path:
        """Walk to a table by its names; a name of an array of tables means the newest one."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self._counts:
                path = (*path, self._counts[path])
        return path

    def _key_value(self, table: Path) -> None:
        start = self._at
        path = table + self._keys()
        self._expect("=")
        self._skip_spaces()
        for length in range(len(table) + 1, len(path)):
            self._note(path[:length], start)
        self._note(path, start)
        self._value(path)

    def _keys(self) -> Path:
        keys = [self._key()]
        self._skip_spaces()
        while self._peek() == ".":
            self._at += 1
            keys.append(self._key())
            self._skip_spaces()
        return tuple(keys)

    def _key(self) -> str:
        self._skip_spaces()
        start = self._at
        if self._peek() in {'"', "'"}:
            self._string()
            return _unquoted(self._text[start : self._at])
        while self._peek() in _BARE and self._at < len(self._text):
            self._at += 1
        if start == self._at:
            raise _LostError
        return self._text[start : self._at]

    def _value(self, path: Path) -> None:
        first = self._peek()
        if first in {'"', "'"}:
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self._at < len(self._text) and self._peek() not in {",", "]", "}", "#", "\n"}:
                self._at += 1

    def _string(self) -> None:
        quote = self._peek()
        mark = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(mark)
        while not self._text.startswith(mark, self._at):
            if self._at >= len(self._text):
                raise _LostError
            self._at += 2 if quote == '"' and self._peek() == "\\" else 1
        self._at += len(mark)
        # A multi-line string may end in up to five quotes: the last three close it.
        while len(mark) == 3 and self._peek() == quote:
            self._at += 1

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        self._skip_blank()
        while self._peek() != "]":
            self._note((*path, index), self._at)
            self._value((*path, index))
            index += 1
            self._skip_blank()
            if self._peek() == ",":
                self._at += 1
                self._skip_blank()
            elif self._peek() != "]":
                raise _LostError
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        self._skip_blank()
        while self._peek() != "}":
            self._key_value(path)
            self._skip_blank()
            if self._peek() == ",":
                self._at += 1
                self._skip_blank()
            elif self._peek() != "}":
                raise _LostError
        self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _expect(self, token: str) -> None:
        self._skip_spaces()
        if not self._text.startswith(token, self._at):
            raise _LostError
        self._at += len(token)

    def _skip_spaces(self) -> None:
        while self._peek() in {" ", "\t"}:
            self._at += 1

    def _skip_blank(self) -> None:
        while (char := self._peek()) and char in " \t\r\n#":
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                self._at += 1

    def _note(self, path: Path, start: int) -> None:
        self.lines.setdefault(path, self._line(start))

    def _line(self, at: int) -> int:
        return bisect_right(self._breaks, at - 1) + 1
