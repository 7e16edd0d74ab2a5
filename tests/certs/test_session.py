"""A session with a CA, call by call, against a fake one that can do what no real one does on demand."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes import certificate_authority as fake
from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy import __version__
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.identifiers import ari_id, new_key, signing_request
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.session import AcmeSession, Eab, Order

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata"]


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path, profiles={"shortlived": timedelta(hours=160)}) as running:
        yield running


@pytest.fixture
def session(ca: CertificateAuthority) -> Iterator[AcmeSession]:
    """A session with an account. What was counted until here is forgotten."""
    opened = open_session(ca)
    opened.register("")
    ca.count.clear()
    yield opened
    opened.close()


def open_session(ca: CertificateAuthority, key: AccountKey | None = None, *, timeout: float = 10) -> AcmeSession:
    opened = AcmeSession(ca.directory, key or AccountKey.generate(), ca_bundle=str(ca.ca_bundle), timeout=timeout)
    opened.connect()
    return opened


def ready_order(session: AcmeSession, hosts: Sequence[str], **options: str) -> Order:
    order = session.new_order(hosts, **options)
    for url in order.authorizations:
        session.answer(session.fetch_authorization(url).challenges[0])
    return session.fetch_order(order.url)


def obtain(session: AcmeSession, *hosts: str, **options: str) -> list[x509.Certificate]:
    order = ready_order(session, hosts, **options)
    order = session.finalize(order, signing_request(hosts, new_key()))
    return x509.load_pem_x509_certificates(session.fetch_chain(order))


def refusal(call: object, *arguments: object, **options: object) -> AcmeFailure:
    assert callable(call)
    with pytest.raises(AcmeFailure) as caught:
        call(*arguments, **options)
    return caught.value


def test_a_certificate_is_obtained_with_one_request_for_each_call(
    ca: CertificateAuthority, session: AcmeSession
) -> None:
    hosts = ("a.test", "*.a.test", "192.0.2.1", "2001:db8::1")
    leaf, root = obtain(session, *hosts)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.test", "*.a.test"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]
    assert root.public_bytes(Encoding.PEM) == ca.root
    assert dict(ca.count) == {
        "order": 1, "authorization": 4, "challenge": 4, "order-poll": 1, "finalize": 1, "certificate": 1,
    }  # fmt: skip


def test_it_says_who_asks(ca: CertificateAuthority, session: AcmeSession) -> None:
    session.new_order(["a.test"])
    asked = [ca.headers[kind][-1] for kind in ("directory", "nonce", "order")]
    assert {each["User-Agent"] for each in asked} == {f"tlsproxy/{__version__} (+acme)"}
    assert asked[-1]["Content-Type"] == "application/jose+json"


def test_the_directory_says_what_the_ca_offers(ca: CertificateAuthority) -> None:
    ca.eab_required, ca.has_renewal_info = True, False
    offer = open_session(ca).offer
    assert (offer.url, offer.eab_required, offer.has_renewal_info) == (ca.directory, True, False)
    assert list(offer.profiles) == ["shortlived"]
    assert offer.terms


# --- nonces


def test_a_rejected_nonce_is_no_failure_and_costs_no_further_nonce_request(
    ca: CertificateAuthority, session: AcmeSession
) -> None:
    ca.fails("order", "badNonce", times=5)
    session.new_order(["a.test"])
    assert dict(ca.count) == {"order": 6}


def test_a_ca_that_rejects_every_nonce_is_busy(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.fails("order", "badNonce", times=1000)
    failure = refusal(session.new_order, ["a.test"])
    assert (failure.kind, failure.type, failure.step) == (FailureKind.BUSY, "badNonce", "order")
    assert ca.count["order"] == 64


def test_nonces_that_ran_out_of_time_do_not_last(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.forget_nonces()
    session.new_order(["a.test"])
    assert dict(ca.count) == {"order": 2}


def test_a_ca_without_nonces_is_busy(ca: CertificateAuthority) -> None:
    ca.fails("nonce", status=200, body=b"", headers={"Replay-Nonce": ""})
    assert refusal(open_session(ca).register, "").kind is FailureKind.BUSY


# --- what a CA answers instead


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_right_in_every_time_zone(
    ca: CertificateAuthority, session: AcmeSession, monkeypatch: pytest.MonkeyPatch, zone: str, *, as_date: bool
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        wanted = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        text = format_datetime(wanted, usegmt=True) if as_date else "3600"
        ca.next_order_fails("rateLimited", "too many new orders", status=429, headers={"Retry-After": text})
        failure = refusal(session.new_order, ["a.test"])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (failure.kind, failure.status) == (FailureKind.RATE_LIMITED, 429)
    assert failure.retry_at
    assert abs(failure.retry_at - wanted) < timedelta(seconds=5)


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e3", "Thu, 99 Nov 2026 99:00:00 GMT", "²"])
def test_a_retry_after_that_means_nothing_is_none(ca: CertificateAuthority, session: AcmeSession, text: str) -> None:
    ca.fails("order", "rateLimited", status=429, headers={"Retry-After": text.encode().decode("latin-1")})
    assert refusal(session.new_order, ["a.test"]).retry_at is None


@pytest.mark.parametrize("text", ["99999999999999", "Thu, 31 Dec 9998 23:59:59 GMT"])
def test_nobody_waits_longer_than_a_year(ca: CertificateAuthority, session: AcmeSession, text: str) -> None:
    ca.fails("order", "rateLimited", status=429, headers={"Retry-After": text})
    again = refusal(session.new_order, ["a.test"]).retry_at
    assert again
    assert again < datetime.now(UTC) + timedelta(days=367)


def test_a_page_of_a_load_balancer_is_read_too(ca: CertificateAuthority, session: AcmeSession) -> None:
    page = b"<html><head><title>503 Backend</title><style>b{}</style></head><body>Please\x1b wait</body></html>"
    ca.fails("order", status=503, body=page, headers={"Retry-After": "120"})
    failure = refusal(session.new_order, ["a.test"])
    assert (failure.kind, failure.status, failure.type) == (FailureKind.BUSY, 503, "")
    assert failure.detail == "503 Service Unavailable: 503 Backend Please wait"
    assert failure.retry_at
    assert failure.directory == ca.directory


def test_a_problem_names_the_place_where_a_person_has_to_go(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.fails("order", "userActionRequired", "Terms of service have changed", status=403, instance="https://ca.test/tos")
    failure = refusal(session.new_order, ["a.test"])
    assert failure.kind is FailureKind.REFUSED
    assert "https://ca.test/tos" in str(failure)


def test_subproblems_arrive(ca: CertificateAuthority, session: AcmeSession) -> None:
    part = {"type": "urn:ietf:params:acme:error:caa", "detail": "no", "identifier": {"type": "dns", "value": "b.test"}}
    ca.fails("order", "compound", status=403, subproblems=[part])
    failure = refusal(session.new_order, ["a.test", "b.test"])
    assert (failure.kind, failure.identifier) == (FailureKind.REFUSED, "b.test")


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("directory", 200, b"<html>Welcome to nginx</html>"),
        ("directory", 200, b"[]"),
        ("directory", 200, b'{"newNonce": "x"}'),
        ("order", 201, b"null"),
        ("order", 201, b"{}"),
        ("order", 301, b""),
        ("order", 308, b""),
        ("renewal-info", 200, b'{"suggestedWindow": 7}'),
        ("certificate", 200, b"-----BEGIN NOTHING-----"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(ca: CertificateAuthority, kind: str, status: int, body: bytes) -> None:
    session = AcmeSession(ca.directory, AccountKey.generate(), ca_bundle=str(ca.ca_bundle))
    ca.fails(kind, status=status, body=body, headers={"Location": ca.directory})

    def talk() -> None:
        session.connect()
        session.register("")
        session.renewal_info(ari_id(obtain(session, "a.test")[0]))

    failure = refusal(talk)
    assert failure.kind in (FailureKind.UNREACHABLE, FailureKind.INTERNAL)
    assert failure.directory == ca.directory
    assert failure.step


# --- orders


def test_unknown_challenges_and_statuses_pass_through(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.challenge_types, ca.order_status = ["dns-persist-01", "http-01"], "contemplating"
    order = session.new_order(["a.test"])
    authorization = session.fetch_authorization(order.authorizations[0])
    assert order.status == "contemplating"
    assert [each.type for each in authorization.challenges] == ["dns-persist-01", "http-01"]
    assert authorization.failure is None


def test_a_wildcard_is_marked(session: AcmeSession) -> None:
    order = session.new_order(["*.a.test", "a.test"])
    found = [session.fetch_authorization(url) for url in order.authorizations]
    assert [(each.identifier, each.is_wildcard) for each in found] == [("a.test", True), ("a.test", False)]
    assert [each.type for each in found[0].challenges] == ["dns-01"]


def test_a_failed_challenge_says_why_and_about_whom(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.validation_fails("a.test", "connection", "192.0.2.1: Fetching http://a.test/x: Connection refused")
    order = ready_order(session, ["a.test"])
    failure = session.fetch_authorization(order.authorizations[0]).failure
    assert order.status == "invalid"
    assert order.failure
    assert failure
    assert (failure.kind, failure.identifier, failure.address) == (FailureKind.VALIDATION, "a.test", "192.0.2.1")
    assert (failure.step, failure.directory) == ("validation", ca.directory)


def test_an_invalid_authorization_without_a_reason_is_a_failure_all_the_same(session: AcmeSession) -> None:
    order = session.new_order(["a.test"])
    session.deactivate_authorization(order.authorizations[0])
    gone = session.fetch_authorization(order.authorizations[0]).failure
    assert gone
    assert gone.kind is FailureKind.BAD_ORDER


def test_an_order_that_is_stuck_says_when_to_look_again(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.processing_polls, ca.processing_retry_after = -1, "7"
    order = ready_order(session, ["a.test"])
    order = session.finalize(order, signing_request(["a.test"], new_key()))
    for _ in range(3):
        order = session.fetch_order(order.url)
        assert (order.status, order.failure) == ("processing", None)
        assert order.retry_after == pytest.approx(7, abs=0.5)


def test_an_order_that_fails_at_the_end_says_why(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.issuance_fails("caa", "CAA record for a.test prevents issuance")
    order = session.finalize(ready_order(session, ["a.test"]), signing_request(["a.test"], new_key()))
    assert order.failure
    assert (order.status, order.failure.kind) == ("invalid", FailureKind.REFUSED)


def test_an_order_of_somebody_else_is_of_no_use(ca: CertificateAuthority, session: AcmeSession) -> None:
    other = open_session(ca)
    other.register("")
    failure = refusal(other.fetch_order, session.new_order(["a.test"]).url)
    assert (failure.kind, failure.status, failure.step) == (FailureKind.BAD_ORDER, 404, "poll")


def test_a_signing_request_for_other_names_is_refused(session: AcmeSession) -> None:
    order = ready_order(session, ["a.test"])
    failure = refusal(session.finalize, order, signing_request(["b.test"], new_key()))
    assert (failure.kind, failure.type) == (FailureKind.REFUSED, "badCSR")


@pytest.mark.parametrize("key_type", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
def test_certificates_are_for_the_key_that_was_asked(session: AcmeSession, key_type: str) -> None:
    key = new_key(key_type)
    order = session.finalize(ready_order(session, ["a.test"]), signing_request(["a.test"], key))
    assert x509.load_pem_x509_certificate(session.fetch_chain(order)).public_key() == key.public_key()


# --- profiles, replacement, renewal information


def test_a_profile_is_asked_for(ca: CertificateAuthority, session: AcmeSession) -> None:
    order = session.new_order(["a.test"], profile="shortlived")
    assert order.profile == "shortlived"
    assert ca.payloads["order"][-1]["profile"] == "shortlived"


def test_a_profile_that_the_ca_does_not_have_is_refused_before_anything_is_ordered(
    ca: CertificateAuthority, session: AcmeSession
) -> None:
    failure = refusal(session.new_order, ["a.test"], profile="eternal")
    assert (failure.kind, failure.type) == (FailureKind.REFUSED, "invalidProfile")
    assert "the CA offers: shortlived; asked for: eternal" in str(failure)
    assert ca.count["order"] == 0


def test_a_successor_is_announced_once(ca: CertificateAuthority, session: AcmeSession) -> None:
    name = ari_id(obtain(session, "a.test")[0])
    obtain(session, "a.test", replaces=name)
    assert ca.payloads["order"][-1]["replaces"] == name
    failure = refusal(session.new_order, ["a.test"], replaces=name)
    assert (failure.kind, failure.type, failure.status) == (FailureKind.ALREADY_REPLACED, "alreadyReplaced", 409)
    assert name in failure.detail


def test_a_ca_without_renewal_information_hears_nothing_of_predecessors(ca: CertificateAuthority) -> None:
    ca.has_renewal_info = False
    session = open_session(ca)
    session.register("")
    session.new_order(["a.test"], replaces="x.y")
    assert "replaces" not in ca.payloads["order"][-1]
    assert "renewalInfo" in str(refusal(session.renewal_info, "x.y"))


@pytest.mark.parametrize("days", [-3, 20])
def test_a_window_is_read_wherever_it_lies(ca: CertificateAuthority, session: AcmeSession, days: int) -> None:
    leaf = obtain(session, "a.test")[0]
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    ca.ari(ari_id(leaf), start, start + timedelta(hours=2), explanation="https://ca.test/why", retry_after="3600")
    info = session.renewal_info(ari_id(leaf))
    assert (info.start, info.end) == (start, start + timedelta(hours=2))
    assert info.explanation_url == "https://ca.test/why"
    assert info.retry_after == pytest.approx(3600, abs=2)
    ca.ari(ari_id(leaf), start + timedelta(days=1), start + timedelta(days=2), retry_after="")
    changed = session.renewal_info(ari_id(leaf))
    assert (changed.start, changed.retry_after, changed.explanation_url) == (start + timedelta(days=1), None, "")


def test_windows_are_of_one_certificate(ca: CertificateAuthority, session: AcmeSession) -> None:
    first, second = (obtain(session, "a.test")[0] for _ in range(2))
    now = datetime.now(UTC)
    ca.ari(ari_id(first), now - timedelta(days=2), now - timedelta(days=1))
    assert session.renewal_info(ari_id(first)).end < now < session.renewal_info(ari_id(second)).start
    assert refusal(session.renewal_info, "AAAA.BBBB").status == 404


def test_a_window_that_ends_before_it_begins_is_none(ca: CertificateAuthority, session: AcmeSession) -> None:
    leaf, now = obtain(session, "a.test")[0], datetime.now(UTC)
    ca.ari(ari_id(leaf), now, now - timedelta(days=1))
    assert refusal(session.renewal_info, ari_id(leaf)).kind is FailureKind.INTERNAL


def test_renewal_information_needs_no_account(ca: CertificateAuthority, session: AcmeSession) -> None:
    leaf = obtain(session, "a.test")[0]
    assert open_session(ca).renewal_info(ari_id(leaf)).start > datetime.now(UTC)


def test_ids_of_certificates_are_those_of_the_ca(session: AcmeSession) -> None:
    """Serial numbers with and without their first bit set are written differently (RFC 9773 4.1)."""
    leaves = [obtain(session, "a.test")[0] for _ in range(4)]
    assert [ari_id(leaf) for leaf in leaves] == [fake.ari_id(leaf) for leaf in leaves]


# --- accounts


def test_an_account_is_registered_once_for_each_key(ca: CertificateAuthority) -> None:
    key = AccountKey.generate()
    assert refusal(open_session(ca, key).find_account).kind is FailureKind.ACCOUNT_GONE
    url = open_session(ca, key).register("a@example.org")
    again = open_session(ca, key)
    assert again.register("") == again.find_account() == again.account == url
    assert list(ca.accounts) == [url]
    assert ca.accounts[url]["contact"] == ["mailto:a@example.org"]


def test_an_address_for_mail_can_be_changed_and_removed(ca: CertificateAuthority, session: AcmeSession) -> None:
    session.update_contact("b@example.org")
    assert ca.accounts[session.account]["contact"] == ["mailto:b@example.org"]
    session.update_contact("")
    assert ca.accounts[session.account]["contact"] == []


@pytest.mark.parametrize(
    "key", ["c2VjcmV0IGtleSBmb3IgZWFi", "c2VjcmV0IGtleSBmb3IgZWFi==", " c2V+cmV0/GtleSBmb3IgZWFi\n"]
)
def test_an_account_is_bound_to_a_customer(ca: CertificateAuthority, key: str) -> None:
    """The CA echoes the binding, which acme can't write back."""
    ca.eab_required = True
    session = open_session(ca)
    assert refusal(session.register, "").type == "externalAccountRequired"
    url = session.register("", Eab("kid-1", key))
    assert ca.payloads["account"][-1]["externalAccountBinding"]["payload"]
    assert session.find_account() == url
    session.new_order(["a.test"])


@pytest.mark.parametrize("key", ["schlüssel", "Zm9vY", "!!!!", "", "secret key"])
def test_a_binding_key_that_is_none_is_refused_and_not_shown(ca: CertificateAuthority, key: str) -> None:
    failure = refusal(open_session(ca).register, "", Eab("kid-1", key))
    assert (failure.kind, failure.type, failure.__cause__) == (FailureKind.REFUSED, "eabKey", None)
    assert not key or key not in f"{failure} {failure!r} {failure.to_record()} {Eab('kid-1', key)!r}"
    assert ca.count["account"] == 0


def test_the_key_of_an_account_is_replaced(ca: CertificateAuthority, session: AcmeSession) -> None:
    late, new = open_session(ca), AccountKey.generate()
    old = AccountKey.generate()
    url = late.register("")
    late.change_key(old)
    late.change_key(new)
    assert open_session(ca, new).find_account() == url
    assert refusal(open_session(ca, old).find_account).kind is FailureKind.ACCOUNT_GONE
    obtain(late, "a.test")


def test_a_session_with_a_key_that_was_replaced_is_told_to_log_in_again(ca: CertificateAuthority) -> None:
    key = AccountKey.generate()
    first, second = open_session(ca, key), open_session(ca, key)
    first.register("")
    second.register("")
    first.change_key(AccountKey.generate())
    assert refusal(second.new_order, ["a.test"]).kind is FailureKind.ACCOUNT_GONE


def test_a_key_of_another_account_is_refused(ca: CertificateAuthority, session: AcmeSession) -> None:
    taken = AccountKey.generate()
    open_session(ca, taken).register("")
    failure = refusal(session.change_key, taken)
    assert (failure.kind, failure.status, failure.step) == (FailureKind.REFUSED, 409, "rollover")
    session.new_order(["a.test"])  # with the old key


def test_a_forgotten_and_a_closed_account_are_gone(ca: CertificateAuthority, session: AcmeSession) -> None:
    ca.close_account(session.account)
    assert refusal(session.new_order, ["a.test"]).kind is FailureKind.ACCOUNT_GONE
    ca.forget()
    assert refusal(session.new_order, ["a.test"]).kind is FailureKind.ACCOUNT_GONE


def test_revoking_twice_is_no_failure(ca: CertificateAuthority, session: AcmeSession) -> None:
    leaf = obtain(session, "a.test")[0]
    for _ in range(2):
        session.revoke(leaf.public_bytes(Encoding.PEM), 4)
    assert ca.revoked == {leaf.serial_number: 4}
    assert refusal(session.revoke, _foreign_certificate(), 1).type == "malformed"


# --- keys


def test_answers_to_challenges_are_made_without_a_request(ca: CertificateAuthority, session: AcmeSession) -> None:
    """RFC 8555 8.1 and 8.4, with the key of RFC 7517's example; checked against acme's own arithmetic."""
    from acme import challenges
    from josepy.jwk import JWKEC

    key = AccountKey.generate()
    challenge = challenges.DNS01(token=b"0123456789abcdef")
    token, jwk = challenge.encode("token"), JWKEC(key=key.private)
    mine = AcmeSession(ca.directory, key)
    assert mine.key_authorization(token) == challenge.key_authorization(jwk)
    assert mine.dns_value(token) == challenge.validation(jwk)
    assert sum(ca.count.values()) == 0


def test_no_key_shows(ca: CertificateAuthority, session: AcmeSession) -> None:
    key = AccountKey.generate()
    assert "PRIVATE" not in f"{key!r} {session!r} {Eab('a', 'secret')!r}"
    assert "secret" not in repr(Eab("a", "secret"))
    assert repr(session) == f"<AcmeSession {ca.directory} {session.account}>"


def test_only_p256_keys_are_account_keys() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    other = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ValueError, match="P-256"):
        _ = AccountKey(other).private


def _foreign_certificate() -> bytes:
    from tests.store.pki import issue

    return issue("a.test").pem
