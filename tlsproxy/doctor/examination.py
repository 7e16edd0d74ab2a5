"""All questions of one examination, asked at once, each with a deadline; findings come in the order of the questions.

Knows which questions there are for a configuration, not their answers. Rules: the whole takes no longer than LONGEST,
however many sites there are; a question that gets no time, or fails by itself, ends as `unknown` and never hides
another; one backend is asked once for a host, whatever number of names lead to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tlsproxy.doctor import authorities, backends, certificates, machine, names, ports, prefixes, schemes, streams
from tlsproxy.doctor.asking import Address, Unanswered
from tlsproxy.doctor.findings import MACHINE, Finding, Report
from tlsproxy.doctor.house import House
from tlsproxy.doctor.subject import Asked, Subject, concrete, whose
from tlsproxy.runtime.preflight_acme import asks_ca
from tlsproxy.settings import Site
from tlsproxy.settings.values import as_address

LONGEST = 18.0
"""Seconds for everything."""
AT_ONCE = 100
"""Questions under way in each lane."""
_EACH = 15.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """`answer` raises nothing but Unanswered, which is a backend's silence; `reach` has told of that.

    `lane`: those that wait for the same kind of thing; a resolver that is away must not take the time of all others.
    """

    about: str
    check: str
    answer: Callable[[], Awaitable[Report]]
    lane: str = "own"


async def examine(
    house: House, sites: Sequence[tuple[Site, str]], progress: Progress = lambda _: None
) -> list[Finding]:
    """Return the findings about the machine, and about these hosts with their sites and backends."""
    questions = list(_questions(house, sites))
    turns: defaultdict[str, asyncio.Semaphore] = defaultdict(partial(asyncio.Semaphore, AT_ONCE))
    ends = asyncio.get_running_loop().time() + LONGEST
    try:
        answers = await asyncio.gather(
            *(_ask(question, turns[question.lane], ends, progress) for question in questions)
        )
    finally:
        await house.facts.close()
    return [finding for findings in answers for finding in findings]


async def _ask(question: Question, turn: asyncio.Semaphore, ends: float, progress: Progress) -> list[Finding]:
    report = Report(question.about)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(ends), turn, asyncio.timeout_at(min(ends, loop.time() + _EACH)):
            found = (await question.answer()).findings
    except TimeoutError:
        report.unknown(question.check, "no answer in the time there was", fix=f"tlsproxy doctor {question.about}")
        found = report.findings
    except Unanswered as error:
        report.unknown(question.check, f"not seen: {error}")
        found = report.findings
    except Exception as error:  # noqa: BLE001 - one check that fails must not hide what the others found
        report.unknown(question.check, f"this check failed by itself ({type(error).__name__}: {error}); this is a bug")
        found = report.findings
    progress(f"{question.about}: {question.check}")
    return found


def _questions(house: House, sites: Sequence[tuple[Site, str]]) -> Iterator[Question]:
    yield from _about_machine(house, sites)
    for site, host in sites:
        yield from _about_host(house, site, host)
    seen: set[tuple[str, ...]] = set()
    for site, host in sites:
        for subject in subjects(house, site, host):
            yield from _about_backend(house, subject, seen)


def _about_machine(house: House, sites: Sequence[tuple[Site, str]]) -> Iterator[Question]:
    yield Question(MACHINE, machine.CONFIGURATION, partial(machine.examine_configuration, house))
    yield Question(MACHINE, machine.PROXY, partial(machine.examine_proxy, house))
    yield Question(MACHINE, ports.PORTS, partial(ports.examine_listeners, house))
    yield Question(MACHINE, machine.STORE, partial(machine.examine_store, house))
    yield Question(MACHINE, machine.CLOCK, partial(machine.examine_clock, house))
    if asks_ca(house.settings) and any(_is_public(site) for site, _ in sites):
        for issuer in house.settings.acme.issuers():
            yield Question(MACHINE, authorities.CHECK, partial(authorities.examine, house, issuer))


def _about_host(house: House, site: Site, host: str) -> Iterator[Question]:
    yield Question(host, certificates.SITE, partial(certificates.examine_site, house, host))
    yield Question(host, names.DNS, partial(names.examine_addresses, house, site, host), "DNS")
    if _is_public(site) and host != "*" and as_address(host) is None:
        issuer = house.settings.acme.issuers()[0]
        yield Question(host, names.CAA, partial(names.examine_caa, house, host, issuer), "DNS")
    yield Question(host, "http", partial(ports.examine_http, house, site, host))
    yield Question(host, ports.OUTSIDE, partial(ports.examine_outside, house, site, host), "DNS")
    yield Question(host, certificates.STORED, partial(certificates.examine_stored, house, site, host))
    yield Question(host, certificates.HANDSHAKE_CHECK, partial(certificates.examine_served, house, site, host))


def _about_backend(house: House, subject: Subject, seen: set[tuple[str, ...]]) -> Iterator[Question]:
    """What depends on the server alone is asked once, whatever number of routes lead to it."""
    url, route, asked = subject.about, subject.route, subject.asked
    way = (route.path, str(route.strip_prefix))
    checks: tuple[tuple[str, Callable[..., Awaitable[Report]], tuple[str, ...]], ...] = (
        (backends.REACHABLE, backends.examine_reach, ()),
        (schemes.CHECK, schemes.examine, (asked.probe,)),
        (prefixes.CHECK, prefixes.examine, way),
        (backends.IDLE, backends.examine_idle, ()),
        (backends.WEBSOCKET, backends.examine_websocket, (asked.websocket,)),
        (streams.CHECK, streams.examine, (asked.stream,)),
    )
    for check, examine_one, about in checks:
        if (key := (url, check, *about)) in seen:
            continue
        seen.add(key)
        answer = partial(examine_one, subject, house.facts)
        is_first = check == backends.REACHABLE
        yield Question(url, check, answer if is_first else partial(_unless_silent, subject, house, answer), "backends")


async def _unless_silent(subject: Subject, house: House, answer: Callable[[], Awaitable[Report]]) -> Report:
    """A backend that does not answer at all is said to once, not six times."""
    with contextlib.suppress(Unanswered):
        await backends.server_of(subject, house.facts)
        return await answer()
    return Report(subject.about)


def subjects(house: House, site: Site, host: str) -> Iterator[Subject]:
    """Yield each backend of a site with the route that leads to it, and what the command line names of that route."""
    asked = house.asked
    for route in site.routes:
        mine = {
            name: path if path and whose(path, site.routes) is route else ""
            for name, path in (("probe", asked.probe), ("websocket", asked.websocket), ("stream", asked.stream))
        }
        for url in route.backends:
            yield Subject(Address(url), concrete(host), route, house.settings, Asked(**mine))


def _is_public(site: Site) -> bool:
    return site.certificate in ("acme", "on_demand")
