"""`tlsproxy admin store …`: a backup of the whole store, back again, and new keys for what is encrypted.

Knows the words around the work; the work is the store's own. Rules: needs no running proxy; new keys are not for a
proxy that may not know them yet; a store that is missing is neither saved nor made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tlsproxy.cli.common import ConfigOption, SocketOption, Target
from tlsproxy.cli.output import complain, harmless, in_terminal, say
from tlsproxy.errors import NotRunning, TlsproxyError

app = typer.Typer(name="store", help="The certificate store: backup, restore, encryption.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE")]


@app.command("export")
def export_store(
    file: FileArgument,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write everything in the store to one file (mode 0600)."""
    from tlsproxy.store.archive import export_store as export

    if file.exists() and not force:
        raise typer.BadParameter(f"{file} is there already; give another name, or say --force")
    target = Target(config, None)
    target.require_store()
    with target.store() as store, _counter() as progress:
        target.require_records(store.records)
        exported = export(store, file, progress)
    say(f"{file}: {_count(exported.records, 'record')}")
    if not exported.is_sealed:
        complain("warning: the file is not encrypted and holds private keys; keep it where nobody else can read it")
    _tell_failures(exported.failed)


@app.command("import")
def import_store(
    file: FileArgument,
    force: Annotated[bool, typer.Option("--force", help="Also in place of newer records.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write such a file to the store; newer records stay."""
    from tlsproxy.store.archive import import_store as import_

    with Target(config, None).store() as store, _counter() as progress:
        imported = import_(store, file, force=force, progress=progress)
    say(f"{_count(imported.written, 'record')} written, {imported.unchanged} there already")
    if imported.newer:
        say(f"{_count(len(imported.newer), 'record')} left alone, the store has newer ones (--force replaces them):")
        for key in imported.newer:
            say(f"  {harmless(key)}")
    _tell_failures(imported.failed)


@app.command()
def rekey(
    plain: Annotated[bool, typer.Option("--plain", help="Encrypt nothing any more.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while the proxy runs: right if it has all keys since its start.")
    ] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
) -> None:
    """Encrypt everything with the first of encryption_keys.

    To change the key: put the new one before the old one, restart the proxy, run this with --force, remove the old
    one, restart again. For the first key, and for --plain, stop the proxy meanwhile.
    """
    from tlsproxy.store.base import open_records
    from tlsproxy.store.rekey import rekey as rekey_records
    from tlsproxy.store.sealed import Keyring

    target = Target(config, socket)
    section = target.settings.store
    keyring = Keyring(section.master_keys())
    if not keyring and not plain:
        raise typer.BadParameter("there is no key in store.encryption_keys; give one, or say --plain")
    if not force:
        _refuse_beside_a_proxy(target)
    target.require_store()
    with target.explained():
        records = open_records(section.url)
        try:
            target.require_records(records)
            with _counter() as progress:
                rekeyed = rekey_records(records, keyring, plain=plain, progress=progress)
        finally:
            records.close()
    what = "decrypted" if plain else "encrypted with the first key"
    say(f"{_count(rekeyed.changed, 'record')} {what}, {rekeyed.unchanged} were so already")
    _tell_failures(rekeyed.failed)


def _refuse_beside_a_proxy(target: Target) -> None:
    """Raise TlsproxyError if a proxy answers: one that does not know the new key could not read its store any more."""
    from tlsproxy.runtime.adminclient import AdminError, NoAccess

    try:
        target.client.get("status")
    except NoAccess:
        raise
    except NotRunning as reason:
        if target.is_unreachable:
            complain(f"warning: {reason}; if one runs, it must know all keys")
        return
    except AdminError:
        pass  # somebody is there
    raise TlsproxyError(
        "the proxy is running, and what it has no key for it could not load any more. Put the new key before the old "
        "one in store.encryption_keys and restart the proxy; it then knows both, and --force is right. Remove the old "
        "key afterwards and restart again. For the first key, and for --plain, stop the proxy instead."
    )


@contextmanager
def _counter() -> Iterator[Callable[[int, int], None]]:
    """Show how far it is, in a terminal."""
    if not in_terminal():
        yield lambda done, total: None
        return
    from rich.console import Console

    with Console().status("") as status:
        yield lambda done, total: status.update(f"{done} of {total}")


def _tell_failures(failed: Sequence[str]) -> None:
    for sentence in failed:
        complain(harmless(sentence))
    if failed:
        raise typer.Exit(1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
