"""`tlsproxy admin status`: what runs and how it is, in a table, as JSON, or as one line and an exit code for probes.

Knows the shape of the status and how to show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target
from tlsproxy.cli.output import harmless, say, say_fields, say_json
from tlsproxy.errors import TlsproxyError

CHECK_PATIENCE = 4.0
"""Seconds: less than what Docker and Kubernetes usually give to a probe."""

CheckOption = Annotated[bool, typer.Option("--check", help="Say in one line whether it serves; exit code 0 or 1.")]


def status(
    config: ConfigOption = None, socket: SocketOption = None, check: CheckOption = False, as_json: JsonOption = False
) -> None:
    """Show what runs: processes, listeners, backends, certificates."""
    target = Target(config, socket)
    if check:
        _check(target, as_json=as_json)
        return
    found = target.client.get("status")
    if as_json:
        say_json(found)
    else:
        say_fields(_fields(found, datetime.now(UTC)))


def _check(target: Target, *, as_json: bool) -> None:
    """For Docker's HEALTHCHECK, which knows 0 and 1 only: a proxy that does not run is 1 too.

    One that waits for its first certificate is 0: who is ended for that never gets one.
    """
    found, is_known = _look(target)
    if as_json:
        say_json({name: found[name] for name in ("serving", "ready", "not_ready")})
    else:
        say(harmless(_verdict(found, is_known=is_known)))
    if not found["serving"]:
        raise typer.Exit(1)


def _look(target: Target) -> tuple[Mapping[str, Any], bool]:
    """Return the status, and whether that is known: not where nobody says whom to ask, or this user may not ask."""
    from tlsproxy.runtime.adminclient import AdminClient, NoAccess

    is_known = False
    try:
        client = AdminClient(target.client.path, patience=CHECK_PATIENCE)
        is_known = True
        return client.get("status"), is_known
    except TlsproxyError as reason:
        found = {"serving": False, "ready": False, "not_ready": [str(reason)]}
        return found, is_known and not isinstance(reason, NoAccess)


def _verdict(found: Mapping[str, Any], *, is_known: bool) -> str:
    if not is_known:
        return f"not known: {'; '.join(found['not_ready'])}"
    if not found["ready"]:
        state = "serving, not ready" if found["serving"] else "not serving"
        return f"{state}: {'; '.join(found['not_ready'])}"
    workers = sum(row["connections"] is not None for row in found["workers"])
    counts = found["certificates"] or {}
    certificates = ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "not known"
    return f"ready: {workers} of {len(found['workers'])} workers answer; certificates: {certificates}"


def _fields(found: Mapping[str, Any], now: datetime) -> list[tuple[str, str]]:
    started, counts = datetime.fromisoformat(found["started"]), found["certificates"]
    certificates = ", ".join(f"{number} {state}" for state, number in counts.items()) if counts else "not known"
    certifier = found["certifier"]
    fields = [
        ("version", found["version"]),
        ("pid", f"{found['pid']}, generation {found['generation']}"),
        ("started", f"{found['started']} ({_age((now - started).total_seconds())} ago)"),
        ("ready", "yes" if found["ready"] else f"no: {'; '.join(found['not_ready'])}"),
        ("listeners", "\n".join(found["listeners"])),
        ("sites", str(found["sites"])),
        ("paused", ", ".join(found["paused"])),
        ("backends", ", ".join(f"{number} {state}" for state, number in sorted(found["backends"].items())) or "none"),
        ("workers", "\n".join(map(_worker, found["workers"])) or "none at the moment"),
        ("draining", "\n".join(map(_draining, found["draining"]))),
        ("certifier", f"pid {certifier['pid'] or '-'}, {certifier['state']}"),
        ("certificates", certificates),
    ]
    return [(name, value) for name, value in fields if value]


def _worker(row: Mapping[str, Any]) -> str:
    if row["connections"] is None:
        return f"pid {row['pid']}, does not answer"
    return f"pid {row['pid']}, {row['connections']} connections, {row['requests']} requests"


def _draining(row: Mapping[str, Any]) -> str:
    pids = ", ".join(map(str, row["workers"])) or "no worker left"
    return f"generation {row['generation']}, pid {pids}, for {_age(row['seconds_left'])} at most"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
