"""Reaching a backend: a name becomes addresses, one of them a connection. Knows sockets; neither HTTP nor health.

A name is resolved anew for each connection, so a backend that moved is found. When that fails, or takes more than a
third of the time, the last good addresses are tried: a name server that is away says nothing about the backend. Each
of several addresses gets a share of the time that is left, so that one that swallows packets hides no other.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, TypeVar

from tlsproxy.proxy.failures import ConnectFailed, ConnectTimedOut, OutOfResources

logger = logging.getLogger(__name__)

Caller = TypeVar("Caller", bound=asyncio.Protocol)

# Not EADDRNOTAVAIL: that may be one family of addresses only (::1 while IPv6 is off), and another address will do.
_OUR_LIMITS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_NAME_PART: Final = 3  # one in so many parts of the time is for a name whose addresses are known


class Place:
    """Where a backend listens. Mutable state: `_known` (addresses of the name when it last resolved), `_unresolved`."""

    __slots__ = ("_host", "_is_name", "_known", "_path", "_port", "_unresolved", "_url")

    def __init__(self, url: str) -> None:
        self._url = url
        scheme, _, path = url.partition("unix:")
        self._path = path if scheme in ("", "h2c+") else ""
        self._host, self._port = ("", 0) if self._path else split_url(url)
        self._is_name = not self._path and not _is_address(self._host)
        self._known: list[str] = []
        self._unresolved = False

    async def connect(self, factory: Callable[[], Caller], timeout: float) -> Caller:
        """A protocol of `factory`, connected. Raises ConnectFailed, within `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            if self._path:
                return await self._connect_path(factory, deadline)
            addresses = await self._resolve(timeout) if self._is_name else [self._host]
            return await self._connect_any(factory, addresses, deadline)
        except TimeoutError:
            raise ConnectTimedOut(self._url, f"no connection within {timeout:g} s") from None
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _OUR_LIMITS:
                raise OutOfResources(self._url, f"cannot connect ({reason}); this is a limit of the proxy") from None
            raise ConnectFailed(self._url, f"cannot connect ({reason})") from None

    async def _connect_path(self, factory: Callable[[], Caller], deadline: float) -> Caller:
        async with asyncio.timeout_at(deadline):
            _, caller = await asyncio.get_running_loop().create_unix_connection(factory, self._path)
        return caller

    async def _connect_any(self, factory: Callable[[], Caller], addresses: list[str], deadline: float) -> Caller:
        """Try one address after the other. Raises the last one's OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        *others, last = addresses
        for left, address in zip(range(len(addresses), 1, -1), others, strict=True):
            try:
                async with asyncio.timeout((deadline - loop.time()) / left):
                    _, caller = await loop.create_connection(factory, address, self._port)
            except OSError as error:  # a TimeoutError is one too
                if error.errno in _OUR_LIMITS:
                    raise
            else:
                return caller
        async with asyncio.timeout_at(deadline):
            _, caller = await loop.create_connection(factory, last, self._port)
        return caller

    async def _resolve(self, timeout: float) -> list[str]:
        loop = asyncio.get_running_loop()
        patience = timeout / _NAME_PART if self._known else timeout
        try:
            async with asyncio.timeout(patience):
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if not self._known:
                raise ConnectFailed(self._url, f"the name does not resolve ({error.strerror})") from None
            self._say_unresolved(error.strerror or str(error))
        except TimeoutError:
            why = f"no answer from the name server within {patience:g} s"
            if not self._known:
                raise ConnectTimedOut(self._url, f"the name does not resolve ({why})") from None
            self._say_unresolved(why)
        else:
            self._known = [str(where[0]) for *_, where in found]
            self._unresolved = False
        return self._known

    def _say_unresolved(self, why: str) -> None:
        if not self._unresolved:
            self._unresolved = True
            extra = {"backend": self._url, "error": why, "used": self._known}
            logger.warning("backend.name_unresolved", extra=extra)


def split_url(url: str) -> tuple[str, int]:
    """Host and port of "http://host:port", "h2c://host:port" maybe with "[v6]"; the settings have checked it."""
    host, _, port = url.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
