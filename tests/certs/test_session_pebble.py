"""A session with a real CA: Pebble, which rejects half of all nonces here and looks at every challenge."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from tests.pebble import ChallTestSrv, Pebble
from tests.system.running import until
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.accounts import Authority, load, log_in, roll_over
from tlsproxy.certs.identifiers import new_key, server_name, signing_request
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.session import AcmeSession, Authorization, Challenge, Eab, Order
from tlsproxy.store.base import open_store

pytestmark = pytest.mark.system

EAB_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChallTestSrv]:
    with ChallTestSrv(tmp_path_factory.mktemp("dns")) as running:
        yield running


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory, dns: ChallTestSrv) -> Iterator[Pebble]:
    with Pebble(
        tmp_path_factory.mktemp("pebble"),
        dns=dns.address,
        http_port=dns.http_port,
        tls_port=dns.tls_port,
        bad_nonces=50,
        alternate_roots=2,
        chain_length=2,
        blocked=("blocked.test",),
        strict=True,
    ) as running:
        yield running


@pytest.fixture
def session(ca: Pebble) -> Iterator[AcmeSession]:
    opened = open_session(ca)
    opened.register("a@example.org")
    yield opened
    opened.close()


def open_session(ca: Pebble, key: AccountKey | None = None, account: str = "") -> AcmeSession:
    opened = AcmeSession(ca.directory, key or AccountKey.generate(), account=account, ca_bundle=str(ca.ca_bundle))
    opened.connect()
    return opened


Answer = Callable[[str, Challenge], None]


class Answers:
    """Lets pebble-challtestsrv answer, with the key of one session."""

    def __init__(self, dns: ChallTestSrv, session: AcmeSession) -> None:
        self._dns, self._session = dns, session

    def http(self, host: str, challenge: Challenge) -> None:
        self._dns.http01(challenge.token, self._session.key_authorization(challenge.token))

    def tls(self, host: str, challenge: Challenge) -> None:
        self._dns.tls_alpn01(server_name(host), self._session.key_authorization(challenge.token))

    def txt(self, host: str, challenge: Challenge) -> None:
        self._dns.txt(f"_acme-challenge.{host}", self._session.dns_value(challenge.token))


def nothing(host: str, challenge: Challenge) -> None:
    """Answer nothing: what is there already has to do."""


def validated(session: AcmeSession, hosts: Sequence[str], kind: str, answer: Answer) -> Order:
    """Order, answer, and return the order when the CA has looked. Raises what it has seen."""
    order = session.new_order(hosts)
    pending = []
    for url in order.authorizations:
        authorization = session.fetch_authorization(url)
        challenge = next(each for each in authorization.challenges if each.type == kind)
        answer(authorization.identifier, challenge)
        pending.append((url, challenge))
    for _, challenge in pending:
        try:
            session.answer(challenge)
        except AcmeFailure as failure:
            # Pebble may be done with it already: then it takes no answer, and the look below tells what it found.
            if failure.kind is not FailureKind.BAD_ORDER:
                raise
    for url, _ in pending:
        seen = until(partial(_no_longer_pending, session, url), f"{url} is judged")
        if seen.failure:
            raise seen.failure
    return session.fetch_order(order.url)


def _no_longer_pending(session: AcmeSession, url: str) -> Authorization | None:
    seen = session.fetch_authorization(url)
    return None if seen.status == "pending" else seen


def issued(session: AcmeSession, hosts: Sequence[str], kind: str, answer: Answer) -> Order:
    order = validated(session, hosts, kind, answer)
    order = session.finalize(order, signing_request(hosts, new_key()))
    return until(lambda: _when_valid(session, order), "the certificate is issued")


def _when_valid(session: AcmeSession, order: Order) -> Order | None:
    seen = session.fetch_order(order.url)
    assert seen.failure is None
    return seen if seen.status == "valid" else None


def chain(session: AcmeSession, order: Order, preferred: str = "") -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(session.fetch_chain(order, preferred))


def names_of(leaf: x509.Certificate) -> list[str]:
    return [str(each.value) for each in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


@pytest.mark.parametrize(
    ("kind", "method", "hosts"),
    [
        ("http-01", "http", ("a.test", "b.test")),
        ("tls-alpn-01", "tls", ("c.test",)),
        ("dns-01", "txt", ("*.d.test", "d.test")),
        ("http-01", "http", ("127.0.0.1",)),
        ("http-01", "http", ("::1",)),
    ],
)
def test_a_certificate_by_each_challenge(
    session: AcmeSession, dns: ChallTestSrv, kind: str, method: str, hosts: tuple[str, ...]
) -> None:
    order = issued(session, hosts, kind, getattr(Answers(dns, session), method))
    assert sorted(names_of(chain(session, order)[0])) == sorted(hosts)


def test_the_chain_that_is_preferred(session: AcmeSession, dns: ChallTestSrv, ca: Pebble) -> None:
    order = issued(session, ["e.test"], "http-01", Answers(dns, session).http)
    roots = [x509.load_pem_x509_certificate(ca.root(number)) for number in range(3)]
    names = [root.subject.rfc4514_string().removeprefix("CN=") for root in roots]
    for name, root in zip(names, roots, strict=True):
        assert chain(session, order, name)[-1].issuer == root.subject
    for name in ("", "no such root"):
        assert chain(session, order, name)[-1].issuer == roots[0].subject


@pytest.mark.parametrize(
    ("kind", "address", "part"),
    [
        ("http-01", "127.0.0.1", "something else than this proxy's answer"),
        ("http-01", "127.0.0.66", "over IPv4 (A 127.0.0.66, connection refused)"),
        ("tls-alpn-01", "127.0.0.1", "over IPv4 (A 127.0.0.1)"),
        ("tls-alpn-01", "127.0.0.66", "over IPv4 (A 127.0.0.66). Open port"),
        ("dns-01", "127.0.0.1", "the CA found no TXT record at _acme-challenge.w.test"),
        ("http-01", "", "the CA finds no address for the name"),
    ],
)
def test_what_pebble_saw_becomes_a_sentence(
    session: AcmeSession, dns: ChallTestSrv, request: pytest.FixtureRequest, kind: str, address: str, part: str
) -> None:
    dns.default_addresses(address, "")
    request.addfinalizer(dns.default_addresses)
    with pytest.raises(AcmeFailure) as caught:
        validated(session, ["w.test"], kind, nothing)
    assert caught.value.kind is FailureKind.VALIDATION
    assert str(caught.value).startswith("w.test: ")
    assert part in str(caught.value)


def test_a_name_that_pebble_refuses_is_named(session: AcmeSession) -> None:
    with pytest.raises(AcmeFailure) as caught:
        session.new_order(["blocked.test"])
    assert (caught.value.kind, caught.value.identifier) == (FailureKind.REFUSED, "blocked.test")


def test_a_certificate_is_revoked(session: AcmeSession, dns: ChallTestSrv, ca: Pebble) -> None:
    order = issued(session, ["f.test"], "http-01", Answers(dns, session).http)
    pem = session.fetch_chain(order)
    session.revoke(pem, 4)
    session.revoke(pem, 4)
    serial = x509.load_pem_x509_certificate(pem).serial_number
    assert ca.certificate_status(serial)["Status"] == "Revoked"


def test_an_account_and_its_key_change(ca: Pebble, dns: ChallTestSrv, session: AcmeSession) -> None:
    old = open_session(ca)
    url, new = old.register(""), AccountKey.generate()
    old.update_contact("b@example.org")
    key_before = replace_key(old, new)
    assert open_session(ca, new).find_account() == url
    with pytest.raises(AcmeFailure) as caught:
        open_session(ca, key_before).find_account()
    assert caught.value.kind is FailureKind.ACCOUNT_GONE
    with pytest.raises(AcmeFailure) as caught:
        open_session(ca, key_before, url).new_order(["a.test"])
    assert caught.value.kind is FailureKind.ACCOUNT_GONE
    with pytest.raises(AcmeFailure) as caught:
        session.change_key(new)
    assert caught.value.status in (409, 500)  # RFC 8555 7.3.5 wants 409
    issued(old, ["g.test"], "http-01", Answers(dns, old).http)


def replace_key(session: AcmeSession, new: AccountKey) -> AccountKey:
    """Replace twice, so that the key before the last is known; return that."""
    between = AccountKey.generate()
    session.change_key(between)
    session.change_key(new)
    return between


def test_an_authorization_is_given_up(session: AcmeSession) -> None:
    order = session.new_order(["h.test"])
    session.deactivate_authorization(order.authorizations[0])
    assert session.fetch_authorization(order.authorizations[0]).status == "deactivated"


def test_a_ca_that_forgets_and_one_that_wants_customers(tmp_path: Path, dns: ChallTestSrv) -> None:
    """The same URL after a restart: accounts, orders and root are gone; then it wants a binding besides."""
    store = open_store(f"file://{tmp_path}/store")
    with Pebble(tmp_path, dns=dns.address, http_port=dns.http_port, tls_port=dns.tls_port, bad_nonces=20) as ca:

        def opener(key: AccountKey, url: str) -> AcmeSession:
            return AcmeSession(ca.directory, key, account=url, ca_bundle=str(ca.ca_bundle))

        authority = Authority(ca.directory)
        account, session = log_in(store, authority, opener)
        order = session.new_order(["a.test"])
        ca.restart()
        with pytest.raises(AcmeFailure) as caught:
            session.fetch_order(order.url)
        assert caught.value.kind is FailureKind.ACCOUNT_GONE
        session.close()
        again, session = log_in(store, authority, opener, gone=account.url)
        assert again.key == account.key
        issued(session, ["a.test"], "http-01", Answers(dns, session).http)
        session.close()
        assert roll_over(store, again, opener).url == again.url
        changed, session = log_in(store, authority, opener)
        assert changed.key != again.key
        issued(session, ["a.test"], "http-01", Answers(dns, session).http)
        session.close()

        ca.stop()
        ca.eab_keys = {"kid-1": EAB_KEY}
        ca.start()
        with pytest.raises(AcmeFailure) as caught:
            log_in(store, authority, opener, gone=changed.url)
        assert caught.value.type == "externalAccountRequired"
        with pytest.raises(AcmeFailure, match=r"Compare acme\.eab_kid"):
            log_in(store, replace(authority, eab=Eab("kid-1", "Zm9v")), opener)
        bound, session = log_in(store, replace(authority, eab=Eab("kid-1", EAB_KEY + "==")), opener)
        assert load(store, ca.directory, "kid-1") == bound
        assert session.offer.eab_required
        issued(session, ["a.test"], "http-01", Answers(dns, session).http)
        session.close()
    store.close()


def test_a_ca_that_takes_its_time(tmp_path: Path) -> None:
    """Each call returns at once all the same: waiting is the caller's."""
    with Pebble(tmp_path, always_valid=True, validation_sleep=3, bad_nonces=0) as ca:
        session = open_session(ca)
        session.register("")
        begun = time.monotonic()
        order = session.new_order(["a.test"])
        session.answer(session.fetch_authorization(order.authorizations[0]).challenges[0])
        session.fetch_order(order.url)
        assert time.monotonic() - begun < 2
        session.close()
