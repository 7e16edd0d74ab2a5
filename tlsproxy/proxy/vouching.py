"""What we vouch for to the application: that it is us (a secret), the client's certificate, what TLS agreed on.

Strategy: all of it is the same for all requests of a client connection, so the fields are made once, with the driver,
and cost a request nothing. Clients can't say any of it: `wire.fields` never lets these names pass, in either direction.

Rule kept: without a secret nothing is told that the application could only believe with it.
"""

from __future__ import annotations

import base64
import logging
import ssl
from functools import cache
from typing import TYPE_CHECKING, Final

from cryptography import x509

from tlsproxy.wire.forwarding import Options, Peer

if TYPE_CHECKING:
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.wire.fields import Fields

logger = logging.getLogger(__name__)

_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}  # RFC 8446 4.1.2, the numbers of ASGI's `tls_version`


def make_peer(info: ConnectionInfo, options: Options) -> Peer:
    """The client of a connection, as forwarding sees it."""
    return Peer(info.client, info.scheme, options, info.sni, vouched_fields(info, options.secret))


def vouched_fields(info: ConnectionInfo, secret: bytes) -> Fields:
    """The fields that only we may write.

    Client-Cert-Chain (RFC 9440 2.3) is never sent: a resumed session no longer knows more than the client's own
    certificate, and a value that comes and goes is worse than none (section 3.3 of it asks for that).
    """
    fields: Fields = []
    if info.client_certificate is not None:
        fields.append((b"Client-Cert", _octets(info.client_certificate)))
    if secret:
        fields.append((b"X-Tlsproxy-Secret", secret))
        if info.tls:
            fields.append((b"X-Tlsproxy-Tls", _facts(info)))
    return fields


def _facts(info: ConnectionInfo) -> bytes:
    """A dictionary of RFC 9651 3.2; `name` is the subject of the client's certificate (RFC 4514, in UTF-8)."""
    version, cipher = _VERSIONS.get(info.tls), _cipher_numbers().get(info.cipher)
    name = _subject(info.client_certificate) if info.client_certificate is not None else ""
    facts = [b"version=%d" % version] if version else []
    facts += [b"cipher=%d" % cipher] if cipher else []
    facts += [b"name=" + _octets(name.encode())] if name else []
    return b", ".join(facts)


def _subject(certificate: bytes) -> str:
    try:
        return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except ValueError as error:  # OpenSSL has verified it all the same; it goes on without a name
        logger.info("client_certificate.odd", extra={"why": str(error)})
        return ""


def _octets(value: bytes) -> bytes:
    """A byte sequence of RFC 9651 3.3.5."""
    return b":%b:" % base64.b64encode(value)


@cache
def _cipher_numbers() -> dict[str, int]:
    """OpenSSL's names of cipher suites -> the numbers of the registry (RFC 8446 B.4)."""
    return {cipher["name"]: cipher["id"] & 0xFFFF for cipher in ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).get_ciphers()}
