"""Says a failure in one sentence to the person on call, and what to do. PURE.

Knows: how Let's Encrypt (Boulder), Pebble and others word what they have seen. Does not know: what a failure means for
the next attempt (problems.py does). Rules: the sentence names the host, what happened, and ends with what to do next;
text that nobody here knows is passed on as the CA wrote it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from tlsproxy.certs.problems import AcmeFailure


class Reading(NamedTuple):
    """What happened, as the rest of a sentence about the host, and what to do, as sentences."""

    what: str
    todo: str


def sentence(failure: AcmeFailure) -> str:
    """Return what happened, why, and what to do."""
    if failure.subproblems:
        return _several(failure)
    if failure.detail and not failure.type and failure.status is None:  # our own words, or a CA's without a type
        return f"{_subject(failure)}: {failure.detail}"
    what, todo = _read(failure)
    return f"{_subject(failure)}: {what}. {todo}".strip()


def address_in(detail: str) -> str:
    """Return the IP address that the CA says it has tried, in canonical form, or ""."""
    for found in _ADDRESS.finditer(detail.rpartition("->")[2]):  # Go: "read tcp OURS:1024->THEIRS:80: connection reset"
        for text in (found[0], found[0].removesuffix(":")):
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                continue
            if not address.is_unspecified:  # Boulder joins what it says with " :: "
                return str(address)
    return ""


def names_binding(detail: str) -> bool:
    """Tell whether the CA speaks of the external account binding."""
    return re.search(_BINDING, detail) is not None


_BINDING = r"(?i)external account|\bEAB\b|\bHMAC\b"
# What looks like an address and stands alone: "2001:db8::7: Fetching …", "dial tcp [::1]:5001", "x [192.0.2.1]: 404".
_ADDRESS = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,8})(?![\w.])")
_URL = re.compile(r"https?://[^\s\"'<>]+")
_TOKEN = re.compile(r"(/\.well-known/acme-challenge/)[\w-]+")
_PREFIX = re.compile(r"^(?:(?:Error|Unable)[\w ]+ :: )+")
_CHALLENGES = "/.well-known/acme-challenge/"
_DIALLED_PORT = re.compile(r"(?:dial tcp|connect to|from) (?:\[[0-9a-f:.]+\]|[\d.]+):(\d+)")
_REASONS = {
    "connection refused": "connection refused",
    "awaiting headers": "connected, but no answer in time",
    "timeout during connect|i/o timeout|connection timed out|deadline exceeded": "no answer, as behind a firewall",
    "timeout after connect": "connected, but no answer in time",
    "connection reset": "connection reset",
    "no route to host|network is unreachable": "no route to host",
    "EOF": "connection closed without an answer",
}


def _several(failure: AcmeFailure) -> str:
    first, *others = failure.subproblems
    more = ", ".join(dict.fromkeys(each.identifier for each in others if each.identifier))
    return f"{first} Also wrong: {more}." if more else str(first)


def _subject(failure: AcmeFailure) -> str:
    place = urlsplit(failure.directory).netloc
    return failure.identifier or (f"CA {place}" if place else "the CA")


def _read(failure: AcmeFailure) -> Reading:
    if failure.kind in ("validation", "refused"):
        for pattern, reading in _BY_WORDS:
            if found := pattern.search(failure.detail):
                return reading(failure, found)
    kind = failure.type if failure.type in _BY_TYPE else str(failure.kind)
    if failure.step == "rollover" and failure.kind == "refused":
        kind = "rollover"
    what, todo = _BY_TYPE.get(kind, _UNKNOWN)
    return Reading(
        what.format(said=_said(failure)), todo.format(again=_again(failure), name=failure.identifier or "NAME")
    )


def _said(failure: AcmeFailure) -> str:
    """Return the CA's own words, fit for the middle of a sentence."""
    return _PREFIX.sub("", failure.detail).rstrip(".: ") or failure.type or "without a reason"


def _again(failure: AcmeFailure) -> str:
    if failure.retry_at is None:
        return "It is tried again by itself."
    return f"It is tried again after {failure.retry_at:%Y-%m-%d %H:%M:%S} UTC."


# --- what a CA saw when it looked at the host


def _unreachable(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    port, via = _port(failure), _via(failure, _reason(failure.detail))
    elsewhere = " from other places of the world" if "secondary validation" in failure.detail else ""
    what = f"the CA could not reach {_url(failure) or f'port {port}'}{elsewhere}{via}"
    if elsewhere:
        return Reading(what, f"Open port {port} to the whole internet: CAs look from several countries at once.")
    match _record(failure):
        case "AAAA":
            return Reading(what, f"Remove the AAAA record or open port {port} there.")
        case "A":
            return Reading(what, f"Open port {port} there (firewall, port forwarding) or correct the A record.")
    return Reading(what, f"Open port {port} there, in the firewall and in whatever forwards to this proxy.")


def _too_slow(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    where = f"asked for {_url(failure)}" if _url(failure) else f"connected to port {_port(failure)}"
    return Reading(
        f"the CA {where}{_via(failure)} and got no answer in time",
        f"Port {_port(failure)} is open there: find out what is slow (load, a server in between), and whether the "
        f"{_record(failure) or 'DNS'} record leads to this proxy.",
    )


def _redirected(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the CA asked for {_url(failure) or 'the challenge'}{_via(failure)} and was sent on in a way that it does not "
        f"follow ({found[0].rstrip('. ')})",
        f"Exempt {_CHALLENGES} from the redirects of what stands before this proxy; a redirect may lead to ports 80 "
        "and 443 of a host name only.",
    )


def _redirected_to_tls(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the CA was sent on to {_url(failure)}, and the TLS handshake there failed{_via(failure, found[1])}",
        f"Exempt {_CHALLENGES} from the redirect to https, so that port 80 answers, or mend TLS on port "
        f"{_port(failure)} there.",
    )


def _not_our_answer(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    status = re.search(r"(?:: |returned |code )(\d{3})\b", failure.detail)
    got = status[1] if status else "something else than this proxy's answer"
    what = f"the CA asked for {_url(failure) or 'the challenge'}{_via(failure)} and got {got}"
    record = f"the {_record(failure)} record" if _record(failure) else "the name's DNS records"
    return Reading(what, f"Point {record} to this proxy; what stands before it must pass {_CHALLENGES} on.")


def _not_our_tls(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"on port {_port(failure)} the CA did not find this proxy's TLS answer{_via(failure, found[0])}",
        "What ends TLS there (a CDN, a load balancer, another server) must pass it through; or use http-01 or dns-01.",
    )


def _no_txt(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    other = "another TXT value than the one it expects" if _OTHER_TXT.search(found[0]) else "no TXT record"
    return Reading(
        f"the CA found {other} at _acme-challenge.{failure.identifier}",
        "Check acme.dns (provider, zone) and the records of the zone; for slow servers raise acme.dns.propagation.",
    )


def _no_name(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the name does not exist in DNS ({found[0]})", "Create an A or AAAA record that points to this proxy."
    )


def _no_address(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        "the CA finds no address for the name that it may connect to",
        "Create an A or AAAA record with this proxy's public address, and check the name's DNS servers.",
    )


def _dns_trouble(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the name's DNS servers gave the CA no answer ({found[0]})",
        "Check the servers and their delegation from outside. It is tried again by itself.",
    )


def _dnssec(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the zone's DNSSEC is broken ({found[0]})",
        "Mend its signatures, or remove the DS record at the registrar.",
    )


def _forbidden(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the CAA record of {found[1]} forbids this CA to issue",
        f'Add the CA there (for Let\'s Encrypt: 0 issue "letsencrypt.org"), then: tlsproxy admin certs obtain '
        f"{failure.identifier or found[1]}",
    )


def _stopped(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the CA has stopped orders for this name ({_said(failure)})",
        f"Open that page and lift it, then: tlsproxy admin certs obtain {failure.identifier or 'NAME'}",
    )


def _wrong_binding(failure: AcmeFailure, found: re.Match[str]) -> Reading:
    return Reading(
        f"the CA does not accept the external account binding ({_said(failure)})",
        "Compare acme.eab_kid and acme.eab_hmac_key with the CA's web site; some are good once, or for a few days.",
    )


def _via(failure: AcmeFailure, reason: str = "") -> str:
    """Return by which address the CA came, and what happened there: " over IPv6 (AAAA 2001:db8::7, refused)"."""
    if not failure.address:
        return f" ({reason})" if reason else ""
    family = "IPv6" if ":" in failure.address else "IPv4"
    where = f"{_record(failure)} {failure.address}".strip()
    return f" over {family} ({where}{', ' if reason else ''}{reason})"


def _record(failure: AcmeFailure) -> str:
    """Return the kind of the DNS record that led the CA to the address; "" if none did."""
    if not failure.address or failure.identifier == failure.address:
        return ""
    return "AAAA" if ":" in failure.address else "A"


def _reason(detail: str) -> str:
    return next((words for pattern, words in _REASONS.items() if re.search(f"(?i){pattern}", detail)), "")


def _url(failure: AcmeFailure) -> str:
    found = _URL.search(failure.detail)
    return _TOKEN.sub(r"\1…", found[0].rstrip(":.,")) if found else ""


def _port(failure: AcmeFailure) -> int:
    """Return the port the CA tried. Boulder names none for tls-alpn-01, which is 443 always."""
    if found := _DIALLED_PORT.search(failure.detail):
        return int(found[1])
    if found := re.match(r"http(s?)://(?:\[[^\]]*\]|[^/:]*)(?::(\d+))?", _url(failure)):
        return int(found[2]) if found[2] else 443 if found[1] else 80
    return 443


_OTHER_TXT = re.compile("Incorrect|Correct value")
_BY_WORDS: list[tuple[re.Pattern[str], Callable[[AcmeFailure, re.Match[str]], Reading]]] = [
    (re.compile(pattern), reading)
    for pattern, reading in (
        (r"temporarily prevented from requesting", _stopped),
        (r"CAA record for (\S+) prevents issuance", _forbidden),
        (r"DNSSEC: [\w ]+|DNSSEC", _dnssec),
        (r"(?:No|Incorrect) TXT record|Correct value not found|NXDOMAIN looking up TXT", _no_txt),
        (r"NXDOMAIN looking up \w+ for [\w.*-]+", _no_name),
        (r"No valid IP addresses|could not resolve URL|no such host", _no_address),
        (r"(?:SERVFAIL|REFUSED|query timed out|networking error) looking up \w+ for [\w.*-]+", _dns_trouble),
        (r"Error retrieving TXT records|DNS problem[\w: ]*", _dns_trouble),
        (r"(?:Redirect loop|Too many redirects|Invalid (?:\w+ )+in redirect target)(?:.*not \S+)?", _redirected),
        (r"Timeout after connect", _too_slow),
        (
            r"Fetching https://\S+: (?:remote error: )?(tls: [\w ]+|Server only speaks HTTP, not TLS)",
            _redirected_to_tls,
        ),
        (r"Invalid response from|Non-200 status code|did not match this challenge|key authorization", _not_our_answer),
        (r"Cannot negotiate ALPN protocol|no acmeIdentifier extension|Incorrect validation certificate", _not_our_tls),
        (r"Server only speaks HTTP, not TLS|tls: [\w ]+|ALPN", _not_our_tls),
        (_BINDING, _wrong_binding),
        (
            r"(?i)Fetching http|failed to connect|dial tcp|connection (?:refused|reset)|timeout (?:during|after)|"
            r"deadline exceeded",
            _unreachable,
        ),
    )
]

_OBTAIN = "then: tlsproxy admin certs obtain {name}"
_UNKNOWN = Reading("the CA says: {said}", "{again}")
_BY_TYPE: dict[str, Reading] = {
    # problem types
    "alreadyReplaced": Reading("the CA has a successor of this certificate already ({said})", "{again}"),
    "badCSR": Reading(
        "the CA does not accept the signing request ({said})", 'Set acme.key_type = "ecdsa-p256" or "rsa-2048".'
    ),
    "badNonce": Reading("the CA has rejected every nonce that it gave us", "{again} If it stays so, tell the CA."),
    "badPublicKey": Reading("the CA does not accept the key ({said})", "Choose another acme.key_type or another CA."),
    "badRevocationReason": Reading("the CA does not accept this reason ({said})", "Choose another, or give none."),
    "badSignatureAlgorithm": Reading(
        "the CA does not take accounts with ECDSA P-256 keys ({said})", "Choose another CA in acme.directory."
    ),
    "caa": Reading("the CA could not settle whether CAA records allow it ({said})", "Check the zone's DNS servers."),
    "externalAccountRequired": Reading(
        "the CA wants to know whose customer this is (external account binding)",
        "Set acme.eab_kid and acme.eab_hmac_key; the CA's web site gives them.",
    ),
    "invalidContact": Reading("the CA does not accept the e-mail address ({said})", "Correct or remove acme.email."),
    "invalidProfile": Reading(
        "the CA has no such profile ({said})", "Set acme.profile to one that it has, or remove it."
    ),
    "rejectedIdentifier": Reading(
        "the CA refuses to issue for this name ({said})",
        'Correct the hosts of the site; for a name that is not public, set certificate = "internal".',
    ),
    "unsupportedContact": Reading(
        "the CA does not accept the e-mail address ({said})", "Correct or remove acme.email."
    ),
    "unsupportedIdentifier": Reading(
        "the CA issues no certificates for this kind of name ({said})",
        'Choose a CA or profile that does (Let\'s Encrypt, for IP addresses: acme.profile = "shortlived").',
    ),
    "userActionRequired": Reading("the CA waits for a person ({said})", "Do what it asks for, " + _OBTAIN),
    # types of our own, of transport.py, network.py and validation.py
    "caAnswer": Reading("the CA's answer is not what ACME wants ({said})", "Is acme.directory right? {again}"),
    "caBundle": Reading("acme.ca_bundle can't be used ({said})", "Give a PEM file with the root of your CA."),
    "caCertificate": Reading(
        "the TLS certificate of the CA is not trusted ({said})",
        "For a CA of your own set acme.ca_bundle to its root; for a public one look at this machine's clock, and for a "
        "firewall that opens TLS.",
    ),
    "caNameUnknown": Reading(
        "the name of the CA can't be resolved ({said})", "Check this machine's DNS, and acme.directory. {again}"
    ),
    "caTimeout": Reading(
        "the CA does not answer in time", "Check this machine's way to the internet (firewall, proxy). {again}"
    ),
    "caUnreachable": Reading(
        "the CA can't be reached ({said})",
        "Check this machine's way to the internet (firewall, proxy), and acme.directory. {again}",
    ),
    "noChallenge": Reading(
        "no challenge can be used ({said})",
        "Allow another one in acme.challenges: wildcards need dns-01 with acme.dns, addresses http-01 or tls-alpn-01.",
    ),
    "eabKey": Reading("acme.eab_hmac_key is not base64", "Copy it again from the CA's web site."),
    # kinds, for types that have no line of their own
    "unreachable": Reading(
        "something that is no ACME server answers for the CA ({said})", "Is acme.directory right? {again}"
    ),
    "busy": Reading("the CA has trouble of its own ({said})", "{again}"),
    "rate_limited": Reading("a limit of the CA is reached ({said})", "{again}"),
    "validation": Reading(
        "the CA's look at the name failed ({said})",
        "Check that its DNS records point to this proxy and that ports 80 and 443 are open there.",
    ),
    "refused": Reading("the CA refuses ({said})", "Correct the configuration, " + _OBTAIN),
    "account_gone": Reading("the CA does not know our account any more ({said})", "It is registered again by itself."),
    "already_replaced": Reading("the CA has a successor of this certificate already ({said})", "{again}"),
    "bad_order": Reading("the order is of no use any more ({said})", "A new one is made by itself."),
    "rollover": Reading(
        "the CA did not replace the key of the account ({said})", "The key that there is stays in use."
    ),
    "store": Reading("the certificate store can't be used ({said})", "{again}"),
    "quota": Reading("not asked for: it would exceed what the CA grants ({said})", "{again}"),
    "cancelled": Reading("stopped ({said})", "{again}"),
    "internal": Reading("{said}", "{again}"),
}
