"""Certificates to order, for tests: any names, dates, keys, flaws."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, NameOID

from tlsproxy.store.bundle import Bundle

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None, *, legacy: bool = False) -> bytes:
        form = serialization.PrivateFormat.TraditionalOpenSSL if legacy else serialization.PrivateFormat.PKCS8
        lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, form, lock)

    def bundle(self, *above: "Issued") -> Bundle:
        return Bundle.build([self.certificate, *(one.certificate for one in above)], self.key, "file")


def issue(
    *hosts: str,
    by: Issued | None = None,
    cn: str = "",
    ca: bool = False,
    key: Key | None = None,
    days: tuple[float, float] = (-1, 30),
    usage: Sequence[x509.ObjectIdentifier] = (),
    issuer_url: str = "",
    raw_names: bytes = b"",
) -> Issued:
    """Issue by `by`, else self-signed; `days` are begin and end from now, `raw_names` the DER of the names."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn or (hosts[0] if hosts else "nobody"))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    if raw_names:
        extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, raw_names)
        builder = builder.add_extension(extension, critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if issuer_url:
        place = x509.UniformResourceIdentifier(issuer_url)
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, place)
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    signer = by.key if by else key
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(builder.sign(signer, digest), key)


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def write_pair(directory: Path, leaf: Issued, *above: Issued) -> tuple[Path, Path]:
    """Write chain.pem and key.pem the way renewers do, by rename."""
    replace(directory / "chain.pem", leaf.pem + b"".join(one.pem for one in above))
    replace(directory / "key.pem", leaf.key_pem())
    return directory / "chain.pem", directory / "key.pem"


def replace(path: Path, text: bytes) -> None:
    new = path.with_suffix(".tmp")
    new.write_bytes(text)
    new.chmod(0o600)
    new.replace(path)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
