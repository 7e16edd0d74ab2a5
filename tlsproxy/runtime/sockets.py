"""Listening sockets: made once by the supervisor, inherited by every worker of every generation.

One shared accept queue per address, not SO_REUSEPORT per worker: a worker that dies then takes no waiting connection
with it. Knows addresses and the kernel's refusals, nothing of TLS or HTTP. Rule: all or nothing, so that a proxy never
serves half of what was asked for; every refusal says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.control import ListenerKind
from tlsproxy.runtime.portholder import find_port_holder

BACKLOG = 4096
"""Connections the kernel may hold while all workers are busy; it lowers this to net.core.somaxconn by itself."""

_UNPRIVILEGED_PORT_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


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
    """A bound, listening, non-blocking socket and what is spoken on it. The supervisor owns and closes it."""

    kind: ListenerKind
    socket: socket.socket

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


def bind_listeners(https: Iterable[str], http: Iterable[str]) -> tuple[Listener, ...]:
    """Bind every address, or none. Raises ListenError; the caller closes what it gets with `close_listeners`."""
    wanted: list[tuple[ListenerKind, str]] = [("https", text) for text in https]
    wanted += [("http", text) for text in http]
    with contextlib.ExitStack() as undo:
        listeners: list[Listener] = []
        for kind, text in wanted:
            for sock in _bind(parse_address(text)):
                undo.callback(sock.close)
                listeners.append(Listener(kind, sock))
        undo.pop_all()
    return tuple(listeners)


def close_listeners(listeners: Iterable[Listener]) -> None:
    """Close the supervisor's copies. The kernel stops listening once every worker has closed its own."""
    for listener in listeners:
        listener.socket.close()


def adopt_listeners(inherited: Iterable[tuple[ListenerKind, int]]) -> list[tuple[ListenerKind, socket.socket]]:
    """In a worker: turn the descriptors of Start into sockets, which the caller owns. Not to be inherited further."""
    adopted = [(kind, socket.socket(fileno=fd)) for kind, fd in inherited]
    for _, sock in adopted:
        sock.set_inheritable(False)
    return adopted


def _bind(address: Address) -> list[socket.socket]:
    if not address.host:
        return [_bind_everywhere(address)]
    with contextlib.ExitStack() as undo:
        bound: list[socket.socket] = []
        for family, host in _resolve(address):
            sock = _listen(family, host, address)
            undo.callback(sock.close)
            bound.append(sock)
        undo.pop_all()
    return bound


def _bind_everywhere(address: Address) -> socket.socket:
    """One socket for both families; plain IPv4 where the kernel has no IPv6 (common in containers)."""
    if _has_ipv6():
        return _listen(socket.AF_INET6, "::", address)
    return _listen(socket.AF_INET, "0.0.0.0", address)


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


def _listen(family: socket.AddressFamily, host: str, address: Address) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart has to wait for the TIME_WAIT connections of the previous run.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Only ":443" means both families; "[::]:443" leaves room for a "0.0.0.0:443" beside it.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(address.host))
        sock.bind((host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {address}: {_explain(error, address)}") from error
    return sock


def _explain(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = find_port_holder(address.port) or "another process"
        return f"the port is taken by {holder}. Stop it, or choose another port (--https :8443 --http :8080)."
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
        f"run as root with server.user set; or use higher ports (--https :8443 --http :8080)."
    )


def _unprivileged_port_start() -> int:
    try:
        return int(_UNPRIVILEGED_PORT_START.read_text())
    except (OSError, ValueError):
        return 1024
