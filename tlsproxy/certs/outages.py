"""CAs that are away, or that grant nothing to anybody for now: a few names find out, all others wait.

    at work ──── a limit for all, no way to the CA, three names in a row ────> left alone until …
       ^                                                                        │
       └───── any answer about a name ───── one name asks: the probe <──────────┘ <── it fails: left alone for longer

Knows: which failures tell something about a CA rather than about a name, how long to leave it alone. Does not know:
plans, requests. Rules: who waits has not failed, so nothing is counted or stored for it; one per process, because
another finds out with an order or two, and a restart begins with hope; a person may always ask, though not against a
limit of the CA.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.retries import LONGEST_RETRY_AFTER
from tlsproxy.certs.words import moment

if TYPE_CHECKING:  # tools.py brings asyncio with it, and the command line reads Outage
    from tlsproxy.certs.tools import Clock

logger = logging.getLogger(__name__)

SHORTEST, LONGEST = timedelta(minutes=1), timedelta(minutes=10)
"""Pauses: the first, doubled by each probe that fails, up to the longest; give or take a fifth."""
IN_A_ROW = 3
"""So many names that meet the same trouble, and it is the CA's."""
PROBING = timedelta(seconds=30)
"""Until the next look of all others while one asks."""
FORGOTTEN = timedelta(minutes=30)
"""After so long without a probe nobody can say that the CA has been away all the time."""

_PASSING = frozenset({FailureKind.UNREACHABLE, FailureKind.BUSY})
_ANSWERS = frozenset(
    {
        *(FailureKind.VALIDATION, FailureKind.REFUSED, FailureKind.BAD_ORDER),
        *(FailureKind.ALREADY_REPLACED, FailureKind.ACCOUNT_GONE, FailureKind.RATE_LIMITED),
    }
)
_BEFORE_ORDERS = frozenset({"directory", "account"})
# Boulder's words (letsencrypt.org/docs/rate-limits): a limit of a name says "certificates" or "authorizations".
_OF_ONE_NAME = re.compile(r"(?i)certificates|authorizations|identifier|domain|hostname")
_OF_ALL = re.compile(r"(?i)new orders|registrations|accounts|this account|IP address|this IP|subnet")


@dataclass(frozen=True, slots=True)
class Outage:
    """A CA that is not asked before `until`. `is_limit`: it works, but grants nothing more to our account or address.

    `error` is the sentence of the failure that told.
    """

    directory: str
    since: datetime
    until: datetime
    is_limit: bool = False
    error: str = ""

    @property
    def words(self) -> str:
        """What goes into the middle of a sentence."""
        if self.is_limit:
            return f"the CA {self.directory} grants nothing more before {moment(self.until)}"
        since, until = moment(self.since), moment(self.until)
        return f"the CA {self.directory} has been out of service since {since}; it is tried again on {until}"


@dataclass(slots=True)
class _Line:
    """What is known of one CA. `failed`: names in a row; `length` of the last pause; `probe`: the name that asks."""

    failed: set[str] = field(default_factory=set)
    outage: Outage | None = None
    length: timedelta = timedelta()
    probe: str = ""


class Outages:
    """All CAs of one process. For one event loop."""

    # Mutable: _lines (by directory).

    def __init__(self, now: Clock, rnd: Callable[[], float] = random.random) -> None:
        self._now, self._rnd = now, rnd
        self._lines: dict[str, _Line] = {}

    def __repr__(self) -> str:
        return f"<Outages {', '.join(self.away()) or 'none'}>"

    def away(self, name: str = "", *, by_hand: bool = False, force: bool = False) -> Mapping[str, Outage]:
        """Return the CAs that are not to be asked now for this certificate, by directory.

        When a pause is over they are left out, for the first who asks; while that one does, they are away to others.
        """
        found, now = {}, self._now()
        for directory, line in self._lines.items():
            outage = line.outage
            if outage is None or (by_hand and (force or not outage.is_limit)):
                continue
            if _is_in_force(line, now):
                found[directory] = outage
            elif line.probe not in ("", name):
                found[directory] = replace(outage, until=now + PROBING)
        return found

    @contextmanager
    def asking(self, directory: str, name: str) -> Iterator[None]:
        """Enclose an order for a certificate: what it raises, or that it raises nothing, tells how the CA is."""
        line = self._lines.setdefault(directory, _Line())
        if line.outage and not line.probe and not _is_in_force(line, self._now()):
            line.probe = name
        try:
            yield
        except AcmeFailure as failure:
            self._failed(line, directory, name, failure)
            raise
        else:
            self._answered(line)
        finally:
            if line.probe == name:
                line.probe = ""

    def _failed(self, line: _Line, directory: str, name: str, failure: AcmeFailure) -> None:
        if _is_for_all(failure):
            self._leave_alone(line, directory, name, failure)
        elif _may_be_for_all(failure):
            line.failed.add(name)
            if len(line.failed) >= IN_A_ROW or line.outage:
                self._leave_alone(line, directory, name, failure)
        elif failure.kind in _ANSWERS:
            self._answered(line)

    def _answered(self, line: _Line) -> None:
        """The CA works. Orders from before it reached a limit may still end well, which says nothing of new ones."""
        line.failed.clear()
        if line.outage is None or (line.outage.is_limit and _is_in_force(line, self._now())):
            return
        logger.info("acme.ca_back", extra={"directory": line.outage.directory, "since": line.outage.since.isoformat()})
        line.outage, line.length = None, timedelta()

    def _leave_alone(self, line: _Line, directory: str, name: str, failure: AcmeFailure) -> None:
        now, before = self._now(), line.outage
        if before is None or now > before.until + FORGOTTEN or now < before.since:
            before, line.length = None, timedelta()
        is_late = before is not None and now < before.until and line.probe != name  # it began before the pause
        length = line.length if is_late else min(max(line.length * 2, SHORTEST), LONGEST)
        is_limit = failure.kind not in _PASSING
        pause = timedelta() if is_late else length * (0.8 + 0.4 * self._rnd())
        until = _pause_end(failure, now, pause, is_limit=is_limit)
        if is_late and before and until <= before.until:
            return
        line.length = length
        line.failed.clear()
        line.outage = Outage(directory, before.since if before else now, until, is_limit, str(failure))
        extra = {"directory": directory, "until": until.isoformat(), "error": str(failure)}
        logger.warning("acme.ca_away", extra=extra)


def _pause_end(failure: AcmeFailure, now: datetime, pause: timedelta, *, is_limit: bool) -> datetime:
    """A limit ends when the CA says so. Trouble may take longer than a busy CA thinks, so it lasts no less."""
    if failure.retry_at is None:
        return now + pause
    told = min(failure.retry_at, now + LONGEST_RETRY_AFTER)
    return max(told, now + timedelta(seconds=1)) if is_limit else max(told, now + pause)


def _is_in_force(line: _Line, now: datetime) -> bool:
    """Tell whether nobody is to ask. A clock that was set back ends the pause: nobody knows how long it was."""
    return line.outage is not None and line.outage.since - LONGEST < now < line.outage.until


def _is_for_all(failure: AcmeFailure) -> bool:
    """Tell whether any other name would have met the same."""
    if failure.kind is FailureKind.RATE_LIMITED:
        return failure.step in _BEFORE_ORDERS or _limits_all(failure)
    if failure.kind is FailureKind.QUOTA:
        return failure.step == "account"
    return failure.kind in _PASSING and failure.step in _BEFORE_ORDERS


def _may_be_for_all(failure: AcmeFailure) -> bool:
    if failure.kind is FailureKind.RATE_LIMITED:
        return not failure.identifier and not _OF_ONE_NAME.search(failure.detail)
    # Without a status and a type it is our own patience that has ended, as with a name that takes the CA long.
    return failure.kind in _PASSING and failure.step != "validation" and bool(failure.status or failure.type)


def _limits_all(failure: AcmeFailure) -> bool:
    return not failure.identifier and not _OF_ONE_NAME.search(failure.detail) and bool(_OF_ALL.search(failure.detail))
