"""What is asked about one backend: whether it answers, who it is, whether it keeps up with how the proxy uses it.

Knows the questions and their answers; the judgements that need more than a line are in `schemes`, `prefixes` and
`streams`. Rules: GET only, on paths that describe the application or that it does not have, unless the command line
names one; one look at the description of the API serves all questions.
"""

from __future__ import annotations

import base64
import json
import secrets
from functools import partial
from typing import Any

from tlsproxy.doctor import servers
from tlsproxy.doctor.asking import Answer, Unanswered, ask, conversation, in_url
from tlsproxy.doctor.facts import Facts, in_thread
from tlsproxy.doctor.findings import Report
from tlsproxy.doctor.processes import find_server
from tlsproxy.doctor.servers import Server
from tlsproxy.doctor.subject import Subject, openapi
from tlsproxy.proxy.pool import Backend, idle_limit_of
from tlsproxy.wire.websocket import close_frame

REACHABLE, IDLE, WEBSOCKET = "backend", "keep-alive", "WebSocket"
LONGEST_IDLE = 10.0
"""Seconds that a silent connection is watched."""

_TIMEOUT = 5.0
_NORMAL_CLOSURE = 1000
_RUN_AS = "Run this as the user that runs the proxy (with sudo, if that is root)."


async def look(subject: Subject, facts: Facts, path: str) -> Answer:
    """Return the answer for a path of the backend; it is asked for once. Raises Unanswered."""
    timeout = _TIMEOUT

    async def find() -> Answer:
        return await ask(subject.address, path, subject.host, subject.fields(), timeout=timeout)

    return await facts.once(("look", subject.address.url, subject.host, subject.route.path, path), find)


async def description(subject: Subject, facts: Facts, path: str) -> tuple[int, dict[str, Any] | None]:
    """Return the status for an openapi.json at a path of the backend, and the document if it is one."""
    answer = await look(subject, facts, path)
    try:
        return answer.status, openapi(json.loads(answer.body)) if answer.status == 200 and answer.is_whole else None
    except (ValueError, RecursionError):
        return answer.status, None


async def server_of(subject: Subject, facts: Facts) -> Server:
    """Return who answers there. Raises Unanswered."""
    answer = await look(subject, facts, f"{subject.base}/openapi.json")
    find = partial(find_server, subject.address, servers.product(answer.get("server")))
    return await facts.once(("server", subject.address.url), partial(in_thread, find))


async def examine_reach(subject: Subject, facts: Facts) -> Report:
    """Does it answer, and who is it?"""
    report = Report(subject.about)
    try:
        server = await server_of(subject, facts)
    except Unanswered as error:
        await _tell_unanswered(report, subject, error)
        return report
    answer = await look(subject, facts, f"{subject.base}/openapi.json")
    details = [f"process {server.pid}"] if server.pid else []
    text = f"answers in {1000 * answer.head_after:.0f} ms; {server}"
    if server.name in servers.KNOWN and not server.version:
        details.append("its version is not said, and its process is not seen from here")
    report.ok(REACHABLE, text, details=details)
    return report


async def _tell_unanswered(report: Report, subject: Subject, error: Unanswered) -> None:
    address = subject.address
    start = f"{servers.starting(Server(), address)}  # or your own command, to listen there"
    match error.kind:
        case "refused" | "missing":
            report.bad(REACHABLE, f"nobody listens there ({error})", fix=start)
        case "forbidden":
            report.unknown(REACHABLE, f"this user may not connect ({error}). {_RUN_AS}", fix="sudo tlsproxy doctor")
        case "name":
            host = address.host
            report.bad(REACHABLE, f"the name {host} does not resolve ({error})", fix=f"getent hosts {host}")
        case "garbage" if address.is_http2:
            plain = f'backends = ["{address.url.replace("h2c://", "http://").removeprefix("h2c+")}"]'
            await _tell_garbage(report, subject, error, plain)
        case "timeout":
            # It may be a firewall, a busy loop, or an application that takes its time for this one question.
            report.unknown(REACHABLE, f"{error}; a firewall, or it is busy", fix=_curl(subject))
        case _:
            report.unknown(REACHABLE, str(error), fix=_curl(subject))


async def _tell_garbage(report: Report, subject: Subject, error: Unanswered, fix: str) -> None:
    report.bad(REACHABLE, f"it listens, but does not speak HTTP/2 without TLS ({error})", fix=fix)


def _curl(subject: Subject) -> str:
    address = subject.address
    unix = f"--unix-socket {address.path} " if address.path else ""
    place = "localhost" if address.path else address.bind
    version = "--http2-prior-knowledge " if address.is_http2 else ""
    return f"curl -i {version}{unix}-H 'Host: {in_url(subject.host)}' http://{place}{subject.base}/openapi.json"


# --- for how long it keeps connections that are idle


async def examine_idle(subject: Subject, facts: Facts) -> Report:
    """Is a connection, left alone, still there when the proxy would use it again?"""
    report = Report(subject.about)
    server = await server_of(subject, facts)
    ours = idle_limit_of(server.name.encode(), Backend.idle_default)
    if subject.address.is_http2:
        report.ok(IDLE, "one HTTP/2 connection is kept, and looked after with PING")
        return report
    async with conversation(subject.address) as talk:
        await talk.ask(subject.nowhere(), subject.host, subject.fields(), timeout=_TIMEOUT)
        if not talk.may_go_on:
            report.ok(IDLE, "closes after each answer: nothing can go stale, each request costs a new connection")
            return report
        watched = min(ours + 0.2, LONGEST_IDLE)
        lasted = await talk.wait_for_close(watched)
    _judge_idle(report, subject, server, ours, watched, lasted)
    return report


def _judge_idle(
    report: Report, subject: Subject, server: Server, ours: float, watched: float, lasted: float | None
) -> None:
    if lasted is not None and lasted < ours:
        longer = int(ours) + 1
        report.bad(
            IDLE,
            f"closes idle connections after {lasted:.1f} s, the proxy keeps them for {ours:g} s: requests may meet one "
            "that is just being closed (it learns, and repeats what may be repeated, which a POST may not)",
            fix=servers.staying(server, subject.address, longer),
        )
    elif watched >= ours:
        report.ok(IDLE, f"keeps idle connections for more than {ours:g} s, which is how long the proxy does")
    else:
        report.unknown(
            IDLE, f"still open after {watched:g} s; the proxy keeps connections for {ours:g} s, longer was not watched"
        )


# --- WebSocket


async def examine_websocket(subject: Subject, facts: Facts) -> Report:
    """Does an upgrade arrive? On a path that was named, it has to succeed; else the server's answer tells."""
    report = Report(subject.about)
    named = subject.asked.websocket
    if subject.address.is_http2:
        report.unknown(WEBSOCKET, "not tried over HTTP/2; use an http:// backend for WebSockets")
        return report
    server = await server_of(subject, facts)
    answer = await _upgrade(subject, subject.target(named) if named else subject.nowhere())
    if named:
        _judge_named(report, subject, server, answer)
    elif answer.status in (101, 403):
        # An ASGI server that gets no websocket.accept answers 403; what it takes for plain HTTP is a 404.
        report.ok(WEBSOCKET, f"the server takes upgrades ({answer.status} for a path that does not exist)")
    else:
        hint = servers.with_websockets(server, subject.address)
        text = f"an upgrade on a path that does not exist is answered as plain HTTP ({answer.status})"
        note = "; if the application has WebSockets, its server does not take them" if answer.status == 404 else ""
        report.unknown(WEBSOCKET, f"{text}{note}. To be sure, name a path: --websocket PATH", fix=hint)
    return report


async def _upgrade(subject: Subject, target: str) -> Answer:
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    fields = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **subject.fields(),
    }
    async with conversation(subject.address) as talk:
        answer = await talk.ask(target, subject.host, fields, timeout=_TIMEOUT)
        if answer.status == 101:
            talk.send(close_frame(_NORMAL_CLOSURE, masked=True))
        return answer


def _judge_named(report: Report, subject: Subject, server: Server, answer: Answer) -> None:
    path = subject.asked.websocket
    if answer.status == 101:
        report.ok(WEBSOCKET, f"{path} is accepted (101)")
    elif answer.status in (401, 403):
        report.unknown(WEBSOCKET, f"{path} is refused ({answer.status}): there is no such path, or it wants a login")
    elif hint := servers.with_websockets(server, subject.address):
        report.bad(WEBSOCKET, f"{path}: the upgrade is answered as plain HTTP ({answer.status})", fix=hint)
    else:
        report.unknown(WEBSOCKET, f"{path}: the upgrade is answered with {answer.status}")
