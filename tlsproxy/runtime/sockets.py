"""Listening sockets: made once by the supervisor, inherited by every worker of every generation.

Per address one socket for each worker slot (SO_REUSEPORT), so that the kernel deals connections out and each wakes one
worker alone. All of them stay open in the supervisor: a worker that dies takes no waiting connection with it, and the
next of its slot, or another one meanwhile, goes on with the same queue. Knows addresses and the kernel's refusals,
nothing of TLS or HTTP. Rules: all or nothing, so that a proxy never serves half of what was asked for; the port is ours
alone; every refusal says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.messages import ListenerKind
from tlsproxy.runtime.portholder import find_port_holder

BACKLOG = 4096
"""Connections the kernel may hold while all workers are busy; it lowers this to net.core.somaxconn by itself."""

_AT_START = " (--https :8443 --http :8080)"
_SPREADS = sys.platform == "linux"
"""Whether the kernel spreads connections over the sockets of an address. Elsewhere the last one bound gets them all."""

_UNPRIVILEGED_PORT_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


Slots: TypeAlias = dict[int, list[tuple[ListenerKind, socket.socket]]]
"""A worker's view of the listeners: the sockets of each slot."""


class ListenError(TlsproxyError):
    """An address cannot be listened on."""


@dataclass(frozen=True)
class Address:
    """Where to listen. An empty host means every address of the machine, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Listener:
    """A bound, non-blocking socket, what is spoken on it, and whose it is. The supervisor closes it.

    `text` is what the configuration says, `entry` which of its addresses this is one of: a name may mean several.
    """

    kind: ListenerKind
    socket: socket.socket
    slot: int = 0
    text: str = ""
    entry: int = 0

    @property
    def address(self) -> str:
        """Where it is bound: `127.0.0.1:443`, `[::]:443`."""
        return str(Address(*self.socket.getsockname()[:2]))

    def __str__(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"{self.kind} {Address('' if host in ('::', '0.0.0.0') else host, port)}"


def parse_address(text: str) -> Address:
    """Read `:443`, `1.2.3.4:443`, `name:443` or `[::1]:443`. Port 0 lets the kernel choose. Raises ListenError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise ListenError(f'listen address "{text}" is not HOST:PORT; write :443, 192.0.2.1:443 or [2001:db8::1]:443')
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ListenError(f'listen address "{text}" has no port between 0 and 65535')
    return Address(host[1:-1] if bracketed else host, int(port))


def bind_listeners(https: Iterable[str], http: Iterable[str], slots: int = 1) -> tuple[Listener, ...]:
    """Bind every address `slots` times, or none. Raises ListenError; the caller closes it with `close_listeners`."""
    wanted: list[tuple[ListenerKind, str]] = [("https", text) for text in https]
    wanted += [("http", text) for text in http]
    with contextlib.ExitStack() as undo:
        listeners: list[Listener] = []
        for entry, (kind, text) in enumerate(wanted):
            for listener in bind_entry(kind, text, entry, slots):
                undo.callback(listener.socket.close)
                listeners.append(listener)
        undo.pop_all()
    return tuple(listeners)


def bind_entry(kind: ListenerKind, text: str, entry: int, slots: int, *, listens: bool = True) -> list[Listener]:
    """Bind one address of the configuration; without `listens`, `start_listening` is to follow. Raises ListenError."""
    bound = _bind(parse_address(text), slots, listens=listens)
    return [Listener(kind, sock, slot, text, entry) for slot, sock in bound]


def join_listeners(listeners: Iterable[Listener], slot: int) -> list[Listener]:
    """Bind sockets for one more slot beside those of other slots. `start_listening` follows. Raises ListenError."""
    listeners = list(listeners)
    with contextlib.ExitStack() as undo:
        joined = []
        for first in (each for each in listeners if each.slot == 0):
            sock = _join(first.socket, [each.socket for each in listeners if each.address == first.address])
            undo.callback(sock.close)
            joined.append(replace(first, socket=sock, slot=slot))
        undo.pop_all()
    return joined


def while_running(error: ListenError, key: str = "") -> ListenError:
    """Return the same for a proxy that runs: its addresses come from `key` of the configuration, not from options."""
    return ListenError(str(error).replace(_AT_START, f" ({key} in the configuration)" if key else ""))


def start_listening(listener: Listener) -> None:
    """Have the kernel queue connections for a socket that was only bound; harmless for others. Raises ListenError."""
    try:
        listener.socket.listen(BACKLOG)
    except OSError as error:
        address = Address(*listener.socket.getsockname()[:2])
        raise ListenError(f"cannot listen on {address}: {_explain(error, address)}") from error


def is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def close_listeners(listeners: Iterable[Listener]) -> None:
    """Close the supervisor's copies. The kernel stops listening once every worker has closed its own."""
    for listener in listeners:
        listener.socket.close()


def inherit_listeners(inherited: Iterable[tuple[ListenerKind, int, int]]) -> Slots:
    """In a worker: turn the descriptors of Start into sockets by slot, owned by the caller and inherited no further."""
    slots: Slots = {}
    for kind, fd, slot in inherited:
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        slots.setdefault(slot, []).append((kind, sock))
    return slots


def _bind(address: Address, slots: int, *, listens: bool) -> list[tuple[int, socket.socket]]:
    with contextlib.ExitStack() as undo:
        bound: list[tuple[int, socket.socket]] = []
        for family, host in _resolve(address) if address.host else [_everywhere()]:
            for slot, sock in enumerate(_listen_together(family, host, address, slots, listens)):
                undo.callback(sock.close)
                bound.append((slot, sock))
        undo.pop_all()
    return bound


def _everywhere() -> tuple[socket.AddressFamily, str]:
    """One socket for both families; plain IPv4 where the kernel has no IPv6 (common in containers)."""
    return (socket.AF_INET6, "::") if _has_ipv6() else (socket.AF_INET, "0.0.0.0")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, str]]:
    """A name may mean several addresses (localhost: 127.0.0.1 and ::1); it is listened on at all of them."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(
            f'cannot listen on {address}: the name "{address.host}" does not resolve ({error})'
        ) from error
    return list(dict.fromkeys((family, str(where[0])) for family, _, _, _, where in found))


def _listen_together(
    family: socket.AddressFamily, host: str, address: Address, slots: int, listens: bool
) -> list[socket.socket]:
    """Listen with `slots` sockets on one address that was free before.

    The first one listens without SO_REUSEPORT: only then does the kernel refuse a port that another process shares out,
    be it another tlsproxy. From there on nobody but this user's processes can join it.
    """
    first = _listen(family, host, address, listens=listens)
    taken = Address(address.host, first.getsockname()[1])
    with contextlib.ExitStack() as undo:
        siblings: list[socket.socket] = []
        try:
            for _ in range(1, slots if _SPREADS else 1):
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                siblings.append(undo.enter_context(_listen(family, host, taken, listens=listens, together=True)))
        except ListenError:
            # A sandbox's kernel may want the option before the first bind. Sharing one queue is slower, and works.
            siblings.clear()
        else:
            undo.pop_all()
    return [first, *(siblings or [first.dup() for _ in range(1, slots)])]


def _join(first: socket.socket, siblings: Iterable[socket.socket]) -> socket.socket:
    """Return a socket of its own on the address of `siblings`, or a copy where the kernel does not spread."""
    host, port = first.getsockname()[:2]
    address = Address("" if first.family == socket.AF_INET6 and not _is_v6_only(first) else host, port)
    if _SPREADS:
        for sibling in siblings:
            sibling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with contextlib.suppress(ListenError):
            return _listen(first.family, host, address, listens=False, together=True)
    return first.dup()


def _is_v6_only(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _listen(
    family: socket.AddressFamily, host: str, address: Address, *, listens: bool = True, together: bool = False
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart has to wait for the TIME_WAIT connections of the previous run.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Only ":443" means both families; "[::]:443" leaves room for a "0.0.0.0:443" beside it.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(address.host))
        if together:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, address.port))
        if listens:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {address}: {_explain(error, address)}") from error
    return sock


def _explain(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = find_port_holder(address.port) or "another process"
        return f"the port is taken by {holder}. Stop it, or choose another port{_AT_START}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return _explain_denied(address.port)
    if error.errno == errno.EADDRNOTAVAIL:
        return f'no interface of this machine has that address. Use ":{address.port}" for all of them.'
    return f"{error.strerror or error}."


def _explain_denied(port: int) -> str:
    return (
        f"permission denied, ports below {_unprivileged_port_start()} are reserved. One of these helps: "
        f"`setcap cap_net_bind_service=+ep` on the Python binary; "
        f"`sysctl -w net.ipv4.ip_unprivileged_port_start={port}`; "
        f"run as root with server.user set; or use higher ports{_AT_START}."
    )


def _unprivileged_port_start() -> int:
    try:
        return int(_UNPRIVILEGED_PORT_START.read_text())
    except (OSError, ValueError):
        return 1024
