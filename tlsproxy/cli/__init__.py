"""The commands: words of the shell -> one call into the house -> text and an exit code.

Knows options, output forms and exit codes; decides nothing itself. Rules: no traceback reaches a user without --debug;
tables in a terminal, plain text when piped, JSON with --json; what a command says goes to stdout, what went wrong to
stderr. The only room that imports typer and rich, and it imports the rest of the house inside the commands: `--help`
is quick, and no worker pays for either. `tlsproxy admin …` is in modules of its own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tlsproxy import __version__
from tlsproxy.cli import admin
from tlsproxy.cli.common import WRONG_USER, ConfigOption, JsonOption, Target, load
from tlsproxy.cli.doctor import doctor
from tlsproxy.cli.output import complain, complain_of, in_terminal, say
from tlsproxy.errors import ConfigError, TlsproxyError

if TYPE_CHECKING:
    from tlsproxy.certs.trust import Outcome
    from tlsproxy.settings import Loaded
    from tlsproxy.settings.explain import Row

app = typer.Typer(
    name="tlsproxy",
    help="The HTTPS front door of FastAPI applications.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(admin.app)
app.command()(doctor)

SiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--site", metavar="HOST=BACKEND[,BACKEND…]", help="Serve this host; instead of the sites of the file."
    ),
]
HttpsOption = Annotated[list[str] | None, typer.Option("--https", metavar="ADDR", help="Listen here for https (:443).")]
HttpOption = Annotated[list[str] | None, typer.Option("--http", metavar="ADDR", help="Listen here for http (:80).")]
EmailOption = Annotated[str | None, typer.Option("--email", metavar="ADDR", help="Contact for the CA (acme.email).")]
WorkersOption = Annotated[str | None, typer.Option("--workers", metavar="N", help="Worker processes (auto).")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 usage or configuration, 3 no running proxy."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # Taken out here, so that it may stand before and after the command.
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(arguments, prog_name="tlsproxy")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception as error:  # noqa: BLE001 - the last line of defence: whatever it is, the user gets a sentence
        return _report(error, debug=debug)
    return 0


def _report(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, ConfigError):
        complain_of(str(error))
    elif isinstance(error, TlsproxyError):
        complain_of(f"tlsproxy: {error}")
    else:
        hint = "" if debug else " This is a bug; --debug shows where."
        complain_of(f"tlsproxy: unexpected {type(error).__name__}: {error}.{hint}")
    return error.exit_code if isinstance(error, TlsproxyError) else 1


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"tlsproxy {__version__}")
        raise typer.Exit


@app.callback()
def tlsproxy(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Terminate TLS before FastAPI applications and forward to them."""


@app.command()
def run(
    config: ConfigOption = None,
    site: SiteOption = None,
    https: HttpsOption = None,
    http: HttpOption = None,
    workers: WorkersOption = None,
    email: EmailOption = None,
) -> None:
    """Serve until told to stop."""
    gc.disable()  # until all serve: with thousands of sites it is a fifth of the time to read them, and finds nothing
    options = {"site": site, "https": https, "http": http, "workers": workers, "email": email}
    from tlsproxy.runtime.predecessor import find_predecessor, told_of_failure
    from tlsproxy.runtime.systemd import take_service

    # Both are taken out of the environment: they are for this process and for no child.
    predecessor, service = find_predecessor(os.environ), take_service(os.environ, os.getpid())
    with told_of_failure(predecessor):
        loaded = load(config, options)
        from tlsproxy.runtime import launch, preflight

        preflight.inspect(loaded)
    raise typer.Exit(launch.run(loaded, lambda: load(config, options), service, predecessor))


@app.command()
def check(
    config: ConfigOption = None,
    site: SiteOption = None,
    https: HttpsOption = None,
    http: HttpOption = None,
    workers: WorkersOption = None,
    email: EmailOption = None,
) -> None:
    """Check the configuration and the files it names; takes what `run` takes."""
    loaded = load(config, {"site": site, "https": https, "http": http, "workers": workers, "email": email})
    from tlsproxy.runtime import preflight

    for warning in preflight.inspect(loaded, wrong_user=WRONG_USER):
        complain(f"warning: {warning}")
    say(_summary(loaded))


@app.command()
def explain(
    config: ConfigOption = None,
    site: SiteOption = None,
    https: HttpsOption = None,
    http: HttpOption = None,
    workers: WorkersOption = None,
    email: EmailOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every effective value and where it came from; takes what `run` takes."""
    from tlsproxy.settings import explain as explaining

    options = {"site": site, "https": https, "http": http, "workers": workers, "email": email}
    rows = explaining.explain(load(config, options, require_sites=False))
    if as_json:
        say(json.dumps([{"key": row.key, "value": row.value, "origin": row.origin} for row in rows], indent=2))
    elif in_terminal():
        _print_table(rows)
    else:
        say("\n".join(f"{row.key} = {_quoted(row.written)}  # {row.origin}" for row in rows))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    from tlsproxy.settings import Settings

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    say(json.dumps(document, indent=2))


@app.command()
def trust(
    config: ConfigOption = None,
    show: Annotated[bool, typer.Option("--print", help="Print the root certificate (PEM).")] = False,
    install: Annotated[bool, typer.Option("--install", help="Make this machine trust the root.")] = False,
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Undo --install.")] = False,
) -> None:
    """Show the root of the internal CA, or make this machine trust it."""
    from tlsproxy.certs import trust as trusting
    from tlsproxy.store.base import open_store

    if [show, install, uninstall].count(True) != 1:
        raise typer.BadParameter("give one of --print, --install, --uninstall")
    loaded = load(config, require_sites=False)
    with Target.explained():
        store = open_store(loaded.settings.store.url, loaded.settings.store.master_keys())
        try:
            root = trusting.root_certificate(store, make=not uninstall)
        finally:
            store.close()
    complain(_describe_root(loaded, is_new=root.is_new))
    if show:
        say(root.pem.decode().strip())
    else:
        _tell_outcomes(trusting.install(root.pem) if install else trusting.uninstall(root.pem))


def _summary(loaded: Loaded) -> str:
    settings = loaded.settings
    hosts = sum(len(site.hosts) for site in settings.sites)
    routes = sum(len(site.routes) for site in settings.sites)
    listeners = [f"{kind} on {', '.join(getattr(settings.listen, kind)) or 'nothing'}" for kind in ("https", "http")]
    counts = [_count(len(settings.sites), "site"), _count(hosts, "host"), _count(routes, "route")]
    return f"{loaded.path or 'configuration'}: {', '.join(counts)}; {', '.join(listeners)}"


def _describe_root(loaded: Loaded, *, is_new: bool) -> str:
    """Which root it is: a proxy with another --config, user or variable may keep its own elsewhere."""
    url = loaded.settings.store.url
    told = f"the root of the internal CA in {url} (store.url from: {loaded.origins['store.url']})"
    if not is_new:
        return told
    return (
        f"{told}\nWARNING: a new root was MADE just now, because this store had none that is good for another year. A "
        "proxy with another store does not use it: give --config the file that the proxy reads, and run this as the "
        "user that runs the proxy."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tell_outcomes(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        (say if outcome.ok else complain)(f"{outcome.store}: {outcome.message}")
    if not all(outcome.ok for outcome in outcomes):
        raise typer.Exit(1)


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "value", "origin", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.key, Text(_quoted(row.written)), Text(row.origin, style="dim"))
    Console().print(table)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
