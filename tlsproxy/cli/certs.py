"""`tlsproxy admin certs …`: what there is, why it is so, and having it obtained, renewed, revoked.

Knows the shapes of the admin API's answers and how to show them. Rule: list, show and why say the same whether the
proxy answers or, while it is stopped, its store; everything that a CA is needed for is the running proxy's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tlsproxy.cli import certfiles
from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target, YesOption
from tlsproxy.cli.output import (
    Cell,
    complain,
    confirm,
    harmless,
    in_terminal,
    say,
    say_fields,
    say_json,
    say_table,
    steps,
)
from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from tlsproxy.runtime.adminclient import AdminClient, Done, Progress

app = typer.Typer(name="certs", help="Certificates: list, explain, obtain, renew, move.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A host of the site, or acme/HOST.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Also when it is not due, or costs scarce quota.")]

_REASONS = ("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation")
"""Those of RFC 5280 5.3.1 that a CA takes from its subscribers."""

_COLUMNS = ("NAME", "STATUS", "LEFT", "EXPIRES", "SOURCE", "ISSUER", "NEXT", "NOTE")
_QUOTA_COLUMNS = ("CA", "LIMIT", "USED", "OF", "REFILLS")
_STYLES = {"valid": "green", "pending": "yellow", "failed": "red", "expired": "red"}


@app.command("list")
def list_certificates(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show every certificate and how long it is good."""
    target, now = Target(config, socket), datetime.now(UTC)
    rows = target.ask(lambda client: client.get("certs"), lambda: target.look_up(lambda catalogue: catalogue.rows(now)))
    if as_json:
        say_json(rows)
    elif in_terminal():
        say_table(_COLUMNS[:-1], [_cells(row, now)[:-1] for row in rows])
        for row in rows:
            if row["last_error"]:  # a sentence, perhaps with a command to copy, has no room in a column
                say(f"\n{harmless(_about(row))}")
    else:
        say_table(_COLUMNS, [_cells(row, now) for row in rows])


@app.command()
def show(
    name: NameArgument, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Show all there is to know of a certificate."""
    target, now = Target(config, socket), datetime.now(UTC)
    answer = target.ask(
        lambda client: client.get("certs", name),
        lambda: target.look_up(lambda catalogue: catalogue.show(name, now)),
    )
    if as_json:
        say_json(answer)
    else:
        say_fields([(key, _in_words(value)) for key, value in answer.items()])


@app.command()
def why(
    name: NameArgument, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Say what will be done next, and why."""
    target, now = Target(config, socket), datetime.now(UTC)
    answer = target.ask(
        lambda client: client.get("certs", name, "why"),
        lambda: target.look_up(lambda catalogue: catalogue.why(name, now)),
    )
    if as_json:
        say_json(answer)
    else:
        for sentence in answer["sentences"]:
            say(harmless(sentence))


@app.command()
def obtain(
    name: NameArgument, force: ForceOption = False, config: ConfigOption = None, socket: SocketOption = None
) -> None:
    """Obtain a certificate now; follow the steps."""
    _work(Target(config, socket).client, name, "obtain", {"force": "true"} if force else {})


@app.command()
def renew(
    name: NameArgument, force: ForceOption = False, config: ConfigOption = None, socket: SocketOption = None
) -> None:
    """Renew a certificate now; follow the steps."""
    _work(Target(config, socket).client, name, "renew", {"force": "true"} if force else {})


@app.command()
def revoke(
    name: NameArgument,
    reason: Annotated[
        str, typer.Option("--reason", metavar="REASON", help=f"Told to the CA: {', '.join(_REASONS)}.")
    ] = "unspecified",
    yes: YesOption = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
) -> None:
    """Revoke a certificate; another one takes its place."""
    if reason not in _REASONS:
        raise typer.BadParameter(f"{reason} is none of {', '.join(_REASONS)}", param_hint="--reason")
    client = Target(config, socket).client
    if not yes:
        confirm(f"Revoke the certificate of {name}? Clients may refuse it from then on, and it can't be undone.")
    _work(client, name, "revoke", {"reason": reason})


@app.command()
def quota(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show what is used of the limits of the CAs."""
    target, now = Target(config, socket), datetime.now(UTC)
    rows = target.ask(
        lambda client: client.get("quota"), lambda: target.look_up(lambda catalogue: catalogue.quota(now))
    )
    if as_json:
        say_json(rows)
    elif not rows:
        say("nothing is used up")
    else:
        say_table(_QUOTA_COLUMNS, [_quota_cells(row) for row in rows])


app.command("import")(certfiles.import_certificate)
app.command("export")(certfiles.export_certificate)
app.command("remove")(certfiles.remove_certificate)


def follow(lines: Iterator[Progress | Done], look_later: str, *, is_silent: bool = False) -> Any:
    """Show the steps of some work as they come; return its result. Ctrl-C leaves the work to the proxy.

    `look_later` is the command that tells how it went; `is_silent` shows nothing.
    """
    from tlsproxy.runtime.adminclient import Done

    try:
        with steps() as shown:
            for line in lines:
                if isinstance(line, Done):
                    return line.result
                if is_silent:
                    continue
                shown.step(": ".join(filter(None, (line.step, line.host, line.text))))
    except KeyboardInterrupt:
        complain(f"no longer watching; the proxy goes on with it. How it went: tlsproxy admin {look_later}")
        raise typer.Exit(130) from None
    raise TlsproxyError("the proxy gave no result")


def _work(client: AdminClient, name: str, verb: str, options: Mapping[str, str]) -> None:
    result = follow(client.work("certs", name, verb, options=options), f"certs why {name}")
    said = ["revoked"] if result.get("revoked") else []
    if result.get("not_after"):
        issuer, serial = _short_issuer(result.get("issuer") or ""), result.get("serial")
        said.append(f"valid until {result['not_after']}, issuer {issuer}, serial {serial}")
    say(harmless(f"{result.get('name', name)}: {'; its successor is '.join(said) or 'done'}"))


# --- a row of `list`


def _cells(row: Mapping[str, Any], now: datetime) -> list[Cell]:
    begin, end = _instant(row["not_before"]), _instant(row["not_after"])
    next_step = row["next_attempt"] or row["renew_at"] or ""
    return [
        Cell(row["name"]),
        Cell(row["status"], _STYLES.get(row["status"], "")),
        _left(begin, end, now),
        Cell(_day(row["not_after"])),
        Cell(row["source"]),
        Cell(_short_issuer(row["issuer"] or "")),
        Cell(next_step[:16].replace("T", " ")),
        Cell(row["last_error"] or "", "red"),
    ]


def _about(row: Mapping[str, Any]) -> str:
    """Return the error with the name that it is about, which most say themselves."""
    error: str = row["last_error"]
    return error if error.startswith(tuple(f"{host}:" for host in row["names"])) else f"{row['name']}: {error}"


def _left(begin: datetime | None, end: datetime | None, now: datetime) -> Cell:
    """Return the time left; a certificate is renewed with a third of its life left, so less than that is late."""
    if begin is None or end is None:
        return Cell("")
    left = end - now
    share = left / max(end - begin, timedelta(seconds=1))
    style = "green" if share > 1 / 3 else "yellow" if share > 1 / 6 else "red"
    return Cell(_span(left), style)


def _quota_cells(row: Mapping[str, Any]) -> list[Cell]:
    share = row["used"] / max(row["of"], 1)
    style = "red" if share >= 1 else "yellow" if share > 2 / 3 else ""
    refills = (row["refills_at"] or "")[:16].replace("T", " ")
    return [Cell(row["ca"]), Cell(row["limit"]), Cell(str(row["used"]), style), Cell(str(row["of"])), Cell(refills)]


def _span(length: timedelta) -> str:
    if length < timedelta():
        return "expired"
    return f"{length.days} d" if length.days >= 2 else f"{length.total_seconds() / 3600:.0f} h"


def _short_issuer(name: str) -> str:
    """Return the common name in `CN=R11,O=Let's Encrypt,C=US`; the whole if it has none."""
    parts = (part.partition("=") for part in name.replace("\\,", ";").split(","))
    return next((value for key, _, value in parts if key.strip() == "CN"), name)


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _day(text: str | None) -> str:
    return (text or "")[:10]


def _in_words(value: Any) -> str:
    """Return JSON as a person reads it: one line for each item of a list."""
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return "\n".join(_in_words(item).replace("\n", ", ") for item in value)
        case dict():
            return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items()) or "-"
        case _:
            return str(value)
