"""How a command speaks: lines, tables, JSON, steps of some work, questions.

Knows terminals and pipes, nothing of what is said. Rules: what a command found goes to stdout, what went wrong to
stderr; colours and spinners in a terminal only; nothing in a value breaks out of its line or reaches the terminal as a
control sequence (a CA's words and file names come from strangers). rich is imported where it is used: most commands
don't pay for it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import typer

_UNBROKEN = 16  # characters, as of "2026-03-01 04:05"


class Cell(NamedTuple):
    """A piece of a table; `style` is rich's ("red"), for terminals."""

    text: str
    style: str = ""


def say(text: str) -> None:
    typer.echo(text)


def complain(text: str) -> None:
    typer.echo(text, err=True)


def complain_of(text: str) -> None:
    """Say what went wrong in words that are not all ours; the lines stay lines."""
    for line in text.split("\n"):
        complain(harmless(line))


def say_json(value: Any) -> None:
    """Print JSON. For a terminal all but ASCII is escaped: JSON itself lets DEL, C1 controls and bidi marks through."""
    text = json.dumps(value, indent=2, ensure_ascii=in_terminal())
    say(text.replace("\x7f", "\\u007f") if in_terminal() else text)


def in_terminal() -> bool:
    return sys.stdout.isatty()


def harmless(text: str) -> str:
    """Return the text without anything that is not to be printed: line breaks, tabs, control sequences."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table: with colours and as wide as the terminal, or one line per row with tabs between the columns.

    Where room is short, the first column (a name that people copy) and short ones stay whole.
    """
    if not in_terminal():
        for row in [[Cell(column) for column in columns], *rows]:
            say("\t".join(harmless(cell.text) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        widest = max(len(harmless(row[number].text)) for row in rows) if rows else 0
        table.add_column(column, no_wrap=number == 0 or widest <= _UNBROKEN)
    for row in rows:
        table.add_row(*(Text(harmless(cell.text), style=cell.style) for cell in row))
    Console().print(table)


def say_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values below each other; a value of several lines keeps its column."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        first, *others = value.splitlines() or [""]
        say(f"{name:<{width}}  {harmless(first)}".rstrip())
        for other in others:
            say(f"{'':<{width}}  {harmless(other)}")


def confirm(question: str) -> None:
    """Ask; end the command if the answer is no, or if nobody is there to give one."""
    if not sys.stdin.isatty():
        complain("tlsproxy: this has to be confirmed, and nobody is there to ask. Say --yes if it is meant.")
        raise typer.Exit(2)
    if not typer.confirm(question, err=True):
        complain("nothing was changed")
        raise typer.Exit(1)


class Steps(Protocol):
    """Somebody who is told what is being done now."""

    def step(self, text: str) -> None:
        """Say that what was said before is over, and this has begun."""


class _Lines:
    def step(self, text: str) -> None:
        say(harmless(text))


class _Spinner:
    # Mutable: _now (what has begun last).

    def __init__(self, console: Any, status: Any) -> None:
        self._console = console
        self._status = status
        self._now = ""

    def step(self, text: str) -> None:
        self.finish("✓", "green")
        self._now = harmless(text)
        self._status.update(self._text(self._now))

    def finish(self, mark: str, style: str) -> None:
        if self._now:
            self._console.print(self._text(mark, style) + self._text(f" {self._now}"), soft_wrap=True)
        self._now = ""

    def _text(self, text: str, style: str = "") -> Any:
        from rich.text import Text

        return Text(text, style=style)


@contextlib.contextmanager
def steps() -> Iterator[Steps]:
    """Show steps while the block runs: a spinner on the last one in a terminal, a line for each of them else."""
    if not in_terminal():
        yield _Lines()
        return
    from rich.console import Console

    console = Console()
    with console.status("") as status:
        spinner = _Spinner(console, status)
        try:
            yield spinner
        except KeyboardInterrupt:
            spinner.finish("…", "yellow")  # nobody looks any more; that is no failure
            raise
        except BaseException:
            spinner.finish("✗", "red")
            raise
        spinner.finish("✓", "green")
