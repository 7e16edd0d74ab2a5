"""The certificate that answers tls-alpn-01 (RFC 8737; RFC 8738 for addresses).

Knows: what must be in it. Does not know: under which server name the CA asks for it (identifiers.py), who serves it.
Rule: it proves one name to one CA and is good for nothing else: self-signed, seven days, a key of its own.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tlsproxy.certs.identifiers import ip_address
from tlsproxy.store.bundle import Bundle

ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_LIFE = timedelta(days=7)
_CLOCK_SKEW = timedelta(hours=1)
_OCTET_STRING_OF_32 = b"\x04\x20"


def make_answer(identifier: str, key_authorization: str, now: datetime) -> Bundle:
    """Make the certificate and its key (RFC 8737 3): one name, and the digest in a critical extension."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    begin = (now - _CLOCK_SKEW).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _LIFE)
        .add_extension(x509.SubjectAlternativeName([_general_name(identifier)]), critical=False)
        .add_extension(_digest(key_authorization), critical=True)
    )
    return Bundle.build([builder.sign(key, hashes.SHA256())], key, "acme")


def answers(bundle: Bundle, key_authorization: str) -> bool:
    """Tell whether this certificate was made for this key authorization."""
    extensions = x509.load_pem_x509_certificate(bundle.chain_pem).extensions
    found = [each.value for each in extensions if each.oid == ACME_IDENTIFIER]
    return found == [_digest(key_authorization)]


def _digest(key_authorization: str) -> x509.UnrecognizedExtension:
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    return x509.UnrecognizedExtension(ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest)


def _general_name(identifier: str) -> x509.GeneralName:
    address = ip_address(identifier)
    return x509.IPAddress(address) if address else x509.DNSName(identifier)
