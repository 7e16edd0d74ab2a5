"""What `check` and start look at beyond the text of the configuration: the user, the store, the log, certificate files.

Knows settings and files; makes and changes nothing, opens no socket. Rules: everything wrong is found in one run and
named by the place where it is configured; what the children will open is tried with the rights they will have.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from tlsproxy.errors import CertificateError, ConfigError, Problem, StoreError
from tlsproxy.proxy import spans
from tlsproxy.proxy.spans import TracingError
from tlsproxy.runtime import preflight_acme, privileges
from tlsproxy.runtime.privileges import Account, PrivilegeError
from tlsproxy.settings import CertificateFiles, Loaded, Site
from tlsproxy.store.base import examine_store
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import load_files, same_kind_twice


def inspect(loaded: Loaded, *, wrong_user: str = "") -> list[str]:
    """Raise ConfigError for what can't work; return warnings for what works and is wrong (an expired certificate).

    `wrong_user` is the advice for a person who is not the one whose rights count, where the store is closed to them.
    """
    inspection = _Inspection(loaded, wrong_user)
    inspection.run()
    if inspection.problems:
        raise ConfigError(inspection.problems)
    return inspection.warnings


class _Inspection:
    # Mutable: problems and warnings grow while the configuration is walked through.
    def __init__(self, loaded: Loaded, wrong_user: str) -> None:
        self._loaded = loaded
        self._wrong_user = wrong_user
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def run(self) -> None:
        account = self._find_account()
        try:
            with privileges.acting_as(account) if account else contextlib.nullcontext():
                self._check_files(account)
        except PrivilegeError as error:
            self._add_of(error)

    def _find_account(self) -> Account | None:
        """Return whom the children will become, if that is somebody else and possible."""
        try:
            account = privileges.find_account(self._loaded.settings.server.user)
            if account is not None:
                privileges.check_interpreter(account)
        except PrivilegeError as error:
            self._add_of(error)
            return None
        try:
            if account is not None:
                privileges.judge_store(self._loaded.settings.store.url, account)
        except PrivilegeError as error:
            self._add_of(error)
        return account

    def _check_files(self, account: Account | None) -> None:
        self._check_store(made_for=account)
        self._check_acme()
        self._check_tracing()
        if problem := _log_problem(self._loaded.settings.log.access, made_for=account):
            self._add("log.access", problem)
        for index, site in enumerate(self._loaded.settings.sites):
            self._check_certificates(f"sites.{index}.certificate", site)
            if site.client_ca is not None:
                self._check_client_ca(f"sites.{index}.client_ca", site.client_ca)

    def _check_store(self, *, made_for: Account | None) -> None:
        settings = self._loaded.settings
        # A memory store belongs to one process; the certificate is made in another one than those that serve it.
        if settings.store.url == "memory:" and any(isinstance(site.certificate, str) for site in settings.sites):
            self._add("store.url", '"memory:" can\'t keep the certificates that are made here; write file:///FOLDER')
        if any(problem.key == "store.url" for problem in self.problems):
            return
        try:
            examine_store(settings.store.url, made_for_us=made_for is not None)
            message, is_fatal = preflight_acme.judge_place(settings, is_kubernetes=self._loaded.is_kubernetes)
        except StoreError as error:
            is_closed = isinstance(error.__cause__, PermissionError) and made_for is None
            message, is_fatal = f"{error} {self._wrong_user}".rstrip() if is_closed else str(error), True
        if message and is_fatal:
            self._add("store.url", message)
        elif message:
            self.warnings.append(f"store.url: {message}")

    def _check_acme(self) -> None:
        for key, message in preflight_acme.find_problems(self._loaded.settings):
            self._add(key, message)
        self.warnings += preflight_acme.find_doubts(self._loaded.settings)

    def _check_tracing(self) -> None:
        section = self._loaded.settings.tracing
        if not section.otlp:
            return
        headers = section.headers.get_secret_value()
        for key, check in (("otlp", spans.require), ("headers", lambda: spans.read_headers(headers))):
            try:
                check()
            except TracingError as error:
                self._add(f"tracing.{key}", str(error))

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
        if problem := preflight_acme.certificates_problem(path):
            self._add(key, problem)

    def _add_of(self, error: PrivilegeError) -> None:
        key, _, message = str(error).partition(": ")
        self._add(key, message)

    def _add(self, key: str, message: str) -> None:
        origins = self._loaded.origins
        source = next((origin for known, origin in origins.items() if known == key or known.startswith(f"{key}.")), "")
        self.problems.append(Problem(source, key, message))


def _pairs(key: str, site: Site) -> Iterator[tuple[str, CertificateFiles]]:
    if isinstance(site.certificate, CertificateFiles):
        yield key, site.certificate
    elif not isinstance(site.certificate, str):
        yield from ((f"{key}.{index}", files) for index, files in enumerate(site.certificate))


def _log_problem(access: str, *, made_for: Account | None) -> str:
    """Return why the access log can't be opened, or "". A file that is missing is not made for that."""
    if access in ("-", "off"):
        return ""
    if not access:
        return 'write "-" for stdout, a path, or "off"'
    path = Path(access)
    try:
        _try_to_open(path)
    except FileNotFoundError:
        return _folder_problem(path.resolve().parent, made_for=made_for)
    except IsADirectoryError:
        return f"{path} is a directory; name a file in it, as in {path / 'access.log'}"
    except PermissionError:
        me = _my_name()
        return f"user {me} may not write {path}; give the file to that user (chown {me} {path}) and let it reach it"
    except OSError as error:
        return f'{path} can\'t be opened ({error.strerror}); choose another file, or "-" for stdout'
    return ""


def _try_to_open(path: Path) -> None:
    # Opening a pipe waits for a reader or, told not to wait, fails without one: who reads may come later.
    if stat.S_ISFIFO(path.stat().st_mode):
        if not os.access(path, os.W_OK, effective_ids=True):
            raise PermissionError
        return
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))


def _folder_problem(folder: Path, *, made_for: Account | None) -> str:
    """Return why no log can be made in a folder. For an account root makes it, and the account has to reach it."""
    if not folder.exists():
        return f'there is no folder {folder}; create it (mkdir -p {folder}), or write "-" for stdout'
    if not folder.is_dir():
        return f"{folder} is no folder; choose another path"
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"{folder} is mounted read-only; choose another folder"
    if not os.access(folder, os.X_OK if made_for else os.W_OK | os.X_OK, effective_ids=True):
        verb = "enter" if made_for else "make a file in"
        return f"user {_my_name()} may not {verb} {folder}; choose another folder or change its owner or mode"
    return ""


def _my_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
