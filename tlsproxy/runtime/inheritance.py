"""What a supervisor begins with: sockets, a ticket secret, totals. Made at a start, handed over at an upgrade.

Knows where each thing comes from: the kernel, the service manager or the supervisor before. Rule: whatever is not
handed over is made as for a start, so that a proxy can't tell later how it came to be.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tlsproxy.runtime.activation import adopt_sockets
from tlsproxy.runtime.adminsocket import AdminSocket, inherit_admin_socket
from tlsproxy.runtime.blueprint import TICKET_SECRET_BYTES
from tlsproxy.runtime.messages import BackendPlan, Prepared, TakeOver
from tlsproxy.runtime.predecessor import Predecessor
from tlsproxy.runtime.relisten import Relisten, change_listeners
from tlsproxy.runtime.sockets import Listener, bind_listeners, close_listeners
from tlsproxy.runtime.succession import UpgradeFailed, digests
from tlsproxy.runtime.systemd import Service
from tlsproxy.settings import Settings


@dataclass(frozen=True)
class Inheritance:
    """See the module's text. `number` is that of the first generation; `line` leads to a stand-in (standin.py)."""

    relisten: Relisten
    service: Service = field(default_factory=Service)
    number: int = 1
    ticket_secret: str = field(default_factory=lambda: secrets.token_hex(TICKET_SECRET_BYTES), repr=False)
    plan: BackendPlan = field(default_factory=BackendPlan)
    totals: Mapping[str, float] = field(default_factory=dict, repr=False)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    admin: AdminSocket | None = None
    metrics: tuple[str, tuple[int, ...]] = ("", ())
    line: socket.socket | None = None
    predecessor: Predecessor | None = None

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return self.relisten.listeners

    async def take_over(self, settings: Settings) -> TakeOver:
        """Be given the proxy, now that all children are ready. Raises UpgradeFailed when it is not wanted any more."""
        if self.predecessor is None:
            return TakeOver()
        dropped = tuple(listener.socket.fileno() for listener in self.relisten.dropped)
        word = await self.predecessor.hand_over(Prepared(digests(settings.sites), dropped))
        if word is None:
            raise UpgradeFailed("the running proxy has given up the upgrade")
        return word

    def close(self) -> None:
        """Let go of what came with it; for one that does not come to be the proxy."""
        close_listeners([*self.relisten.listeners, *self.relisten.dropped])
        for sock in (self.admin and self.admin.socket, self.line):
            if sock:
                sock.close()


def begin(settings: Settings, service: Service, predecessor: Predecessor | None) -> Inheritance:
    """Return everything for a supervisor of these settings. Raises ListenError, ActivationError, UpgradeFailed."""
    if predecessor is not None:
        return _inherit(settings, predecessor)
    listen, slots = settings.listen, settings.resolve_workers()
    if not service.sockets:
        return Inheritance(Relisten(bind_listeners(listen.https, listen.http, slots), (), ()), service)
    return Inheritance(_change(adopt_sockets(service.sockets, listen.https, listen.http), settings), service)


def _inherit(settings: Settings, predecessor: Predecessor) -> Inheritance:
    handed = predecessor.receive()
    held = [Listener(kind, _own(number), slot, text, entry) for kind, number, slot, text, entry in handed.listeners]
    return Inheritance(
        change_listeners(held, settings.listen.https, settings.listen.http, settings.resolve_workers()),
        Service(handed.notify, handed.watchdog),
        handed.generation + 1,
        handed.ticket_secret,
        handed.plan,
        handed.totals,
        datetime.fromisoformat(handed.started) if handed.started else datetime.now(UTC),
        inherit_admin_socket(Path(handed.admin[0]), _own(handed.admin[1])) if handed.admin else None,
        _metrics(settings, *handed.metrics),
        _own(handed.line) if handed.line >= 0 else None,
        predecessor,
    )


def _change(held: tuple[Listener, ...], settings: Settings) -> Relisten:
    """At a start nobody else accepts, so what is bound may listen at once."""
    try:
        change = change_listeners(held, settings.listen.https, settings.listen.http, settings.resolve_workers())
    except BaseException:
        close_listeners(held)
        raise
    try:
        change.commit()
    except BaseException:
        close_listeners(change.listeners)
        raise
    return replace(change, new=())


def _metrics(settings: Settings, address: str, descriptors: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return what is still wanted of the port for scrapers."""
    if address == settings.admin.metrics:
        return address, descriptors
    for descriptor in descriptors:
        os.close(descriptor)
    return "", ()


def _own(descriptor: int) -> socket.socket:
    """Return the socket; what this process executes has it only if it is told so."""
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return sock
