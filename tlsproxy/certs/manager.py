"""Keeps the certificates of all sites good: what the certifier process does, without the process.

Knows: sites, the store, the internal CA, the files. Does not know: control messages, tasks, signals; time is an
argument. Rules: at start everything wrong is told at once and nothing is served; later a failure leaves what is there
in place and is tried again. All methods block on the disk.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from tlsproxy.certs.adopting import adopt
from tlsproxy.certs.files import FileWatch, log_doubts
from tlsproxy.certs.internal import ensure
from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.settings import Site
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import certificate_files, certificate_name, load_files, same_kind_twice

logger = logging.getLogger(__name__)

CHECK_INTERVAL = timedelta(minutes=10)
"""How often the store is compared with the plan. The shortest notice a plan gives is days."""


class CertificateManager:
    """One per certifier. `prepare` first, then `tick` every few seconds."""

    # Mutable: _served (fingerprint by name, internal certificates only), _checked (when the plan was last looked at).

    def __init__(self, sites: Iterable[Site], store: CertificateStore) -> None:
        self._sites = tuple(sites)
        self._internal = [site for site in self._sites if site.certificate == "internal"]
        self._store = store
        # Before anything is loaded: a file that is replaced from here on counts as changed.
        self._watch = FileWatch(self._sites)
        self._served: dict[str, str] = {}
        self._checked: datetime | None = None

    def prepare(self, now: datetime) -> list[str]:
        """Make what is missing, check what is given; return every problem, as sentences for the user."""
        problems = [problem for site in self._sites for problem in _file_problems(site)]
        for site in self._internal:
            _warn_of_wide_wildcards(site)
        try:
            self._check(now)
        except StoreError as error:
            problems.append(str(error))
        adopt(self._sites, self._store, now)
        return list(dict.fromkeys(problems))

    def tick(self, now: datetime) -> tuple[str, ...]:
        """Return the names whose certificates are new since the last call."""
        changed = self._watch.poll(now)
        if not self._is_time(now):
            return changed
        try:
            return changed + self._check(now)
        except StoreError as error:
            advice = f"retried every {CHECK_INTERVAL.seconds // 60} minutes"
            logger.warning("certificate.renewal_failed", extra={"error": str(error), "advice": advice})
            return changed

    def stats(self) -> dict[str, int]:
        return {"certificates_internal": len(self._served), "certificate_sites": len(self._sites)}

    def _is_time(self, now: datetime) -> bool:
        # A clock that was set back must not silence us until it has caught up.
        return self._checked is None or not self._checked <= now < self._checked + CHECK_INTERVAL

    def _check(self, now: datetime) -> tuple[str, ...]:
        """Do what is due. Another process that shares the store may have done it: its work is announced as well."""
        self._checked = now
        changed = []
        for site in self._internal:
            name, made = certificate_name(site), ensure(self._store, site.hosts, now)
            if self._served.get(name) != made.fingerprint:
                self._served[name] = made.fingerprint
                changed.append(name)
        return tuple(changed)


def _file_problems(site: Site) -> Sequence[str]:
    problems: list[str] = []
    bundles: list[Bundle] = []
    for files in certificate_files(site):
        try:
            bundles.append(load_files(site, files))
        except CertificateError as error:
            problems.append(str(error))
        else:
            log_doubts(certificate_name(site), files, bundles[-1])
    twice = same_kind_twice(site, bundles)
    return [*problems, twice] if twice else problems


def _warn_of_wide_wildcards(site: Site) -> None:
    """Say that OpenSSL and browsers accept no wildcard right below a top-level name (`*.localhost`, `*.test`)."""
    wide = [host for host in site.hosts if host.startswith("*.") and host.count(".") == 1]
    if wide:
        advice = f"most clients refuse a certificate for {', '.join(wide)}: name the hosts, or use *.app{wide[0][1:]}"
        logger.warning("certificate.wildcard_too_wide", extra={"certificate": certificate_name(site), "advice": advice})
