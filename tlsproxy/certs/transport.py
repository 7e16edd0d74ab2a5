"""How a request gets to a CA and back: within a time, within a size, and with an error that says what is wrong.

Knows: sockets, TLS, requests' and urllib3's exceptions, the headers of an answer that matter. Does not know: ACME.
Rule: the time given for a call is the whole of it. Elsewhere in requests a timeout counts from packet to packet and
again for each address of a name, so that a peer that sends a byte now and then, or a name with four dead addresses,
holds a thread for as long as it likes.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from requests.utils import parse_header_links
from urllib3 import HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ReadTimeoutError
from urllib3.util.ssl_ import create_urllib3_context

from tlsproxy.certs.problems import AcmeFailure, FailureKind, clean

LARGEST_ANSWER = 4 << 20
"""Bytes, with TLS taken off. A chain has about 5 kB, a directory 1 kB."""

_LONGEST_PATIENCE = timedelta(days=366)


def open_requests() -> requests.Session:
    """Return a requests.Session that keeps the rule above for https. Its timeouts are urllib3's `Timeout(total=…)`."""
    session = requests.Session()
    session.max_redirects = 3
    session.headers.update({"Accept-Encoding": "identity", "Accept-Language": "en"})
    session.mount("https://", _Adapter())
    return session


class _BoundedSocket(ssl.SSLSocket):
    """Its timeout is the time until everything is there, not until the next packet; and it has read enough some day.

    Both begin anew with each `settimeout`, which urllib3 calls for each request and for each answer.
    """

    _end = _left = 0.0

    def settimeout(self, value: float | None) -> None:
        super().settimeout(value)
        self._end = time.monotonic() + (3600 if value is None else value)
        self._left = LARGEST_ANSWER

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer has not come to its end in time")
        if self._left <= 0:
            raise OSError(f"the answer is longer than {LARGEST_ANSWER} bytes")
        super().settimeout(remaining)
        count = super().recv_into(buffer, nbytes, flags)
        self._left -= count
        return count


class _Connection(HTTPSConnection):
    """Divides the time to connect among the addresses of a name: one that is dead must not take it all."""

    def _new_conn(self) -> socket.socket:
        name, allowed = self._dns_host, self.timeout
        if not isinstance(allowed, (int, float)):  # nobody asks without a timeout
            return super()._new_conn()
        end = time.monotonic() + allowed
        addresses = self._resolve(name)
        try:
            for left in range(len(addresses), 0, -1):
                self._dns_host = addresses[-left]
                self.timeout = max(0.001, (end - time.monotonic()) / left)
                try:
                    return super()._new_conn()
                except (ConnectTimeoutError, NewConnectionError):
                    if left == 1:
                        raise
        finally:
            self._dns_host, self.timeout = name, allowed
        raise AssertionError("a name without addresses is an error of its own")

    def _resolve(self, name: str) -> list[str]:
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise NameResolutionError(name, self, _as_gaierror(error)) from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class _Adapter(HTTPAdapter):
    """Brings the two classes above into requests. Never repeats a request: whoever signed it does."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=_context(), **options)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "https": _Pool}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=_context(), **options)


def _context() -> ssl.SSLContext:
    context = create_urllib3_context()
    context.sslsocket_class = _BoundedSocket
    return context


def _as_gaierror(error: socket.gaierror | UnicodeError) -> socket.gaierror:
    return error if isinstance(error, socket.gaierror) else socket.gaierror(socket.EAI_NONAME, str(error))


# --- what an answer's headers say


def retry_after(headers: Mapping[str, str], now: datetime) -> datetime | None:
    """Return the instant that Retry-After names (RFC 9110 10.2.3), None without one that can be understood.

    Seconds or an HTTP-date, which is GMT by definition whatever the time zone of this machine is. At most a year.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return now + min(timedelta(seconds=int(text[:9])), _LONGEST_PATIENCE)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return min(max(when, now), now + _LONGEST_PATIENCE)


def links(response: requests.Response, relation: str) -> list[str]:
    """Return the absolute URLs of all Link headers of this relation; requests' own `links` keeps the last only."""
    found = parse_header_links(response.headers.get("Link", ""))
    return [urljoin(response.url, each["url"]) for each in found if each.get("rel") == relation and each.get("url")]


# --- what can keep an answer from coming


def network_failure(error: Exception, step: str, directory: str, ca_bundle: str = "") -> AcmeFailure:
    """Translate what requests raises. Every one is UNREACHABLE: an attempt later may succeed."""
    problem, detail = _reason(error, ca_bundle)
    return AcmeFailure(FailureKind.UNREACHABLE, type=problem, detail=clean(detail), step=step, directory=directory)


def _reason(error: Exception, ca_bundle: str) -> tuple[str, str]:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "caCertificate", cause.verify_message or str(cause)
        if isinstance(cause, NameResolutionError):
            return "caNameUnknown", str(cause.__cause__ or cause)
    if ca_bundle and any(_is_bundle_trouble(cause) for cause in causes):
        return "caBundle", f"{ca_bundle}: {_words(causes[-1])}"
    if any(isinstance(cause, (TimeoutError, ReadTimeoutError, requests.Timeout)) for cause in causes):
        return "caTimeout", ""
    return "caUnreachable", _words(causes[-1])


def _is_bundle_trouble(cause: BaseException) -> bool:
    """Whether the PEM file with the roots could not be loaded; requests looks whether it exists, OpenSSL reads it."""
    text = str(cause)
    return "invalid path" in text or (isinstance(cause, ssl.SSLError) and ("NO_CERTIFICATE" in text or "PEM" in text))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was made of, outermost first: requests and urllib3 wrap in four different ways."""
    seen: list[BaseException] = []
    following: list[object] = [error]
    while following and len(seen) < 20:
        cause = following.pop(0)
        if not isinstance(cause, BaseException) or cause in seen:
            continue
        seen.append(cause)
        yield cause
        following += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
        return error.strerror
    return str(error) or type(error).__name__
