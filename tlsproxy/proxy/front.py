"""A worker's composition root: settings go in, a serving front door comes out. Wires; decides nothing per request.

Owns everything a worker opens: listeners, connections, pools, the access log. One tick (`_TICK`) sweeps all deadlines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from tlsproxy.proxy.access import AccessLog, LogWriter, NoLog
from tlsproxy.proxy.assembly import Assembly
from tlsproxy.proxy.certificates import Certificates
from tlsproxy.proxy.draining import Draining
from tlsproxy.proxy.health import HealthChecks
from tlsproxy.proxy.http1 import Http1Driver
from tlsproxy.proxy.http2 import Http2Driver
from tlsproxy.proxy.inspection import Inspection
from tlsproxy.proxy.lag import LoopLag
from tlsproxy.proxy.listener import Connections, Listener
from tlsproxy.proxy.metrics import Metrics
from tlsproxy.proxy.orders import Orders, Plan
from tlsproxy.proxy.plain import PlainConnection
from tlsproxy.proxy.pool import describe
from tlsproxy.proxy.router import Router
from tlsproxy.proxy.services import Services
from tlsproxy.proxy.tls import TlsConnection
from tlsproxy.proxy.tracing import make_tracing
from tlsproxy.wire.forwarding import Options, Trust

if TYPE_CHECKING:
    from pydantic import SecretStr

    from tlsproxy import settings as configuration
    from tlsproxy.proxy.connection import Accepted, Connection
    from tlsproxy.proxy.stream import ClientStream, ConnectionInfo, Driver
    from tlsproxy.proxy.waiting_line import Line
    from tlsproxy.store.base import CertificateStore
    from tlsproxy.wire.fields import Fields

logger = logging.getLogger(__name__)

_TICK: Final = 0.5  # seconds
_HANDSHAKE_LINES: Final = 5  # failed handshakes that are logged one by one per tick; the rest is counted
_RESERVED_FILES: Final = 64  # descriptors for everything that is not a client or its backend connection


Kind: TypeAlias = Literal["https", "http"]


class Front:
    """See the module's text. Implements `stream.ConnectionOwner`. Times in seconds."""

    def __init__(
        self,
        settings: configuration.Settings,
        *,
        store: CertificateStore,
        ticket_secret: bytes,
        loop: asyncio.AbstractEventLoop,
        want: Callable[[str, str], None] = lambda host, client: None,
    ) -> None:
        """`want` tells the certifier that a client asks for a host on demand that has no certificate yet."""
        self.loop = loop
        self.handshake_timeout = settings.limits.handshake_timeout
        self.write_idle = settings.limits.write_idle
        self.proxy_networks = [ip_network(network) for network in settings.listen.proxy_protocol]
        self.connections = _make_connections(settings)
        self._certificates = _make_certificates(settings, store, ticket_secret, want)
        self.contexts = self._certificates.contexts
        self._writer = NoLog() if settings.log.access == "off" else LogWriter(settings.log.access)
        self._access = _make_access_log(settings.log, self._writer)
        self.metrics = Metrics()
        self._forwarding = _forwarding(settings.server)
        self._inspection = Inspection(self._count_downgrade, self._forwarding)
        assembly = Assembly(settings, self._inspection, ticket_secret)
        self._backends = assembly.backends
        self._sites = assembly.make_sites(settings.sites)
        self._tracing = make_tracing(settings.tracing)
        self._services = self._make_services(settings)
        self._checks = _make_checks(settings)
        self._orders = Orders(self._sites, assembly.find, self._backends)
        self._draining = Draining(self.connections, self._services, loop, self._dismiss)
        self._listeners: list[Listener] = []
        self._adopted: dict[int, list[tuple[Kind, Listener]]] = {}
        self._tick_handle: asyncio.TimerHandle | None = None
        self._lag = LoopLag(_TICK)
        self._failed_handshakes = 0
        self._dropped = 0  # log batches, as counted

    # --- for the worker process ---------------------------------------------------------------------------------------

    def start(self, listeners: Sequence[tuple[Kind, socket.socket]] = ()) -> None:
        """Begin to look after things, and to accept from these sockets; they are owned by the Front."""
        self._listeners = [self._listen(kind, sock) for kind, sock in listeners]
        self._tick_handle = self.loop.call_later(_TICK, self._tick)
        self._lag.start(self.loop.time())
        self._checks.follow(self._sites)

    def adopt(self, slot: int, listeners: Sequence[tuple[Kind, socket.socket]]) -> None:
        """Accept from the sockets of a slot; they are the Front's until `release` hands them back."""
        self._adopted[slot] = [(kind, self._listen(kind, sock)) for kind, sock in listeners]

    def release(self, slot: int) -> list[tuple[Kind, socket.socket]]:
        """Leave an adopted slot to others: connections stay, the sockets are the caller's again."""
        return [(kind, listener.stop()) for kind, listener in self._adopted.pop(slot, [])]

    async def drain(
        self,
        timeout: float,
        *,
        last: bool = False,
        dropped: Collection[int] = (),
        unchanged: Collection[str] = (),
        streams: float = 0.0,
    ) -> int:
        """Stop accepting, let what is in flight end for at most `timeout` seconds, then cut it and let go of all.

        `last`: nobody else will accept from these sockets, so what is queued there is still served; the same holds for
        those whose descriptors are in `dropped`. What belongs to the sites named in `unchanged` may take `streams`
        seconds. Returns how many connections had to be cut.
        """
        self._services.draining = True
        listeners = self._all_listeners()
        for listener in listeners:
            if last or listener.descriptor in dropped:
                listener.take_queued()
            listener.close()
        if not last:
            self._certificates.room.ask_again()  # whoever was asked leaves too
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for listener in listeners:
                    await listener.settle()
        cut = await self._draining.run(timeout, unchanged, streams)
        await asyncio.sleep(0)  # lets the transports report their end, which writes the log lines
        self.close()
        return cut

    def hasten(self, timeout: float) -> None:
        """Be done with the drain in `timeout` seconds, if it was not to be sooner."""
        self._draining.hasten(timeout)

    def close(self) -> None:
        """Let go of everything that is not a client connection."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._checks.close()
        self._inspection.close()
        for line in self._lines():
            line.close()
        for backend in self._backends.values():
            backend.close()
        self._access.flush()
        self._writer.close()
        if self._tracing is not None:
            self._tracing.close()

    def certificates_changed(self, names: Sequence[str]) -> list[str]:
        """Serve new connections with what the store and the files hold now. Returns what could not be used."""
        return self._certificates.changed(names)

    def certificate_refused(self, host: str, reason: str, seconds: float) -> None:
        """Nobody need wait for a certificate of this host."""
        self._certificates.refused(host, reason, seconds)

    def apply(self, plan: Plan) -> None:
        """Treat backends and sites as operators have said, from now on."""
        self._orders.apply(plan)
        if self._tick_handle is not None:  # before `start` nobody is asked for their health
            self._checks.follow(self._sites)

    def reopen_logs(self) -> None:
        """Open the access log anew (log rotation)."""
        self._access.flush()
        self._writer.reopen()

    def stats(self) -> dict[str, int]:
        """Connections open and what they are at, requests answered, log batches dropped, and `Certificates.stats`."""
        return {
            "connections": len(self.connections),
            **self.connections.count_phases(),
            "requests": self._services.requests,
            "requests_waiting": sum(map(len, self._lines())),
            "log_batches_dropped": self._writer.dropped,
            "loop_lag_ms": self._lag.last_ms,
            **self._certificates.stats(),
        }

    def series(self) -> dict[str, float]:
        """Return what was counted since the last call (proxy.metrics)."""
        return self.metrics.series()

    def backends(self) -> list[dict[str, Any]]:
        """How each backend is, as this worker sees it, with the routes ("SITE PATH") that lead to it."""
        return describe(self._backends.values(), self._sites)

    async def probe(self, route: str, urls: Sequence[str]) -> dict[str, str]:
        """Ask these once for their health, as backends of the route; what is wrong with each, "" if it is well."""
        return await self._checks.probe(route, urls)

    # --- stream.ConnectionOwner ---------------------------------------------------------------------------------------

    def make_driver(self, stream: ClientStream) -> Driver:
        if stream.info.tls:
            self.metrics.handshake_done(stream.info)
        return (Http2Driver if stream.info.alpn == "h2" else Http1Driver)(stream, self._services)

    def handshake_failed(self, reason: str, info: ConnectionInfo, sni: str, *, is_said: bool = False) -> None:
        if info.scheme == "https":
            self.metrics.handshake_failed(reason)
        if is_said:
            return
        self._failed_handshakes += 1
        if self._failed_handshakes <= _HANDSHAKE_LINES:
            logger.info("tls.handshake_failed", extra={"reason": reason, "client": info.client, "sni": sni})

    def _listen(self, kind: Kind, sock: socket.socket) -> Listener:
        return Listener(sock, self._make_tls if kind == "https" else self._make_plain, self.connections, self.loop)

    def _all_listeners(self) -> list[Listener]:
        return [*self._listeners, *(listener for slot in self._adopted.values() for _, listener in slot)]

    def _lines(self) -> Iterator[Line]:
        return (forward.route.line for site in self._sites for forward in site.forwards)

    def _make_tls(self, accepted: Accepted) -> Connection:
        return TlsConnection(self, accepted)

    def _make_plain(self, accepted: Accepted) -> Connection:
        return PlainConnection(self, accepted)

    # --- wiring -------------------------------------------------------------------------------------------------------

    def _make_services(self, settings: configuration.Settings) -> Services:
        limits = settings.limits
        services = Services(
            loop=self.loop,
            router=self._make_router(settings),
            forwarding=self._forwarding,
            record=self._access.record,
            header_size=limits.header_size,
            header_count=limits.header_count,
            target_size=limits.target_size,
            header_timeout=limits.header_timeout,
            body_idle=limits.body_idle,
            keep_alive=limits.keep_alive,
            connect_timeout=limits.connect_timeout,
            tunnel_idle=limits.tunnel_idle,
            write_idle=limits.write_idle,
            http2_streams=limits.http2_streams,
            most_streams=_most_connections() * 3 // 4,  # each has a descriptor at its backend at most
        )
        services.tally = self.metrics.tally
        services.trace = self._tracing
        return services

    def _make_router(self, settings: configuration.Settings) -> Router:
        ports = [int(address.rpartition(":")[2]) for address in settings.listen.https]
        return Router(
            self._sites,
            may_share=self._may_share,
            answer_challenge=self._certificates.challenges.http,
            https_port=ports[0] if ports else 443,
        )

    def _may_share(self, info: ConnectionInfo, site: str) -> bool:
        return info.policy is not None and self.contexts.may_serve(info.policy, info.site, site)

    # --- the tick -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_handle = self.loop.call_later(_TICK, self._tick)
        now = self.loop.time()
        self._lag.tick(now)
        for connection in self.connections:
            self._check_deadline(connection, now)
        for backend in self._backends.values():
            backend.close_idle(now)
        for line in self._lines():
            if line.is_watched:
                line.sweep(now)
        self._certificates.tick()
        self.connections.look_again()
        self._access.flush()
        self._count_losses(self.connections.report())
        self._report_handshakes()

    def _dismiss(self) -> None:
        """Of the sites that may not stay longer, nobody waits for a backend any more."""
        for site in self._sites:
            if not self._services.lets_stay(site):
                for forward in site.forwards:
                    forward.route.line.dismiss()

    def _check_deadline(self, connection: Connection, now: float) -> None:
        """One connection in trouble must not keep the tick from the others."""
        try:
            connection.check_deadline(now)
        except Exception:
            logger.exception("connection.crashed", extra={"client": connection.info.client})
            connection.abort()

    def _count_losses(self, turned_away: int) -> None:
        if turned_away:
            self.metrics.count("tlsproxy_connections_turned_away_total", turned_away)
        lost = self._writer.dropped - self._dropped
        if lost:
            self._dropped += lost
            self.metrics.count("tlsproxy_log_batches_dropped_total", lost)

    def _count_downgrade(self, site: str) -> None:
        self.metrics.count("tlsproxy_backend_scheme_downgrade_total", site=site)

    def _report_handshakes(self) -> None:
        unsaid = self._failed_handshakes - _HANDSHAKE_LINES
        if unsaid > 0:
            logger.info("tls.handshakes_failed", extra={"more": unsaid})
        self._failed_handshakes = 0


def _make_connections(settings: configuration.Settings) -> Connections:
    return Connections(
        total=settings.limits.connections or _most_connections(),
        per_client=settings.limits.connections_per_client,
        senders=Trust(settings.listen.proxy_protocol),
        shared=Trust(settings.server.trusted_proxies),
    )


def _make_certificates(
    settings: configuration.Settings, store: CertificateStore, ticket_secret: bytes, want: Callable[[str, str], None]
) -> Certificates:
    return Certificates(
        settings.sites,
        settings.tls,
        store=store,
        ticket_secret=ticket_secret,
        limit=settings.limits.contexts,
        http2=settings.listen.http2,
        want=want,
    )


def _make_access_log(log: configuration.Log, writer: LogWriter | NoLog) -> AccessLog:
    return AccessLog(writer, redact_query=log.redact_query, console=_wants_console(log, writer))


def _make_checks(settings: configuration.Settings) -> HealthChecks:
    fields = _proof(settings.server.backend_secret)
    return HealthChecks(settings.sites, connect_timeout=settings.limits.connect_timeout, fields=fields)


def _most_connections() -> int:
    """What the open-file limit allows: two descriptors a client, its own and its backend's."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(16, (soft - _RESERVED_FILES) // 2)


def _forwarding(server: configuration.Server) -> Options:
    secret = server.backend_secret.get_secret_value().encode()
    return Options(Trust(server.trusted_proxies), forwarded=server.forwarded, via=server.via, secret=secret)


def _proof(secret: SecretStr) -> Fields:
    """What shows a backend that this proxy asks; none without a secret."""
    value = secret.get_secret_value().encode()
    return [(b"X-Tlsproxy-Secret", value)] if value else []


def _wants_console(log: configuration.Log, writer: LogWriter | NoLog) -> bool:
    return log.format == "console" or (log.format == "auto" and writer.is_terminal)
