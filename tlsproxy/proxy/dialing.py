"""Reaching a backend: a name becomes addresses, one of them a connection. Knows sockets; neither HTTP nor health.

A name is resolved anew for each connection, so a backend that moved is found. When that fails the last good addresses
are tried: a name server that is away says nothing about the backend.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from tlsproxy.proxy.failures import ConnectFailed, ConnectTimedOut, OutOfResources

logger = logging.getLogger(__name__)

# EADDRNOTAVAIL: every client port of this machine towards that address is taken.
_OUR_LIMITS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


class Place:
    """Where a backend listens. Mutable state: `_known` (addresses of the name when it last resolved), `_unresolved`."""

    __slots__ = ("_host", "_is_name", "_known", "_path", "_port", "_unresolved", "_url")

    def __init__(self, url: str) -> None:
        self._url = url
        self._path = url.removeprefix("unix:") if url.startswith("unix:") else ""
        self._host, self._port = ("", 0) if self._path else split_url(url)
        self._is_name = not self._path and not _is_address(self._host)
        self._known: list[str] = []
        self._unresolved = False

    async def connect(self, factory: Callable[[], asyncio.Protocol], timeout: float) -> None:
        """Connect a protocol of `factory`. Raises ConnectFailed, within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._connect(factory)
        except TimeoutError:
            raise ConnectTimedOut(self._url, f"no connection within {timeout:g} s") from None
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _OUR_LIMITS:
                raise OutOfResources(self._url, f"cannot connect ({reason}); this is a limit of the proxy") from None
            raise ConnectFailed(self._url, f"cannot connect ({reason})") from None

    async def _connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        loop = asyncio.get_running_loop()
        if self._path:
            await loop.create_unix_connection(factory, self._path)
            return
        *others, last = await self._resolve() if self._is_name else [self._host]
        for address in others:
            try:
                await loop.create_connection(factory, address, self._port)
            except OSError as error:
                if error.errno in _OUR_LIMITS:
                    raise
            else:
                return
        await loop.create_connection(factory, last, self._port)

    async def _resolve(self) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if not self._known:
                raise ConnectFailed(self._url, f"the name does not resolve ({error.strerror})") from None
            self._say_unresolved(error)
        else:
            self._known = [str(where[0]) for *_, where in found]
            self._unresolved = False
        return self._known

    def _say_unresolved(self, error: socket.gaierror) -> None:
        if not self._unresolved:
            self._unresolved = True
            extra = {"backend": self._url, "error": error.strerror, "used": self._known}
            logger.warning("backend.name_unresolved", extra=extra)


def split_url(url: str) -> tuple[str, int]:
    """Host and port of "http://host:port" or "http://[v6]:port"; the settings have checked the form."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
