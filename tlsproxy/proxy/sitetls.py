"""What one site says about TLS, and the `ssl.SSLContext` that is made of it and a certificate.

Values and one function. Does not know other sites, stores, or when a context is made. Rule: keys reach OpenSSL through
memory, never through a disk.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from tlsproxy.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlsproxy.store.bundle import Bundle

ClientAuth = Literal["off", "request", "require"]
MinimumVersion = Literal["1.2", "1.3"]

# The list of Mozilla's intermediate guideline 6.0, which leaves the order to the client; ours counts (decision 0005).
_CIPHERS: Final = ":".join(
    f"ECDHE-{signature}-{sealing}"
    for sealing in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for signature in ("ECDSA", "RSA")
)
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_PRIORITIZE_CHACHA: Final = 1 << 21
_VERIFY: Final = {"off": ssl.CERT_NONE, "request": ssl.CERT_OPTIONAL, "require": ssl.CERT_REQUIRED}


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """Under which rules a connection was accepted. `client_ca` is the SHA-256 of the CA file, "" without one."""

    minimum_version: MinimumVersion = "1.2"
    client_auth: ClientAuth = "off"
    client_ca: str = ""

    def __str__(self) -> str:
        return f"{self.minimum_version}|{self.client_auth}|{self.client_ca}"


@dataclass(frozen=True, slots=True)
class SiteTls:
    """What a site says about TLS. `hosts` as in the settings; several `bundles` differ in key type (RSA and ECDSA).

    With `certificate`, the name of a record in the store, that is what is served, loaded when a client asks for it.
    `on_demand`: every host has a certificate of its own, and `certificate` is what their names begin with.
    """

    hosts: tuple[str, ...]
    bundles: tuple[Bundle, ...] = ()
    client_ca_pem: str | None = None
    client_auth: ClientAuth = "off"
    minimum_version: MinimumVersion = "1.2"
    certificate: str = ""
    on_demand: bool = False

    @property
    def policy(self) -> TlsPolicy:
        digest = hashlib.sha256(self.client_ca_pem.encode()).hexdigest() if self.client_ca_pem else ""
        return TlsPolicy(self.minimum_version, self.client_auth, digest)


class ServerContext:
    """What a connection is made with. Connections keep theirs when the table gets a newer one.

    `site` is the first host of the site whose rules it follows, also if it is for one name on demand; "" = no site's.
    """

    __slots__ = ("_protocols", "epoch", "policy", "site", "ssl")

    def __init__(self, context: ssl.SSLContext, policy: TlsPolicy, alpn: Iterable[str], site: str = "") -> None:
        self.ssl = context
        self.policy = policy
        self.site = site
        self.epoch = -1
        self._protocols = frozenset(name.encode() for name in alpn)

    def speaks(self, offered: Sequence[bytes]) -> bool:
        """Tell whether ALPN can agree. Python's ssl would go on without a protocol, RFC 7301 3.2 forbids that."""
        return not offered or not self._protocols.isdisjoint(offered)


def alpn_protocols(*, http2: bool) -> tuple[str, ...]:
    """Return what an ordinary connection may speak, best first: the order is ours, not the client's (RFC 7301 3.2)."""
    older = ("http/1.1", "http/1.0")  # curl --http1.0 offers the older one alone
    return ("h2", *older) if http2 else older


def build_context(site: SiteTls, bundles: Sequence[Bundle], alpn: Sequence[str]) -> ssl.SSLContext:
    """Make a context of one site. Raises CertificateError when OpenSSL does not take what it is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[site.minimum_version]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # All suites are strong: an order of ours is what scanners ask for, and decides nothing else. Clients without AES
    # instructions put ChaCha20 first and then get it (SSL_OP_PRIORITIZE_CHACHA, which Python does not name).
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA
    context.num_tickets = 1  # OpenSSL's two cost an encryption more, and one is enough to resume with
    context.set_alpn_protocols(list(alpn))
    name = site.hosts[0]
    for bundle in bundles:
        _load_bundle(context, bundle, name)
    _demand_client_certificate(context, site, name)
    return context


def _load_bundle(context: ssl.SSLContext, bundle: Bundle, name: str) -> None:
    try:
        with _as_file(bundle.chain_pem + b"\n" + bundle.key_pem) as path:
            context.load_cert_chain(path, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CertificateError(
            f"{name}: OpenSSL refuses the certificate or its key ({reason}). Replace both."
        ) from error


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted")


def _demand_client_certificate(context: ssl.SSLContext, site: SiteTls, name: str) -> None:
    if site.client_auth == "off":
        return
    if not site.client_ca_pem:
        raise CertificateError(f"{name}: client_auth needs client_ca. Without one every client would be refused.")
    try:
        context.load_verify_locations(cadata=site.client_ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(f"{name}: client_ca holds no usable CA certificate ({error}).") from error
    context.verify_mode = _VERIFY[site.client_auth]


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give OpenSSL the path it insists on. In memory where the system can; the key never goes to a disk again."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("tlsproxy")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(prefix="tlsproxy-") as file:  # 0600, removed at the end
            file.write(content)
            file.flush()
            yield file.name
