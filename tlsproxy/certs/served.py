"""Look whether our own listener serves a certificate: a handshake as a client has it, and the serial of the leaf.

Knows: TLS as a client, the PROXY protocol's first line, which addresses lead to ourselves. Does not know: stores,
workers. Rules: nothing is verified but the serial, for it is ourselves that we ask; one certificate is not the last
word, workers take over a new one each in its own time and each answers some of the connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from cryptography import x509

DEADLINE = 5.0
"""Seconds for all tries."""
TRIES = 4
"""Handshakes in a row that must show the certificate; the kernel spreads connections over the workers."""

_PAUSE = 0.1
_WILDCARD_LABEL = "certificate-check"


@dataclass(frozen=True, slots=True)
class Served:
    """The listener serves it."""

    address: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The listener serves something else; `serial` in lower-case hex."""

    address: str
    serial: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No handshake came about: nothing can be said of the certificate."""

    reason: str


Result: TypeAlias = Served | Mismatch | Unreachable


async def check(
    addresses: Sequence[str],
    host: str,
    serial: str,
    proxy_protocol: Sequence[str] = (),
    *,
    executor: Executor | None = None,
    tries: int = TRIES,
    deadline: float = DEADLINE,
) -> Result:
    """Return what is served for a host (a wildcard: for some name below) at the first of our addresses that answers.

    `addresses` are bound ones as getsockname tells them ("0.0.0.0:443", "[::]:8443"); `serial` is lower-case hex;
    `proxy_protocol` are the networks that must speak the PROXY protocol. A mismatch is the answer only after the
    deadline (seconds): until then it may be a worker that has not caught up. `executor`: where handshakes block.
    """
    ends = time.monotonic() + deadline
    reason = "there is no https listener"

    async def look(address: str) -> str:
        call = partial(handshake, address, host, proxy_protocol, ends)
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    for address in addresses:
        try:
            seen = await look(address)
        except OSError as error:
            reason = _reason(address, error)
        else:
            return await _confirm(look, address, seen, serial, tries, ends)
    return Unreachable(reason)


async def _confirm(
    look: Callable[[str], Awaitable[str]], address: str, seen: str, serial: str, tries: int, ends: float
) -> Result:
    agreed = 0
    while True:
        agreed = agreed + 1 if seen == serial else 0
        if agreed >= tries:
            return Served(address)
        if not agreed:
            if time.monotonic() + _PAUSE > ends:
                return Mismatch(address, seen)
            await asyncio.sleep(_PAUSE)
        try:
            seen = await look(address)
        except OSError as error:
            return Unreachable(_reason(address, error))


def handshake(address: str, host: str, proxy_protocol: Sequence[str], ends: float) -> str:
    """Return the serial number, in lower-case hex, of what one connection is served. Blocks; raises OSError.

    `ends`: deadline on the monotonic clock.
    """
    target = _own_end(address)
    with socket.create_connection(target, timeout=_remaining(ends)) as connection:
        if _speaks_proxy_protocol(target[0], proxy_protocol):
            connection.sendall(b"PROXY UNKNOWN\r\n")  # v1: what follows is from the peer itself, as of a health check
        connection.settimeout(_remaining(ends))
        with _context().wrap_socket(connection, server_hostname=_server_name(host)) as secured:
            leaf = secured.getpeercert(binary_form=True)
    if leaf is None:
        raise ssl.SSLError("the listener has shown no certificate")
    return f"{x509.load_der_x509_certificate(leaf).serial_number:x}"


def _own_end(address: str) -> tuple[str, int]:
    """Return where to connect to reach a bound address: one that means all is reached at the loopback."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host in {"", "0.0.0.0", "::"}:
        host = "::1" if host == "::" else "127.0.0.1"
    return host, int(port)


def _speaks_proxy_protocol(source: str, networks: Sequence[str]) -> bool:
    """Who connects to an address of the own machine comes from that very address."""
    address = ipaddress.ip_address(source.partition("%")[0])
    return any(address in ipaddress.ip_network(network) for network in networks)


def _server_name(host: str) -> str | None:
    """Return the SNI that a client would send: none for an address (RFC 6066 3)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return f"{_WILDCARD_LABEL}.{host[2:]}" if host.startswith("*.") else host
    return None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _remaining(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time is left")
    return left


def _reason(address: str, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"{address}: no handshake in time"
    if isinstance(error, ssl.SSLError):
        return f"{address}: the handshake failed ({(error.reason or str(error)).lower().replace('_', ' ')})"
    return f"{address}: {error.strerror or error}"
