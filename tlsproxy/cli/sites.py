"""`tlsproxy admin sites …`: where each site leads now; have its requests wait for a moment, and go on.

Knows the shapes of the admin API's answers and how to show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tlsproxy.cli.backends import span, warn
from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target
from tlsproxy.cli.output import Cell, harmless, say, say_json, say_table

app = typer.Typer(name="sites", help="Sites: list, pause, resume.", no_args_is_help=True)

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="A host of the site.")]

_COLUMNS = ("SITE", "PATH", "STATE", "BACKENDS")


@app.command("list")
def list_sites(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show every route: its backends, whether they were swapped, whether its site is paused."""
    rows = Target(config, socket).client.get("sites")
    if as_json:
        say_json(rows)
    else:
        say_table(_COLUMNS, [_cells(site, route) for site in rows for route in site["routes"]])


@app.command()
def pause(
    host: HostArgument,
    time: Annotated[str, typer.Option("--for", metavar="TIME", help="Until it ends by itself.")] = "30s",
    config: ConfigOption = None,
    socket: SocketOption = None,
) -> None:
    """Have the requests of a site wait; who waits too long, or would be one too many, gets 503."""
    answer = Target(config, socket).client.post("sites", host, "pause", options={"for": time})
    warn(answer.get("warnings", ()))
    say(harmless(f"{answer['site']}: paused for {answer['paused_for']:g} s"))


@app.command()
def resume(host: HostArgument, config: ConfigOption = None, socket: SocketOption = None) -> None:
    """Undo `pause`: what waits goes on."""
    answer = Target(config, socket).client.post("sites", host, "resume")
    warn(answer.get("warnings", ()))
    # A proxy that is not yet of this version does not say whether there was something to end.
    said = "no longer paused, its requests go on" if answer.get("was_paused", True) else "was not paused"
    say(harmless(f"{answer['site']}: {said}"))


def _cells(site: Mapping[str, Any], route: Mapping[str, Any]) -> list[Cell]:
    state = [f"paused {span(site['paused_for'])}"] if site["paused_for"] else []
    state += ["swapped"] if route["swapped"] else []
    return [
        Cell(site["site"]),
        Cell(route["path"]),
        Cell(", ".join(state) or "as configured", "yellow" if state else ""),
        Cell(", ".join(route["backends"])),
    ]
