"""What `check` and start look at beyond the text of the configuration: certificate files, client CAs, the user.

Knows settings and files; changes nothing, opens no socket. Rule: everything wrong is found in one run and named by the
place where it is configured.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from tlsproxy.errors import CertificateError, ConfigError, Problem
from tlsproxy.settings import CertificateFiles, Loaded, Site
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import load_files, same_kind_twice


def inspect(loaded: Loaded) -> list[str]:
    """Raise ConfigError for what can't work; return warnings for what works and is wrong (an expired certificate)."""
    inspection = _Inspection(loaded)
    inspection.run()
    if inspection.problems:
        raise ConfigError(inspection.problems)
    return inspection.warnings


class _Inspection:
    # Mutable: problems and warnings grow while the configuration is walked through.
    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def run(self) -> None:
        self._check_user()
        for index, site in enumerate(self._loaded.settings.sites):
            self._check_certificates(f"sites.{index}.certificate", site)
            if site.client_ca is not None:
                self._check_client_ca(f"sites.{index}.client_ca", site.client_ca)
            self._check_store(site)

    def _check_user(self) -> None:
        user = self._loaded.settings.server.user
        if user and os.geteuid() == 0 and not _user_exists(user):
            self._add("server.user", f'there is no user "{user}" on this machine')

    def _check_store(self, site: Site) -> None:
        """A memory store belongs to one process; the certificate is made in another one than those that serve it."""
        if site.certificate == "internal" and self._loaded.settings.store.url == "memory:" and not self.problems:
            self._add("store.url", '"memory:" can\'t keep internal certificates; write file:///FOLDER')

    def _check_certificates(self, key: str, site: Site) -> None:
        bundles: list[Bundle] = []
        for place, files in _pairs(key, site):
            try:
                bundles.append(load_files(site, files))
            except CertificateError as error:
                self._add(place, str(error))
        if twice := same_kind_twice(site, bundles):
            self._add(key, twice)
        self.warnings += [warning for bundle in bundles for warning in bundle.warnings]

    def _check_client_ca(self, key: str, path: Path) -> None:
        try:
            x509.load_pem_x509_certificates(path.read_bytes())
        except OSError as error:
            self._add(key, f"{path} can't be read: {error.strerror}")
        except ValueError:
            self._add(key, f"{path} holds no certificates in PEM form")

    def _add(self, key: str, message: str) -> None:
        origins = self._loaded.origins
        source = next((origin for known, origin in origins.items() if known == key or known.startswith(f"{key}.")), "")
        self.problems.append(Problem(source, key, message))


def _pairs(key: str, site: Site) -> Iterator[tuple[str, CertificateFiles]]:
    if isinstance(site.certificate, CertificateFiles):
        yield key, site.certificate
    elif not isinstance(site.certificate, str):
        yield from ((f"{key}.{index}", files) for index, files in enumerate(site.certificate))


def _user_exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
