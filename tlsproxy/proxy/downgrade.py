"""Redirects that lead from https back to http, and what to do about the server that makes them. Pure, but for the log.

An application that does not believe X-Forwarded-Proto writes `Location: http://…` into its redirects: the login works
on the developer's machine and fails behind the proxy. Strategy: only answers with 3xx are looked at; the first one of
each backend is said once, with the fix for that very server (by `Server:` and by how we reach it), the rest is counted.

Rule kept: a redirect to another host, or to a port that is not the client's own, is the application's own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tlsproxy.wire import grammar
from tlsproxy.wire.messages import ProtocolError

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.record import Record
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.forwarding import Trust
    from tlsproxy.wire.messages import RequestHead

logger = logging.getLogger(__name__)

_HTTP: Final = b"http://"
_LONGEST_SAID: Final = 200
_DETAILS: Final = "docs/fastapi.md"
_MOST_REMEMBERED: Final = 1000


class Downgrades:
    """What a worker has seen of it. `count` is told the name of the site for each."""

    def __init__(self, count: Callable[[str], None], trust: Trust) -> None:
        self._count = count
        self._trust = trust
        self._said: set[str] = set()  # URLs of backends

    def look(
        self, exchange: Record, fields: Fields, server: bytes, stream: BackendStream | None, *, repair: bool
    ) -> Fields:
        """`fields` of a 3xx answer to a request that came by https, mended if it is one of those and `repair` says so.

        `server` is what the backend calls itself; the answer came over `stream`.
        """
        for at, (name, value) in enumerate(fields):
            if len(name) == 8 and name.lower() == b"location" and value[:7].lower() == _HTTP:
                rest = downgraded(value, exchange.head)
                if rest is None or self._came_by_http(exchange):
                    return fields
                self._note(exchange, value, server, stream, repair=repair)
                if not repair:
                    return fields
                mended = b"https://%b%b" % (exchange.head.authority, rest)
                return [*fields[:at], (name, mended), *fields[at + 1 :]]
        return fields

    def _came_by_http(self, exchange: Record) -> bool:
        """Whether a trusted proxy before us said that its client did: then http is right."""
        said = [value for _, name, value in exchange.head.special if name.lower() == b"x-forwarded-proto"]
        if not said or exchange.info.client not in self._trust:
            return False
        return said[-1].rpartition(b",")[2].strip(b" \t").lower() == b"http"

    def _note(
        self, exchange: Record, location: bytes, server: bytes, stream: BackendStream | None, *, repair: bool
    ) -> None:
        site, backend = exchange.site, exchange.backend
        if site is None or backend is None:
            return
        self._count(site.name)
        if backend.url in self._said or len(self._said) >= _MOST_REMEMBERED:
            return
        self._said.add(backend.url)
        said = location.partition(b"?")[0].partition(b"#")[0][:_LONGEST_SAID]
        logger.warning(
            "backend.scheme_downgrade",
            extra={
                "backend": backend.url,
                "site": site.name,
                "server": server[:_LONGEST_SAID].decode("latin-1"),
                "location": said.decode("latin-1"),
                "repaired": repair,
                "fix": advice(server, backend.url, stream.local_address if stream is not None else ""),
            },
        )


def downgraded(location: bytes, head: RequestHead) -> bytes | None:
    """The path (with query) of a redirect to the same place by http; None if it leads elsewhere.

    The same place has the request's host, and its port or none or 80: applications copy Host, or write what http means.
    """
    authority, slash, rest = location[len(_HTTP) :].partition(b"/")
    for mark in (b"?", b"#"):
        if mark in authority:
            authority, _, query = location[len(_HTTP) :].partition(mark)
            slash, rest = b"/", mark + query
    try:
        host, port = grammar.HOSTS[authority]
    except ProtocolError:
        return None
    if host != head.host or port not in (b"", b"80", head.port):
        return None
    return slash + rest


# --- what to do about it ----------------------------------------------------------------------------------------------


def advice(server: bytes, url: str, seen_as: str = "") -> str:
    """How to make the server at `url`, which calls itself `server`, believe X-Forwarded-Proto. A sentence or two.

    `seen_as` is the address it sees us come from, "" if unknown.
    """
    product = server.partition(b"/")[0].strip().lower().decode("latin-1")
    on_socket = url.startswith("unix:")
    who = seen_as or ("127.0.0.1" if _is_loopback_url(url) else "ADDRESS-OF-TLSPROXY")
    if product == "uvicorn":
        fix = _for_uvicorn(who, on_socket=on_socket)
    elif product == "gunicorn":
        fix = _for_gunicorn(who, on_socket=on_socket)
    elif product == "granian":
        fix = _FOR_GRANIAN.format('"*"' if on_socket else f'["{who}"]')
    elif product.startswith("hypercorn"):
        fix = _FOR_HYPERCORN
    else:
        whom = "the socket" if on_socket else who
        fix = f"Tell the application's server to believe X-Forwarded-Proto from {whom}, or use TLSProxyMiddleware"
    return f"{fix} ({_DETAILS})."


_FOR_GRANIAN: Final = (
    "granian believes no header by itself. Let it run the application wrapped:"
    " granian.utils.proxies.wrap_asgi_with_proxy_headers(app, trusted_hosts={})"
)
_FOR_HYPERCORN: Final = (
    "hypercorn believes no header by itself. Let it run the application wrapped:"
    ' hypercorn.middleware.ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)'
)


def _for_uvicorn(who: str, *, on_socket: bool) -> str:
    """Both options always: with --no-proxy-headers, which nobody sees from here, the addresses alone change nothing.

    As a worker of gunicorn it calls itself uvicorn too; gunicorn's command has no first option, and needs none.
    """
    allowed = "'*'" if on_socket else who
    run = f"run it with --proxy-headers --forwarded-allow-ips {allowed} (as gunicorn's worker: the second option alone)"
    if on_socket:
        return (
            f"uvicorn finds no address to believe on a unix socket: {run},"
            " and keep the socket in a folder that only tlsproxy can enter"
        )
    if _is_loopback(who):
        return (
            f"uvicorn believes {who} by default, so it runs with --no-proxy-headers or another --forwarded-allow-ips"
            f" (FORWARDED_ALLOW_IPS): {run}. Or the application writes http:// itself"
        )
    return (
        f"uvicorn does not believe {who}, where tlsproxy comes from: {run}. FORWARDED_ALLOW_IPS in the environment does"
        " the same as the second option; the network of the address will do"
    )


def _for_gunicorn(who: str, *, on_socket: bool) -> str:
    if on_socket:
        return (
            "gunicorn believes headers on a unix socket, so the application writes http:// itself, or the worker is"
            " not gunicorn's own (-k asgi): use TLSProxyMiddleware or repair_redirects"
        )
    if _is_loopback(who):
        return (
            f"gunicorn believes {who} by default, so it runs with another --forwarded-allow-ips (FORWARDED_ALLOW_IPS):"
            f" run it with --forwarded-allow-ips {who}. Or the application writes http:// itself"
        )
    return (
        f"gunicorn does not believe {who}, where tlsproxy comes from: run it with --forwarded-allow-ips {who}"
        " (FORWARDED_ALLOW_IPS in the environment does the same)"
    )


def _is_loopback(address: str) -> bool:
    """One of the two that uvicorn and gunicorn believe without being told."""
    return address in ("127.0.0.1", "::1")


def _is_loopback_url(url: str) -> bool:
    return any(mark in url for mark in ("//127.0.0.1:", "//localhost:", "//[::1]:"))
