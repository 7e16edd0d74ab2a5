"""`tlsproxy admin certs import, export, remove`: certificates into, out of and away from the store.

Knows files and the store; a running proxy is told afterwards. Rules: keys go from files to the store and back, never
through the admin API; what is imported is checked as a site's own files are; nothing is overwritten and nothing that is
in use is removed without being asked to.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tlsproxy.cli.common import ConfigOption, SocketOption, Target, YesOption
from tlsproxy.cli.output import complain, confirm, harmless, say
from tlsproxy.errors import CertificateError, NotRunning, StoreError, TlsproxyError

if TYPE_CHECKING:
    from tlsproxy.certs.catalogue import Catalogue
    from tlsproxy.settings import Site
    from tlsproxy.store.base import CertificateStore, Lease
    from tlsproxy.store.bundle import Bundle

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A host of the site, or acme/HOST.")]

_LEASE_TIME = 30.0
_FILES = ("fullchain.pem", "privkey.pem")


def import_certificate(
    chain: Annotated[Path, typer.Option("--chain", metavar="FILE", help="Certificate and intermediates, PEM.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key, PEM.")],
    site: Annotated[
        list[str] | None, typer.Option("--site", metavar="HOST", help="Site it is for, if several are covered.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it has expired, or does so before the present one.")
    ] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
) -> None:
    """Take a certificate and key from files into the store."""
    from tlsproxy.store.bundle import load_pair
    from tlsproxy.store.sources import certificate_name

    target = Target(config, socket)
    bundle = load_pair(chain, key)
    for warning in bundle.warnings:
        complain(f"warning: {harmless(warning)}")
    if bundle.is_expired(datetime.now(UTC)) and not force:
        raise CertificateError(f"{chain}: the certificate has expired. Have it renewed, or say --force.")
    names = [certificate_name(each) for each in _sites_for(bundle, chain, target.settings.sites, site or [])]
    with target.store() as store:
        for name in names:
            _put(store, name, bundle, force=force)
            say(f"{name}: imported, valid until {_written(bundle.not_after)}, serial {bundle.serial}")
    for name in names:
        _announce(target, name)


def export_certificate(
    name: NameArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for fullchain.pem and privkey.pem.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write a certificate and key from the store to files."""
    bundle = Target(config, None).look_up(lambda catalogue: _stored(catalogue, name))
    _write_files(out, (bundle.chain_pem, bundle.key_pem), force=force)
    for file in _FILES:
        say(str(out / file))


def remove_certificate(
    name: NameArgument,
    yes: YesOption = False,
    force: Annotated[bool, typer.Option("--force", help="Also if a site is served with it.")] = False,
    config: ConfigOption = None,
    socket: SocketOption = None,
) -> None:
    """Forget a certificate, its key and its history."""
    target = Target(config, socket)
    full_name = target.look_up(lambda catalogue: _removable(catalogue, name, force=force))
    if not yes:
        confirm(f"Remove {full_name} with its key from the store? It can't be undone.")

    def offline() -> None:
        with target.store() as store:
            _delete(store, full_name)

    options = {"force": "true"} if force else {}
    instead = "it is taken out of the store alone"
    target.ask(lambda client: client.delete("certs", full_name, options=options), offline, instead)
    say(f"{full_name}: removed")


# --- import


def _sites_for(bundle: Bundle, chain: Path, sites: Sequence[Site], chosen: Sequence[str]) -> list[Site]:
    """Return the sites to import for. Raises CertificateError that says which there are."""
    candidates = [each for each in sites if each.certificate == "acme"]
    if chosen:
        return [_chosen(host, bundle, chain, candidates) for host in chosen]
    covered = [each for each in candidates if not bundle.check_names(each.hosts)]
    if not covered:
        raise CertificateError(f"{chain}: {_nobody(bundle, sites, candidates)}")
    if len(covered) > 1:
        hosts = ", ".join(each.hosts[0] for each in covered)
        raise CertificateError(
            f"{chain}: the certificate covers several sites ({hosts}). Say which it is for: --site HOST, "
            "more than once for more than one."
        )
    return covered


def _chosen(host: str, bundle: Bundle, chain: Path, candidates: Sequence[Site]) -> Site:
    site = next((each for each in candidates if host in each.hosts), None)
    if site is None:
        raise CertificateError(f'--site {host}: no site with certificate = "acme" has this host.')
    if missing := bundle.check_names(site.hosts):
        raise CertificateError(f"{chain}: the certificate does not cover {', '.join(missing)} of the site {host}.")
    return site


def _nobody(bundle: Bundle, sites: Sequence[Site], candidates: Sequence[Site]) -> str:
    names = ", ".join(bundle.names) or "no name at all"
    said = f"the certificate is for {names}, and no site is covered by that."
    nearest = min(candidates, key=lambda site: len(bundle.check_names(site.hosts)), default=None)
    if nearest and len(missing := bundle.check_names(nearest.hosts)) < len(nearest.hosts):
        return f"{said} The site {nearest.hosts[0]} also has {', '.join(missing)}."
    other = next((each for each in sites if not bundle.check_names(each.hosts)), None)
    if other:
        return f'{said} The site {other.hosts[0]} would be, but its certificate is not configured as "acme".'
    return f"{said} Add the hosts to the configuration first (--config FILE)."


def _put(store: CertificateStore, name: str, bundle: Bundle, *, force: bool) -> None:
    with _lease(store, name) as lease:
        held = store.get(name)
        if held and held.not_after > bundle.not_after and not force:
            raise CertificateError(
                f"{name}: the certificate in the store is valid for longer, until {_written(held.not_after)}. "
                "Say --force if this one shall take its place."
            )
        # Without the lease as well: an order may be under way for as long as its CA is out of reach, and that is when
        # certificates are imported.
        store.put(name, bundle, lease)
    if lease is None:
        complain(
            f"{name}: another certificate is being obtained for it right now; this one stays unless renewal is due"
        )


def _announce(target: Target, name: str) -> None:
    try:
        target.client.post("certs", name, "announce")
    except NotRunning as reason:
        complain(f"{str(reason).partition('. ')[0]}; it will be served once the proxy runs")
    except TlsproxyError as error:
        complain(f"it is in the store, but the proxy could not be told, and will find it by itself: {error}")


# --- export


def _stored(catalogue: Catalogue, name: str) -> Bundle:
    """Return what is to be exported. Raises TlsproxyError."""
    from tlsproxy.store.sources import ROOT_NAME

    entry = catalogue.entry(name)
    if entry.name == ROOT_NAME:
        raise CertificateError(
            f"{entry.name}: the root's key stays where it is. Its certificate: tlsproxy trust --print"
        )
    if entry.kind == "file":
        raise CertificateError(
            f"{entry.name}: this certificate lies in the files that the configuration names already."
        )
    if not entry.bundles:
        raise CertificateError(entry.problem or f"{entry.name}: there is no certificate yet.")
    return entry.bundles[0]


def _write_files(folder: Path, contents: Sequence[bytes], *, force: bool) -> None:
    from tlsproxy.store.whole import replace_file

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = [name for name in _FILES if os.path.lexists(folder / name)]
        if present and not force:
            raise TlsproxyError(f"{folder / present[0]} is there already. Give another folder, or say --force.")
        # The key last: who waits for it finds both.
        for name, content in zip(_FILES, contents, strict=True):
            replace_file(folder / name, content)
    except OSError as error:
        raise TlsproxyError(f"{folder}: cannot write there: {error.strerror or error}. Give another folder.") from error


# --- remove


def _removable(catalogue: Catalogue, name: str, *, force: bool) -> str:
    """Return the full name of what may be removed. Raises TlsproxyError."""
    from tlsproxy.store.sources import ROOT_NAME

    entry = catalogue.entry(name)
    if entry.kind == "file":
        raise CertificateError(f"{entry.name}: this certificate lies in files of the configuration, not in the store.")
    if entry.name == ROOT_NAME and not force:
        raise CertificateError(f"{entry.name} is the root that clients trust. Say --force if it must go.")
    if entry.hosts and entry.kind != "on_demand" and not force:
        raise CertificateError(
            f"{entry.name}: the site {entry.hosts[0]} is served with it. Remove the site from the configuration first, "
            "or say --force: the proxy then obtains another one."
        )
    return entry.name


def _delete(store: CertificateStore, name: str) -> None:
    with _lease(store, name) as lease:
        if lease is None:
            raise StoreError(
                f"{name}: a certificate is being obtained for it right now. Try again when that has ended."
            )
        store.delete(name, lease)
        store.delete_record("state", name, lease)


# --- shared


@contextlib.contextmanager
def _lease(store: CertificateStore, name: str) -> Iterator[Lease | None]:
    """Keep orders for this certificate off meanwhile; None if one is under way."""
    lease = store.acquire(name, _LEASE_TIME)
    try:
        yield lease
    finally:
        if lease is not None:
            store.release(lease)


def _written(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
