"""What a certificate is asked for and known by: identifiers, signing requests, names in challenges, ARI ids. PURE.

Knows: RFC 8555 identifiers, RFC 8738 (IP addresses), RFC 9773 4.1 (the id of a certificate), PKCS #10. Does not know:
requests, stores. Rule: nothing here imports `acme`, so that whoever only reads the store may use it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.certs.account_key import b64url

KEY_TYPES = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096")

CertificateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def acme_identifier(host: str) -> dict[str, str]:
    """Return the identifier of an order (RFC 8555 9.7.7, RFC 8738 3); a wildcard keeps its `*.`."""
    address = ip_address(host)
    return {"type": "ip", "value": str(address)} if address else {"type": "dns", "value": host}


def server_name(identifier: str) -> str:
    """Return the SNI of a tls-alpn-01 validation: of an address its reverse name (RFC 8738 6)."""
    address = ip_address(identifier)
    return address.reverse_pointer if address else identifier


def new_key(key_type: str = KEY_TYPES[0]) -> CertificateKey:
    """Make a key for a certificate. Raises ValueError for an unknown type."""
    match key_type:
        case "ecdsa-p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ecdsa-p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "rsa-2048" | "rsa-4096":
            return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type[4:]))
    raise ValueError(f"unknown type of key {key_type!r}: choose one of {', '.join(KEY_TYPES)}")


def signing_request(hosts: Sequence[str], key: CertificateKey) -> bytes:
    """Return the CSR as DER: empty subject (a name in it is of no use, and limited to 64 characters), names only."""
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def ari_id(certificate: x509.Certificate) -> str:
    """Return the id by which a CA knows the certificate (RFC 9773 4.1), "" if it has no authority key identifier."""
    try:
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    if authority is None:
        return ""
    serial = certificate.serial_number
    # The content octets of the DER INTEGER: a leading zero where the first bit is set.
    return f"{b64url(authority)}.{b64url(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _general_name(host: str) -> x509.GeneralName:
    address = ip_address(host)
    return x509.IPAddress(address) if address else x509.DNSName(host)
