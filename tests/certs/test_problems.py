"""What CAs say, as kinds and as sentences: a table of real wordings (Boulder of Let's Encrypt, Pebble, others)."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tlsproxy.certs.problems import AcmeFailure, FailureKind, classify, clean, from_problem
from tlsproxy.certs.wording import address_in

K = FailureKind
URN = "urn:ietf:params:acme:error:"
LE = "https://acme-v02.api.letsencrypt.org/directory"
HOST = "api.example.com"
PATH = "http://api.example.com/.well-known/acme-challenge/"
FETCHING = f"Fetching {PATH}Zm9vYmFy-_0:"

# Looks of the CA at the host: type, the CA's words, address read from them, and our sentence about api.example.com.
LOOKS = [
    (
        "connection",
        f"2001:db8::7: {FETCHING} Connection refused",
        "2001:db8::7",
        f"the CA could not reach {PATH}… over IPv6 (AAAA 2001:db8::7, connection refused). "
        "Remove the AAAA record or open port 80 there.",
    ),
    (
        "connection",
        f"203.0.113.5: {FETCHING} Timeout during connect (likely firewall problem)",
        "203.0.113.5",
        f"the CA could not reach {PATH}… over IPv4 (A 203.0.113.5, no answer, as behind a firewall). "
        "Open port 80 there (firewall, port forwarding) or correct the A record.",
    ),
    (
        "connection",
        f"During secondary validation: 203.0.113.5: {FETCHING} Timeout during connect (likely firewall problem)",
        "203.0.113.5",
        f"the CA could not reach {PATH}… from other places of the world over IPv4 (A 203.0.113.5, no answer, as behind "
        "a firewall). Open port 80 to the whole internet: CAs look from several countries at once.",
    ),
    (
        "connection",
        f"203.0.113.5: {FETCHING} Timeout after connect (your server may be slow or overloaded)",
        "203.0.113.5",
        f"the CA asked for {PATH}… over IPv4 (A 203.0.113.5) and got no answer in time. Port 80 is open there: find "
        "out what is slow (load, a server in between), and whether the A record leads to this proxy.",
    ),
    (
        "connection",  # tls-alpn-01
        "2001:db8::7: Timeout after connect (your server may be slow or overloaded)",
        "2001:db8::7",
        "the CA connected to port 443 over IPv6 (AAAA 2001:db8::7) and got no answer in time. Port 443 is open there: "
        "find out what is slow (load, a server in between), and whether the AAAA record leads to this proxy.",
    ),
    *(
        (
            "connection",
            f"203.0.113.5: Fetching {url}Zm9vYmFy-_0: {words}{rest}",
            "203.0.113.5",
            f"the CA asked for {url}… over IPv4 (A 203.0.113.5) and was sent on in a way that it does not follow "
            f"({words}). Exempt /.well-known/acme-challenge/ from the redirects of what stands before this proxy; a "
            "redirect may lead to ports 80 and 443 of a host name only.",
        )
        for url, words, rest in (
            (PATH, "Redirect loop", " detected"),
            (PATH, "Too many redirects", ""),
            (
                "http://api.example.com:8080/.well-known/acme-challenge/",
                "Invalid port in redirect target. Only ports 80 and 443 are supported, not 8080",
                "",
            ),
            (PATH, "Invalid hostname in redirect target", ", must end in IANA registered TLD"),
            (
                PATH,
                'Invalid protocol scheme in redirect target. Only "http" and "https" protocol schemes are supported, '
                'not "ftp"',
                "",
            ),
            (PATH, "Invalid host in redirect target", ' "api.example.com.well-known". Check webserver config'),
        )
    ),
    *(
        (
            kind,
            f"203.0.113.5: Fetching https://api.example.com/.well-known/acme-challenge/Zm9v: {words}",
            "203.0.113.5",
            "the CA was sent on to https://api.example.com/.well-known/acme-challenge/…, and the TLS handshake there "
            f"failed over IPv4 (A 203.0.113.5, {reason}). Exempt /.well-known/acme-challenge/ from the redirect to "
            "https, so that port 80 answers, or mend TLS on port 443 there.",
        )
        for kind, words, reason in (
            ("tls", "tls: handshake failure", "tls: handshake failure"),
            ("tls", "remote error: tls: unrecognized name", "tls: unrecognized name"),
            ("connection", "Server only speaks HTTP, not TLS", "Server only speaks HTTP, not TLS"),
        )
    ),
    (
        "connection",  # the port of the redirect is the one that is closed
        "203.0.113.5: Fetching https://api.example.com/.well-known/acme-challenge/Zm9v: Connection refused",
        "203.0.113.5",
        "the CA could not reach https://api.example.com/.well-known/acme-challenge/… over IPv4 (A 203.0.113.5, "
        "connection refused). Open port 443 there (firewall, port forwarding) or correct the A record.",
    ),
    (
        "connection",  # tls-alpn-01: Boulder names no URL
        "203.0.113.5: Connection refused",
        "203.0.113.5",
        "the CA could not reach port 443 over IPv4 (A 203.0.113.5, connection refused). "
        "Open port 443 there (firewall, port forwarding) or correct the A record.",
    ),
    (
        "connection",  # Pebble
        'Get "http://api.example.com:5002/.well-known/acme-challenge/x": dial tcp [2001:db8::7]:5002: connect: '
        "no route to host",
        "2001:db8::7",
        "the CA could not reach http://api.example.com:5002/.well-known/acme-challenge/… over IPv6 (AAAA 2001:db8::7, "
        "no route to host). Remove the AAAA record or open port 5002 there.",
    ),
    (
        "connection",  # Pebble; Go's words for a server that takes the connection and says nothing
        f'Get "{PATH}x": context deadline exceeded (Client.Timeout exceeded while awaiting headers)',
        "",
        f"the CA could not reach {PATH}… (connected, but no answer in time). "
        "Open port 80 there, in the firewall and in whatever forwards to this proxy.",
    ),
    (
        "unauthorized",  # Pebble
        "Failed to connect to [::1]:5001 for the tls-alpn-01 challenge",
        "::1",
        "the CA could not reach port 5001 over IPv6 (AAAA ::1). Remove the AAAA record or open port 5001 there.",
    ),
    (
        "connection",
        f"{FETCHING} Error getting validation data",
        "",
        f"the CA could not reach {PATH}…. Open port 80 there, in the firewall and in whatever forwards to this proxy.",
    ),
    (
        "unauthorized",
        f"203.0.113.5: Invalid response from {PATH}Zm9v: 404",
        "203.0.113.5",
        f"the CA asked for {PATH}… over IPv4 (A 203.0.113.5) and got 404. Point the A record to this proxy; what "
        "stands before it must pass /.well-known/acme-challenge/ on.",
    ),
    (
        "unauthorized",  # Boulder until 2021
        f'Invalid response from {PATH}Zm9v [2001:db8::7]: "<!DOCTYPE html>\\n<html><head>"',
        "2001:db8::7",
        f"the CA asked for {PATH}… over IPv6 (AAAA 2001:db8::7) and got something else than this proxy's answer. "
        "Point the AAAA record to this proxy; what stands before it must pass /.well-known/acme-challenge/ on.",
    ),
    (
        "unauthorized",  # Pebble
        'The key authorization file from the server did not match this challenge "a.b" != "wrong"',
        "",
        "the CA asked for the challenge and got something else than this proxy's answer. Point the name's DNS records "
        "to this proxy; what stands before it must pass /.well-known/acme-challenge/ on.",
    ),
    (
        "unauthorized",
        '203.0.113.5: Cannot negotiate ALPN protocol "acme-tls/1" for tls-alpn-01 challenge',
        "203.0.113.5",
        "on port 443 the CA did not find this proxy's TLS answer over IPv4 (A 203.0.113.5, Cannot negotiate ALPN "
        "protocol). What ends TLS there (a CDN, a load balancer, another server) must pass it through; or use http-01 "
        "or dns-01.",
    ),
    (
        "unauthorized",
        "Incorrect validation certificate for tls-alpn-01 challenge. Requested api.example.com from 203.0.113.5:443. "
        'Received 1 certificate(s), first certificate had names "cdn.example"',
        "203.0.113.5",
        "on port 443 the CA did not find this proxy's TLS answer over IPv4 (A 203.0.113.5, Incorrect validation "
        "certificate). What ends TLS there (a CDN, a load balancer, another server) must pass it through; or use "
        "http-01 or dns-01.",
    ),
    (
        "tls",
        "203.0.113.5: remote error: tls: unrecognized name",
        "203.0.113.5",
        "on port 443 the CA did not find this proxy's TLS answer over IPv4 (A 203.0.113.5, tls: unrecognized name). "
        "What ends TLS there (a CDN, a load balancer, another server) must pass it through; or use http-01 or dns-01.",
    ),
    (
        "dns",
        "DNS problem: NXDOMAIN looking up A for api.example.com - check that a DNS record exists for this domain; "
        "DNS problem: NXDOMAIN looking up AAAA for api.example.com - check that a DNS record exists for this domain",
        "",
        "the name does not exist in DNS (NXDOMAIN looking up A for api.example.com). "
        "Create an A or AAAA record that points to this proxy.",
    ),
    (
        "dns",
        "DNS problem: SERVFAIL looking up A for api.example.com - the domain's nameservers may be malfunctioning",
        "",
        "the name's DNS servers gave the CA no answer (SERVFAIL looking up A for api.example.com). "
        "Check the servers and their delegation from outside. It is tried again by itself.",
    ),
    (
        "dns",
        "DNS problem: query timed out looking up CAA for example.com",
        "",
        "the name's DNS servers gave the CA no answer (query timed out looking up CAA for example.com). "
        "Check the servers and their delegation from outside. It is tried again by itself.",
    ),
    (
        "dns",
        "DNS problem: looking up A for api.example.com: DNSSEC: DNSKEY Missing",
        "",
        "the zone's DNSSEC is broken (DNSSEC: DNSKEY Missing). "
        "Mend its signatures, or remove the DS record at the registrar.",
    ),
    (
        "dns",
        "No valid IP addresses found for api.example.com",
        "",
        "the CA finds no address for the name that it may connect to. Create an A or AAAA record with this proxy's "
        "public address, and check the name's DNS servers.",
    ),
    (
        "unauthorized",
        "No TXT record found at _acme-challenge.api.example.com",
        "",
        "the CA found no TXT record at _acme-challenge.api.example.com. Check acme.dns (provider, zone) and the "
        "records of the zone; for slow servers raise acme.dns.propagation.",
    ),
    (
        "dns",
        "DNS problem: NXDOMAIN looking up TXT for _acme-challenge.api.example.com - check that a DNS record exists",
        "",
        "the CA found no TXT record at _acme-challenge.api.example.com. Check acme.dns (provider, zone) and the "
        "records of the zone; for slow servers raise acme.dns.propagation.",
    ),
    (
        "unauthorized",
        'Incorrect TXT record "abc" (and 1 more) found at _acme-challenge.api.example.com',
        "",
        "the CA found another TXT value than the one it expects at _acme-challenge.api.example.com. Check acme.dns "
        "(provider, zone) and the records of the zone; for slow servers raise acme.dns.propagation.",
    ),
    (
        "incorrectResponse",
        "we did not like it",
        "",
        "the CA's look at the name failed (we did not like it). Check that its DNS records point to this proxy and "
        "that ports 80 and 443 are open there.",
    ),
]


@pytest.mark.parametrize(("problem", "detail", "address", "sentence"), LOOKS, ids=lambda value: str(value)[:50])
def test_what_a_ca_saw_becomes_one_sentence(problem: str, detail: str, address: str, sentence: str) -> None:
    failure = from_problem(_document(problem, detail), status=400, step="validation", directory=LE, identifier=HOST)
    assert (failure.kind, failure.address) == (K.VALIDATION, address)
    assert str(failure) == f"{HOST}: {sentence}"


# Refusals of requests: type, HTTP status, step, words, kind, and a part of the sentence that says what to do.
REFUSALS: list[tuple[str, int | None, str, str, FailureKind, str]] = [
    ("accountDoesNotExist", 400, "order", "Account x not found", K.ACCOUNT_GONE, "registered again by itself"),
    ("unauthorized", 403, "order", 'Account is not valid, has status "deactivated"', K.ACCOUNT_GONE, "by itself"),
    ("unauthorized", 403, "account", "key exists but is deactivated", K.ACCOUNT_GONE, "by itself"),
    ("malformed", 400, "order", "JWS verification error", K.ACCOUNT_GONE, "by itself"),
    ("unauthorized", 403, "account", "external account binding JWS verification error: x", K.REFUSED, "eab_hmac_key"),
    ("externalAccountRequired", 403, "account", "", K.REFUSED, "Set acme.eab_kid and acme.eab_hmac_key"),
    ("invalidContact", 400, "account", "example.org is forbidden", K.REFUSED, "acme.email"),
    ("unsupportedContact", 400, "account", "tel:", K.REFUSED, "acme.email"),
    ("alreadyReplaced", 409, "order", "", K.ALREADY_REPLACED, "again"),
    ("", 409, "order", "", K.ALREADY_REPLACED, "again"),
    ("malformed", 409, "rollover", "New key is already in use", K.REFUSED, "New key is already in use"),
    ("badCSR", 400, "finalize", "key too short", K.REFUSED, "acme.key_type"),
    ("badPublicKey", 400, "account", "", K.REFUSED, "key"),
    ("badSignatureAlgorithm", 400, "account", "", K.REFUSED, "Choose another CA"),
    ("badRevocationReason", 400, "revoke", "", K.REFUSED, "Choose another"),
    ("badNonce", 400, "order", "JWS has invalid anti-replay nonce", K.BUSY, "again by itself"),
    ("serverInternal", 500, "order", "", K.BUSY, "again by itself"),
    ("", 503, "order", "503 Service Unavailable: ", K.BUSY, "again by itself"),
    ("", 502, "poll", "", K.BUSY, "again by itself"),
    ("", 408, "order", "", K.BUSY, "again by itself"),
    ("rateLimited", 503, "order", "Service busy; retry later.", K.BUSY, "again by itself"),
    ("rateLimited", 429, "order", "too many new orders", K.RATE_LIMITED, "a limit of the CA is reached"),
    ("", 429, "order", "", K.RATE_LIMITED, "a limit"),
    (
        "rateLimited",
        429,
        "order",
        "Your account is temporarily prevented from requesting certificates for x. Please visit: https://portal.test/",
        K.REFUSED,
        "Open that page and lift it",
    ),
    ("rejectedIdentifier", 400, "order", "forbidden by policy", K.REFUSED, "Correct the hosts of the site"),
    ("unsupportedIdentifier", 400, "order", "IP address", K.REFUSED, "shortlived"),
    ("invalidProfile", 400, "order", "not recognized", K.REFUSED, "acme.profile"),
    ("userActionRequired", 403, "order", "agree (https://ca.test/tos)", K.REFUSED, "https://ca.test/tos"),
    (
        "caa",
        403,
        "finalize",
        "CAA record for example.com prevents issuance",
        K.REFUSED,
        "the CAA record of example.com",
    ),
    ("caa", 403, "finalize", "DNS problem: SERVFAIL looking up CAA for example.com", K.VALIDATION, "DNS servers"),
    ("dns", 400, "order", "DNS problem: SERVFAIL looking up CAA for example.com", K.VALIDATION, "DNS servers"),
    ("orderNotReady", 403, "finalize", "", K.BAD_ORDER, "A new one is made"),
    ("malformed", 404, "poll", "No order for ID 7", K.BAD_ORDER, "A new one is made"),
    ("malformed", 400, "challenge", "authorization must be pending", K.BAD_ORDER, "A new one is made"),
    ("", 404, "finalize", "", K.BAD_ORDER, "A new one is made"),
    ("malformed", 400, "account", "Parse error reading JWS", K.BUSY, "Parse error reading JWS"),
    ("malformed", 400, "account", "external account binding: unknown key id", K.REFUSED, "acme.eab_kid"),
    ("malformed", 400, "order", "Invalid identifiers", K.REFUSED, "Correct the configuration"),
    ("unauthorized", 401, "order", "certificate of another account", K.REFUSED, "of another account"),
    ("onionCAARequired", 403, "order", "", K.REFUSED, "onionCAARequired"),
    ("somethingOfLaterYears", 400, "order", "no", K.REFUSED, "no"),
    ("somethingOfLaterYears", 500, "order", "no", K.BUSY, "again by itself"),
]


@pytest.mark.parametrize(("problem", "status", "step", "detail", "kind", "part"), REFUSALS)
def test_a_refusal_is_judged_by_type_status_and_step(
    problem: str, status: int | None, step: str, detail: str, kind: FailureKind, part: str
) -> None:
    failure = from_problem(_document(problem, detail), status=status, step=step, directory=LE)
    assert failure.kind is kind
    assert part in str(failure)
    assert "{" not in str(failure)


def test_nobody_is_parked_by_a_page_that_is_not_from_a_ca() -> None:
    """A captive portal, a firewall or a wrong URL: it passes when they do, so the attempt must be repeated."""
    failure = from_problem({"detail": "403 Forbidden: Access denied"}, status=403, step="directory", directory=LE)
    assert failure.kind is K.UNREACHABLE
    assert str(failure) == (
        "CA acme-v02.api.letsencrypt.org: something that is no ACME server answers for the CA (403 Forbidden: Access "
        "denied). Is acme.directory right? It is tried again by itself."
    )


def test_only_types_of_acme_are_a_ca_s_word() -> None:
    """A firewall before the CA may speak in problem documents too; what it forbids now it need not forbid tomorrow."""
    document = {"type": "https://gateway.example/errors/forbidden", "detail": "blocked"}
    for step in ("account", "order", "revoke"):
        failure = from_problem(document, status=403, step=step, directory=LE)
        assert (failure.kind, failure.type) == (K.UNREACHABLE, "")
    assert from_problem({"type": "urn:example:rateLimited"}, status=400, step="order").kind is K.UNREACHABLE


def test_the_time_in_the_words_counts_where_there_is_no_header() -> None:
    words = "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, "
    document = _document("rateLimited", f"{words}retry after 2026-11-30 10:05:00 UTC: see https://letsencrypt.org/")
    later = datetime(2026, 12, 1, tzinfo=UTC)
    assert from_problem(document, status=429).retry_at == datetime(2026, 11, 30, 10, 5, tzinfo=UTC)
    assert from_problem(document, status=429, retry_at=later).retry_at == later
    assert str(from_problem(document, status=429)).endswith("It is tried again after 2026-11-30 10:05:00 UTC.")


def test_subproblems_say_which_names_are_wrong() -> None:
    def part(host: str, detail: str) -> dict[str, Any]:
        return {**_document("rejectedIdentifier", detail), "identifier": {"type": "dns", "value": host}}

    document = {
        **_document("malformed", 'Cannot issue for "a.invalid" (and 1 more problems. Refer to sub-problems)'),
        "subproblems": [part("a.invalid", "no such TLD"), part("b.invalid", "forbidden by policy")],
    }
    failure = from_problem(document, status=400, step="order", directory=LE)
    assert [each.identifier for each in failure.subproblems] == ["a.invalid", "b.invalid"]
    assert str(failure) == (
        "a.invalid: the CA refuses to issue for this name (no such TLD). Correct the hosts of the site; for a name "
        'that is not public, set certificate = "internal". Also wrong: b.invalid.'
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("dns", "rejectedIdentifier"), K.REFUSED),
        (("dns", "connection"), K.VALIDATION),
        (("rateLimited",), K.RATE_LIMITED),
        ((), K.REFUSED),
    ],
)
def test_a_compound_is_as_bad_as_the_worst_part(kinds: tuple[str, ...], expected: FailureKind) -> None:
    parts = [_document(kind, "x") for kind in kinds]
    assert from_problem({**_document("compound", "x"), "subproblems": parts}, status=400).kind is expected


def test_the_name_is_read_from_the_words_where_no_field_has_it() -> None:
    detail = (
        'Error creating new order :: Cannot issue for "a.test": Domain name does not end with a valid public suffix'
    )
    failure = from_problem(_document("rejectedIdentifier", detail), status=400, step="order", directory=LE)
    assert failure.identifier == "a.test"
    assert str(failure).startswith('a.test: the CA refuses to issue for this name (Cannot issue for "a.test": Domain')


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"type": 7, "detail": ["x"], "identifier": "a.test", "subproblems": {"a": 1}},
        {"type": None, "detail": None, "identifier": {"value": 4}, "subproblems": [1, None, {"type": {}}]},
        {"type": "about:blank", "detail": "x"},
    ],
)
def test_whatever_a_ca_sends_becomes_a_failure(document: dict[str, Any]) -> None:
    failure = from_problem(document, status=400, step="order", directory=LE)
    assert failure.type == ""
    assert AcmeFailure.from_record(failure.to_record()).to_record() == failure.to_record()
    assert str(failure)


def test_text_of_others_stays_on_one_line_and_has_an_end() -> None:
    assert clean("a\x1b[31m\r\n\tb\u2028c\x00\u202ed") == "a [31m b c d"
    assert len(clean("x" * 5000)) == 1001
    failure = from_problem(_document("dns", "a\nb"), step="validation", identifier="x\ny")
    assert failure.detail == "a b"


def test_a_failure_survives_a_record() -> None:
    failure = AcmeFailure(
        K.VALIDATION,
        type="connection",
        detail="d",
        status=400,
        retry_at=datetime(2026, 1, 2, 3, tzinfo=UTC),
        identifier=HOST,
        address="2001:db8::7",
        step="validation",
        directory=LE,
        subproblems=(AcmeFailure(K.REFUSED, type="caa"),),
    )
    record = failure.to_record()
    again = AcmeFailure.from_record({**record, "of a later version": 1})
    assert again.to_record() == record
    assert (again.kind, again.retry_at, again.subproblems[0].kind) == (K.VALIDATION, failure.retry_at, K.REFUSED)
    assert str(again) == str(failure)
    assert AcmeFailure.from_record({"kind": "of a later version"}).kind is K.INTERNAL
    assert AcmeFailure.from_record({"kind": "busy", "retry_at": "soon", "status": "x"}).retry_at is None


def test_a_failure_learns_whose_it_is_but_does_not_forget() -> None:
    failure = AcmeFailure(K.REFUSED, type="caa")
    assert failure.about(HOST, step="order").identifier == HOST
    assert failure.about(HOST).about("other.test").identifier == HOST
    assert repr(failure.about(HOST)) == f"<AcmeFailure refused caa - {HOST}>"


def test_our_own_words_are_passed_on_as_they_are() -> None:
    failure = AcmeFailure(K.QUOTA, detail="5 of 5 certificates this week. Wait, or add --force.", identifier=HOST)
    assert str(failure) == f"{HOST}: 5 of 5 certificates this week. Wait, or add --force."


@pytest.mark.parametrize(
    ("problem", "part"),
    [
        ("caNameUnknown", "Check this machine's DNS"),
        ("caUnreachable", "Check this machine's way to the internet"),
        ("caTimeout", "does not answer in time"),
        ("caCertificate", "acme.ca_bundle"),
        ("caBundle", "Give a PEM file"),
        ("caAnswer", "Is acme.directory right?"),
        ("eabKey", "Copy it again"),
    ],
)
def test_trouble_on_the_way_to_the_ca_says_where_to_look(problem: str, part: str) -> None:
    text = str(AcmeFailure(K.UNREACHABLE, type=problem, detail="x", directory=LE))
    assert text.startswith("CA acme-v02.api.letsencrypt.org: ")
    assert part in text


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_has_a_sentence(kind: FailureKind) -> None:
    assert str(AcmeFailure(kind, type="unheardOf", detail="so {it} is", identifier=HOST)).startswith(f"{HOST}: ")
    assert str(AcmeFailure(kind)).startswith("the CA: ")


@pytest.mark.parametrize(
    ("detail", "address"),
    [
        ("2001:DB8:0::7: Fetching x", "2001:db8::7"),
        ("dial tcp 127.0.0.66:5002: connect", "127.0.0.66"),
        ("x [192.0.2.1]: 404", "192.0.2.1"),
        ("Fetching http://[2001:db8::1]/x: Connection refused", "2001:db8::1"),
        ("read tcp 192.0.2.9:38012->203.0.113.5:80: read: connection reset by peer", "203.0.113.5"),
        ("Error creating new order :: no", ""),
        ("at 10:05:00 of 2026-11-30, version 1.2.3", ""),
        ("999.1.1.1: Fetching", ""),
        ("host1.2.3.4 is a name", ""),
        (":::::::", ""),
    ],
)
def test_the_address_that_was_tried_is_found(detail: str, address: str) -> None:
    assert address_in(detail) == address


def test_an_address_has_no_record_to_remove() -> None:
    detail = "2001:db8::7: Fetching http://[2001:db8::7]/.well-known/acme-challenge/x: Connection refused"
    failure = from_problem(_document("connection", detail), step="validation", identifier="2001:db8::7")
    assert str(failure) == (
        "2001:db8::7: the CA could not reach http://[2001:db8::7]/.well-known/acme-challenge/… over IPv6 (2001:db8::7, "
        "connection refused). Open port 80 there, in the firewall and in whatever forwards to this proxy."
    )


def _document(problem: str, detail: str) -> dict[str, Any]:
    return {"detail": detail, **({"type": URN + problem} if problem else {})}


def test_a_name_without_an_address_is_tried_again() -> None:
    """Pebble calls it malformed, at a challenge; of an order the same word is the CA's last."""
    assert classify("malformed", 'Could not resolve URL "a.test"', None, "validation") is FailureKind.VALIDATION
    assert classify("malformed", "", 400, "order") is not FailureKind.VALIDATION
