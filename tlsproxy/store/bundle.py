"""One certificate with its key and chain, as a value, and how a pair of files becomes one.

Knows: which hosts a certificate covers, its dates, its record in a store. Does not know: sites, contexts, stores.
Rule: key and chain never exist apart, and the key never reaches a repr, an error or a log.
"""

import ipaddress
import os
import pwd
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tlsproxy.errors import CertificateError
from tlsproxy.store import pem

Source = Literal["file", "internal", "acme"]
RECORD_VERSION = 1
_SOURCES = get_args(Source)
_MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A leaf, the certificates above it and the leaf's key.

    `names` are lower-case DNS names and IP addresses in canonical form. `chain_pem` starts with the leaf.
    `key_pem` is PKCS #8. `serial` and `fingerprint` (SHA-256 of the leaf) are lower-case hex.
    `directory` and `account` are the URLs of the CA's directory and of the account there, `profile` is the CA's name
    for the kind of certificate, `ari_id` the certificate's id for renewal information (RFC 9773 4.1); all "" without a
    public CA.
    `warnings` are sentences for the log about what was found while loading; they are no part of the value.
    """

    names: tuple[str, ...]
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime
    serial: str
    issuer: str
    fingerprint: str
    key_type: str
    source: Source
    directory: str = ""
    account: str = ""
    profile: str = ""
    ari_id: str = ""
    warnings: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def build(cls, chain: Sequence[x509.Certificate], key: pem.PrivateKey, source: Source) -> Self:
        """Build from parsed parts; the caller vouches that the key belongs to chain[0].

        What only an ACME client knows (`directory` and so on) it adds with `dataclasses.replace`.
        """
        leaf = chain[0]
        return cls(
            names=_alternative_names(leaf),
            chain_pem=pem.chain_pem(chain),
            key_pem=pem.key_pem(key),
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
            serial=f"{leaf.serial_number:x}",
            issuer=leaf.issuer.rfc4514_string(),
            fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
            key_type=pem.key_type(leaf),
            source=source,
        )

    def covers(self, host: str) -> bool:
        """Tell whether a client that asks for `host` accepts the names (RFC 9525 6.3: `*` is one whole label)."""
        host = normal_host(host)
        if host in self.names:
            return True
        _, dot, parent = host.partition(".")
        return bool(dot) and not host.startswith("*") and not _is_ip(host) and f"*.{parent}" in self.names

    def check_names(self, hosts: Iterable[str]) -> list[str]:
        """Return the hosts that the certificate does not cover."""
        return [host for host in hosts if not self.covers(host)]

    def is_expired(self, now: datetime) -> bool:
        return now >= self.not_after

    def date_problem(self, now: datetime) -> str:
        """Return what is wrong with the dates at `now`, as the rest of a sentence about the certificate, or ""."""
        if self.is_expired(now):
            return f"expired on {_day(self.not_after)}"
        return f"is not valid before {_day(self.not_before)}; is the clock right?" if now < self.not_before else ""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record of a store. It holds the private key."""
        return {
            "version": RECORD_VERSION,
            "names": list(self.names),
            "chain_pem": self.chain_pem.decode("ascii"),
            "key_pem": self.key_pem.decode("ascii"),
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
            "serial": self.serial,
            "issuer": self.issuer,
            "fingerprint": self.fingerprint,
            "key_type": self.key_type,
            "source": self.source,
            "directory": self.directory,
            "account": self.account,
            "profile": self.profile,
            "ari_id": self.ari_id,
        }

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Rebuild from `to_record`; raises ValueError for anything that is not such a record.

        Fields of later versions are ignored, so that an older process survives beside a newer one.
        """
        try:
            if record["version"] < RECORD_VERSION or record["source"] not in _SOURCES:
                raise ValueError("unknown version or source")
            return cls(
                names=tuple(str(name) for name in record["names"]),
                chain_pem=record["chain_pem"].encode("ascii"),
                key_pem=record["key_pem"].encode("ascii"),
                not_before=_instant(record["not_before"]),
                not_after=_instant(record["not_after"]),
                serial=str(record["serial"]),
                issuer=str(record["issuer"]),
                fingerprint=str(record["fingerprint"]),
                key_type=str(record["key_type"]),
                source=record["source"],
                directory=str(record.get("directory", "")),
                account=str(record.get("account", "")),
                profile=str(record.get("profile", "")),
                ari_id=str(record.get("ari_id", "")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no certificate record ({type(error).__name__} {error})") from error


def load_pair(chain: Path, key: Path, now: datetime | None = None) -> Bundle:
    """Read a certificate file and its key file; both may be the same file.

    Raises CertificateError for what can't be served. What can be served but is wrong (expired, chain out of order,
    incomplete, key readable by everybody) is served and stands in `Bundle.warnings`: a site with an expired
    certificate is better than a proxy that does not start.
    """
    try:
        return _load_pair(chain, key, now)
    except CertificateError:
        raise
    except Exception as error:
        # The library parses extensions when they are asked for, and has no common class for what it then raises.
        # One site's file must never be more than that site's problem.
        reason = str(error) or type(error).__name__
        raise CertificateError(f"{chain}: this certificate can't be used ({reason}). Have it issued again.") from error


def _load_pair(chain: Path, key: Path, now: datetime | None) -> Bundle:
    certificates = list(dict.fromkeys(pem.certificates(_read(chain), str(chain))))
    private = pem.private_key(_read(key), str(key))
    leaf = next((certificate for certificate in certificates if pem.belongs(private, certificate)), None)
    if leaf is None:
        raise CertificateError(
            f"{key}: this key does not belong to {pem.describe(certificates[0])} in {chain}. "
            "Give the key that the certificate was requested with."
        )
    ordered, strangers = pem.order_chain(leaf, certificates)
    pem.refuse_unusable(ordered, str(chain))
    warnings = [*_chain_warnings(chain, certificates, ordered, strangers), *_mode_warnings(key)]
    bundle = Bundle.build(ordered, private, "file")
    if problem := bundle.date_problem(now or datetime.now(UTC)):
        warnings.insert(0, f"{chain}: the certificate {problem}. Renew it and replace both files.")
    if bundle.key_type.startswith("ed"):
        warnings.append(f"{chain}: browsers don't accept {bundle.key_type} certificates. Use ECDSA P-256.")
    return replace(bundle, warnings=tuple(warnings))


def normal_host(host: str) -> str:
    """Return the form in which `Bundle.names` holds a host: lower case, IP addresses canonical without brackets."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return host.lower().removesuffix(".")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE + 1)
    except FileNotFoundError as error:
        raise CertificateError(f"{path}: there is no such file. Correct the path or put the file there.") from error
    except PermissionError as error:
        raise CertificateError(f"{path}: {_why_unreadable(path)}") from error
    except OSError as error:
        raise CertificateError(f"{path}: can't be read ({error.strerror}). Give a PEM file.") from error
    if len(text) > _MAX_FILE:
        raise CertificateError(f"{path}: the file is larger than {_MAX_FILE} bytes. Give only this site's certificate.")
    return text


def _why_unreadable(path: Path) -> str:
    me = _user(os.geteuid())
    try:
        status = path.stat()
    except OSError:
        return f"user {me} may not enter its directory. Give that user the right to enter it (chmod or chown)."
    mode = stat.S_IMODE(status.st_mode)
    return f"user {me} may not read it (mode {mode:04o}, owner {_user(status.st_uid)}). Change its owner or group."


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _chain_warnings(
    path: Path,
    given: list[x509.Certificate],
    ordered: list[x509.Certificate],
    strangers: list[x509.Certificate],
) -> Iterable[str]:
    if [certificate for certificate in given if certificate not in strangers] != ordered:
        yield f"{path}: the chain is out of order; it is served leaf first. Write the server's certificate first."
    for stranger in strangers:
        yield f"{path}: {pem.describe(stranger)} has no place in the chain and is left out. Remove it from the file."
    if pem.lacks_intermediate(ordered):
        issuer = ordered[0].issuer.rfc4514_string()
        yield f"{path}: the issuer's certificate {issuer!r} is missing. Give the full chain (fullchain.pem)."


def _mode_warnings(path: Path) -> Iterable[str]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IROTH:
        yield f"{path}: everybody on this machine can read the private key (mode {mode:04o}). Run: chmod o-r {path}"


def _alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()  # RFC 9525 6.4.4: a common name alone names no server
    # A DNS name that looks like an address names no host: clients compare addresses with iPAddress only.
    dns = (name.lower() for name in names.get_values_for_type(x509.DNSName) if not _is_ip(name))
    return tuple(dict.fromkeys([*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress))]))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("time without zone")
    return instant


def _day(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")
