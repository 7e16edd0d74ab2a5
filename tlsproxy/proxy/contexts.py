"""Which certificate and which rules a client gets, decided from its ClientHello before the handshake.

Knows sites as values (hosts, bundles, client certificate rules) and makes an `ssl.SSLContext` of them when somebody
asks for the site. Does not know where bundles come from. Rule: a context belongs to one site, with ticket keys of its
own, so no session begun under one site's rules is ever resumed under another's.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from tlsproxy.errors import CertificateError
from tlsproxy.proxy.tickets import EPOCH_SECONDS, derive_keys, share_tickets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlsproxy.store.bundle import Bundle
    from tlsproxy.wire.clienthello import ClientHello

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
    """What a site says about TLS. `hosts` as in the settings; several `bundles` differ in key type (RSA and ECDSA)."""

    hosts: tuple[str, ...]
    bundles: tuple[Bundle, ...]
    client_ca_pem: str | None = None
    client_auth: ClientAuth = "off"
    minimum_version: MinimumVersion = "1.2"

    @property
    def policy(self) -> TlsPolicy:
        digest = hashlib.sha256(self.client_ca_pem.encode()).hexdigest() if self.client_ca_pem else ""
        return TlsPolicy(self.minimum_version, self.client_auth, digest)


class ServerContext:
    """What a connection is made with. Connections keep theirs when the table gets a newer one."""

    __slots__ = ("_protocols", "epoch", "policy", "ssl")

    def __init__(self, context: ssl.SSLContext, policy: TlsPolicy, alpn: Iterable[str]) -> None:
        self.ssl = context
        self.policy = policy
        self.epoch = -1
        self._protocols = frozenset(name.encode() for name in alpn)

    def speaks(self, offered: Sequence[bytes]) -> bool:
        """Tell whether ALPN can agree. Python's ssl would go on without a protocol, RFC 7301 3.2 forbids that."""
        return not offered or not self._protocols.isdisjoint(offered)


class _Entry:
    __slots__ = ("context", "policy", "site")

    def __init__(self, site: SiteTls) -> None:
        self.site = site
        self.policy = site.policy
        self.context: ServerContext | None = None


class ContextTable:
    """All sites of a worker. Mutable: the entries' bundles and contexts (`replace`), the contexts' ticket keys.

    `ticket_secret` is the same in every worker of a machine; empty = tickets of this worker alone.
    """

    def __init__(
        self,
        sites: Iterable[SiteTls],
        *,
        default_host: str = "",
        ticket_secret: bytes = b"",
        alpn: Sequence[str] = ("http/1.1", "http/1.0"),  # curl --http1.0 offers the older one alone
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries: dict[str, _Entry] = {}
        for site in sites:
            entry = _Entry(site)
            self._entries.update((host, entry) for host in site.hosts if host not in self._entries)
        self._default = self._find(default_host) if default_host else None
        self._ticket_secret = ticket_secret or secrets.token_bytes(32)
        self._alpn = list(alpn)
        self._clock = clock

    def __repr__(self) -> str:
        entries = set(self._entries.values())
        built = sum(entry.context is not None for entry in entries)
        return f"<ContextTable {len(entries)} sites, {built} built>"

    def choose(self, hello: ClientHello, address: str = "") -> ServerContext | None:
        """Exact name, else wildcard, else the default site; None = refuse. Raises CertificateError if unusable.

        `address` is where a client called that sent no name: clients send none for an address (RFC 6066 3).
        """
        name = hello.server_name or address
        entry = (self._find(name) if name else None) or self._default
        if entry is None or not entry.site.bundles:
            return None
        if entry.context is None:
            entry.context = self._build(entry.site, entry.policy)
        self._refresh_tickets(entry, entry.context)
        return entry.context

    def policy_for(self, host: str) -> TlsPolicy | None:
        """Return the rules of the site that serves `host`, None if no site does."""
        entry = self._find(host)
        return None if entry is None else entry.policy

    def may_serve(self, policy: TlsPolicy, sni: str, host: str) -> bool:
        """Tell whether a request for `host` may come over a connection made under `policy` for `sni`.

        `sni` is what the site was chosen by: the client's name, else the address that it called.

        To be asked only when they differ (RFC 9110 7.4, 421). Within one site they may; between sites only if the
        rules are the same and nobody's client certificate is involved.
        """
        wanted = self._find(host)
        if wanted is None or wanted.policy != policy:
            return False
        return policy.client_auth == "off" or wanted is ((self._find(sni) if sni else None) or self._default)

    def replace(self, hosts: Iterable[str], bundles: Sequence[Bundle]) -> None:
        """Serve the sites of these hosts with new bundles from the next connection on.

        The new contexts are built first: a CertificateError leaves everything as it was.
        """
        entries = {entry for host in hosts if (entry := self._entries.get(host)) is not None}
        sites = [(entry, replace(entry.site, bundles=tuple(bundles))) for entry in entries]
        built = [(entry, site, self._build(site, entry.policy)) for entry, site in sites]
        for entry, site, context in built:
            entry.site, entry.context = site, context

    def _find(self, host: str) -> _Entry | None:
        entry = self._entries.get(host)
        if entry is not None:
            return entry
        _, dot, parent = host.partition(".")
        return self._entries.get(f"*.{parent}") if dot else None  # `*` is one label (RFC 9525 6.3)

    def _build(self, site: SiteTls, policy: TlsPolicy) -> ServerContext:
        return ServerContext(build_context(site, self._alpn), policy, self._alpn)

    def _refresh_tickets(self, entry: _Entry, context: ServerContext) -> None:
        epoch = int(self._clock() // EPOCH_SECONDS)
        if context.epoch != epoch:
            context.epoch = epoch
            keys = derive_keys(self._ticket_secret, entry.site.hosts[0], str(entry.policy), epoch)
            share_tickets(context.ssl, keys)


def build_context(site: SiteTls, alpn: Sequence[str]) -> ssl.SSLContext:
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
    for bundle in site.bundles:
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
