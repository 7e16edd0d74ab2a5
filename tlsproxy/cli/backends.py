"""`tlsproxy admin backends …`: how the servers behind the proxy are; take one out, bring it back, put others in place.

Knows the shapes of the admin API's answers and how to show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tlsproxy.cli import certs
from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target
from tlsproxy.cli.output import Cell, complain, harmless, in_terminal, say, say_json, say_table

app = typer.Typer(name="backends", help="Backends: list, drain, resume, swap.", no_args_is_help=True)

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="A backend, as the configuration names it.")]

_COLUMNS = ("BACKEND", "STATE", "SINCE", "ACTIVE", "IDLE", "REQUESTS", "FAILURES", "ROUTES", "WHY")
_STYLES = {"up": "green", "recovering": "yellow", "draining": "yellow", "ejected": "red", "down": "red"}


@app.command("list")
def list_backends(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show every backend: its state, and the requests under way there."""
    rows, now = Target(config, socket).client.get("backends"), datetime.now(UTC)
    if as_json:
        say_json(rows)
    elif in_terminal():
        say_table(_COLUMNS[:-1], [_cells(row, now)[:-1] for row in rows])
        for row in rows:
            if row["why"]:  # a sentence has no room in a column
                say(f"\n{harmless(row['url'])}: {harmless(row['why'])}")
    else:
        say_table(_COLUMNS, [_cells(row, now) for row in rows])


@app.command()
def drain(url: UrlArgument, config: ConfigOption = None, socket: SocketOption = None) -> None:
    """Send no new request there; what is under way goes on. Until `resume`, also over restarts."""
    _show(Target(config, socket).client.post("backends", url, "drain"), "gets no new requests")


@app.command()
def resume(url: UrlArgument, config: ConfigOption = None, socket: SocketOption = None) -> None:
    """Undo `drain`."""
    _show(Target(config, socket).client.post("backends", url, "resume"), "gets requests again")


@app.command()
def swap(
    site: Annotated[str, typer.Option("--site", metavar="HOST", help="A host of the site.")],
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="URL[,URL…]", help="The new backends; commas between them, or --to for each."),
    ],
    path: Annotated[str, typer.Option("--path", metavar="PATH", help="Path of the route.")] = "/",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="For all new ones to be well; else nothing changes.")
    ] = "30s",
    drain_time: Annotated[
        str, typer.Option("--drain", metavar="TIME", help="To wait until the old ones have no request.")
    ] = "30s",
    config: ConfigOption = None,
    socket: SocketOption = None,
) -> None:
    """Give a route other backends once these are well, and wait until the old ones have no request.

    Exit code 1: not all were well in time, and nothing was changed. Naming the configured ones ends the swap.
    """
    options = {"site": site, "to": ",".join(_each(to)), "path": path, "timeout": timeout, "drain": drain_time}
    result = certs.follow(Target(config, socket).client.work("backends", "swap", options=options), "sites list")
    warn(result.get("warnings", ()))
    say(harmless(f"{result['route']}: {', '.join(result['backends'])}"))


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        complain(harmless(f"warning: {warning}"))


def _each(written: Iterable[str]) -> list[str]:
    """Every URL alone. A gap is refused: behind it is a variable that was to have a URL in it."""
    urls = [url.strip() for text in written for url in text.split(",")]
    if not all(urls):
        hint = "write --to URL,URL or --to URL --to URL"
        raise typer.BadParameter(f"{harmless(repr(','.join(written)))} lacks a URL; {hint}", param_hint="--to")
    return urls


def _show(answer: Mapping[str, Any], said: str) -> None:
    warn(answer.get("warnings", ()))
    say(harmless(f"{answer['url']}: {said}"))


def _cells(row: Mapping[str, Any], now: datetime) -> list[Cell]:
    return [
        Cell(row["url"]),
        Cell(_state(row), _STYLES.get(row["state"], "")),
        Cell(span((now - datetime.fromisoformat(row["since"])).total_seconds()) if row["since"] else ""),
        *(Cell(str(row[name])) for name in ("active", "idle", "requests", "failures")),
        Cell(", ".join(row["routes"])),
        Cell(row["why"]),
    ]


def _state(row: Mapping[str, Any]) -> str:
    """With how many workers see it so, if they differ."""
    workers, state = row["workers"], row["state"]
    return f"{state} ({workers[state]}/{sum(workers.values())})" if len(workers) > 1 and state in workers else state


def span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
