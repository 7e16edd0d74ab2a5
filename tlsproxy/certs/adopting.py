"""Give a site that has no certificate of a public CA the one that lies in the store for its hosts under another name.

A certificate is named after the first host of its site. Put another host before it, or move a host to a site of its
own, and the site has a new name with nothing under it: it would refuse its clients until the CA has issued, and for
ever if the new host is the mistake. So what is there is copied to the new name and serves, and what is remembered of it
(failures, the CA's window) comes along; the plan then orders what is missing.
Knows: sites, the store. Does not know: CAs, plans. Rules: only what is valid, not revoked, and covers one of the hosts;
nothing that is there is replaced; a start with ten thousand sites must not wait for it, so a site looks under the names
of its own hosts and their nearest relatives alone, never through the store; it only helps, so a store that can't be
read or written is no failure here. Blocks on the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from tlsproxy.certs.state import FOLDER, State
from tlsproxy.errors import StoreError
from tlsproxy.settings import Site
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import acme_name, certificate_name

logger = logging.getLogger(__name__)

_LEASE = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies in the store under another name."""

    name: str
    bundle: Bundle
    state: State


def adopt(sites: Iterable[Site], store: CertificateStore, now: datetime) -> None:
    """Copy certificates to the names of the sites that have none. Never raises StoreError."""
    wanted = [site for site in sites if site.certificate == "acme"]
    try:
        stored = frozenset(store.list()) if wanted else frozenset()
    except StoreError:
        return  # whoever needs the store says what is wrong with it
    for site in wanted:
        if certificate_name(site) not in stored:
            found = _best(site.hosts, _readable(_sources(site.hosts, stored), store, now))
            if found:
                _copy(site, found, store)


def _sources(hosts: Sequence[str], stored: Collection[str]) -> Iterator[str]:
    """Return the names under which something for these hosts may lie, as few as the site has hosts."""
    return (name for name in dict.fromkeys(acme_name(each) for host in hosts for each in _kin(host)) if name in stored)


def _kin(host: str) -> tuple[str, ...]:
    """Return who may have been the first host of a site that this one was in: itself, or whom people put beside it."""
    parent = host.partition(".")[2]
    return host, f"*.{parent}", parent, f"www.{host}"


def _readable(names: Iterable[str], store: CertificateStore, now: datetime) -> Iterator[_Found]:
    for name in names:
        try:
            bundle, state = store.get(name), State.from_record(store.get_record(FOLDER, name))
        except StoreError:
            continue
        if bundle and bundle.not_before <= now < bundle.not_after and state.replace_now != bundle.fingerprint:
            yield _Found(name, bundle, state)


def _best(hosts: Sequence[str], candidates: Iterable[_Found]) -> _Found | None:
    """Return the one that covers the most hosts, the longest; None if none covers any."""

    def rank(found: _Found) -> tuple[int, float]:
        return len(found.bundle.check_names(hosts)), -found.bundle.not_after.timestamp()

    return min((each for each in candidates if rank(each)[0] < len(hosts)), key=rank, default=None)


def _copy(site: Site, found: _Found, store: CertificateStore) -> None:
    name = certificate_name(site)
    try:
        lease = store.acquire(name, _LEASE)
        if lease is None:
            return  # somebody is obtaining it
        try:
            if store.get(name) is None:
                store.put(name, found.bundle, lease)
            if store.get_record(FOLDER, name) is None:
                store.put_record(FOLDER, name, found.state.to_record(), lease)
        finally:
            store.release(lease)
    except StoreError as error:
        logger.warning("certificate.not_adopted", extra={"certificate": name, "from": found.name, "error": str(error)})
        return
    extra = {"certificate": name, "from": found.name, "missing": found.bundle.check_names(site.hosts)}
    logger.info("certificate.adopted", extra=extra)
