"""Tell the world what became of a certificate: always the log, and if configured a program and a URL.

Knows: kinds of events, how a program and a webhook are called. Does not know: who obtains certificates, how often an
event is worth a call (throttle.py does). Rules: `emit` neither blocks nor raises, so nothing that hears an event can
hold up a renewal; what can't be delivered is counted and said, never piled up; no key material goes out, whatever a
caller hands in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import requests

from tlsproxy import __version__
from tlsproxy.certs.throttle import Throttle
from tlsproxy.certs.tools import Clock, utc_now

logger = logging.getLogger(__name__)

WEBHOOK_TIMEOUT = 5.0
COMMAND_TIMEOUT = 30.0
"""Seconds. A program may well send a mail; a URL has only to take the event."""
QUEUE = 100
"""Events that wait for their delivery; more are dropped and counted."""

_COMPLAINT_EVERY = timedelta(minutes=1)
_TAIL = 300  # characters of a program's output in the log
_OWN_VARIABLES = "TLSPROXY_"
_TAKEN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class EventKind(StrEnum):
    """What can become of a certificate."""

    OBTAINED = "obtained"
    RENEWED = "renewed"
    FAILING = "failing"
    """An attempt failed; there will be others."""
    EXPIRING = "expiring"
    """What is served ends soon, and no successor has been obtained."""
    REVOKED = "revoked"
    SERVED_MISMATCH = "served_mismatch"
    """The store has a new certificate, the own listener still serves another one."""


_ALARMS = frozenset({EventKind.FAILING, EventKind.EXPIRING, EventKind.SERVED_MISMATCH})


class Events:
    """One per certifier. Made and used on the event loop; `close` ends it."""

    # Mutable: _throttle, _waiting (bodies to deliver), _delivery (the task that does), _program (the one that runs),
    # _complained (when, by hook), _unsaid (failures since then), _dropped (since the last event that was delivered).

    def __init__(self, command: Sequence[str] = (), webhook: str = "", *, now: Clock = utc_now) -> None:
        self._hooks: dict[str, Callable[[dict[str, Any]], None]] = {}
        if command:
            self._hooks["events.command"] = lambda event: self._run(list(command), event)
        if webhook:
            self._hooks["events.webhook"] = lambda event: _post(webhook, event)
        self._now = now
        self._throttle = Throttle()
        self._waiting: list[dict[str, Any]] = []
        self._delivery: asyncio.Task[None] | None = None
        self._program: subprocess.Popen[bytes] | None = None
        self._threads = ThreadPoolExecutor(2, "events") if self._hooks else None
        self._complained: dict[str, datetime] = {}
        self._unsaid: dict[str, int] = {}
        self._dropped = 0

    def emit(self, kind: EventKind | str, certificate: str, **fields: Any) -> None:
        """Tell what happened to the certificate of this name. Fields are texts, numbers, times, lists of them.

        `expiring` is a state, and may be told with every look: the log has it when it is due again.
        """
        kind, now = EventKind(kind), self._now()
        told = {key: _plain(value) for key, value in fields.items()}
        is_due = self._throttle.is_due(kind, certificate, now)
        level = logging.WARNING if kind in _ALARMS else logging.INFO
        if kind is EventKind.EXPIRING and not is_due:
            level = logging.DEBUG
        extra = {f"{key}_" if key in _TAKEN else key: value for key, value in told.items()}
        logger.log(level, "certificate.%s", kind, extra={"certificate": certificate, **extra})
        if is_due and self._has_room(now):
            self._throttle.count(kind, certificate, now)
            if self._threads is not None:
                self._enqueue({**told, "event": str(kind), "certificate": certificate, "ts": _plain(now)})

    async def close(self, timeout: float = WEBHOOK_TIMEOUT) -> None:
        """Deliver what waits, as far as that is possible within `timeout` seconds; end the program that runs then."""
        if self._delivery is not None:
            await asyncio.wait([self._delivery], timeout=timeout)
            self._delivery.cancel()
            await asyncio.gather(self._delivery, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._program is not None:
            _stop(self._program)

    def _has_room(self, now: datetime) -> bool:
        if self._threads is None or (len(self._waiting) < QUEUE and self._throttle.has_room(now)):
            return True
        self._dropped += 1
        self._complain("events", "too many at once, some were not told")
        return False

    def _enqueue(self, event: dict[str, Any]) -> None:
        self._waiting.append(event)
        if self._delivery is None or self._delivery.done():
            self._delivery = asyncio.get_running_loop().create_task(self._deliver())

    async def _deliver(self) -> None:
        while self._waiting:
            event = self._waiting.pop(0)
            if self._dropped:
                event, self._dropped = {**event, "dropped": self._dropped}, 0
            for name, hook in self._hooks.items():
                await self._call(name, hook, event)

    async def _call(self, name: str, hook: Callable[[dict[str, Any]], None], event: dict[str, Any]) -> None:
        limit = WEBHOOK_TIMEOUT if name == "events.webhook" else COMMAND_TIMEOUT + 5.0
        try:
            # A thread can't be stopped: one that hangs is left behind, there is a second one.
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().run_in_executor(self._threads, hook, event)
        except TimeoutError:
            self._complain(name, f"no answer within {limit:g} s")
        except _HookFailed as error:
            self._complain(name, str(error))
        except Exception:
            logger.exception("events.hook_broken", extra={"hook": name})

    def _complain(self, name: str, reason: str) -> None:
        """Say it, but not once per event while something is down."""
        now = self._now()
        self._unsaid[name] = self._unsaid.get(name, 0) + 1
        last = self._complained.get(name)
        if last is not None and last <= now < last + _COMPLAINT_EVERY:
            return
        failures, self._unsaid[name], self._complained[name] = self._unsaid[name], 0, now
        logger.warning("events.hook_failed", extra={"hook": name, "reason": reason, "failures": failures})

    def _run(self, command: list[str], event: dict[str, Any]) -> None:
        """Run the program with the event on its stdin. No shell sees an argument. Blocks."""
        name = Path(command[0]).name
        # A file, not a pipe: what the program leaves running in the background can't hold us up by keeping it open.
        with tempfile.TemporaryFile() as output:
            try:
                process = self._program = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=output,
                    env=_environment(event),
                    start_new_session=True,
                )
            except OSError as error:
                raise _HookFailed(f"{name} can't be started: {error.strerror}") from error
            try:
                process.communicate(json.dumps(event).encode(), COMMAND_TIMEOUT)
            except subprocess.TimeoutExpired:
                _stop(process)
                process.communicate()
                raise _HookFailed(f"{name} was stopped after {COMMAND_TIMEOUT:g} s") from None
            finally:
                self._program = None
            if process.returncode:
                output.seek(0)
                said = " ".join(output.read(64 * 1024).decode(errors="replace").split())[-_TAIL:]
                raise _HookFailed(f"{name} ended with {process.returncode}: {said or 'no word on stderr'}")

    def __repr__(self) -> str:
        return f"<Events {len(self._waiting)} waiting, {self._dropped} dropped>"


class _HookFailed(Exception):
    """A program or URL did not take an event; the text is a reason for the log."""


def _plain(value: Any) -> Any:
    """Return what JSON can hold; private keys are no matter of an event."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return "(removed: holds a private key)" if "PRIVATE KEY" in text else text


def _environment(event: dict[str, Any]) -> dict[str, str]:
    """Return ours without our own variables, which hold keys."""
    environment = {key: text for key, text in os.environ.items() if not key.startswith(_OWN_VARIABLES)}
    told = {f"{_OWN_VARIABLES}{key.upper()}": str(event[key]) for key in ("event", "certificate")}
    return {**environment, **told}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a program that still runs, with its children: it leads a process group of its own."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _post(url: str, event: dict[str, Any]) -> None:
    """Send the event. The URL may hold a token: no error repeats it."""
    headers = {"Content-Type": "application/json", "User-Agent": f"tlsproxy/{__version__}"}
    try:
        with requests.post(
            url, data=json.dumps(event), headers=headers, timeout=WEBHOOK_TIMEOUT, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
    except requests.RequestException as error:
        raise _HookFailed(_network_reason(error)) from None
    if not 200 <= status < 300:
        raise _HookFailed(f"the URL has answered with status {status}")


def _network_reason(error: requests.RequestException) -> str:
    """The library's own text repeats the URL; what the system said is in there somewhere."""
    if isinstance(error, requests.Timeout):
        return f"no answer within {WEBHOOK_TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "the URL's TLS certificate is not trusted"
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else type(error).__name__
