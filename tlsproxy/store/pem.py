"""PEM text <-> certificates and keys, with the checks a TLS server needs.

Knows: X.509, key kinds, the order of a chain. Does not know: files, hosts, stores, the clock.
Rule: every refusal is a CertificateError that begins with the caller's label (a file name) and ends with what to do.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from tlsproxy.errors import CertificateError

_EC_CURVES = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384", "secp521r1": "ecdsa-p521"}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class Pem:
    """One `-----BEGIN kind-----` block, armour included."""

    kind: str
    text: bytes


def certificates(text: bytes, label: str) -> list[x509.Certificate]:
    """Return every certificate of a PEM text in its order; at least one."""
    found = [block.text for block in _blocks(text, label) if block.kind in ("CERTIFICATE", "X509 CERTIFICATE")]
    if not found:
        kinds = ", ".join(sorted({block.kind for block in _blocks(text, label)}))
        raise CertificateError(f"{label}: there is no certificate in it, only {kinds}. Give the file with the chain.")
    try:
        return [x509.load_pem_x509_certificate(block) for block in found]
    except ValueError as error:
        raise CertificateError(f"{label}: a certificate in it can't be read ({error}). Write it again.") from error


def private_key(text: bytes, label: str) -> PrivateKey:
    """Return the one private key of a PEM text, unencrypted and of a kind TLS servers use."""
    found = [block.text for block in _blocks(text, label, wants_key=True) if block.kind.endswith("PRIVATE KEY")]
    if not found:
        raise CertificateError(f"{label}: there is no private key in it. Give the file with `BEGIN PRIVATE KEY`.")
    if b"BEGIN ENCRYPTED" in found[0] or b"ENCRYPTED" in found[0].split(b"\n\n")[0].split(b"\r\n\r\n")[0]:
        raise CertificateError(
            f"{label}: the private key is encrypted and nobody is there to type the password. "
            f"Decrypt it: openssl pkey -in {shlex.quote(label)} -out decrypted.key"
        )
    try:
        key = serialization.load_pem_private_key(found[0], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{label}: the private key can't be read ({error}). Write the file again.") from error
    if not isinstance(key, PrivateKey):
        raise CertificateError(f"{label}: a TLS server can't use this kind of key. Use ECDSA P-256 or RSA 2048.")
    return key


def key_pem(key: PrivateKey) -> bytes:
    """Return PKCS #8 PEM, the one form in which keys are kept."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def chain_pem(chain: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)


def key_type(certificate: x509.Certificate) -> str:
    """Return e.g. "ecdsa-p256" or "rsa-2048"; "unknown" for what a TLS server can't use."""
    public = certificate.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return f"rsa-{public.key_size}"
    if isinstance(public, ec.EllipticCurvePublicKey):
        return _EC_CURVES.get(public.curve.name, "unknown")
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "ed25519"
    return "ed448" if isinstance(public, ed448.Ed448PublicKey) else "unknown"


def belongs(key: PrivateKey, certificate: x509.Certificate) -> bool:
    return _spki(key.public_key()) == _spki(certificate.public_key())


def order_chain(
    leaf: x509.Certificate, others: Sequence[x509.Certificate]
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """Return (leaf and its issuers in order, certificates that have no place in that chain).

    RFC 5246 7.4.2 wants each certificate to certify the one before it; RFC 8446 4.4.2 only recommends it.
    A second issuer of a member (a cross-signed twin) has its place: it follows the path, in the order given.
    """
    chain, rest = [leaf], [other for other in others if other != leaf]
    while issuer := next((other for other in rest if _issued(other, chain[-1])), None):
        chain.append(issuer)
        rest.remove(issuer)
    twins = [other for other in rest if any(_issued(other, member) for member in chain)]
    return chain + twins, [other for other in rest if other not in twins]


def refuse_unusable(chain: Sequence[x509.Certificate], label: str) -> None:
    """Raise for what no client accepts: weak keys, SHA-1, a leaf that is not for servers."""
    for certificate in chain:
        _refuse_weak(certificate, label)
    usage = _extended_key_usage(chain[0])
    if usage and not usage & {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}:
        raise CertificateError(
            f"{label}: {describe(chain[0])} is not for servers (extended key usage lacks serverAuth). "
            "Have it issued as a server certificate."
        )


def lacks_intermediate(chain: Sequence[x509.Certificate]) -> bool:
    """Tell whether a leaf stands alone although its CA publishes the certificate above it (RFC 5280 4.2.2.1).

    A leaf issued directly by a root (as our internal CA does) has no such pointer and needs no more.
    """
    if len(chain) > 1 or chain[0].issuer == chain[0].subject:
        return False
    try:
        access = chain[0].extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return False
    return any(item.access_method == AuthorityInformationAccessOID.CA_ISSUERS for item in access)


def describe(certificate: x509.Certificate) -> str:
    """Name a certificate for a message: its subject, else its first alternative name, else its serial number."""
    subject = certificate.subject.rfc4514_string()
    return f"the certificate {subject!r}" if subject else f"the certificate with serial {certificate.serial_number:x}"


def _blocks(text: bytes, label: str, *, wants_key: bool = False) -> list[Pem]:
    found = [Pem(match[1].decode("ascii"), match[0]) for match in _BLOCK.finditer(text)]
    if found:
        return found
    if not text.strip():
        raise CertificateError(f"{label}: the file is empty. Write it again.")
    if text[:1] == b"\x30":
        form, command = _binary_form(text, wants_key=wants_key)
        files = f"-in {shlex.quote(label)} -out {shlex.quote(f'{label}.pem')}"
        raise CertificateError(
            f"{label}: this is binary ({form}), PEM is needed. Convert it and give the new file: {command} {files}"
        )
    raise CertificateError(f"{label}: this is not PEM (no complete `-----BEGIN …-----` block). Give a PEM file.")


def _binary_form(text: bytes, *, wants_key: bool) -> tuple[str, str]:
    """Return what kind of binary file this is and the command that makes PEM of it.

    The first element in the outer SEQUENCE tells: PKCS #12 has version 3 there (RFC 7292 4), PKCS #7 an object
    identifier (RFC 2315 7); certificates and keys have neither.
    """
    length = 2 + (text[1] & 0x7F if len(text) > 1 and text[1] & 0x80 else 0)
    inner = text[length : length + 3]
    if inner == b"\x02\x01\x03":
        # -nodes also where -noenc exists: older versions know only this one.
        return "PKCS #12", f"openssl pkcs12 {'-nocerts -nodes' if wants_key else '-nokeys'}"
    if inner[:1] == b"\x06" and not wants_key:
        return "PKCS #7", "openssl pkcs7 -inform DER -print_certs"
    return "DER", f"openssl {'pkey' if wants_key else 'x509'} -inform DER"


def _refuse_weak(certificate: x509.Certificate, label: str) -> None:
    kind = key_type(certificate)
    if kind == "unknown":
        raise CertificateError(
            f"{label}: {describe(certificate)} has a key no browser accepts. Use ECDSA P-256 or RSA 2048."
        )
    if kind.startswith("rsa-") and int(kind[4:]) < _MIN_RSA_BITS:
        raise CertificateError(
            f"{label}: {describe(certificate)} has an RSA key of {kind[4:]} bits, which clients refuse. "
            f"Use ECDSA P-256 or RSA with at least {_MIN_RSA_BITS} bits."
        )
    # The signature of a root is never checked, so a SHA-1 root does no harm.
    self_signed = certificate.issuer == certificate.subject
    if not self_signed and isinstance(certificate.signature_hash_algorithm, hashes.SHA1 | hashes.MD5):
        raise CertificateError(
            f"{label}: {describe(certificate)} is signed with {certificate.signature_hash_algorithm.name}, "
            "which clients refuse. Have it issued again with SHA-256."
        )


def _extended_key_usage(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set()


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if certificate.issuer == certificate.subject or issuer.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _spki(public: object) -> bytes:
    encode = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(*encode)  # type: ignore[attr-defined, no-any-return]
