"""One TLS handshake as a client makes it, and everything of it that a person wants to see.

Knows TLS and the first line of the PROXY protocol. It trusts anybody, so that what is wrong can be looked at; whether a
client would is a question of its own. Blocks; meant for a thread.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tlsproxy.wire.serverhello import key_exchange

_MOST = 65536


@dataclass(frozen=True)
class Target:
    """Where to connect, the name to ask for ("" sends none), and whether to begin with a PROXY line."""

    host: str
    port: int
    name: str
    proxy_line: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Seen:
    """What was agreed on and shown. `chain` begins with the leaf; `group` is the key exchange, "" if it isn't known."""

    target: Target
    version: str
    cipher: str
    group: str
    protocol: str
    chain: tuple[x509.Certificate, ...]
    took: float

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def serial(self) -> str:
        return f"{self.leaf.serial_number:x}"

    @property
    def fingerprint(self) -> str:
        return self.leaf.fingerprint(hashes.SHA256()).hex()

    def steps(self) -> Iterator[str]:
        """Yield the handshake in the order it happens, one line each."""
        yield f"SNI {self.target.name or '(none)'} to {self.target}"
        yield f"{self.version}, {self.cipher}"
        yield f"key exchange {self.group or '(not seen)'}"
        yield f"ALPN {self.protocol or '(none)'}"
        for number, certificate in enumerate(self.chain):
            subject = certificate.subject.rfc4514_string() or "(no subject)"
            yield f"chain {number}: {subject}, issued by {certificate.issuer.rfc4514_string()}"
        yield f"valid until {self.leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, serial {self.serial}"
        yield f"done in {1000 * self.took:.0f} ms"


def shake(target: Target, timeout: float) -> Seen:
    """Return what a client sees. Raises OSError (TimeoutError, ssl.SSLError)."""
    context = _open_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return _shake(target, context, timeout)


def verify(target: Target, roots: bytes, timeout: float) -> str:
    """Return why a client that trusts the system's roots and `roots` (PEM) refuses the certificate, or ""."""
    context = _open_context()
    context.load_default_certs()
    if roots:
        context.load_verify_locations(cadata=roots.decode("ascii"))
    try:
        _shake(target, context, timeout)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return ""


def _open_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _shake(target: Target, context: ssl.SSLContext, timeout: float) -> Seen:
    begin = time.monotonic()
    with socket.create_connection((target.host, target.port), timeout=timeout) as connection:
        if target.proxy_line:
            connection.sendall(b"PROXY UNKNOWN\r\n")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        shown = context.wrap_bio(incoming, outgoing, server_hostname=target.name or None)
        received = _pump(connection, shown, incoming, outgoing, begin + timeout)
    return Seen(
        target,
        shown.version() or "",
        (shown.cipher() or ("",))[0],
        key_exchange(received),
        shown.selected_alpn_protocol() or "",
        _chain(shown),
        time.monotonic() - begin,
    )


def _pump(
    connection: socket.socket, shown: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, ends: float
) -> bytes:
    """Finish the handshake; return what the server sent, for what ssl does not tell."""
    received = b""
    while True:
        try:
            shown.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError from None
            connection.settimeout(left)
            octets = connection.recv(_MOST)
            if not octets:
                raise ConnectionResetError("the connection was closed during the handshake") from None
            received += octets
            incoming.write(octets)
        else:
            connection.sendall(outgoing.read())
            return received


def _chain(shown: ssl.SSLObject) -> tuple[x509.Certificate, ...]:
    """Return what the server sent. Python tells of it from 3.13 on; before that, its C part does."""
    tell = getattr(shown, "get_unverified_chain", None)
    if tell is not None:
        return tuple(map(x509.load_der_x509_certificate, tell()))
    raw = getattr(shown, "_sslobj").get_unverified_chain()  # noqa: B009 - a name of 3.10 to 3.12
    return tuple(x509.load_der_x509_certificate(ssl.PEM_cert_to_DER_cert(each.public_bytes())) for each in raw)


def why_not(error: OSError) -> str:
    """Return in words why a handshake failed."""
    if isinstance(error, TimeoutError):
        return "no handshake in time"
    if isinstance(error, ssl.SSLError):
        return f"the handshake failed: {(getattr(error, 'reason', None) or str(error)).lower().replace('_', ' ')}"
    return error.strerror or str(error)
