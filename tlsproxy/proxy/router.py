"""Where a request goes: host, then longest path prefix. Decides, does nothing.

Strategy: hosts are dictionary look-ups (hosts.py), so the cost does not grow with the number of sites; a request goes
to a site only over a connection that was made under its rules, whatever names client and request give; the few routes
of one site are scanned, longest prefix first. The raw path is
matched and forwarded byte for byte; only where a prefix decides, a path with dot segments is refused, because the
backend may resolve what was compared raw. A CA's question goes before all that, if it is one of ours: it may come to
any name, an address included, with TLS or without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from tlsproxy.proxy.challenges import HTTP_PREFIX
from tlsproxy.proxy.hosts import find_host
from tlsproxy.proxy.stream import ConnectionInfo
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.proxy.waiting_line import Line
from tlsproxy.wire.fields import Fields
from tlsproxy.wire.messages import RequestHead

if TYPE_CHECKING:
    from tlsproxy.proxy.inspection import Inspector
    from tlsproxy.proxy.sticky import Sticky

_UNKNOWN_HOST: Final = "No site with this name is served here."
_MISDIRECTED: Final = "This connection was opened for another name; open a new one for this host."
_READING: Final = (b"GET", b"HEAD")


class Route:
    """One path prefix of a site and where it leads. `prefix` is b"" for "/".

    `extra` are fields for the backend beyond those of the client; `inspector` is shown redirects, and all
    answers if the route `inspects`. `line` is where requests wait. `swap` changes `upstream`.
    """

    __slots__ = (
        "extra", "inspector", "inspects", "label", "line", "max_body", "prefix", "response_timeout", "sticky", "strip",
        "upstream",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        upstream: Upstream,
        *,
        strip: bool,
        response_timeout: float,
        max_body: int,
        line: Line | None = None,
        sticky: Sticky | None = None,
    ) -> None:
        self.label = path
        self.prefix = path.rstrip("/").encode()
        self.upstream = upstream
        self.strip = strip and bool(self.prefix)
        self.response_timeout = response_timeout
        self.max_body = max_body
        self.extra: Fields = []
        self.inspector: Inspector | None = None
        self.inspects = False
        self.line = Line(path, upstream) if line is None else line
        self.sticky = sticky

    def swap(self, upstream: Upstream) -> None:
        """Send requests there from now on; those under way go on where they are."""
        self.upstream = self.line.upstream = upstream

    def matches(self, path: bytes) -> bool:
        """Whether `path` (without query) is the prefix or lies below it; "/api" does not match "/apis"."""
        prefix = self.prefix
        return not prefix or path == prefix or path.startswith(prefix + b"/")

    def outbound_target(self, target: bytes) -> bytes:
        """The target for the backend: as it came, or without the prefix."""
        if not self.strip:
            return target
        rest = target[len(self.prefix) :]
        return rest if rest[:1] == b"/" else b"/" + rest


class Forward:
    """Send the request to `route`. One instance per route, made at start: routing builds nothing."""

    __slots__ = ("quoted", "route", "site")

    def __init__(self, site: Site, route: Route) -> None:
        self.site = site
        self.route = route
        self.quoted = f'"site":{json.dumps(site.name)},"route":{json.dumps(route.label)}'  # for the access log


class Redirect:
    """Send the client to `location`."""

    __slots__ = ("fields", "site")
    status: Final = 308
    body: Final = b""

    def __init__(self, site: Site, location: bytes) -> None:
        self.site = site
        self.fields = [(b"Location", location)]


class Challenge:
    """Answer a CA (RFC 8555 8.3)."""

    __slots__ = ("body", "fields")
    site: Final = None
    status: Final = 200

    def __init__(self, key_authorization: bytes) -> None:
        self.fields = [(b"Content-Type", b"text/plain"), (b"Cache-Control", b"no-store")]
        self.body = key_authorization


class Refuse:
    """Answer with an error."""

    __slots__ = ("detail", "site", "status")

    def __init__(self, status: int, detail: str, site: Site | None = None) -> None:
        self.status = status
        self.detail = detail
        self.site = site


Outcome: TypeAlias = Forward | Redirect | Challenge | Refuse

_NOT_FOUND: Final = Refuse(404, _UNKNOWN_HOST)
_WRONG_CONNECTION: Final = Refuse(421, _MISDIRECTED)
_NO_SUCH_SITE: Final = Refuse(421, _UNKNOWN_HOST)


class Site:
    """One site: its first host as its name, its routes, its HSTS value (b"" for none)."""

    __slots__ = ("_dots", "_no_route", "forwards", "hosts", "hsts", "name", "only")

    def __init__(self, hosts: Sequence[str], routes: Sequence[Route], hsts: bytes = b"") -> None:
        self.hosts = tuple(hosts)
        self.name = hosts[0]
        self.hsts = hsts
        ordered = sorted(routes, key=lambda route: len(route.prefix), reverse=True)
        self.forwards = [Forward(self, route) for route in ordered]
        catches_all = len(ordered) == 1 and not ordered[0].prefix
        self.only = self.forwards[0] if catches_all else None
        self._no_route = Refuse(404, "No route of this site matches the path.", self)
        self._dots = Refuse(400, "The path contains dot segments; send it resolved.", self)

    def with_hsts(self, fields: Fields) -> Fields:
        """`fields` with this site's Strict-Transport-Security instead of the backend's (RFC 6797 7.1: one field)."""
        kept = [field for field in fields if field[0].lower() != b"strict-transport-security"]
        return [*kept, (b"Strict-Transport-Security", self.hsts)]

    def outcome(self, head: RequestHead) -> Outcome:
        """The forward of the longest matching route."""
        if self.only is not None:
            return self.only
        path = head.path
        if has_dot_segments(path):
            return self._dots
        for forward in self.forwards:
            if forward.route.matches(path):
                return forward
        return self._no_route


class Router:
    """All sites. `may_share` judges whether a connection may carry a request for another host, of the site so named.

    `answer_challenge` knows the answer to a target that begins with HTTP_PREFIX, if a CA was told to ask for it.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        may_share: Callable[[ConnectionInfo, str], bool],
        answer_challenge: Callable[[bytes], bytes | None] = lambda _: None,
        https_port: int = 443,
    ) -> None:
        self._hosts = {host: site for site in sites for host in site.hosts}
        self._may_share = may_share
        self._answer_challenge = answer_challenge
        self._redirect_port = b"" if https_port == 443 else b":%d" % https_port

    def find(self, host: str) -> Site | None:
        """The site of `host` (lower case, no port)."""
        return find_host(self._hosts, host)

    def decide(self, head: RequestHead, info: ConnectionInfo) -> Outcome:
        """What to do with a request that came over the connection of `info`."""
        if head.target.startswith(HTTP_PREFIX) and head.method in _READING:
            answer = self._answer_challenge(head.target)
            if answer is not None:
                return Challenge(answer)
        host = head.host or info.sni  # HTTP/1.0 without Host: the name the client asked TLS for
        site = self.find(host)
        if info.scheme == "http":
            return _NOT_FOUND if site is None else Redirect(site, self._location(head))
        if site is None:
            return _NO_SUCH_SITE
        # The name alone does not tell under whose rules the connection was made: it may have fallen to the default.
        is_allowed = info.site == site.name if host == info.sni else self._may_share(info, site.name)
        return site.outcome(head) if is_allowed else _WRONG_CONNECTION

    def _location(self, head: RequestHead) -> bytes:
        path = head.target if head.target[:1] == b"/" else b"/"
        host = f"[{head.host}]" if ":" in head.host else head.host
        return b"https://%b%b%b" % (host.encode(), self._redirect_port, path)


def has_dot_segments(path: bytes) -> bool:
    """True if a server might resolve `path` to another one: "." or ".." segments, also percent-encoded or with "\\"."""
    if b"." not in path and b"%2" not in path:
        return False
    plain = path.lower().replace(b"%2e", b".").replace(b"%2f", b"/").replace(b"%5c", b"/").replace(b"\\", b"/")
    return any(segment.partition(b";")[0] in (b".", b"..") for segment in plain.split(b"/"))
