"""Where does the DNS say that a host is, and which CAs may certify it (CAA, RFC 8659)?

Knows records and what they mean. Rules: an address that is not of this machine is a question (a router, a balancer, a
CDN): who answers there is asked for its certificate; what only this machine's resolver knows proves nothing for others.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import dns.resolver

from tlsproxy.certs.dns.lookup import Lookup, LookupFailed
from tlsproxy.certs.problems import AcmeFailure
from tlsproxy.doctor.addresses import Address, is_own, public
from tlsproxy.doctor.authorities import directory_of
from tlsproxy.doctor.caa import CaaRecord, decide
from tlsproxy.doctor.facts import in_thread
from tlsproxy.doctor.findings import Report
from tlsproxy.doctor.handshake import Seen, Target, why_not
from tlsproxy.doctor.house import House
from tlsproxy.doctor.subject import concrete
from tlsproxy.errors import TlsproxyError
from tlsproxy.settings import Issuer, Site, directories
from tlsproxy.settings.values import as_address

DNS, CAA = "DNS", "CAA"
_MOST_ADDRESSES = 8
# What CAs without caaIdentities in their directory look for, as they publish it.
_IDENTITIES = {
    "letsencrypt": ("letsencrypt.org",),
    "letsencrypt-staging": ("letsencrypt.org",),
    "zerossl": ("sectigo.com", "zerossl.com"),
    "google": ("pki.goog",),
}


async def addresses_of(house: House, host: str) -> tuple[Address, ...]:
    """Return all A and AAAA records of a host. Raises LookupFailed."""

    async def find() -> tuple[Address, ...]:
        found = await asyncio.gather(*(_lookup(house).records(host, kind) for kind in ("A", "AAAA")))
        return tuple(ipaddress.ip_address(each.address) for answer in found if answer is not None for each in answer)

    return await house.facts.once(("addresses", host), find)


def _lookup(house: House) -> Lookup:
    return Lookup(house.settings.acme.dns.resolvers, timeout=2.0)


async def examine_addresses(house: House, site: Site, host: str) -> Report:
    report = Report(host)
    name = concrete(host)
    if as_address(host) is not None:
        _tell_address(report, house, host)
    elif name == "localhost" or name.endswith(".localhost"):
        report.ok(DNS, "means this machine by definition (RFC 6761)")
    elif host == "*":
        report.unknown(DNS, "any name: customers point theirs here")
    else:
        try:
            found = await addresses_of(house, name)
        except LookupFailed as error:
            report.unknown(DNS, str(error), fix=f"dig {name} A {name} AAAA")
            return report
        if found:
            await _tell_found(report, house, site, name, found[:_MOST_ADDRESSES])
        else:
            await _tell_none(report, house, host, name)
    return report


def _tell_address(report: Report, house: House, host: str) -> None:
    if is_own(ipaddress.ip_address(host), house.own):
        report.ok(DNS, "is an address of this machine")
    else:
        report.unknown(DNS, "is no address of this machine; a router may lead it here")


async def _tell_none(report: Report, house: House, host: str, name: str) -> None:
    try:
        found = await in_thread(partial(socket.getaddrinfo, name, 443, type=socket.SOCK_STREAM))
    except OSError:
        found = []
    known = sorted({str(each[4][0]) for each in found})
    if known:
        report.unknown(DNS, f"the DNS has no address; this machine alone knows {', '.join(known)} (/etc/hosts)")
    elif directories.is_private_name(host):
        report.unknown(DNS, "no address in the DNS; clients need it in their own DNS or /etc/hosts")
    elif host.startswith("*."):
        report.unknown(DNS, f"names below {host[2:]} are not found by a wildcard record; each needs one of its own")
    else:
        address = public(house.own, 4) or "PUBLIC-ADDRESS-OF-THIS-MACHINE"
        report.bad(DNS, "has neither an A nor an AAAA record: nobody finds it", fix=f"{host}. 300 IN A {address}")


async def _tell_found(report: Report, house: House, site: Site, name: str, found: Sequence[Address]) -> None:
    foreign = [each for each in found if not is_own(each, house.own)]
    shown = ", ".join(map(str, found))
    if not foreign:
        report.ok(DNS, f"{shown}: this machine")
        return
    ours = await _our_fingerprints(house, site, name)
    answers = await asyncio.gather(*(visit(house, each, name) for each in foreign))
    verdicts = [judge_foreign(*pair, name, ours) for pair in zip(foreign, answers, strict=True)]
    details = [f"{address}: {verdict.text}" for address, verdict in zip(foreign, verdicts, strict=True)]
    bad = next((index for index, verdict in enumerate(verdicts) if verdict.state == "bad"), None)
    if bad is not None:
        address = foreign[bad]
        kind = "AAAA" if address.version == 6 else "A"
        text = f"{kind} {address} {verdicts[bad].text}; CAs and clients go there"
        report.bad(DNS, text, fix=_correction(house, name, address), details=details)
    elif all(verdict.state == "ok" for verdict in verdicts):
        report.ok(DNS, f"{shown}: leads here, the certificate of this proxy is served there", details=details)
    else:
        text = (
            f"{', '.join(map(str, foreign))}: no address of this machine, and it can't be seen from here who is there"
        )
        fix = f"curl -sSI https://{name}/  # on another network"
        report.unknown(DNS, text, fix=fix, details=details)


def _correction(house: House, name: str, address: Address) -> str:
    kind = "AAAA" if address.version == 6 else "A"
    own = public(house.own, address.version)
    return f"{name}. 300 IN {kind} {own}" if own else f"remove the record:  {name}. IN {kind} {address}"


async def _our_fingerprints(house: House, site: Site, host: str) -> set[str]:
    try:
        return {bundle.fingerprint for bundle in await house.bundles(site, host)}
    except TlsproxyError:
        return set()


async def visit(house: House, address: Address, name: str) -> Seen | OSError:
    """Return who answers at port 443 of an address that is not ours, or why nobody does."""
    try:
        return await house.shake(Target(str(address), 443, name))
    except OSError as error:
        return error


@dataclass(frozen=True)
class Verdict:
    """About an address that the DNS names and this machine does not have."""

    state: str
    text: str


def judge_foreign(address: Address, answer: Seen | OSError, name: str, ours: set[str]) -> Verdict:
    """Judge by who answers at port 443: `ours` are the fingerprints of what is stored for this host."""
    if isinstance(answer, Seen):
        if answer.fingerprint in ours:
            return Verdict("ok", "serves the certificate that is stored here")
        return Verdict("unknown", f"serves another certificate, issued by {answer.leaf.issuer.rfc4514_string()}")
    if isinstance(answer, ssl.SSLError):
        return Verdict("unknown", f"somebody answers, but {why_not(answer)}")
    # Behind IPv4 there may be a router that does not let us visit ourselves from inside; IPv6 has no such thing.
    if answer.errno == errno.ECONNREFUSED and address.version == 6 and address.is_global:
        return Verdict("bad", "refuses connections to port 443")
    return Verdict("unknown", f"port 443 can't be reached from here ({why_not(answer)})")


# --- CAA


async def examine_caa(house: House, host: str, issuer: Issuer) -> Report:
    """May the CA certify this name? It climbs from the name to its parents and reads the first records it finds."""
    report = Report(host)
    base = host.removeprefix("*.")
    try:
        owner, records = await _relevant(house, base)
    except LookupFailed as error:
        text = f"{error} A CA that gets no answer either issues nothing."
        report.unknown(CAA, text, fix=f"dig {base} CAA")
        return report
    if not records:
        report.ok(CAA, "no record: every CA may issue")
        return report
    identities = await _identities(house, issuer)
    if not identities:
        report.unknown(CAA, f"{owner} has CAA records, and the CA does not say by which name it looks for itself")
        return report
    decision = decide(records, identities, house.settings.acme.challenges, is_wildcard=host.startswith("*."))
    shown = [f"{owner}. CAA {each}" for each in records]
    if decision.allowed:
        report.ok(CAA, f"{owner} allows {identities[0]}", details=shown)
    elif decision.allowed is None:
        report.unknown(CAA, f"{owner}: {decision.why}", details=shown)
    else:
        fix = f'{owner}. IN CAA 0 {decision.tag} "{identities[0]}"'
        report.bad(CAA, f"{owner}: {decision.why}, so it will not issue", fix=fix, details=shown)

    return report


async def _relevant(house: House, name: str) -> tuple[str, list[CaaRecord]]:
    """Return the name that has CAA records and these, nearest first (RFC 8659 3). Raises LookupFailed."""
    labels = name.split(".")
    for start in range(len(labels)):
        owner = ".".join(labels[start:])
        answer = await _caa(house, owner)
        if answer is not None:
            return owner, [CaaRecord.of(each) for each in answer]
    return "", []


async def _caa(house: House, owner: str) -> dns.resolver.Answer | None:
    return await house.facts.once(("CAA", owner), partial(_lookup(house).records, owner, "CAA"))


async def _identities(house: House, issuer: Issuer) -> tuple[str, ...]:
    try:
        told = (await directory_of(house, issuer)).caa
    except AcmeFailure:
        told = ()
    known = {directories.directory_url(word): names for word, names in _IDENTITIES.items()}
    return told or known.get(issuer.directory_url, ())
