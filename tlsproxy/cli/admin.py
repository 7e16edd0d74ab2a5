"""`tlsproxy admin …`: the commands that look after a running proxy, each family from a file of its own."""

from __future__ import annotations

import typer

from tlsproxy.cli import backends, certs, lifecycle, sites, status, store, top
from tlsproxy.cli.common import ConfigOption, SocketOption, Target
from tlsproxy.cli.output import say

app = typer.Typer(
    name="admin", help="Look after a running proxy, its certificates and its store.", no_args_is_help=True
)
accounts = typer.Typer(name="accounts", help="Accounts at CAs.", no_args_is_help=True)
app.add_typer(certs.app)
app.add_typer(backends.app)
app.add_typer(sites.app)
app.add_typer(accounts)
app.add_typer(store.app)
app.command()(status.status)
app.command()(top.top)
app.command()(lifecycle.reload)
app.command()(lifecycle.upgrade)
app.command()(lifecycle.stop)


@accounts.command()
def rollover(config: ConfigOption = None, socket: SocketOption = None) -> None:
    """Give the accounts at CAs new keys (RFC 8555 7.3.5)."""
    client = Target(config, socket).client
    result = certs.follow(client.work("accounts", "rollover"), "certs quota")
    rows = result if isinstance(result, list) else [result]
    say("\n".join(f"{row.get('account') or row.get('directory') or 'account'}: has a new key" for row in rows))
