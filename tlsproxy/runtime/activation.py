"""Sockets that a service manager listens on for us (systemd.socket(5)) → listeners of the configuration.

Knows sockets and what the configuration calls its addresses. A socket belongs to the address of the configuration with
its port, so that `listen` says the same with and without a socket unit; its name (FileDescriptorName=https or http)
says which of the two where the port alone does not. What was not given is bound as ever. Rules: a socket that is for
nothing is an error, because somebody believes that it is served; more workers than sockets share its queue.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tlsproxy.runtime.messages import ListenerKind
from tlsproxy.runtime.sockets import Address, Listener, is_listening, parse_address
from tlsproxy.runtime.systemd import ActivationError

_ANY = frozenset({"", "::", "0.0.0.0"})


class _Entry(NamedTuple):
    """One address of the configuration; `number` is its place among all."""

    number: int
    kind: ListenerKind
    text: str
    address: Address


def adopt_sockets(given: Iterable[tuple[str, int]], https: Iterable[str], http: Iterable[str]) -> tuple[Listener, ...]:
    """Return a listener for each (name, file descriptor). Raises ActivationError, ListenError."""
    wanted: list[tuple[ListenerKind, str]] = [("https", text) for text in https]
    wanted += [("http", text) for text in http]
    entries = [_Entry(number, kind, text, parse_address(text)) for number, (kind, text) in enumerate(wanted)]
    with contextlib.ExitStack() as undo:
        listeners = []
        for name, descriptor in given:
            sock = undo.enter_context(_open(name, descriptor))
            _check(sock, _name(name, descriptor))
            listeners.append(_adopt(name, sock, entries))
        undo.pop_all()
    return tuple(listeners)


def _adopt(name: str, sock: socket.socket, entries: Sequence[_Entry]) -> Listener:
    host, port = sock.getsockname()[:2]
    entry = _find(name, Address(host, port), entries)
    if entry is None:
        raise ActivationError(
            f"{_name(name, sock.fileno())}: systemd listens on {Address(host, port)} for this service, but nothing in "
            f'[listen] has that port. Write https = [":{port}"] or http = [":{port}"], or change ListenStream='
        )
    return Listener(entry.kind, sock, text=entry.text, entry=entry.number)


def _open(name: str, descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ActivationError(
            f"{_name(name, descriptor)} is no socket ({error.strerror}); look at LISTEN_FDS"
        ) from error


def _check(sock: socket.socket, name: str) -> None:
    if (
        sock.family not in (socket.AF_INET, socket.AF_INET6)
        or sock.type != socket.SOCK_STREAM
        or not is_listening(sock)
    ):
        raise ActivationError(f"{name} is no listening TCP socket. Use ListenStream=PORT and Accept=no")
    sock.setblocking(False)


def _find(name: str, bound: Address, entries: Sequence[_Entry]) -> _Entry | None:
    """Return the address with this port; of several the one with this name, then the one with this host."""
    fitting = [entry for entry in entries if entry.address.port == bound.port]
    if not fitting:  # port 0 is any port; only a name can say that this is the one
        fitting = [entry for entry in entries if entry.address.port == 0 and entry.kind == name]
    return max(fitting, key=lambda entry: (entry.kind == name, _is_same(entry.address.host, bound.host)), default=None)


def _is_same(host: str, other: str) -> bool:
    return host == other or (host in _ANY and other in _ANY)


def _name(name: str, descriptor: int) -> str:
    return f'socket "{name}" (file descriptor {descriptor})' if name else f"socket with file descriptor {descriptor}"
