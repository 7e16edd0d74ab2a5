"""The routes of the admin API: which paths there are, how each is answered, and what may stand in one. PURE.

Knows words, nothing of what is behind them: a route names the way that `AdminServer` answers it. Whoever adds a route
of a way that there is adds one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tlsproxy.runtime.adminhttp import Refusal

MAX_NAME = 512
"""Characters of a certificate's name, as in the store."""

Way: TypeAlias = Literal["status", "health", "readiness", "top", "metrics", "ask", "remove", "work", "operate", "do"]


@dataclass(frozen=True)
class Asked:
    """A request that a route has understood."""

    verb: str
    name: str
    options: Mapping[str, str]
    accept: str = ""


@dataclass(frozen=True)
class Route:
    """`path` may have one NAME in it; `way` is how it is answered, `verb` what is asked for on that way."""

    method: str
    path: tuple[str, ...]
    way: Way
    verb: str = ""

    def __str__(self) -> str:
        return f"{self.method} /{'/'.join(self.path)}"

    def match(self, path: Sequence[str]) -> str | None:
        """Return the name in the path ("" if the route has none), or None when this is another route."""
        if len(path) != len(self.path):
            return None
        name = ""
        for wanted, segment in zip(self.path, path, strict=True):
            if wanted == "NAME" and segment:
                name = segment
            elif wanted != segment:
                return None
        return name


ROUTES = (
    Route("GET", ("status",), "status"),
    Route("GET", ("healthz",), "health"),
    Route("GET", ("readyz",), "readiness"),
    Route("GET", ("top",), "top"),
    Route("GET", ("metrics",), "metrics"),
    Route("GET", ("certs",), "ask", "list"),
    Route("GET", ("certs", "NAME"), "ask", "show"),
    Route("DELETE", ("certs", "NAME"), "remove", "remove"),
    Route("GET", ("certs", "NAME", "why"), "ask", "why"),
    Route("POST", ("certs", "NAME", "obtain"), "work", "obtain"),
    Route("POST", ("certs", "NAME", "renew"), "work", "renew"),
    Route("POST", ("certs", "NAME", "revoke"), "work", "revoke"),
    Route("POST", ("certs", "NAME", "announce"), "ask", "announce"),
    Route("GET", ("backends",), "operate", "backends"),
    Route("POST", ("backends", "swap"), "operate", "swap"),
    Route("POST", ("backends", "NAME", "drain"), "operate", "drain"),
    Route("POST", ("backends", "NAME", "resume"), "operate", "resume"),
    Route("GET", ("sites",), "operate", "sites"),
    Route("POST", ("sites", "NAME", "pause"), "operate", "pause"),
    Route("POST", ("sites", "NAME", "resume"), "operate", "unpause"),
    Route("POST", ("reload",), "do", "reload"),
    Route("POST", ("stop",), "do", "stop"),
    Route("POST", ("upgrade",), "do", "upgrade"),
    Route("GET", ("quota",), "ask", "quota"),
    Route("POST", ("accounts", "rollover"), "work", "rollover"),
)


def unknown(path: Sequence[str]) -> str:
    known = ", ".join(str(route) for route in ROUTES)
    return f"there is no /{'/'.join(path)}. There is {known}; a / within NAME is written %2F."


def check_name(name: str) -> None:
    if len(name) > MAX_NAME or not name.isprintable():
        raise Refusal(400, f"a name has at most {MAX_NAME} characters, and no control characters")
