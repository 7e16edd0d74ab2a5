"""A worker's certificates: where each site's come from, and what happens when the certifier has others.

Knows sites, files and the store; the contexts made of them are the ContextTable's, the clients that wait the
WaitingRoom's. Rules: certificates of files are loaded at the start, so that what is wrong is told then; those of the
store when somebody asks for them; a message that was lost is made up for by a look at the store's version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.proxy.challenges import ChallengeAnswers
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.rate import Quiet
from tlsproxy.proxy.sitetls import SiteTls
from tlsproxy.proxy.waiting import WaitingRoom
from tlsproxy.store import pem
from tlsproxy.store.challenges import Challenges
from tlsproxy.store.sources import acme_name, bundles_for, certificate_name

if TYPE_CHECKING:
    from tlsproxy import settings as configuration
    from tlsproxy.store.base import CertificateStore
    from tlsproxy.store.bundle import Bundle

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 30.0
_ON_DEMAND_PREFIX: Final = acme_name("")


class Certificates:
    """See the module's text. Mutable: `_bundles` (of sites with files, by first host), `_version` and `_poll_at`.

    `want(host, client)` passes on that a client asks for a host on demand that has no certificate.
    """

    def __init__(
        self,
        sites: Iterable[configuration.Site],
        tls: configuration.Tls,
        *,
        store: CertificateStore,
        ticket_secret: bytes,
        limit: int,
        want: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._version = ""
        self._poll_at = clock() + _POLL_SECONDS
        self._quiet = Quiet(clock=clock)
        self._minimum_version = tls.minimum_version
        self._with_files: dict[str, configuration.Site] = {}
        self._bundles: dict[str, tuple[Bundle, ...]] = {}
        self.room = WaitingRoom(want, clock=clock)
        self.challenges = ChallengeAnswers(Challenges(store), clock=clock)
        self.contexts = ContextTable(
            [self._site_tls(site) for site in sites],
            default_host=tls.default_host,
            ticket_secret=ticket_secret,
            limit=limit,
            load=store.get,
            room=self.room,
            answer_challenge=self.challenges.tls_alpn,
            now=clock,
        )

    def changed(self, names: Sequence[str]) -> list[str]:
        """Serve new connections with what the store and the files hold now. Returns what could not be used.

        No names = all names, and the word of a certifier that has only just begun. A site whose certificates are the
        same as before keeps its context.
        """
        problems = []
        for name in names or self._with_files:
            if name in self._with_files:
                try:
                    self._reload(self._with_files[name])
                except CertificateError as error:
                    problems.append(str(error))
        if names:
            problems += self.contexts.renew(names)
            for name in names:
                self.room.settle(name.removeprefix(_ON_DEMAND_PREFIX))
        else:
            self._look_again()
            self.room.ask_again()
        return problems

    def refused(self, host: str, reason: str, seconds: float) -> None:
        """There will be no new certificate for this host on demand, and nobody need ask again for so long.

        One that there is (the refusal was of its renewal) is served to its end and beyond.
        """
        if self._has(host):
            self.room.settle(host)
        else:
            self.room.refuse(host, reason, seconds)

    def tick(self) -> None:
        """Notice what nobody announced. While clients wait the store is looked at each time: one stat."""
        now = self._clock()
        if now < self._poll_at and not self.room:
            return
        self._poll_at = now + _POLL_SECONDS
        try:
            version = self._store.version()
            if version != self._version:
                self._look_again()
                self._version = version
        except StoreError as error:
            if self._quiet.may_say("version"):
                logger.error("certificate.poll_failed", extra={"error": str(error)})  # noqa: TRY400

    def stats(self) -> dict[str, int]:
        """Contexts that are ready, host names of the sites, clients that wait for a certificate."""
        return {"contexts": self.contexts.built, "names": self.contexts.names, "waiting": len(self.room)}

    def _look_again(self) -> None:
        self.contexts.suspect_all()
        for host in self.room.hosts():
            if self._has(host):
                self.room.settle(host)

    def _has(self, host: str) -> bool:
        try:
            return self._store.get(_ON_DEMAND_PREFIX + host) is not None
        except StoreError:
            return False  # whoever asks for it next finds out, and says so

    def _reload(self, site: configuration.Site) -> None:
        bundles = bundles_for(site, self._store)
        if bundles != self._bundles[site.hosts[0]]:
            self.contexts.replace(site.hosts, bundles)
            self._bundles[site.hosts[0]] = bundles

    # --- at the start -------------------------------------------------------------------------------------------------

    def _site_tls(self, site: configuration.Site) -> SiteTls:
        bundles, name = self._find_bundles(site)
        try:
            authority = _client_authority(site)
        except (OSError, CertificateError) as error:
            # Without it nobody can be told from anybody: that site refuses all, the others go on.
            logger.error("client_ca.unusable", extra={"site": site.hosts[0], "error": str(error)})  # noqa: TRY400
            bundles, name, authority = (), "", None
        return SiteTls(
            hosts=site.hosts,
            bundles=bundles,
            client_ca_pem=authority,
            client_auth=site.client_auth,
            minimum_version=site.minimum_version or self._minimum_version,
            certificate=name,
            on_demand=name == _ON_DEMAND_PREFIX,
        )

    def _find_bundles(self, site: configuration.Site) -> tuple[tuple[Bundle, ...], str]:
        """Return what the site's files hold, or the name to ask the store for."""
        if site.certificate == "on_demand":
            return (), _ON_DEMAND_PREFIX
        if isinstance(site.certificate, str):
            return (), certificate_name(site)
        self._with_files[certificate_name(site)] = site
        return self._load_files(site), ""

    def _load_files(self, site: configuration.Site) -> tuple[Bundle, ...]:
        """The certifier has checked everything before a worker starts; what broke since then costs that site only."""
        bundles: tuple[Bundle, ...] = ()
        try:
            bundles = bundles_for(site, self._store)
        except CertificateError as error:
            logger.error("certificate.unusable", extra={"site": site.hosts[0], "error": str(error)})  # noqa: TRY400
        self._bundles[site.hosts[0]] = bundles
        return bundles


def _client_authority(site: configuration.Site) -> str | None:
    """The certificates of the site's `client_ca`, without what else people write into such files."""
    if site.client_ca is None:
        return None
    return pem.chain_pem(pem.certificates(site.client_ca.read_bytes(), str(site.client_ca))).decode("ascii")
