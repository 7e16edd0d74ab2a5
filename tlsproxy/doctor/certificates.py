"""Is there a certificate, is it the one that is served, and would a client take it? The handshake, step by step.

Knows store, listener and what they show; judges. Rules: what is served is asked of the proxy itself, as a client would;
a chain is blamed only where the certificate itself says that something is missing.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from tlsproxy.certs import served
from tlsproxy.certs.catalogue import Catalogue
from tlsproxy.certs.words import span
from tlsproxy.doctor.facts import in_thread
from tlsproxy.doctor.findings import Report, counted
from tlsproxy.doctor.handshake import Seen, Target, verify, why_not
from tlsproxy.doctor.house import HANDSHAKE, House
from tlsproxy.doctor.subject import concrete
from tlsproxy.errors import CertificateError, StoreError, TlsproxyError
from tlsproxy.settings import Issuer, Site, directories
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import NotYet, certificate_files

SITE, STORED, SERVED, CHAIN, HANDSHAKE_CHECK = "site", "certificate", "served", "chain", "handshake"
_SUDO = "Run this as the user that runs the proxy (with sudo, if that is root)."
_NOT_BEFORE = "there is none yet; there will be one when the running proxy serves this host"
_SOON = timedelta(days=1)
_PATIENCE = 3.0


async def examine_stored(house: House, site: Site, host: str) -> Report:
    """Is there a certificate that is valid now?"""
    report = Report(host)
    try:
        bundles = await house.bundles(site, host)
    except NotYet:
        await _tell_missing(report, house, host)
    except (CertificateError, StoreError) as error:
        await _tell_unreadable(report, house, error, host)
    else:
        judge_dates(report, site, bundles, host, datetime.now(UTC))
    return report


async def _tell_missing(report: Report, house: House, host: str) -> None:
    why = f"tlsproxy admin certs why {host}{house.config}"
    if await house.serves(host) is False:
        report.unknown(STORED, _NOT_BEFORE)
        return
    if host == "*":
        report.unknown(STORED, "one for each name, obtained when a client first asks for it")
        return
    try:
        catalogue = Catalogue(house.settings, await house.store())
        answer = await in_thread(partial(catalogue.why, host, datetime.now(UTC)))
    except TlsproxyError as error:
        report.unknown(STORED, str(error), fix=why)
        return
    sentences: list[str] = list(answer["sentences"])
    failure = next((each for each in sentences if " failed" in each), "")
    if failure:
        report.bad(STORED, failure, fix=why, details=sentences)
    else:
        report.unknown(STORED, sentences[0] if sentences else "there is none yet", fix=why, details=sentences[1:])


async def _tell_unreadable(report: Report, house: House, error: TlsproxyError, host: str) -> None:
    cause = error.__cause__
    if isinstance(cause, PermissionError) or "Permission denied" in str(error):
        report.unknown(STORED, f"{error} {_SUDO}", fix=f"sudo tlsproxy doctor {host}{house.config}")
    elif isinstance(error, StoreError) or "no certificate of the internal CA" not in str(error):
        report.bad(STORED, str(error), fix=f"tlsproxy check{house.config}")
    else:
        await _tell_not_made(report, house, host)


async def _tell_not_made(report: Report, house: House, host: str) -> None:
    """The internal CA makes a certificate as soon as a proxy runs that has the site."""
    running = await house.running()
    if await house.serves(host) is False:
        report.unknown(STORED, _NOT_BEFORE)
    elif running.is_there:
        text = "there is none in this store; the running proxy has another one, or could not have it made"
        report.unknown(STORED, text, fix=f"tlsproxy admin certs show {host}{house.config}")
    else:
        start = "" if running.is_hidden else f"tlsproxy run{house.config}"
        report.unknown(STORED, "the internal CA makes it when the proxy starts", fix=start)


def judge_dates(report: Report, site: Site, bundles: Sequence[Bundle], host: str, now: datetime) -> None:
    for bundle in bundles:
        text = f"{bundle.key_type}, issued by {bundle.issuer}, valid until {bundle.not_after:%Y-%m-%d %H:%M} UTC"
        renew = _renewing(site, host)
        if problem := bundle.date_problem(now):
            report.bad(STORED, f"{text}: it {problem}", fix=renew)
        elif missing := bundle.check_names([host] if host != "*" else []):
            report.bad(STORED, f"{text}: it does not cover {', '.join(missing)}", fix=renew)
        elif bundle.not_after - now < min(_SOON, (bundle.not_after - bundle.not_before) / 10):
            report.bad(STORED, f"{text}: {span(bundle.not_after - now)} only", fix=renew)
        else:
            report.ok(STORED, text)


def _renewing(site: Site, host: str) -> str:
    """Return the command for a certificate that is of no use; one in files is renewed by whoever wrote them."""
    files = certificate_files(site)
    if not files:
        return f"tlsproxy admin certs renew {host} --force"
    return f"openssl x509 -noout -subject -dates -ext subjectAltName -in {files[0].chain}  # write a new one there"


# --- what is served


async def examine_site(house: House, host: str) -> Report:
    """Does the running proxy know this host? What follows from it if it doesn't, the others leave unsaid."""
    report = Report(host)
    if await house.serves(host) is not False:
        return report
    text = f"the running proxy (pid {(await house.running()).status.get('pid')}) does not serve {host}"
    reload = f"tlsproxy admin reload{house.config}"
    if house.is_own_idea:
        report.unknown(SITE, f"{text}: it runs with other sites than --site", fix=f"{reload}  # once its file has it")
    else:
        report.bad(SITE, f"{text}: its configuration is an earlier one, or another file", fix=reload)
    return report


async def examine_served(house: House, site: Site, host: str) -> Report:
    """Do the handshake as a client, show it, and compare with the store."""
    report = Report(host)
    if await house.serves(host) is False:
        return report
    target = await house.target(concrete(host))
    if host == "*" or target is None:
        report.unknown(HANDSHAKE_CHECK, "not tried: name a host" if host == "*" else "there is no https listener")
        return report
    try:
        seen = await house.shake(target)
    except OSError as error:
        await _tell_no_handshake(report, house, site, host, target, error)
        return report
    report.ok(HANDSHAKE_CHECK, _summary(seen), details=seen.steps())
    await _compare(report, house, site, host, seen)
    await _judge_chain(report, house, site, seen)
    return report


def _summary(seen: Seen) -> str:
    return f"{seen.version}, {seen.cipher}, {seen.group or 'key exchange not seen'}, ALPN {seen.protocol or 'none'}"


async def _tell_no_handshake(
    report: Report, house: House, site: Site, host: str, target: Target, error: OSError
) -> None:
    running = await house.running()
    text = f"{target}: {why_not(error)}"
    if not running.is_there:
        start = "" if running.is_hidden else f"tlsproxy run{house.config}"
        report.unknown(HANDSHAKE_CHECK, f"{text}; {running.why}", fix=start)
    elif isinstance(error, ssl.SSLError) and not await _is_stored(house, site, host):
        cause = "there is no certificate to serve yet"
        if await house.serves(host) is None:
            cause += ", or the proxy, which does not say what it serves, runs with another configuration"
        report.unknown(HANDSHAKE_CHECK, f"{text}: {cause}")
    elif isinstance(error, ssl.SSLError):
        text = f"{text}: there is a certificate, and the proxy does not serve it; it may run with another configuration"
        report.bad(HANDSHAKE_CHECK, text, fix=f"tlsproxy admin reload{house.config}")
    else:
        report.bad(HANDSHAKE_CHECK, text, fix=f"tlsproxy admin status{house.config}")


async def _is_stored(house: House, site: Site, host: str) -> bool:
    try:
        return bool(await house.bundles(site, host))
    except TlsproxyError:
        return False


async def _compare(report: Report, house: House, site: Site, host: str, seen: Seen) -> None:
    try:
        serials = [bundle.serial for bundle in await house.bundles(site, host)]
    except TlsproxyError as error:
        report.unknown(SERVED, f"serial {seen.serial}; what is stored can't be compared: {error}")
        return
    if seen.serial in serials:
        report.ok(SERVED, "what is stored is served")
        return
    if not (await house.running()).is_there:
        text = f"serial {seen.serial} is served at {seen.target}, which is none of ours: another program listens there"
        port = seen.target.port
        report.unknown(SERVED, text, fix=f"ss -ltnp 'sport = :{port}'")
        return
    # A worker takes over a new certificate a moment after it is stored.
    networks = [str(each) for each in house.settings.listen.proxy_protocol]
    result = await served.check([str(seen.target)], host, serials[0], networks, tries=1, deadline=_PATIENCE)
    if isinstance(result, served.Served):
        report.ok(SERVED, "what is stored is served")
    elif isinstance(result, served.Mismatch):
        text = f"serial {result.serial} is served, {serials[0]} is stored"
        report.bad(SERVED, text, fix=f"tlsproxy admin reload{house.config}")
    else:
        report.unknown(SERVED, result.reason)


# --- the chain


async def _judge_chain(report: Report, house: House, site: Site, seen: Seen) -> None:
    roots = await _roots(house, site)
    problem = await in_thread(partial(verify, seen.target, roots, HANDSHAKE))
    if not problem:
        whom = "that trust the internal CA" if site.certificate == "internal" else "with the roots of this machine"
        report.ok(CHAIN, f"complete, {counted(len(seen.chain), 'certificate')}; clients {whom} accept it")
        return
    gap = find_gap(seen.chain)
    if gap:
        text = f"incomplete: {gap.missing} is not sent, and {problem}"
        report.bad(CHAIN, text, fix=_filling(site, report.about, gap))
    elif _is_staging(house.settings.acme.issuers(), site):
        report.unknown(CHAIN, f"{problem}: clients do not trust the staging CA", fix='directory = "letsencrypt"')
    elif site.certificate == "internal":
        report.unknown(
            CHAIN, f"{problem}; nobody trusts it without the root", fix=f"tlsproxy trust --print{house.config}"
        )
    else:
        top = seen.chain[-1].issuer.rfc4514_string()
        report.unknown(CHAIN, f"{problem}: {top} is no root of this machine; a private CA, maybe")


async def _roots(house: House, site: Site) -> bytes:
    if site.certificate != "internal":
        return b""
    try:
        return await house.root()
    except TlsproxyError:
        return b""


@dataclass(frozen=True)
class Gap:
    """A certificate that is missing above the last one that was sent, and where that one says it can be had."""

    missing: str
    url: str


def _filling(site: Site, host: str, gap: Gap) -> str:
    files = certificate_files(site)
    if not files:
        return f"tlsproxy admin certs renew {host} --force"
    return f"curl -sS {gap.url} | openssl x509 -inform der >> {files[0].chain}"


def find_gap(chain: Sequence[x509.Certificate]) -> Gap | None:
    """Only a leaf sent alone is blamed: above it there is an intermediate wherever it says where its issuer is."""
    last = chain[-1]
    if len(chain) > 1 or last.issuer == last.subject:
        return None
    try:
        access = last.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    for each in access:
        is_issuer = each.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        if is_issuer and isinstance(each.access_location, x509.UniformResourceIdentifier):
            return Gap(last.issuer.rfc4514_string(), each.access_location.value)
    return None


def _is_staging(issuers: Sequence[Issuer], site: Site) -> bool:
    known = directories.find_known(issuers[0].directory_url)
    return site.certificate in ("acme", "on_demand") and known is not None and known.is_staging
