"""Can the CAs be reached, and what do they say of themselves: one GET of each ACME directory (RFC 8555 7.1.1).

Knows the transport of the certificate path, and asks with its rules (a whole-call deadline, the configured bundle), so
that what works here works there. No account, no order, nothing that a CA counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3 import Timeout

from tlsproxy.certs import transport
from tlsproxy.certs.problems import AcmeFailure
from tlsproxy.doctor.asking import USER_AGENT
from tlsproxy.doctor.facts import in_thread
from tlsproxy.doctor.findings import Report
from tlsproxy.doctor.house import House
from tlsproxy.runtime.preflight_acme import asks_ca
from tlsproxy.settings import Issuer

CHECK = "CA"
_DEADLINE = 8.0


@dataclass(frozen=True)
class Directory:
    """What a CA answered. `ahead`: seconds that our clock is ahead of its, None if it told no date."""

    status: int
    document: dict[str, Any]
    ahead: float | None

    @property
    def caa(self) -> tuple[str, ...]:
        """Return the names that it looks for in CAA records, if it says so."""
        listed = (self.document.get("meta") or {}).get("caaIdentities")
        return tuple(each.lower() for each in listed if isinstance(each, str)) if isinstance(listed, list) else ()


async def directory_of(house: House, issuer: Issuer) -> Directory:
    """Return what a CA says. Raises AcmeFailure."""
    find = partial(in_thread, partial(_fetch, issuer.directory_url, issuer.ca_bundle))
    return await house.facts.once(("directory", issuer.directory_url), find)


async def examine(house: House, issuer: Issuer) -> Report:
    """Can this CA be asked?"""
    url = issuer.directory_url
    report = Report(urlsplit(url).hostname or url)
    bundle = f"--cacert {issuer.ca_bundle} " if issuer.ca_bundle else ""
    fix = f"curl -sSI {bundle}{url}"
    try:
        found = await directory_of(house, issuer)
    except AcmeFailure as error:
        report.bad(CHECK, str(error), fix=fix)
        return report
    if found.status == 200 and "newOrder" in found.document:
        report.ok(CHECK, f"{url} answers")
    elif found.status >= 500 or found.status == 429:
        report.unknown(CHECK, f"{url} answers {found.status}: it has trouble now", fix=fix)
    else:
        report.bad(CHECK, f"{url} is no ACME directory (status {found.status}); correct acme.directory", fix=fix)
    return report


async def clock_offsets(house: House) -> list[tuple[str, float]]:
    """Return for each CA that told its time by how many seconds our clock is ahead of it."""
    offsets = []
    for issuer in house.settings.acme.issuers() if asks_ca(house.settings) else ():
        try:
            found = await directory_of(house, issuer)
        except AcmeFailure:
            continue
        if found.ahead is not None:
            offsets.append((urlsplit(issuer.directory_url).hostname or "", found.ahead))
    return offsets


def _fetch(url: str, ca_bundle: str) -> Directory:
    with transport.open_requests() as session:
        try:
            answer = session.get(
                url,
                timeout=Timeout(total=_DEADLINE),  # type: ignore[arg-type]  # passed on to urllib3
                verify=ca_bundle or True,
                headers={"User-Agent": USER_AGENT},
            )
            body = answer.json() if answer.status_code == 200 else {}
        except (requests.JSONDecodeError, UnicodeDecodeError):
            return Directory(answer.status_code, {}, None)
        except (requests.RequestException, OSError) as error:
            raise transport.network_failure(error, "directory", url, ca_bundle) from error
    return Directory(answer.status_code, body if isinstance(body, dict) else {}, _ahead(answer.headers.get("Date", "")))


def _ahead(date: str) -> float | None:
    try:
        theirs = parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return None
    theirs = theirs.replace(tzinfo=UTC) if theirs.tzinfo is None else theirs
    return (datetime.now(UTC) - theirs).total_seconds()
