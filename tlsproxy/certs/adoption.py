"""A certificate that is there already, under another name: for a site whose first host was changed or moved.

    site [a, b] ─ acme/a ──> the site becomes [b, a] ──> acme/b is a copy of acme/a: no order, no refused handshake

Knows: which stored certificates no site uses, which of them will do for a site that has no good one. Does not know:
CAs, when renewals are due. Rules: before anybody is served; a copy under the lease of the new name, the old record is
left to the housekeeping; only what the configured CAs have issued or a person has imported, never what was revoked; it
fails nobody, an order does as well. Blocks on the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from tlsproxy.certs import state as states
from tlsproxy.certs.shelf import read_held, read_state
from tlsproxy.certs.state import State
from tlsproxy.certs.wanted import Held
from tlsproxy.errors import StoreError
from tlsproxy.settings import Settings, Site
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.sources import certificate_name

logger = logging.getLogger(__name__)

MOST = 1000
"""Unused certificates that are looked at; thousands may be left of names on demand, and a start is not to wait."""
_LEASE = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class _Spare:
    """A good certificate that no site uses."""

    name: str
    held: Held
    state: State


def adopt(settings: Settings, store: CertificateStore, now: datetime) -> tuple[str, ...]:
    """Copy what will do to where it is wanted; return the names that have a certificate now. Never raises."""
    sites = {certificate_name(site): site for site in settings.sites if site.certificate == "acme"}
    directories = {"", *(issuer.directory_url for issuer in settings.acme.issuers())} if sites else set()
    try:
        unused = [name for name in store.list() if name.startswith("acme/") and name not in sites]
        by_host = {host: site for site in sites.values() for host in site.hosts} if unused else {}
        unused.sort(key=lambda name: name.partition("/")[2] not in by_host)
        names = (name for name in unused[:MOST] if not _is_on_demand(name, settings.sites))
        spares = [each for each in _spares(names, store, now) if each.held.directory in directories]
        return tuple(_adopt_all(spares, by_host, store, now))
    except StoreError as error:
        logger.warning("certificate.not_adopted", extra={"error": str(error)})
        return ()


def _is_on_demand(name: str, sites: Iterable[Site]) -> bool:
    host = name.partition("/")[2]
    patterns = {host, f"*.{host.partition('.')[2]}", "*"}
    return any(site.certificate == "on_demand" and patterns.intersection(site.hosts) for site in sites)


def _spares(names: Iterable[str], store: CertificateStore, now: datetime) -> Iterator[_Spare]:
    for name in names:
        try:
            held, state = read_held(store, name), read_state(store, name) or State()
        except StoreError:
            continue  # sealed with another key, say: nobody uses it
        if held and held.is_valid(now) and state.replace_now != held.fingerprint:
            yield _Spare(name, held, state)


def _adopt_all(
    spares: Iterable[_Spare], by_host: dict[str, Site], store: CertificateStore, now: datetime
) -> Iterator[str]:
    done = set()
    for spare in sorted(spares, key=lambda each: each.held.not_after, reverse=True):
        for site in _sites_for(spare.held, by_host):
            name = certificate_name(site)
            try:
                is_adopted = name not in done and _adopt(spare, site, store, now)
            except StoreError as error:
                logger.warning("certificate.not_adopted", extra={"certificate": name, "error": str(error)})
                is_adopted = False
            if is_adopted:
                done.add(name)
                yield name


def _sites_for(held: Held, by_host: dict[str, Site]) -> list[Site]:
    """Return the sites all of whose hosts it covers."""
    covered = by_host if any(name.startswith("*.") for name in held.names) else by_host.keys() & set(held.names)
    sites = {by_host[host].hosts[0]: by_host[host] for host in covered if held.covers(host)}
    return [site for site in sites.values() if not held.missing(site.hosts)]


def _adopt(spare: _Spare, site: Site, store: CertificateStore, now: datetime) -> bool:
    name = certificate_name(site)
    if not _lacks(name, site, store, now):
        return False
    lease = store.acquire(name, _LEASE)
    if lease is None:
        return False
    try:
        bundle = store.get(spare.name)
        if bundle is None or bundle.fingerprint != spare.held.fingerprint or not _lacks(name, site, store, now):
            return False
        own = read_state(store, name) or State()
        store.put(name, bundle, lease)
        store.put_record(states.FOLDER, name, states.adopted(own, spare.state, spare.name, now).to_record(), lease)
    finally:
        store.release(lease)
    logger.info("certificate.adopted", extra={"certificate": name, "copy_of": spare.name})
    return True


def _lacks(name: str, site: Site, store: CertificateStore, now: datetime) -> bool:
    """Tell whether there is nothing good under the name. What can't be read may be good: StoreError."""
    held = read_held(store, name)
    return held is None or not held.is_valid(now) or bool(held.missing(site.hosts))
