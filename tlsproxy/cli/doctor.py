"""`tlsproxy doctor`: look at everything between clients and applications, and say what is wrong and what to do.

Knows options and how findings are shown; the examination is in the room `doctor`. Exit codes: 0 nothing is bad, 1
something is, 2 usage or configuration. What can't be seen is no failure.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target, load
from tlsproxy.cli.output import harmless, in_terminal, say, say_json

if TYPE_CHECKING:
    from tlsproxy.doctor.findings import Finding
    from tlsproxy.doctor.house import House
    from tlsproxy.settings import Loaded, Site

_STYLES = {"ok": "green", "bad": "bold red", "unknown": "yellow"}
_MARKS = {"ok": "✓", "bad": "✗", "unknown": "?"}


def doctor(
    host: Annotated[str, typer.Argument(metavar="HOST", help="One host of the sites; else all.")] = "",
    config: ConfigOption = None,
    socket: SocketOption = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="HOST=BACKEND[,BACKEND…]", help="Instead of the sites of the file."),
    ] = None,
    probe: Annotated[
        str, typer.Option("--probe", metavar="PATH", help="Path that the application redirects (as /items/).")
    ] = "",
    websocket: Annotated[str, typer.Option("--websocket", metavar="PATH", help="Path that takes a WebSocket.")] = "",
    stream: Annotated[
        str, typer.Option("--stream", metavar="PATH", help="Path that streams for a second or more (GET).")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show how everything was found.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine DNS, ports, CA, certificates and backends; say what is wrong and what to do about it."""
    import asyncio

    for option, path in (("--probe", probe), ("--websocket", websocket), ("--stream", stream)):
        if path and not path.startswith("/"):
            raise typer.BadParameter(f'{option} "{path}": a path begins with a slash, as /items/')
    loaded = load(config, {"site": site} if site else None)
    chosen = _choose(loaded, host)
    house = _house(loaded, config, socket, probe, websocket, stream)
    from tlsproxy.doctor.examination import examine

    with _progress(shown=not as_json) as progress:
        findings = asyncio.run(examine(house, chosen, progress))
    if as_json:
        say_json(_as_json(findings))
    elif in_terminal():
        _print(findings, verbose=verbose or bool(host))
    else:
        _say_plain(findings, verbose=verbose or bool(host))
    raise typer.Exit(1 if any(finding.state == "bad" for finding in findings) else 0)


def _house(loaded: Loaded, config: Path | None, socket: Path | None, probe: str, websocket: str, stream: str) -> House:
    from tlsproxy.doctor.house import House, inspect
    from tlsproxy.doctor.subject import Asked

    target = Target(config, socket)
    client = None if target.is_unreachable else target.client
    return House(loaded, client, inspect(loaded), Asked(probe, websocket, stream))


def _choose(loaded: Loaded, host: str) -> list[tuple[Site, str]]:
    """Return the hosts to examine with their sites; one that a wildcard covers is examined by its own name."""
    from tlsproxy.store.sources import host_meant

    sites = loaded.settings.sites
    if not host:
        return [(site, each) for site in sites for each in site.hosts]
    meant = host_meant(host)
    for pattern in (meant, f"*.{meant.partition('.')[2]}", "*"):
        found = next((site for site in sites if pattern in site.hosts), None)
        if found is not None:
            return [(found, meant)]
    close = difflib.get_close_matches(meant, [each for site in sites for each in site.hosts], n=1)
    hint = f"Did you mean {close[0]}?" if close else "tlsproxy explain shows all sites."
    raise typer.BadParameter(f"no site has the host {harmless(host)}. {hint}")


@contextlib.contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show in a terminal what has just been answered; elsewhere nothing: the answers follow within seconds."""
    if not shown or not in_terminal():
        yield lambda _: None
        return
    from rich.console import Console

    with Console().status("examining…") as status:
        yield lambda text: status.update(harmless(text))


def _as_json(findings: Sequence[Finding]) -> dict[str, object]:
    from tlsproxy.doctor.findings import count

    counts = {state.value: number for state, number in count(findings).items()}
    return {"findings": [finding.to_json() for finding in findings], "counts": counts}


def _say_plain(findings: Sequence[Finding], *, verbose: bool) -> None:
    for finding in findings:
        say(harmless(f"{finding.state.value}\t{finding.about}\t{finding.check}\t{finding.text}").replace("\\t", "\t"))
        for line in _below(finding, verbose=verbose):
            say(f"\t{harmless(line)}")
    say(_summary(findings))


def _print(findings: Sequence[Finding], *, verbose: bool) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for about in dict.fromkeys(finding.about for finding in findings):
        console.print(Text(harmless(about), style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in (each for each in findings if each.about == about):
            style = _STYLES[finding.state]
            mark = Text(f"{_MARKS[finding.state]} {finding.state.value}", style=style)
            table.add_row(mark, harmless(finding.check), Text(harmless(finding.text)))
            for line in _below(finding, verbose=verbose):
                is_fix = line.startswith("→")
                table.add_row("", "", Text(harmless(line), style="bold" if is_fix else "dim"))
        console.print(Padding(table, (0, 0, 1, 2)))
    say(_summary(findings))


def _below(finding: Finding, *, verbose: bool) -> Iterator[str]:
    if verbose or finding.state == "bad":
        yield from finding.details
    if finding.fix:
        yield f"→ {finding.fix}"


def _summary(findings: Sequence[Finding]) -> str:
    from tlsproxy.doctor.findings import count

    counts = count(findings)
    return ", ".join(f"{number} {state.value}" for state, number in counts.items())
