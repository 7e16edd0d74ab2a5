"""What is examined: one backend of one route, as the proxy would ask it. Pure.

Knows paths and the headers that a backend gets. The client is one of the addresses kept for documentation (RFC 5737),
so that no log takes it for somebody.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tlsproxy.doctor.asking import Address, encoded, in_url
from tlsproxy.settings import Route, Settings

CLIENT = "192.0.2.1"
_LABEL = "doctor"


@dataclass(frozen=True)
class Asked:
    """What the command line names: a path each that is redirected, that takes a WebSocket, that streams; or ""."""

    probe: str = ""
    websocket: str = ""
    stream: str = ""


NOTHING = Asked()


@dataclass(frozen=True, eq=False)
class Subject:
    """One backend of one route of one site; `host` is the name that a client would ask for."""

    address: Address
    host: str
    route: Route
    settings: Settings
    asked: Asked = NOTHING

    @property
    def about(self) -> str:
        return self.address.url

    @property
    def about_route(self) -> str:
        """The backend, and the way to it where it is not the only one."""
        return f"{self.about} at {self.host}{self.prefix}" if self.prefix else self.about

    @property
    def prefix(self) -> str:
        """The route's path without a slash at its end: "" for "/"."""
        return encoded(self.route.path.rstrip("/"))

    @property
    def base(self) -> str:
        """What stands before every path that this backend gets."""
        return "" if self.route.strip_prefix else self.prefix

    def target(self, public_path: str) -> str:
        """Return what the backend gets when a client asks for a path, percent-encoded."""
        public_path = encoded(public_path)
        if self.route.strip_prefix and public_path.startswith(self.prefix):
            return public_path[len(self.prefix) :] or "/"
        return public_path

    def fields(self) -> dict[str, str]:
        """Return what the proxy adds to a request that came over https."""
        fields = {
            "X-Forwarded-For": CLIENT,
            "X-Real-IP": CLIENT,
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": in_url(self.host),
            "X-Forwarded-Port": "443",
        }
        if self.route.strip_prefix and self.prefix:
            fields["X-Forwarded-Prefix"] = self.prefix
        if secret := self.settings.server.backend_secret.get_secret_value():
            fields["X-Tlsproxy-Secret"] = secret
        if self.settings.server.forwarded:
            fields["Forwarded"] = f'for={CLIENT};host="{in_url(self.host)}";proto=https'
        return fields

    def nowhere(self) -> str:
        """Return a path that no application has."""
        return f"{self.base}/tlsproxy-doctor-{secrets.token_hex(6)}"


def concrete(host: str) -> str:
    """Return a name that a client can ask for: below a wildcard, some name."""
    return f"{_LABEL}.{host[2:]}" if host.startswith("*.") else host


def whose(asked: str, routes: tuple[Route, ...]) -> Route | None:
    """Return the route that a public path would take."""
    asked = encoded(asked)
    found = [
        route
        for route in routes
        if asked == route.path.rstrip("/") or asked.startswith(f"{route.path.rstrip('/')}/") or route.path == "/"
    ]
    return max(found, key=lambda route: len(route.path), default=None)


def openapi(document: Any) -> dict[str, Any] | None:
    """Return a document if it is a description of an API, as FastAPI makes them."""
    return document if isinstance(document, dict) and isinstance(document.get("openapi"), str) else None


def listed(document: dict[str, Any] | None) -> list[str]:
    """Return the paths of the description of an API, as it writes them; it may say null, or anything, for paths."""
    paths = (document or {}).get("paths")
    return [path for path in paths if path.startswith("/")] if isinstance(paths, dict) else []


def templates(paths: Iterable[str]) -> list[re.Pattern[str]]:
    """Return what matches the paths that an application has, those behind its parameters too."""
    return [re.compile(re.sub(r"\\\{[^}]*\\\}", ".+", re.escape(path))) for path in paths]


def is_own(path: str, own: Iterable[re.Pattern[str]]) -> bool:
    """Tell whether one of the templates matches a path: asking for it would run code of the application."""
    return any(pattern.fullmatch(path) for pattern in own)
