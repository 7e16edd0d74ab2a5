"""Wait until every authoritative server of a zone shows a TXT record, because a CA may ask any of them.

Knows: servers, what each has answered so far, how long to wait. Does not know: how a record is made, the CA.
Rules: a server that shows another answer holds us up, and the failure names it with that answer; one that answers
nobody holds us up for a moment only, as the CA gets no answer from it either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from tlsproxy.certs.dns.lookup import Answer, Lookup, Server
from tlsproxy.errors import TlsproxyError

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]


class NotVisible(TlsproxyError):
    """A server still shows something else at the end of our patience."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long dns-01 waits, in seconds.

    `provider` is for one call of a provider, `propagation` for all servers to show the record, `period` lies between
    two looks. After `silence`, a server that has never answered counts no more if all others show the record.
    """

    provider: float = 120.0
    propagation: float = 120.0
    period: float = 2.0
    silence: float = 10.0


class Verdict(Enum):
    """What a server says about the value."""

    SHOWS = "shows"
    LAGS = "lags"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at one server: the verdict over all its addresses, and in words what the worst of them said."""

    server: Server
    verdict: Verdict
    text: str


async def wait_until_visible(
    lookup: Lookup, servers: Sequence[Server], name: str, value: str, timeouts: Timeouts, tell: Tell
) -> None:
    """Return when all servers show the value. Raises NotVisible; `tell` hears whom we wait for.

    If no server can be reached from here at all (a firewall in front of port 53), the wait becomes a fixed delay: the
    CA may well reach them, and there is a warning in the log.
    """
    clock = asyncio.get_running_loop().time
    begin = clock()
    waiting, told = list(servers), ""
    while True:
        looks = await asyncio.gather(*(_look(lookup, server, name, value) for server in waiting))
        behind = [each for each in looks if each.verdict is not Verdict.SHOWS]
        waiting = [each.server for each in behind]
        left = begin + timeouts.propagation - clock()
        if not behind or _may_go(behind, len(servers), name, clock() - begin, timeouts):
            return
        if left <= 0:
            raise NotVisible(_lagging(name, behind, timeouts.propagation))
        words = f"waiting for {_words(behind)}"
        if words != told:
            tell(words)
            told = words
        await asyncio.sleep(min(timeouts.period, left))


def _may_go(behind: Sequence[Look], servers: int, name: str, waited: float, timeouts: Timeouts) -> bool:
    """Tell whether only servers are left that answer nobody, and they have had their time."""
    if any(each.verdict is Verdict.LAGS for each in behind):
        return False
    nobody = len(behind) == servers
    if waited < (timeouts.propagation if nobody else timeouts.silence):
        return False
    advice = "allow DNS (port 53, UDP and TCP) out of this machine" if nobody else "repair this server or remove its NS"
    extra = {"record": name, "servers": _words(behind), "advice": advice}
    logger.warning("dns.servers_silent", extra=extra)
    return True


async def _look(lookup: Lookup, server: Server, name: str, value: str) -> Look:
    """Ask all addresses. One that can't be reached is overlooked beside one that can: we may have no IPv6."""
    answers = await asyncio.gather(*(lookup.ask(address, name) for address in server.addresses))
    heard = [(address, each) for address, each in zip(server.addresses, answers, strict=True)]
    lagging = [(address, each) for address, each in heard if each.is_reached and value not in each.values]
    if lagging:
        return Look(server, Verdict.LAGS, _said(server, lagging))
    if any(each.is_reached for each in answers):
        return Look(server, Verdict.SHOWS, "")
    return Look(server, Verdict.SILENT, _said(server, heard))


def _said(server: Server, heard: Sequence[tuple[str, Answer]]) -> str:
    if not heard:
        return f"{server.name} (has no address)"
    address, answer = heard[0]
    return f"{server.name} ({address}: {answer})"


def _words(behind: Iterable[Look]) -> str:
    return ", ".join(each.text for each in behind)


def _lagging(name: str, behind: Sequence[Look], seconds: float) -> str:
    return (
        f"the TXT record {name} is not at all servers of its zone after {seconds:g} s: {_words(behind)}. "
        "See why these servers don't follow their primary, or raise acme.dns.propagation."
    )
