"""Does the prefix that an application believes in (root_path) fit the route that leads to it?

Two settings look alike and are not: uvicorn's --root-path puts the prefix before what it is sent, so the proxy has to
strip it; FastAPI(root_path=…) and the option of other servers expect paths as clients ask for them (docs/fastapi.md).
Asking and judging are apart. Rule: `bad` is only what was seen to fail, a redirect that loses the prefix or a 404 where
the application says it lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tlsproxy.doctor import servers
from tlsproxy.doctor.asking import encoded, split_location
from tlsproxy.doctor.backends import description, look, server_of
from tlsproxy.doctor.facts import Facts
from tlsproxy.doctor.findings import Report
from tlsproxy.doctor.servers import Server
from tlsproxy.doctor.subject import Subject, is_own, listed, templates

CHECK = "root_path"
_UNSEEN = "the application does not show /openapi.json or redirects, which would tell its root_path"
_PROBES = ("/docs/", "/openapi.json/")


@dataclass(frozen=True)
class Seen:
    """What the backend answered. `status`: for openapi.json as the proxy would ask for it; `servers`: its root paths.

    `redirect` is the path that /docs/ was redirected to. Of a route that does not strip and meets 404: `plain` is the
    description that lies at /openapi.json all the same, `is_mounted` whether something lives on the way to the prefix
    (found out only where the description does not tell).
    """

    status: int
    document: dict[str, Any] | None = None
    redirect: str = ""
    plain: dict[str, Any] | None = None
    is_mounted: bool = False


async def examine(subject: Subject, facts: Facts) -> Report:
    report = Report(subject.about_route)
    server = await server_of(subject, facts)
    if subject.prefix:
        seen = await _look(subject, facts)
        (_judge_stripped if subject.route.strip_prefix else _judge_whole)(report, subject, server, seen)
    else:
        await _examine_root(report, subject, facts)
    return report


async def _look(subject: Subject, facts: Facts) -> Seen:
    status, document = await description(subject, facts, f"{subject.base}/openapi.json")
    redirect = ""
    for probe in _PROBES:
        answer = await look(subject, facts, f"{subject.base}{probe}")
        place = split_location(answer.get("location"))
        if 300 <= answer.status < 400 and place.hostname == subject.host and place.path.endswith(probe.rstrip("/")):
            redirect = place.path
            break
    if status != 404 or subject.route.strip_prefix:
        return Seen(status, document, redirect)
    _, plain = await description(subject, facts, "/openapi.json")
    if plain is None or _is_explained(subject.prefix, plain):
        return Seen(status, document, redirect, plain)  # what would be asked now, might run code for nothing
    return Seen(status, document, redirect, plain, await _is_mounted(subject, facts, plain))


async def _is_mounted(subject: Subject, facts: Facts, plain: dict[str, Any]) -> bool:
    """Tell whether any folder on the way to the prefix is something to the application, as a mounted one is.

    A path that the application describes is something, and is not asked for: nobody named that endpoint.
    """
    parts = subject.prefix.split("/")
    above = ["/".join(parts[:end]) for end in range(2, len(parts) + 1)]
    own = templates(listed(plain))
    if any(is_own(unquote(path), own) for path in above):
        return True
    for path in above:
        if (await look(subject, facts, path)).status != 404:
            return True
    return False


def _judge_stripped(report: Report, subject: Subject, server: Server, seen: Seen) -> None:
    prefix = subject.prefix
    if not seen.redirect:
        report.unknown(CHECK, _UNSEEN)
    elif seen.redirect.startswith(f"{prefix}/"):
        report.ok(CHECK, f"knows that it lives under {prefix}: its redirects keep it")
    elif prefix in roots(seen.document) or server.name != "uvicorn" or server.runs_in:
        # This server, or a root_path inside the application, wants the whole path.
        other = servers.prefixed(server, subject.address, prefix, strips=False)
        told = "" if prefix in roots(seen.document) else f"; and in the application: {other}"
        report.bad(
            CHECK,
            f"its redirects lose {prefix}, which the proxy strips, and applications mounted in it are not found",
            fix=f'strip_prefix = false  # of the route with path = "{subject.route.path}"{told}',
        )
    else:
        report.bad(
            CHECK,
            f"its redirects lose {prefix}, which the proxy strips, and /docs asks for /openapi.json without it",
            fix=servers.prefixed(server, subject.address, prefix, strips=True),
        )


def _judge_whole(report: Report, subject: Subject, server: Server, seen: Seen) -> None:
    prefix = subject.prefix
    if seen.document is not None:
        report.ok(CHECK, f"knows that it lives under {prefix}: it answers there")
    elif seen.status != 404 or seen.plain is None:
        report.unknown(CHECK, _UNSEEN)
    elif _has_routes_under(prefix, seen.plain):
        report.ok(CHECK, f"has routes of its own under {prefix}; its documentation lies elsewhere")
    elif prefix in roots(seen.plain):
        report.bad(
            CHECK,
            f"answers 404 to everything: its server puts {prefix} before paths that begin with it already",
            fix=f'strip_prefix = true  # of the route with path = "{subject.route.path}"',
        )
    elif seen.is_mounted:
        report.unknown(CHECK, f"something in it lives on the way to {prefix}, but does not describe itself")
    else:
        report.bad(
            CHECK,
            f"answers 404 to {prefix}/openapi.json and 200 to /openapi.json: it does not know that it lives under "
            f"{prefix}, and the route does not strip it",
            fix=servers.prefixed(server, subject.address, prefix, strips=False),
        )


def _is_explained(prefix: str, plain: dict[str, Any]) -> bool:
    """Tell whether a description alone says why there is none under the prefix."""
    return _has_routes_under(prefix, plain) or prefix in roots(plain)


def _has_routes_under(prefix: str, document: dict[str, Any]) -> bool:
    return any(f"{encoded(path)}/".startswith(f"{prefix}/") for path in listed(document))


async def _examine_root(report: Report, subject: Subject, facts: Facts) -> None:
    """A route for everything: what root_path the application believes in is what its documentation page asks for."""
    _, document = await description(subject, facts, "/openapi.json")
    if document is None:
        report.unknown(CHECK, _UNSEEN)
        return
    found = roots(document)
    if not found:
        report.ok(CHECK, "has none, and the route strips none")
        return
    status, below = await description(subject, facts, f"{found[0]}/openapi.json")
    if below is not None:
        report.ok(CHECK, f"{found[0]}, and it answers there")
    elif status == 404 and not subject.settings.server.trusted_proxies:
        report.bad(
            CHECK,
            f"it believes that it lives under {found[0]}, where it answers 404: its documentation page stays empty",
            fix=f'path = "{found[0]}"; strip_prefix = true  # in [[sites.routes]] of {subject.host}, '
            f"or start it without the root path {found[0]}",
        )
    else:
        report.unknown(CHECK, f"it believes that it lives under {found[0]}; a proxy before this one may strip that")


def roots(document: dict[str, Any] | None) -> list[str]:
    """Return the root paths that a description names: FastAPI puts its own among the servers."""
    listed = (document or {}).get("servers")
    urls = [each.get("url") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [encoded(url.rstrip("/")) for url in urls if isinstance(url, str) and url.startswith("/") and url.strip("/")]
