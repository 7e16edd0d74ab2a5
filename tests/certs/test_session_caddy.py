"""A session with another CA than Pebble: smallstep's, in Caddy. It differs where the standard leaves room."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.caddy import CaddyCa
from tests.certs.test_session_pebble import Answers, issued, names_of
from tests.pebble import ChallTestSrv
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.accounts import Authority, log_in, roll_over
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.session import AcmeSession
from tlsproxy.store.base import CertificateStore, open_store

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChallTestSrv]:
    with ChallTestSrv(tmp_path_factory.mktemp("dns")) as running:
        yield running


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory, dns: ChallTestSrv) -> Iterator[CaddyCa]:
    with CaddyCa(tmp_path_factory.mktemp("caddy"), resolver=dns.address) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CertificateStore]:
    opened = open_store(f"file://{tmp_path}/store")
    yield opened
    opened.close()


def test_a_certificate_its_account_and_its_end(ca: CaddyCa, dns: ChallTestSrv, store: CertificateStore) -> None:
    def opener(key: AccountKey, url: str) -> AcmeSession:
        return AcmeSession(ca.directory, key, account=url, ca_bundle=str(ca.ca_bundle))

    authority = Authority(ca.directory, "a@example.org")
    account, session = log_in(store, authority, opener)
    assert not session.offer.has_renewal_info
    hosts = ["*.d.test", "d.test"]
    pem = session.fetch_chain(issued(session, hosts, "dns-01", Answers(dns, session).txt))
    assert sorted(names_of(x509.load_pem_x509_certificate(pem))) == hosts
    for _ in range(2):
        session.revoke(pem, 1)

    unready = session.new_order(["unready.test"])
    challenge = session.fetch_authorization(unready.authorizations[0]).challenges[0]
    session.answer(challenge)
    seen = session.fetch_authorization(unready.authorizations[0])
    looked = next(each for each in seen.challenges if each.url == challenge.url)
    assert (seen.status, seen.failure, looked.type) == ("pending", None, "dns-01")
    assert looked.failure
    assert (looked.failure.kind, looked.failure.identifier) == (FailureKind.VALIDATION, "unready.test")
    with pytest.raises(AcmeFailure) as caught:
        session.finalize(unready, b"")
    assert caught.value.kind is FailureKind.BAD_ORDER
    session.close()

    # It has no key roll-over. That costs nothing but the attempt.
    with pytest.raises(AcmeFailure, match="the CA did not replace the key of the account") as caught:
        roll_over(store, account, opener)
    assert caught.value.kind is FailureKind.REFUSED
    again, session = log_in(store, authority, opener)
    assert (again.key, again.url, again.is_changing) == (account.key, account.url, False)
    session.new_order(["e.test"])
    session.close()


def test_an_account_that_is_none(ca: CaddyCa) -> None:
    session = AcmeSession(ca.directory, AccountKey.generate(), ca_bundle=str(ca.ca_bundle))
    session.connect()
    with pytest.raises(AcmeFailure) as caught:
        session.find_account()
    assert caught.value.kind is FailureKind.ACCOUNT_GONE
    session.close()
