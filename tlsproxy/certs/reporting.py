"""Tell what becomes of ACME certificates: workers by name, people by events, and look whether it is really served.

Knows: what each outcome is called, and for whom. Does not know: who delivers (Events, the control socket), plans.
Rules: workers hear of a new certificate before anybody else; what is served is looked at by a handshake, announced once
more if it is another, and then people are told; nothing here raises.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from tlsproxy.certs.attempt import Failed, Obtained
from tlsproxy.certs.events import EventKind, Events
from tlsproxy.certs.identifiers import ip_address
from tlsproxy.certs.plan import emergency_time
from tlsproxy.certs.problems import FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.quota import OF_ALL
from tlsproxy.certs.served import Mismatch, Result, Served, Unreachable
from tlsproxy.certs.state import needs_alert
from tlsproxy.certs.wanted import Held, Wait, Wanted
from tlsproxy.certs.words import listing

logger = logging.getLogger(__name__)

MOST_HOSTS = 10
"""So many hosts of a site are looked at, by a few handshakes each."""

Announce = Callable[[tuple[str, ...]], None]
"""Takes the names of certificates that workers are to load."""
Look = Callable[[str, str], Awaitable[Result]]
"""(host, serial) -> what our own listeners serve for the host."""


ONCE_IN = timedelta(hours=1)
"""A limit that stops the orders of all names is told once in so long, not by each of them."""


class Reporter:
    """Keeps the contract of the keeper's Audience."""

    # Mutable: mismatched (names that are known to be served with another certificate), failures (attempts, by
    # certificate and kind, until somebody takes them), _told (when it was said of our quota that it grants no orders to
    # anybody, by directory).

    def __init__(self, announce: Announce, events: Events, look: Look | None = None) -> None:
        """Without `look` (no address to connect to) what is served is not looked at."""
        self._announce, self._events, self._look = announce, events, look
        self.mismatched: set[str] = set()
        self.failures: Counter[tuple[str, str]] = Counter()
        self._told: dict[str, datetime] = {}

    def changed(self, names: tuple[str, ...]) -> None:
        self._announce(names)

    async def obtained(self, wanted: Wanted, outcome: Obtained, progress: Progress) -> None:
        held, is_first = outcome.held, outcome.before is None
        self._events.emit(
            EventKind.OBTAINED if is_first else EventKind.RENEWED,
            wanted.name,
            names=wanted.hosts,
            serial=held.serial,
            not_after=held.not_after,
            directory=held.directory,
        )
        await self.check(wanted, held, progress)

    def failed(self, wanted: Wanted, outcome: Failed) -> None:
        state, action = outcome.state, outcome.action
        # Names on demand are what clients ask for: there may be any number of them.
        self.failures["on_demand" if wanted.on_demand else wanted.name, outcome.failure.kind.value] += 1
        if self._is_known(outcome):
            return
        failure, held, now = outcome.failure, outcome.held, state.last_attempt
        if failure.kind is FailureKind.QUOTA and held and now and now < emergency_time(held):
            # Our own refusal, and nothing is wrong with what is served: no alarm.
            logger.info("certificate.quota_refused", extra={"certificate": wanted.name, "error": str(failure)})
            return
        fields: dict[str, Any] = {"next_attempt": action.until} if isinstance(action, Wait) else {}
        if outcome.held:
            fields["not_after"] = outcome.held.not_after
        if state.last_attempt and needs_alert(state, outcome.held, state.last_attempt):
            fields["advice"] = (
                "there has been no certificate for days, so it is tried once a day: mend it, or remove it"
            )
        self._events.emit(
            EventKind.FAILING,
            wanted.name,
            names=wanted.hosts,
            error=str(outcome.failure),
            attempts=state.attempts,
            directory=outcome.failure.directory,
            **fields,
        )

    def _is_known(self, outcome: Failed) -> bool:
        """Tell whether this is a limit of all names that another one has told of within the hour."""
        failure, now = outcome.failure, outcome.state.last_attempt
        if failure.kind is not FailureKind.QUOTA or failure.type != OF_ALL or now is None:
            return False
        told = self._told.get(failure.directory)
        if told is not None and told <= now < told + ONCE_IN:
            return True
        self._told[failure.directory] = now
        return False

    def seen(self, wanted: Wanted, held: Held | None, now: datetime) -> None:
        """A certificate that is renewed in time never gets here: the plan renews before the emergency."""
        if held is None or wanted.on_demand or now < emergency_time(held):
            return
        self._events.emit(EventKind.EXPIRING, wanted.name, names=wanted.hosts, not_after=held.not_after)

    async def check(self, wanted: Wanted, held: Held, progress: Progress) -> None:
        """Look whether what was announced is served; announce it once more if not, look again, then say so."""
        if self._look is None:
            return
        hosts = _to_look_at(wanted.hosts)
        host, result = await self._look_at(self._look, hosts, held.serial)
        if isinstance(result, Mismatch):
            self._announce((wanted.name,))
            host, result = await self._look_at(self._look, hosts, held.serial)
        self.mismatched.discard(wanted.name)
        match result:
            case Served():
                progress(
                    Step("served", wanted.hosts[0], f"the new certificate is served{_extent(hosts, wanted.hosts)}")
                )
            case Unreachable(reason=reason):
                progress(Step("served", host, f"whether it is served can't be seen from here: {reason}"))
                logger.info("certificate.not_looked_at", extra={"certificate": wanted.name, "reason": reason})
            case Mismatch(address=address, serial=serial):
                error = (
                    f"{address} still serves {host} with serial {serial}, not {held.serial}. "
                    "Restart the proxy and look at its log."
                )
                progress(Step("served", host, error))
                self.mismatched.add(wanted.name)
                self._events.emit(EventKind.SERVED_MISMATCH, wanted.name, names=wanted.hosts, error=error)

    async def _look_at(self, look: Look, hosts: Sequence[str], serial: str) -> tuple[str, Result]:
        """Return the first host that is not served with it, and with what it is; the last one if all are."""
        for host in hosts[:-1]:
            result = await look(host, serial)
            if not isinstance(result, Served):
                return host, result
        return hosts[-1], await look(hosts[-1], serial)


def _to_look_at(hosts: Sequence[str]) -> Sequence[str]:
    """Clients of an address send no name and get what `tls.default_host` says; that tells nothing about names."""
    names = [host for host in hosts if ip_address(host) is None]
    return (names or hosts)[:MOST_HOSTS]


def _extent(seen: Sequence[str], hosts: Sequence[str]) -> str:
    if len(hosts) == 1:
        return ""
    return " for all hosts" if len(seen) == len(hosts) else f" for {listing(seen, MOST_HOSTS)}"
