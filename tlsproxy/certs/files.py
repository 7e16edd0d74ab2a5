"""Watches the certificate files of sites and says when there is something new to serve.

Knows: files, their contents, whether a pair is whole. Does not know: the clock (the caller polls and says when it is),
workers, the store. Rules: only a pair that loads and covers its hosts is announced, and none that has expired in place
of one that has not; a rejected one is reported once per content; touching a file without changing it means nothing.

To reject is not to announce: the workers that run keep what they have. They read the files themselves, so one that
starts while an expired pair lies there serves it, as at any start, and so do all when another pair of the same site is
announced or a certifier that starts announces every site.

Polling instead of inotify: it also sees network mounts, and Kubernetes and certbot swap symbolic links far away from
the path that is configured. A stat of both files costs microseconds.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tlsproxy.errors import CertificateError
from tlsproxy.settings import CertificateFiles, Site
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import certificate_files, certificate_name, load_files

logger = logging.getLogger(__name__)

_KEPT = "The one before is still valid and stays in use. Renew it and replace both files."


@dataclass(frozen=True)
class Changed:
    """A new pair is whole and good."""

    name: str
    files: CertificateFiles
    bundle: Bundle


@dataclass(frozen=True)
class Rejected:
    """A new pair can't be used; the old one is still served."""

    name: str
    files: CertificateFiles
    reason: str


Event = Changed | Rejected


class WatchedPair:
    """One pair of one site, compared with what it was at the last poll."""

    # Mutable: _stamp (what stat said last), _served (contents last announced), _good_until (their last instant),
    # _doubtful (contents that did not load, and may be half of a replacement), _rejected (contents that were reported).

    def __init__(self, site: Site, files: CertificateFiles) -> None:
        """Take what the files hold now as served: whoever makes this has just loaded them."""
        self._site = site
        self._files = files
        self._stamp = self._look()
        self._served = self._digest()
        self._good_until = self._load_end()
        self._doubtful = self._rejected = ""

    @property
    def where(self) -> dict[str, str]:
        """Which pair this is, for the log."""
        return _where(certificate_name(self._site), self._files)

    def poll(self, now: datetime) -> Event | None:
        """Look again. A failure counts at the second poll that sees it: renewers write one file after the other."""
        stamp = self._look()
        if stamp == self._stamp and not self._doubtful:
            return None
        self._stamp = stamp
        contents = self._digest()
        if contents == self._rejected or (contents == self._served and not self._was_broken):
            self._doubtful = ""
            return None
        try:
            bundle = load_files(self._site, self._files)
        except CertificateError as error:
            return self._doubt(contents, str(error))
        if bundle.is_expired(now) and self._good_until and now < self._good_until:
            return self._doubt(contents, f"{self._files.chain}: the certificate {bundle.date_problem(now)}. {_KEPT}")
        self._good_until = bundle.not_after
        self._served, self._doubtful, self._rejected = contents, "", ""
        return Changed(certificate_name(self._site), self._files, bundle)

    @property
    def _was_broken(self) -> bool:
        """Whether the last look saw something else: a worker that started then has no certificate from here."""
        return bool(self._doubtful or self._rejected)

    def _doubt(self, contents: str, reason: str) -> Rejected | None:
        if contents != self._doubtful:
            self._doubtful = contents
            return None
        self._doubtful, self._rejected = "", contents
        return Rejected(certificate_name(self._site), self._files, reason)

    def _load_end(self) -> datetime | None:
        try:
            return load_files(self._site, self._files).not_after
        except CertificateError:  # whoever loads it to serve it says so
            return None

    def _look(self) -> tuple[object, ...]:
        return _stamp(self._files.chain), _stamp(self._files.key)

    def _digest(self) -> str:
        """Return a digest of both contents; of the reason, where one can't be read."""
        return hashlib.sha256(_contents(self._files.chain) + b"\0" + _contents(self._files.key)).hexdigest()


class FileWatch:
    """All pairs of all sites."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self._pairs = [WatchedPair(site, files) for site in sites for files in certificate_files(site)]

    def poll(self, now: datetime) -> tuple[str, ...]:
        """Log what happened and return the names whose certificates are to be loaded again."""
        events = [event for pair in self._pairs if (event := _poll(pair, now))]
        for event in events:
            _log(event)
        return tuple(dict.fromkeys(event.name for event in events if isinstance(event, Changed)))

    def __repr__(self) -> str:
        return f"<FileWatch {len(self._pairs)} pairs>"


def _poll(pair: WatchedPair, now: datetime) -> Event | None:
    """One pair's trouble must not cost the others their news: they have noted already that they announced it."""
    try:
        return pair.poll(now)
    except Exception:
        logger.exception("certificate.watch_failed", extra=pair.where)
        return None


def log_doubts(name: str, files: CertificateFiles, bundle: Bundle) -> None:
    """Log what is wrong with a pair that is served all the same."""
    for warning in bundle.warnings:
        logger.warning("certificate.file_doubtful", extra={**_where(name, files), "error": warning})


def _log(event: Event) -> None:
    where = _where(event.name, event.files)
    if isinstance(event, Rejected):
        logger.warning("certificate.file_rejected", extra={**where, "error": event.reason})
        return
    bundle = event.bundle
    details = {"serial": bundle.serial, "not_after": bundle.not_after.isoformat(), "names": list(bundle.names)}
    logger.info("certificate.file_changed", extra={**where, **details})
    log_doubts(event.name, event.files, bundle)


def _where(name: str, files: CertificateFiles) -> dict[str, str]:
    return {"certificate": name, "chain": str(files.chain), "key": str(files.key)}


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    # ctime too: a copy with `cp -p` may keep mtime and size, and a chmod that makes a file readable changes only ctime.
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(1 << 20)).digest()
    except OSError as error:
        return str(error.errno).encode()
