"""Which certificate and which rules a client gets, decided from its ClientHello before the handshake.

Knows sites as values, and whom to ask for the certificate that a site names. Contexts are made when a client asks for
the site, and the ones used last are kept. Does not know where certificates lie, or who makes them. Rules: a context
belongs to one certificate, with ticket keys of its own, so no session begun under one site's rules is ever resumed
under another's; a newer certificate that can't be used leaves the older one in place.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.proxy.choice import NO_CHALLENGE, NO_PROTOCOL, PENDING, UNKNOWN_NAME, UNUSABLE
from tlsproxy.proxy.hosts import find_host, is_dns_name
from tlsproxy.proxy.rate import Quiet
from tlsproxy.proxy.sitetls import ServerContext, SiteTls, TlsPolicy, alpn_protocols, build_context
from tlsproxy.proxy.tickets import EPOCH_SECONDS, derive_keys, share_tickets

if TYPE_CHECKING:
    from tlsproxy.proxy.choice import Choice, Refused
    from tlsproxy.proxy.waiting import WaitingRoom
    from tlsproxy.store.bundle import Bundle
    from tlsproxy.wire.clienthello import ClientHello

logger = logging.getLogger(__name__)

_OFFERS_ACME_TLS: Final = (b"acme-tls/1",)  # and nothing else: a CA that asks (RFC 8737 3)
_LOOK_AGAIN: Final = 5.0  # seconds before the store is asked again for what it did not have, or what broke
_REMIND: Final = 6 * 3600.0  # seconds between signs that a certificate on demand is in use
_AT_ONCE: Final = 20  # announced certificates that are looked at before a client asks; 1.5 ms each

Load = Callable[[str], "Bundle | None"]
"""Returns what the store holds under a name. Raises StoreError."""


class _Entry:
    """One certificate and those it is for: a site, or one host of a site with certificates on demand.

    `name` is the first host of the site, in either case.
    `is_ready`: the context may be used without a look at anything else. `is_current`: it is made of what the store
    held when it was last known to change. `missing`: hosts of the site that the certificate does not cover.
    `remind_at` (wall clock): when the certifier is to hear that a certificate on demand is in use.
    """

    __slots__ = (
        "context", "is_current", "is_ready", "look_at", "made_of", "missing", "name", "policy", "refused", "remind_at",
        "site",
    )  # fmt: skip

    def __init__(self, site: SiteTls, policy: TlsPolicy, name: str) -> None:
        self.site = site
        self.name = name
        self.policy = policy
        self.look_at = 0.0  # before then the store is not asked again
        self.remind_at = 0.0
        self.drop()

    def drop(self) -> None:
        """Forget the context. Connections keep theirs."""
        self.context: ServerContext | None = None
        self.made_of = b""
        self.missing: tuple[str, ...] = ()
        self.refused = PENDING  # what to say while there is no context
        self.suspect()

    def suspect(self) -> None:
        """Look into the store before the context is used again."""
        self.is_ready = self.is_current = False
        self.look_at = 0.0

    def take(self, context: ServerContext, made_of: bytes, missing: Sequence[str]) -> None:
        self.context, self.made_of, self.missing = context, made_of, tuple(missing)
        self.confirm()

    def confirm(self) -> None:
        """What there is is what the store has."""
        self.is_current = True
        self.is_ready = not self.missing

    def lacks(self, name: str) -> bool:
        """Tell whether the certificate does not cover a host of the site."""
        if not self.missing or name in self.site.hosts:
            return name in self.missing
        return f"*.{name.partition('.')[2]}" in self.missing


class ContextTable:
    """All sites of a worker. Mutable: the entries, and which of them have a context (`_built`, the latest used last).

    `ticket_secret` is the same in every worker of a machine; empty = tickets of this worker alone. `load` is asked for
    the certificates of sites that name one, and blocks. `room` is where clients wait for certificates on demand,
    `answer_challenge` knows the contexts of TLS-ALPN-01. Without either, there are none.
    """

    def __init__(
        self,
        sites: Iterable[SiteTls],
        *,
        default_host: str = "",
        ticket_secret: bytes = b"",
        alpn: Sequence[str] = alpn_protocols(http2=False),
        limit: int = 1000,
        load: Load = lambda _: None,
        room: WaitingRoom | None = None,
        answer_challenge: Callable[[str], ServerContext | None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: dict[str, _Entry] = {}
        policies: dict[TlsPolicy, TlsPolicy] = {}  # thousands of sites share one
        for site in sites:
            policy = site.policy
            entry = _Entry(site, policies.setdefault(policy, policy), site.hosts[0])
            self._entries.update((host, entry) for host in site.hosts if host not in self._entries)
        self._built: OrderedDict[_Entry, None] = OrderedDict()
        self._demanded: dict[str, _Entry] = {}  # of `_built`, those of single hosts on demand
        self._default_host = default_host
        self._default = self._find(default_host) if default_host else None
        self._ticket_secret = ticket_secret or secrets.token_bytes(32)
        self._alpn = list(alpn)
        self._limit = limit
        self._load = load
        self._room = room
        self._answer_challenge = answer_challenge
        self._clock = clock
        self._now = now
        self._quiet = Quiet(clock=now)

    def __repr__(self) -> str:
        return f"<ContextTable {len(set(self._entries.values()))} sites, {self.built} built>"

    @property
    def built(self) -> int:
        """How many contexts there are."""
        return len(self._built)

    @property
    def names(self) -> int:
        """How many hosts the sites have."""
        return len(self._entries)

    # --- for connections ----------------------------------------------------------------------------------------------

    def choose(self, hello: ClientHello, address: str = "", client: str = "") -> Choice:
        """Exact name, else wildcard, else the default site. Never raises for a certificate that can't be used.

        `address` is where a client called that sent no name: clients send none for an address (RFC 6066 3). `client` is
        who asks.
        """
        if hello.alpn == _OFFERS_ACME_TLS:
            return self._choose_challenge(hello.server_name)
        name = hello.server_name or address
        entry = self._find(name) if name else None
        if entry is None:
            entry, name = self._default, self._default_host
            if entry is None:
                return UNKNOWN_NAME
        if entry.is_ready:
            self._built.move_to_end(entry)
        elif entry.site.on_demand:
            return self._choose_on_demand(entry, name, hello, client)
        elif (refused := self._prepare(entry, name)) is not None:
            return refused
        return self._context_of(entry)

    def policy_for(self, host: str) -> TlsPolicy | None:
        """Return the rules of the site that serves `host`, None if no site does."""
        entry = self._find(host)
        return None if entry is None else entry.policy

    def may_serve(self, policy: TlsPolicy, site: str, host: str) -> bool:
        """Tell whether a request for `host` may come over a connection made under `policy` for the site so named.

        To be asked when the client gave TLS another name (RFC 9110 7.4, 421). Within one site it may, unless every host
        was to be allowed by itself; between sites only if the rules are the same and nobody's client certificate is
        involved. `host` may be a pattern of a site, and stands for the site then.
        """
        wanted = self._find(host)
        if wanted is None or wanted.policy != policy or wanted.site.on_demand:
            return False
        return policy.client_auth == "off" or wanted.name == site

    # --- when certificates change -------------------------------------------------------------------------------------

    def replace(self, hosts: Iterable[str], bundles: Sequence[Bundle]) -> None:
        """Serve the sites of these hosts with new bundles from the next connection on.

        The new contexts are built first: a CertificateError leaves everything as it was.
        """
        entries = {entry for host in hosts if (entry := self._entries.get(host)) is not None}
        built = [(entry, self._build(entry, bundles)) for entry in entries]
        for entry, context in built:
            entry.site = replace(entry.site, bundles=tuple(bundles))
            entry.take(context, _digest(bundles), ())
            self._keep(entry)

    def renew(self, names: Iterable[str]) -> list[str]:
        """Serve what the store holds now under these names. Returns what could not be used.

        What nobody has asked for is not loaded; and if many are announced, they are looked at when they are asked for.
        """
        entries = list(self._named(names))
        for entry in entries:
            entry.suspect()
        built = [entry for entry in entries if entry.context is not None]
        problems = []
        for entry in built if len(built) <= _AT_ONCE else ():
            try:
                self._look(entry)
            except (CertificateError, StoreError) as error:
                problems.append(str(error))
        return problems

    def suspect_all(self) -> None:
        """Anything in the store may be new: look again whenever a client asks for a site."""
        for entry in (*self._entries.values(), *self._demanded.values()):
            if entry.site.certificate:
                entry.suspect()

    def _named(self, names: Iterable[str]) -> Iterator[_Entry]:
        """Certificates are named by a host after a slash (store/sources.py)."""
        for name in names:
            host = name.partition("/")[2]
            for entry in (self._entries.get(host), self._demanded.get(host)):
                if entry is not None and entry.site.certificate == name:
                    yield entry

    # --- making a context ---------------------------------------------------------------------------------------------

    def _find(self, host: str) -> _Entry | None:
        return find_host(self._entries, host)

    def _prepare(self, entry: _Entry, name: str) -> Refused | None:
        """Make the entry's context usable, or say why it is not."""
        if not entry.is_current and self._now() >= entry.look_at:
            try:
                self._look(entry)
            except (CertificateError, StoreError) as error:
                self._note_failure(entry, error)
        if entry.context is None or entry.lacks(name):
            if entry.context is not None or entry.refused is PENDING:
                self._say_pending(entry, name)
                return PENDING
            return entry.refused
        self._built.move_to_end(entry)
        return None

    def _look(self, entry: _Entry) -> None:
        """Take what the store has for an entry. Raises CertificateError and StoreError, and leaves what there is."""
        site = entry.site
        bundles: Sequence[Bundle] = site.bundles
        if site.certificate:
            bundle = self._load(site.certificate)
            bundles = () if bundle is None else (bundle,)
        if bundles:
            self._take(entry, bundles)
        elif entry.context is None:
            entry.refused = PENDING if site.certificate else UNKNOWN_NAME
            entry.look_at = self._now() + _LOOK_AGAIN
        elif site.on_demand:
            self._drop(entry)
        else:
            entry.confirm()  # a certificate that was lost is still better than none

    def _take(self, entry: _Entry, bundles: Sequence[Bundle]) -> None:
        made_of = _digest(bundles)
        if entry.made_of == made_of:
            entry.confirm()
            return
        context = self._build(entry, bundles)
        missing = bundles[0].check_names(entry.site.hosts) if entry.site.certificate else ()
        entry.take(context, made_of, missing)
        entry.remind_at = (bundles[0].not_before.timestamp() + bundles[0].not_after.timestamp()) / 2
        self._keep(entry)

    def _keep(self, entry: _Entry) -> None:
        self._built[entry] = None
        self._built.move_to_end(entry)
        if entry.site.on_demand:
            self._demanded[entry.site.hosts[0]] = entry
        while len(self._built) > self._limit:
            self._drop(next(iter(self._built)))

    def _drop(self, entry: _Entry) -> None:
        self._built.pop(entry, None)
        if entry.site.on_demand:
            self._demanded.pop(entry.site.hosts[0], None)
        entry.drop()

    def _build(self, entry: _Entry, bundles: Sequence[Bundle]) -> ServerContext:
        context = build_context(entry.site, bundles, self._alpn)
        return ServerContext(context, entry.policy, self._alpn, entry.name)

    def _context_of(self, entry: _Entry) -> ServerContext:
        """The context of an entry that has one, with ticket keys of today: the same whenever it is built again."""
        context = entry.context
        assert context is not None  # noqa: S101
        epoch = int(self._clock() // EPOCH_SECONDS)
        if context.epoch != epoch:
            context.epoch = epoch
            keys = derive_keys(self._ticket_secret, entry.site.hosts[0], str(entry.policy), epoch)
            share_tickets(context.ssl, keys)
        return context

    # --- the less ordinary choices ------------------------------------------------------------------------------------

    def _choose_challenge(self, server_name: str | None) -> Choice:
        try:
            return (self._answer_challenge(server_name) if server_name else None) or NO_CHALLENGE
        except (CertificateError, StoreError) as error:
            if self._quiet.may_say("challenge"):
                logger.error("challenge.unusable", extra={"host": server_name, "error": str(error)})  # noqa: TRY400
            return UNUSABLE

    def _choose_on_demand(self, pattern: _Entry, host: str, hello: ClientHello, client: str) -> Choice:
        """The context of one host of the site, or the wait for its certificate."""
        room = self._room
        entry = self._demanded.get(host)
        if room is None:
            return UNKNOWN_NAME
        if entry is None:
            if not is_dns_name(host):
                return UNKNOWN_NAME
            if (refused := room.refusal(host)) is not None:
                return refused
            if hello.alpn and not any(name.encode() in hello.alpn for name in self._alpn):
                return NO_PROTOCOL  # it could not use a certificate, so none need be made
            if room.is_waited_for(host):
                return room.awaited(host)
            certificate = pattern.site.certificate + host
            entry = _Entry(replace(pattern.site, hosts=(host,), certificate=certificate), pattern.policy, pattern.name)
        refused = self._prepare(entry, host)
        if refused is not None:
            return room.awaited(host) if refused is PENDING else refused
        if self._clock() >= entry.remind_at and room.remind(host, client):
            entry.remind_at = self._clock() + _REMIND
        return self._context_of(entry)

    def _note_failure(self, entry: _Entry, error: Exception) -> None:
        """Use what there is, if there is something, and ask again a little later."""
        entry.look_at = self._now() + _LOOK_AGAIN
        entry.refused = UNUSABLE
        site = entry.site.hosts[0]
        if self._quiet.may_say((site, "unusable")):
            extra = {"site": site, "error": str(error), "served": entry.context is not None}
            logger.error("certificate.unusable", extra=extra)

    def _say_pending(self, entry: _Entry, name: str) -> None:
        site = entry.site.hosts[0]
        if not entry.site.on_demand and self._quiet.may_say(site):
            advice = f"it is being obtained; tlsproxy admin certs why {site} says how far that is"
            logger.info("certificate.pending", extra={"site": site, "host": name, "advice": advice})


def _digest(bundles: Sequence[Bundle]) -> bytes:
    """What tells whether a context would be the same. Nobody needs to hold the keys for it."""
    digest = hashlib.sha256()
    for bundle in bundles:
        for part in (bundle.chain_pem, bundle.key_pem):
            digest.update(len(part).to_bytes(4) + part)
    return digest.digest()
