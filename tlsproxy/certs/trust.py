"""Put the root of the internal CA into the trust stores of this machine, and take it out again.

Knows: which systems keep their trust where, and with which command it is changed. Does not know: keys, sites, leaves.
Rules: only the given root is touched, found again by its fingerprint; doing it twice is no error; every store that is
there gets one Outcome, and one that fails does not stop the others.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from tlsproxy.certs.internal import ensure_root
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.sources import ROOT_NAME

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin"
_TIMEOUT = 60.0  # seconds; update-ca-certificates takes up to ten on a small machine
_MAC_KEYCHAIN = "/Library/Keychains/System.keychain"
_NSS_PLACES = (
    ".pki/nssdb",
    "snap/chromium/current/.pki/nssdb",
    ".mozilla/firefox/*",
    ".config/mozilla/firefox/*",
    "snap/firefox/common/.mozilla/firefox/*",
    ".var/app/org.mozilla.firefox/.mozilla/firefox/*",
    "Library/Application Support/Firefox/Profiles/*",
)
"""Below the home directory: Chromium and its kin, then Firefox as a package, by XDG, as snap, as flatpak, on macOS."""


@dataclass(frozen=True)
class Outcome:
    """What became of one trust store: `store` names it, `message` is for the user."""

    store: str
    ok: bool
    message: str


Run = Callable[[Sequence[str]], str]
"""Runs a command to its end and returns "" or why it failed."""


def run_command(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    words = (done.stderr or done.stdout).decode(errors="replace").strip()
    return "" if done.returncode == 0 else f"{Path(command[0]).name} failed: {words[-500:] or done.returncode}"


@dataclass(frozen=True)
class Machine:
    """Where to look and how to act; the defaults are this machine and this user."""

    home: Path = field(default_factory=Path.home)
    top: Path = Path("/")
    platform: str = sys.platform
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    run: Run = run_command
    search_path: str = _SEARCH_PATH

    def which(self, command: str) -> str | None:
        return shutil.which(command, path=self.search_path)


@dataclass(frozen=True)
class Anchors:
    """A directory of trusted certificates and the command that makes the system read it."""

    name: str
    directory: str
    update: str
    removal_option: str = ""


_ANCHORS = (
    # --fresh: without it Debian leaves links to the removed file behind.
    Anchors("Debian, Ubuntu, Alpine", "usr/local/share/ca-certificates", "update-ca-certificates", "--fresh"),
    Anchors("Fedora, RHEL", "etc/pki/ca-trust/source/anchors", "update-ca-trust"),
    Anchors("Arch", "etc/ca-certificates/trust-source/anchors", "update-ca-trust"),
    Anchors("SUSE", "etc/pki/trust/anchors", "update-ca-certificates"),
)


@dataclass(frozen=True)
class Root:
    """The root's certificate as PEM, and whether this very call made it: then no proxy has used it yet."""

    pem: bytes
    is_new: bool = False


def root_certificate(store: CertificateStore, *, make: bool = True) -> Root:
    """Return the root of this store; without one, or without enough left of it, make it first or raise StoreError."""
    held = store.get(ROOT_NAME)
    if make:
        root = ensure_root(store, datetime.now(UTC))
        return Root(root.chain_pem, is_new=held is None or held.fingerprint != root.fingerprint)
    if held is None:
        raise StoreError(f"{store!r}: there is no internal CA in this store, so there is nothing to remove.")
    return Root(held.chain_pem)


def install(pem: bytes, machine: Machine | None = None) -> list[Outcome]:
    """Make this machine and this user's browsers trust the root."""
    return _everywhere(_Root.parse(pem), machine or Machine(), install=True)


def uninstall(pem: bytes, machine: Machine | None = None) -> list[Outcome]:
    """Undo `install`."""
    return _everywhere(_Root.parse(pem), machine or Machine(), install=False)


@dataclass(frozen=True)
class _Root:
    pem: bytes
    nickname: str
    file_name: str
    sha1: str

    @classmethod
    def parse(cls, pem: bytes) -> "_Root":
        certificate = x509.load_pem_x509_certificate(pem)
        digest = certificate.fingerprint(hashes.SHA256()).hex()[:16]
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        # SHA-1 only because `security` on macOS names certificates by it.
        sha1 = certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303
        label = str(names[0].value) if names else "tlsproxy"
        return cls(pem, f"{label} {digest}", f"tlsproxy-{digest}.crt", sha1)


def _everywhere(root: _Root, machine: Machine, *, install: bool) -> list[Outcome]:
    outcomes = [*_system(root, machine, install=install), *_nss(root, machine, install=install)]
    if outcomes:
        return outcomes
    message = "no trust store that is known here was found. Install the output of `tlsproxy trust --print` by hand."
    return [Outcome("this machine", ok=False, message=message)]


def _system(root: _Root, machine: Machine, *, install: bool) -> Iterator[Outcome]:
    if machine.platform == "darwin":
        yield _macos(root, machine, install=install)
        return
    for anchors in _ANCHORS:
        command = machine.which(anchors.update)
        if command and (machine.top / anchors.directory).is_dir():
            yield _anchors(root, machine, anchors, command, install=install)


def _anchors(root: _Root, machine: Machine, anchors: Anchors, command: str, *, install: bool) -> Outcome:
    path = machine.top / anchors.directory / root.file_name
    options = [anchors.removal_option] if anchors.removal_option and not install else []
    if not install and not path.exists():
        return Outcome(anchors.name, ok=True, message=f"{path} is not there, nothing to remove.")
    if not machine.is_root:
        change = f"tlsproxy trust --print | sudo tee {path} >/dev/null" if install else f"sudo rm {path}"
        update = " ".join([anchors.update, *options])
        return Outcome(anchors.name, ok=False, message=f"only root may change it. Run: {change} && sudo {update}")
    try:
        if install:
            path.write_bytes(root.pem)
            path.chmod(0o644)
        else:
            path.unlink()
    except OSError as error:
        return Outcome(anchors.name, ok=False, message=f"{path}: {error.strerror}")
    failure = machine.run([command, *options])
    if not install:
        _forget_in_java(path, machine)
    return Outcome(anchors.name, ok=not failure, message=failure or f"{'added' if install else 'removed'} {path}")


def _forget_in_java(path: Path, machine: Machine) -> None:
    """Remove the root from Debian's key store for Java: its update hook adds by itself, but never hears of removals.

    A failure means that there is none in it: keytool has no exit code of its own for that.
    """
    keytool, store = machine.which("keytool"), machine.top / "etc/ssl/certs/java/cacerts"
    if keytool and store.is_file():
        # The password is public: Java wants one, and every JDK ships with this one.
        alias = f"debian:{path.stem}.pem"
        machine.run(
            [keytool, "-delete", "-noprompt", "-keystore", str(store), "-storepass", "changeit", "-alias", alias]
        )


def _macos(root: _Root, machine: Machine, *, install: bool) -> Outcome:
    add = ["security", "add-trusted-cert", "-d", "-r", "trustRoot", "-k", _MAC_KEYCHAIN]
    remove = ["security", "delete-certificate", "-t", "-Z", root.sha1, _MAC_KEYCHAIN]
    if not machine.is_root:
        change = f"tlsproxy trust --print > {root.file_name} && sudo {' '.join(add)} {root.file_name}"
        message = f"only root may change it. Run: {change if install else 'sudo ' + ' '.join(remove)}"
        return Outcome("macOS keychain", ok=False, message=message)
    with _as_file(root) as path:
        failure = machine.run([*add, str(path)] if install else remove)
    return Outcome("macOS keychain", ok=not failure, message=failure or ("added" if install else "removed"))


def _nss(root: _Root, machine: Machine, *, install: bool) -> Iterator[Outcome]:
    databases = list(_nss_databases(machine.home))
    certutil = machine.which("certutil") if databases else None
    for database in databases:
        name = f"browser database {database}"
        if certutil is None:
            message = "certutil is not installed. Install libnss3-tools (Debian) or nss-tools (Fedora), then try again."
            yield Outcome(name, ok=False, message=message)
        else:
            yield _nss_change(root, machine, name, [certutil, "-d", f"sql:{database}"], install=install)


def _nss_change(root: _Root, machine: Machine, name: str, certutil: list[str], *, install: bool) -> Outcome:
    if not install:
        if machine.run([*certutil, "-L", "-n", root.nickname]):
            return Outcome(name, ok=True, message="it is not there, nothing to remove.")
        failure = machine.run([*certutil, "-D", "-n", root.nickname])
        return Outcome(name, ok=not failure, message=failure or "removed. Restart the browser.")
    with _as_file(root) as path:
        # "C,,": trusted to sign server certificates, nothing else.
        failure = machine.run([*certutil, "-A", "-t", "C,,", "-n", root.nickname, "-i", str(path)])
    return Outcome(name, ok=not failure, message=failure or "added. Restart the browser.")


def _nss_databases(home: Path) -> Iterable[Path]:
    for place in _NSS_PLACES:
        for directory in sorted(home.glob(place)):
            if (directory / "cert9.db").is_file():
                yield directory


@contextmanager
def _as_file(root: _Root) -> Iterator[Path]:
    """Give the root as a file, for commands that take nothing else."""
    with tempfile.NamedTemporaryFile(suffix=".crt") as file:
        file.write(root.pem)
        file.flush()
        yield Path(file.name)
