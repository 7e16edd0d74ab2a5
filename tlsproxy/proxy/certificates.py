"""A worker's certificates: where each site's come from, and what happens when the certifier has others.

Knows sites, files and the store; the contexts made of them are the ContextTable's, the clients that wait the
WaitingRoom's. Rules: certificates of files are loaded at the start, so that what is wrong is told then; those of the
store when somebody asks for them; a message that was lost is made up for by a look at the store's version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.proxy.challenges import ChallengeAnswers
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.rate import Quiet
from tlsproxy.proxy.sitetls import SiteTls, alpn_protocols
from tlsproxy.proxy.waiting import WaitingRoom
from tlsproxy.store import pem
from tlsproxy.store.challenges import Challenges
from tlsproxy.store.sources import acme_name, bundles_for, certificate_files, certificate_name

if TYPE_CHECKING:
    from tlsproxy import settings as configuration
    from tlsproxy.store.base import CertificateStore
    from tlsproxy.store.bundle import Bundle

logger = logging.getLogger(__name__)

Marks: TypeAlias = tuple[tuple[int, int, int, int], ...]
"""When each file of a site was written and its inode changed (ns), its inode, and its size."""

_POLL_SECONDS: Final = 30.0
_ON_DEMAND_PREFIX: Final = acme_name("")


class Certificates:
    """See the module's text. Mutable: `_version`, `_poll_at`; of sites with files, by first host, `_bundles` and
    `_marks` (of the files that they were loaded from).

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
        http2: bool,
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
        self._marks: dict[str, Marks | None] = {}
        self.room = WaitingRoom(want, clock=clock)
        self.challenges = ChallengeAnswers(Challenges(store), clock=clock)
        self.contexts = ContextTable(
            [self._site_tls(site) for site in sites],
            default_host=tls.default_host,
            ticket_secret=ticket_secret,
            limit=limit,
            alpn=alpn_protocols(http2=http2),
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
        problems = [problem for site in self._to_reload(names) if (problem := self._reload(site))]
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

    def _to_reload(self, names: Sequence[str]) -> list[configuration.Site]:
        """Sites whose files are announced; without names, those whose files are not what they were.

        An RSA pair takes 50 ms to load, in which this worker does nothing else.
        """
        if names:
            return [site for name in names if (site := self._with_files.get(name)) is not None]
        return [site for site in self._with_files.values() if not self._is_unchanged(site)]

    def _is_unchanged(self, site: configuration.Site) -> bool:
        marks = _marks(site)
        return marks is not None and marks == self._marks.get(site.hosts[0])

    def _reload(self, site: configuration.Site) -> str:
        """Serve what the files hold. Returns what is wrong with them, "" for nothing."""
        host, marks = site.hosts[0], _marks(site)  # what changes while it is read shows at the next look
        self._marks[host] = None
        try:
            bundles = bundles_for(site, self._store)
            if bundles != self._bundles[host]:
                self.contexts.replace(site.hosts, bundles)
                self._bundles[host] = bundles
        except CertificateError as error:
            return str(error)
        self._marks[host] = marks
        return ""

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
        marks = _marks(site)
        try:
            bundles = bundles_for(site, self._store)
            self._marks[site.hosts[0]] = marks
        except CertificateError as error:
            logger.error("certificate.unusable", extra={"site": site.hosts[0], "error": str(error)})  # noqa: TRY400
        self._bundles[site.hosts[0]] = bundles
        return bundles


def _marks(site: configuration.Site) -> Marks | None:
    """Return what would be different if the files were; None if one can't be looked at."""
    try:
        found = [path.stat() for files in certificate_files(site) for path in (files.chain, files.key)]
    except OSError:
        return None
    return tuple((each.st_mtime_ns, each.st_ctime_ns, each.st_ino, each.st_size) for each in found)


def _client_authority(site: configuration.Site) -> str | None:
    """The certificates of the site's `client_ca`, without what else people write into such files."""
    if site.client_ca is None:
        return None
    return pem.chain_pem(pem.certificates(site.client_ca.read_bytes(), str(site.client_ca))).decode("ascii")
