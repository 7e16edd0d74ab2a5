"""Does a backend believe X-Forwarded-Proto? Seen by the scheme of redirects that FastAPI makes by itself.

A path that has a route without the slash at its end (or only with it) is redirected before any code of the application
runs, to an absolute URL with the scheme that the application believes in. /docs and /openapi.json are such routes, and
all that the description of the API lists. Judgement is apart from asking. Rule: only a redirect that just mends the
slash, on the same host, counts; else nothing is said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from enum import Enum
from itertools import islice
from urllib.parse import unquote

from tlsproxy.doctor import servers
from tlsproxy.doctor.asking import Answer, Unanswered, conversation, encoded, split_location
from tlsproxy.doctor.backends import description, look, server_of
from tlsproxy.doctor.facts import Facts
from tlsproxy.doctor.findings import Report
from tlsproxy.doctor.subject import Subject, is_own, listed, templates

CHECK = "scheme"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DESCRIBING = ("/docs/", "/openapi.json/", "/redoc/")
_MOST_LISTED = 3


class Belief(Enum):
    HTTPS = "https"
    HTTP = "http"
    LOOP = "loop"
    """It redirects to https what came over https: it believes http, and sends clients round in circles."""
    NOTHING = "nothing"


def judge(asked: str, host: str, status: int, location: str) -> Belief:
    """Return what an answer for the path `asked` says about the scheme that the application believes in."""
    target = split_location(location)
    if status not in _REDIRECTS or target.hostname != host or target.scheme not in ("http", "https"):
        return Belief.NOTHING
    # An application encodes what it redirects to by its own rules: compared is what is meant.
    asked, path = unquote(asked), unquote(target.path)
    if path.endswith(asked) and target.scheme == "https":
        return Belief.LOOP
    if not path.rstrip("/").endswith(asked.rstrip("/")):
        return Belief.NOTHING
    return Belief(target.scheme)


async def examine(subject: Subject, facts: Facts) -> Report:
    report = Report(subject.about)
    server = await server_of(subject, facts)
    seen: list[str] = []
    async for path, answer in _answers(subject, facts):
        location = answer.get("location")
        seen.append(f"GET {path} → {answer.status}{f' {location}' if location else ''}")
        match judge(path, subject.host, answer.status, location):
            case Belief.HTTPS:
                report.ok(CHECK, "believes X-Forwarded-Proto: its redirects lead to https", details=seen)
                return report
            case Belief.HTTP | Belief.LOOP as belief:
                peer = await _peer(subject)
                fix = servers.believing(server, subject.address, peer)
                report.bad(CHECK, _wrong(belief, peer), fix=fix, details=seen)
                return report
    report.unknown(
        CHECK,
        "no redirect shows which scheme it believes in (no /docs, or redirect_slashes=False). Name a path that it "
        "redirects: --probe PATH",
        details=seen,
    )
    return report


def _wrong(belief: Belief, peer: str) -> str:
    who = f"X-Forwarded-Proto from {peer}" if peer else "X-Forwarded-Proto on its unix socket"
    if belief is Belief.LOOP:
        return f"does not believe {who}: it redirects https to https, without end"
    return f"does not believe {who}: its redirects lead back to http"


async def _answers(subject: Subject, facts: Facts) -> AsyncIterator[tuple[str, Answer]]:
    """Yield paths and their answers, those that cost least first."""
    named = subject.asked.probe
    paths = [subject.target(named)] if named else [f"{base}{path}" for base in _bases(subject) for path in _DESCRIBING]
    for path in paths:
        yield path, await look(subject, facts, path)
    if named:
        return
    _, document = await description(subject, facts, f"{subject.base}/openapi.json")
    for path in _redirected(listed(document)):
        target = encoded(f"{subject.base}{path}")
        yield target, await look(subject, facts, target)


def _bases(subject: Subject) -> list[str]:
    return list(dict.fromkeys((subject.base, "")))


def _redirected(paths: list[str]) -> list[str]:
    """Return paths that the application would redirect: those of the description, with a slash more or less.

    None that it has itself, maybe behind a parameter: nothing but the redirect shall run.
    """
    return list(islice(_toggled(paths), _MOST_LISTED))


def _toggled(paths: list[str]) -> Iterator[str]:
    own = templates(paths)
    for path in paths:
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if "{" not in path and other and not is_own(other, own):
            yield other


async def _peer(subject: Subject) -> str:
    """Return the address from which the backend sees us, and the proxy on this machine; "" for a unix socket."""
    if subject.address.path:
        return ""
    try:
        async with conversation(subject.address) as talk:
            return talk.own_address
    except Unanswered:
        return "127.0.0.1"
