"""Who answers at ports 80 and 443, as far as this machine can see: its own listeners, and the way from others to them.

Knows listeners. Rule: a firewall or router before this
machine can't be seen from it; that is said, with the command to run elsewhere.
"""

from __future__ import annotations

import asyncio

from tlsproxy.certs.dns.lookup import LookupFailed
from tlsproxy.doctor.addresses import is_own
from tlsproxy.doctor.asking import Address, Answer, Unanswered, ask, in_url
from tlsproxy.doctor.findings import MACHINE, Report
from tlsproxy.doctor.handshake import Seen
from tlsproxy.doctor.house import House
from tlsproxy.doctor.names import addresses_of, visit
from tlsproxy.doctor.subject import concrete
from tlsproxy.settings import Site, directories
from tlsproxy.settings.values import as_address

PORTS, OUTSIDE = "ports", "from outside"
_TIMEOUT = 3.0


async def examine_listeners(house: House) -> Report:
    """Do the proxy's own listeners accept connections?"""
    report = Report(MACHINE)
    running = await house.running()
    for kind in ("https", "http"):
        for host, port in await house.listeners(kind):
            place = f"{in_url(host)}:{port}"
            is_open = await _accepts(host, port)
            if running.is_there and is_open:
                report.ok(PORTS, f"{kind} at {place} accepts connections")
            elif running.is_there:
                report.bad(PORTS, f"{kind} at {place} does not accept connections", fix=f"ss -ltnp 'sport = :{port}'")
            elif is_open:
                text = f"somebody listens at {place}; if that is not tlsproxy, it can't start"
                report.unknown(PORTS, text, fix=f"ss -ltnp 'sport = :{port}'")
            else:
                report.unknown(PORTS, f"nobody listens at {place} ({kind})")
    return report


async def _accepts(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def examine_http(house: House, site: Site, host: str) -> Report:
    """What does a client get that comes over http?"""
    report = Report(host)
    name = concrete(host)
    listeners = await house.listeners("http")
    if not listeners:
        words = house.settings.acme.challenges
        if site.certificate in ("acme", "on_demand"):
            report.ok("http", f"off (listen.http); the CA is answered by {', '.join(words)}")
        return report
    if not (await house.running()).is_there or await house.serves(host) is False:
        return report
    networks = house.settings.listen.proxy_protocol
    place, port = listeners[0]
    if networks or host == "*":
        report.unknown(
            "http", "not tried: this listener wants the PROXY protocol" if networks else "not tried: name a host"
        )
        return report
    url = f"http://{in_url(place)}:{port}"
    try:
        answer = await ask(Address(url), "/", name, timeout=_TIMEOUT)
    except Unanswered as error:
        report.bad("http", f"{url} does not answer ({error})", fix=f"curl -sSI -H 'Host: {in_url(name)}' {url}/")
        return report
    _judge_redirect(report, name, answer, url)
    return report


def _judge_redirect(report: Report, name: str, answer: Answer, url: str) -> None:
    location = answer.get("location")
    if answer.status in (301, 302, 307, 308) and location.startswith("https://"):
        report.ok("http", f"http://{in_url(name)}/ leads to {location} ({answer.status})")
    else:
        fix = f"curl -sSI -H 'Host: {in_url(name)}' {url}/"
        report.unknown("http", f"http://{in_url(name)}/ answers {answer.status} and leads nowhere", fix=fix)


async def examine_outside(house: House, site: Site, host: str) -> Report:
    """Can others come here? Seen only where the way from here leads over somebody else."""
    report = Report(host)
    if host == "*" or directories.is_private_name(host) or site.certificate == "internal":
        return report
    name = concrete(host)
    try:
        found = [as_address(host)] if as_address(host) else list(await addresses_of(house, name))
    except LookupFailed:
        found = []
    foreign = [each for each in found if each is not None and not is_own(each, house.own)]
    answers = await asyncio.gather(*(visit(house, each, name) for each in foreign))
    reached = [str(each) for each, seen in zip(foreign, answers, strict=True) if isinstance(seen, Seen)]
    commands = f"curl -sSI http://{in_url(name)}/ https://{in_url(name)}/  # on a machine in another network"
    if foreign and len(reached) == len(foreign):
        report.ok(OUTSIDE, f"port 443 answers at {', '.join(reached)}, reached over the router from here")
    else:
        report.unknown(
            OUTSIDE, "whether a firewall lets ports 80 and 443 through can't be seen from here", fix=commands
        )
    return report
