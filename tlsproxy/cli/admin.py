"""`tlsproxy admin …`: ask a running proxy how it is, and everything about certificates and their store.

Knows the shape of the status and how to show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import typer

from tlsproxy.cli import backends, certs, lifecycle, sites, store
from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target
from tlsproxy.cli.output import say, say_fields, say_json

app = typer.Typer(
    name="admin", help="Look after a running proxy, its certificates and its store.", no_args_is_help=True
)
accounts = typer.Typer(name="accounts", help="Accounts at CAs.", no_args_is_help=True)
app.add_typer(certs.app)
app.add_typer(backends.app)
app.add_typer(sites.app)
app.add_typer(accounts)
app.add_typer(store.app)
app.command()(lifecycle.reload)
app.command()(lifecycle.upgrade)
app.command()(lifecycle.stop)


@app.command()
def status(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show what runs: processes, listeners, certificates."""
    found = Target(config, socket).client.get("status")
    if as_json:
        say_json(found)
    else:
        say_fields(_fields(found, datetime.now(UTC)))


@accounts.command()
def rollover(config: ConfigOption = None, socket: SocketOption = None) -> None:
    """Give the accounts at CAs new keys (RFC 8555 7.3.5)."""
    client = Target(config, socket).client
    result = certs.follow(client.work("accounts", "rollover"), "certs quota")
    rows = result if isinstance(result, list) else [result]
    say("\n".join(f"{row.get('account') or row.get('directory') or 'account'}: has a new key" for row in rows))


def _fields(found: Mapping[str, Any], now: datetime) -> list[tuple[str, str]]:
    started, counts = datetime.fromisoformat(found["started"]), found["certificates"]
    certificates = ", ".join(f"{number} {state}" for state, number in counts.items()) if counts else "not known"
    certifier = found["certifier"]
    return [
        ("version", found["version"]),
        ("pid", f"{found['pid']}, generation {found['generation']}"),
        ("started", f"{found['started']} ({_age((now - started).total_seconds())} ago)"),
        ("listeners", "\n".join(found["listeners"])),
        ("sites", str(found["sites"])),
        ("workers", "\n".join(map(_worker, found["workers"])) or "none at the moment"),
        ("certifier", f"pid {certifier['pid'] or '-'}, {certifier['state']}"),
        ("certificates", certificates),
    ]


def _worker(row: Mapping[str, Any]) -> str:
    if row["connections"] is None:
        return f"pid {row['pid']}, does not answer"
    return f"pid {row['pid']}, {row['connections']} connections, {row['requests']} requests"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
