"""What the examination knows of the machine and the proxy: configuration, running or not, where it listens, its store.

Knows where each is found; judges nothing. Everything is found out once (`Facts`), and only when somebody asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tlsproxy.doctor.addresses import Address, own_addresses
from tlsproxy.doctor.facts import Facts, in_thread
from tlsproxy.doctor.handshake import Seen, Target, shake
from tlsproxy.doctor.subject import NOTHING, Asked
from tlsproxy.errors import ConfigError, NotRunning, Problem, TlsproxyError
from tlsproxy.runtime import preflight
from tlsproxy.runtime.adminclient import AdminClient, NoAccess
from tlsproxy.settings import Loaded, Settings, Site
from tlsproxy.store.base import CertificateStore, directory_of, open_store
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import ROOT_NAME, NotYet, acme_name, bundles_for

HANDSHAKE = 5.0
_PATIENCE = 4.0


@dataclass(frozen=True)
class Running:
    """Whether a proxy runs. `status` is what it says of itself; `why` is why nothing is known of it.

    `is_hidden`: there may be one, which this user or this configuration can't ask.
    """

    status: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    is_hidden: bool = False

    @property
    def is_there(self) -> bool:
        return bool(self.status)


@dataclass(frozen=True)
class Inspection:
    """What `tlsproxy check` would say. Made before anything else runs: it takes on the proxy's user for a moment."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def inspect(loaded: Loaded) -> Inspection:
    try:
        return Inspection((), tuple(preflight.inspect(loaded)))
    except ConfigError as error:
        return Inspection(error.problems)


class House:
    """One machine, one configuration. `client` is None where the configuration has no admin socket."""

    def __init__(
        self, loaded: Loaded, client: AdminClient | None, inspection: Inspection, asked: Asked = NOTHING
    ) -> None:
        self.loaded, self.inspection, self.asked = loaded, inspection, asked
        self.facts = Facts()
        self._client = client

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @cached_property
    def config(self) -> str:
        """Return the option that names this configuration, for commands to be repeated."""
        return f" --config {self.loaded.path}" if self.loaded.path else ""

    @cached_property
    def is_own_idea(self) -> bool:
        """Whether the sites are those of the command line: no proxy need have them."""
        return self.loaded.origins.get("sites.0.hosts") == "option --site"

    @cached_property
    def own(self) -> frozenset[Address]:
        return own_addresses()

    async def running(self) -> Running:
        return await self.facts.once("running", partial(in_thread, self._ask_status))

    def _ask_status(self) -> Running:
        if self._client is None:
            return Running(why='the configuration says admin.socket = "off"', is_hidden=True)
        client = AdminClient(self._client.path, patience=_PATIENCE)
        try:
            return Running(client.get("status"))
        except NoAccess as error:
            return Running(why=str(error), is_hidden=True)
        except NotRunning as error:
            return Running(why=str(error).partition(". ")[0])
        except TlsproxyError as error:
            return Running(why=str(error), is_hidden=True)

    async def serves(self, host: str) -> bool | None:
        """Tell whether the running proxy has a site for a host; None if none runs, or it does not say."""
        if self._client is None or not (await self.running()).is_there:
            return None
        try:
            hosts = await self.facts.once("served hosts", partial(in_thread, partial(_served_hosts, self._client.path)))
        except TlsproxyError:
            return None
        return not hosts.isdisjoint({host, f"*.{host.partition('.')[2]}", "*"})

    async def listeners(self, kind: str) -> list[tuple[str, int]]:
        """Return where the proxy listens for "https" or "http": what it says itself, else what is configured."""
        running = await self.running()
        told = [str(each).partition(" ") for each in running.status.get("listeners", ())]
        addresses = [address for word, _, address in told if word == kind]
        return [_reached(each) for each in addresses or getattr(self.settings.listen, kind) if _port(each)]

    async def target(self, name: str) -> Target | None:
        """Return the first https listener, to be asked for a name; None if there is none."""
        listeners = await self.listeners("https")
        return next((self.target_at(host, port, name) for host, port in listeners), None)

    def target_at(self, host: str, port: int, name: str) -> Target:
        """Who connects to an address of this machine comes from that address: so it may have to send a PROXY line."""
        networks = self.settings.listen.proxy_protocol
        ours = ipaddress.ip_address(host.partition("%")[0]) if networks else None
        line = ours is not None and any(ours in ipaddress.ip_network(each) for each in networks)
        return Target(host, port, sni(name), line)

    async def shake(self, target: Target) -> Seen:
        """Return the handshake with a place; raises OSError."""
        return await self.facts.once(target, partial(in_thread, partial(shake, target, HANDSHAKE)))

    async def store(self) -> CertificateStore:
        """Return the store, opened for reading; one that is not there is empty. Raises StoreError."""
        return await self.facts.once("store", partial(in_thread, self._open))

    def _open(self) -> CertificateStore:
        section = self.settings.store
        folder = directory_of(section.url)
        return open_store("memory:" if _is_missing(folder) else section.url, section.master_keys())

    async def bundles(self, site: Site, host: str) -> Sequence[Bundle]:
        """Return what is to be served for a host of a site. Raises CertificateError (NotYet), StoreError."""
        store = await self.store()
        if site.certificate == "on_demand":
            find = partial(_on_demand, store, host)
            return await self.facts.once(("bundle", host), partial(in_thread, find))
        return await self.facts.once(("bundles", site.hosts), partial(in_thread, partial(bundles_for, site, store)))

    async def root(self) -> bytes:
        """Return the root of the internal CA (PEM), b"" if there is none. Raises StoreError."""
        store = await self.store()
        bundle = await self.facts.once("root", partial(in_thread, partial(store.get, ROOT_NAME)))
        return bundle.chain_pem if bundle else b""


def _served_hosts(socket: Path) -> frozenset[str]:
    rows = AdminClient(socket, patience=_PATIENCE).get("sites")
    return frozenset(host for row in rows for host in row["hosts"])


def _on_demand(store: CertificateStore, host: str) -> tuple[Bundle, ...]:
    bundle = store.get(acme_name(host))
    if bundle is None:
        raise NotYet(f"{host}: there is no certificate yet. It is obtained when a client first asks for it.")
    return (bundle,)


def _is_missing(folder: Path | None) -> bool:
    try:
        return folder is not None and not folder.exists()
    except PermissionError:  # opening it says more
        return False


def sni(host: str) -> str:
    """Return the name that a client would send: none for an address (RFC 6066 3)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return ""


def _port(address: str) -> int:
    """Return the port, 0 where the kernel is to choose one."""
    return int(address.rpartition(":")[2])


def _reached(address: str) -> tuple[str, int]:
    """Return where to connect to reach a listener: one for all addresses is reached at the loopback."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host in ("", "0.0.0.0", "::"):
        host = "::1" if host == "::" else "127.0.0.1"
    return host, _port(address)
