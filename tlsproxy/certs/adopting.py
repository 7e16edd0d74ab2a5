"""Give a site that has no certificate of a public CA the one that lies in the store for its hosts under another name.

A certificate is named after the first host of its site. Put another host before it, or move a host to a site of its
own, and the site has a new name with nothing under it: it would refuse its clients until the CA has issued, and for
ever if the new host is the mistake. So what is there is copied to the new name and serves; the plan then orders what is
missing.
Knows: sites, the store. Does not know: CAs, plans. Rules: only what is valid and covers one of the hosts; nothing that
is there is replaced; it only helps, so a store that can't be read or written is no failure here. Blocks on the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from tlsproxy.errors import StoreError
from tlsproxy.settings import Site
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import acme_name, certificate_name

logger = logging.getLogger(__name__)

_LEASE = 30.0  # seconds


def adopt(sites: Iterable[Site], store: CertificateStore, now: datetime) -> None:
    """Copy certificates to the names of the sites that have none. Never raises StoreError."""
    wanted = [site for site in sites if site.certificate == "acme"]
    try:
        stored = frozenset(store.list()) if wanted else frozenset()
    except StoreError:
        return  # whoever needs the store says what is wrong with it
    orphans = [site for site in wanted if certificate_name(site) not in stored]
    sources = sorted(name for name in stored if name.startswith(acme_name(""))) if orphans else []
    bundles = list(_readable(sources, store, now)) if sources else []
    for site in orphans:
        found = _best(site.hosts, bundles)
        if found:
            _copy(site, *found, store)


def _readable(names: Sequence[str], store: CertificateStore, now: datetime) -> Iterator[tuple[str, Bundle]]:
    for name in names:
        try:
            bundle = store.get(name)
        except StoreError:
            continue
        if bundle and bundle.not_before <= now < bundle.not_after:
            yield name, bundle


def _best(hosts: Sequence[str], bundles: Sequence[tuple[str, Bundle]]) -> tuple[str, Bundle] | None:
    """Return the one that covers the most hosts, the longest; None if none covers any."""
    useful = [each for each in bundles if len(each[1].check_names(hosts)) < len(hosts)]
    return min(useful, key=lambda each: (len(each[1].check_names(hosts)), -each[1].not_after.timestamp()), default=None)


def _copy(site: Site, source: str, bundle: Bundle, store: CertificateStore) -> None:
    name = certificate_name(site)
    try:
        lease = store.acquire(name, _LEASE)
        if lease is None:
            return  # somebody is obtaining it
        try:
            if store.get(name) is None:
                store.put(name, bundle, lease)
        finally:
            store.release(lease)
    except StoreError as error:
        logger.warning("certificate.not_adopted", extra={"certificate": name, "from": source, "error": str(error)})
        return
    extra = {"certificate": name, "from": source, "missing": bundle.check_names(site.hosts)}
    logger.info("certificate.adopted", extra=extra)
