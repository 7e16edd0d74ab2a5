"""Accounts survive crashes at every point of a change of keys, CAs that forget, processes that come together."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs import accounts
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.accounts import Account, Authority, account_name, load_or_make, log_in, roll_over, settle
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.session import AcmeSession, Eab
from tlsproxy.store.base import CertificateStore, open_store

ELSEWHERE = "https://other.test/directory"


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CertificateStore]:
    opened = open_store(f"file://{tmp_path}/store")
    yield opened
    opened.close()


Opener = Callable[[AccountKey, str], AcmeSession]


@pytest.fixture
def opener(ca: CertificateAuthority) -> Opener:
    return make_opener(ca)


def make_opener(ca: CertificateAuthority, kind: type[AcmeSession] = AcmeSession, timeout: float = 10) -> Opener:
    def open_session(key: AccountKey, url: str) -> AcmeSession:
        return kind(ca.directory, key, account=url, ca_bundle=str(ca.ca_bundle), timeout=timeout)

    return open_session


class Killed(BaseException):
    """The process ends here."""


def log_in_as(ca: CertificateAuthority, store: CertificateStore, opener: Opener, **options: Any) -> Account:
    """Log in, order something to see that it works, and return the account."""
    email = options.pop("email", "")
    account, session = log_in(store, Authority(ca.directory, email, options.pop("eab", None)), opener, **options)
    session.new_order(["a.test"])
    session.close()
    return account


def test_an_account_is_made_once_and_found_again(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    first = log_in_as(ca, store, opener, email="a@example.org")
    again = log_in_as(ca, store, opener, email="a@example.org")
    assert first == again == accounts.load(store, ca.directory)
    assert list(ca.accounts) == [first.url]
    assert (ca.count["account"], ca.count["account-update"]) == (1, 0)
    assert first.created


def test_processes_that_come_at_the_same_time_share_one_account(
    ca: CertificateAuthority, tmp_path: Path, opener: Opener
) -> None:
    together = threading.Barrier(4)

    def process(number: int) -> Account:
        own = open_store(f"file://{tmp_path}/store")
        together.wait(10)
        try:
            return log_in_as(ca, own, opener)
        finally:
            own.close()

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(process, range(4)))
    assert len(found) == len(ca.accounts) == 1


def test_the_key_is_stored_before_the_ca_hears_of_it(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    ca.drops("account", after=True)
    with pytest.raises(AcmeFailure) as caught:
        log_in(store, Authority(ca.directory), opener)
    assert caught.value.kind is FailureKind.UNREACHABLE
    kept = accounts.load(store, ca.directory)
    assert kept
    assert kept.url == ""
    assert log_in_as(ca, store, opener).key == kept.key
    assert len(ca.accounts) == 1


def test_an_account_whose_url_was_not_stored_is_not_registered_twice(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    """Killed between the CA's answer and the store."""
    made = load_or_make(store, ca.directory)
    session = opener(made.key, "")
    session.connect()
    url = session.register("")
    session.close()
    assert log_in_as(ca, store, opener).url == url
    assert len(ca.accounts) == 1


def test_accounts_differ_by_ca_and_customer_but_not_by_mail(store: CertificateStore) -> None:
    one = load_or_make(store, ELSEWHERE)
    assert load_or_make(store, ELSEWHERE) == one
    others = [load_or_make(store, ELSEWHERE, "kid-1"), load_or_make(store, "https://third.test/directory")]
    assert len({one.key, *(each.key for each in others)}) == 3
    assert Authority(ELSEWHERE, "a@example.org").kid == Authority(ELSEWHERE, "b@example.org").kid == ""
    assert Authority(ELSEWHERE, eab=Eab("kid-1", "x")).kid == "kid-1"
    assert account_name(ELSEWHERE).startswith("other.test/")


def test_another_mail_address_is_told_to_the_ca_once(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    for email in ("a@example.org", "b@example.org", "b@example.org", ""):
        url = log_in_as(ca, store, opener, email=email).url
    assert ca.accounts[url]["contact"] == []
    assert [each["contact"] for each in ca.payloads["account-update"]] == [["mailto:b@example.org"], []]


def test_an_address_that_the_ca_refuses_does_not_stop_certificates(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    log_in_as(ca, store, opener)
    ca.fails("account-update", "invalidContact", "example.org is forbidden")
    log_in_as(ca, store, opener, email="a@example.org")
    log_in_as(ca, store, opener, email="a@example.org")
    assert [each.message for each in caplog.records if "contact" in each.message] == ["acme.contact_refused"]
    assert ca.count["account-update"] == 1


def test_a_customer_is_bound(ca: CertificateAuthority, store: CertificateStore, opener: Opener) -> None:
    ca.eab_required = True
    log_in_as(ca, store, opener, eab=Eab("kid-1", "c2VjcmV0"))
    assert "externalAccountBinding" in ca.payloads["account"][-1]


def test_a_new_account_is_asked_for_permission(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    def refuse() -> None:
        raise AcmeFailure(FailureKind.QUOTA, detail="10 of 10 new accounts")

    with pytest.raises(AcmeFailure, match="10 of 10"):
        log_in(store, Authority(ca.directory), opener, permit=refuse)
    assert ca.count["account"] == 0
    log_in_as(ca, store, opener)
    log_in_as(ca, store, opener, permit=refuse)


# --- a CA that does not know us any more


def test_a_forgotten_account_is_registered_again_with_the_same_key(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    before = log_in_as(ca, store, opener)
    ca.forget()
    after = log_in_as(ca, store, opener, gone=before.url)
    assert after.key == before.key
    assert after.url != before.url
    assert list(ca.accounts) == [after.url]
    # Another order that failed for the same reason finds the new account and does not register once more.
    assert log_in_as(ca, store, opener, gone=before.url) == after
    assert len(ca.accounts) == 1


def test_a_closed_account_is_replaced_by_one_with_a_new_key(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    before = log_in_as(ca, store, opener, email="a@example.org")
    ca.close_account(before.url)
    after = log_in_as(ca, store, opener, email="a@example.org", gone=before.url)
    assert after.key != before.key
    assert after.created == before.created
    assert accounts.load(store, ca.directory) == after
    assert ca.accounts[after.url]["contact"] == ["mailto:a@example.org"]


def test_an_account_that_is_found_again_is_no_new_one(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    """Its URL was not stored, or somebody has replaced its key while this order went on with the old one."""

    def refuse() -> None:
        raise AssertionError("nothing is registered here")

    before = log_in_as(ca, store, opener)
    accounts.forget(store, before)
    assert log_in_as(ca, store, opener, permit=refuse).url == before.url
    changed = roll_over(store, before, opener)
    assert log_in_as(ca, store, opener, permit=refuse, gone=before.url) == changed


def test_what_somebody_else_has_mended_is_left_alone(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    before = log_in_as(ca, store, opener)
    ca.forget()
    after = log_in_as(ca, store, opener, gone=before.url)
    for key_too in (False, True):
        assert accounts.forget(store, before, key_too=key_too) == after
    assert accounts.registered(store, before, "https://other.test/account") == after


def test_a_failure_of_another_kind_costs_no_key(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    before = load_or_make(store, ca.directory)
    ca.fails("account", "serverInternal", status=500)
    with pytest.raises(AcmeFailure):
        log_in(store, Authority(ca.directory), opener)
    assert load_or_make(store, ca.directory) == before


# --- another key


def test_the_key_is_replaced(ca: CertificateAuthority, store: CertificateStore, opener: Opener) -> None:
    before = log_in_as(ca, store, opener)
    after = roll_over(store, before, opener)
    assert after.key != before.key
    assert (after.url, after.next_key, after.is_changing) == (before.url, None, False)
    assert log_in_as(ca, store, opener) == after
    assert ca.count["account"] == 1


@pytest.mark.parametrize("kind", ["directory", "key-change"])
@pytest.mark.parametrize("after", [False, True])
def test_the_right_key_is_found_when_the_answer_was_lost(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener, kind: str, *, after: bool
) -> None:
    """The CA is gone in the middle of it: before it changed the key, or after it did and before it said so."""
    before = log_in_as(ca, store, opener)

    ca.drops(kind, after=after)
    with pytest.raises(AcmeFailure) as caught:
        roll_over(store, before, opener)
    assert caught.value.kind is FailureKind.UNREACHABLE
    torn = accounts.load(store, ca.directory)
    assert torn
    assert (torn.key, torn.is_changing) == (before.key, True)
    settled = log_in_as(ca, store, opener)
    took = kind == "key-change" and after
    assert settled.key == (torn.next_key if took else before.key)
    assert settled.url == before.url
    assert not settled.is_changing
    assert roll_over(store, settled, opener).key not in (before.key, settled.key)
    assert log_in_as(ca, store, opener).url == before.url
    assert len(ca.accounts) == 1


class Before(AcmeSession):
    """The session of a process that is killed before it asks for another key."""

    def change_key(self, new: AccountKey) -> None:
        raise Killed


class After(AcmeSession):
    """The session of a process that is killed when the CA has agreed."""

    def change_key(self, new: AccountKey) -> None:
        super().change_key(new)
        raise Killed


@pytest.mark.parametrize(
    ("session", "writes", "took"),
    [
        pytest.param(AcmeSession, 1, False, id="before the new key is stored"),
        pytest.param(Before, 99, False, id="before the CA hears of it"),
        pytest.param(After, 99, True, id="when the CA has agreed"),
        pytest.param(AcmeSession, 2, True, id="before that is stored"),
    ],
)
def test_a_kill_at_any_point_of_the_change_costs_no_account(
    ca: CertificateAuthority, store: CertificateStore, session: type[AcmeSession], writes: int, *, took: bool
) -> None:
    before = log_in_as(ca, store, make_opener(ca))
    with pytest.raises(Killed):
        roll_over(_Dying(store, writes), before, make_opener(ca, session))
    assert log_in_as(ca, store, make_opener(ca)).url == before.url
    settled = accounts.load(store, ca.directory)
    assert settled
    assert (settled.key == before.key, settled.is_changing) == (not took, False)
    roll_over(store, settled, make_opener(ca))
    assert log_in_as(ca, store, make_opener(ca)).url == before.url
    assert len(ca.accounts) == 1


def test_one_change_at_a_time(ca: CertificateAuthority, tmp_path: Path, opener: Opener) -> None:
    ours, theirs = (open_store(f"file://{tmp_path}/store") for _ in range(2))
    account = log_in_as(ca, ours, opener)
    lease = theirs.acquire(f"account {account.name}", 60)
    assert lease
    with pytest.raises(AcmeFailure) as caught:
        roll_over(ours, account, opener)
    assert caught.value.kind is FailureKind.BUSY
    assert ca.count["key-change"] == 0
    # While they are at it, our orders go on with the key that there is.
    begun = replace(account, next_key=AccountKey.generate(), is_changing=True)
    theirs.put_record(accounts.FOLDER, account.name, begun.to_record())
    assert log_in_as(ca, ours, opener) == settle(ours, begun, opener) == begun
    theirs.release(lease)
    assert not log_in_as(ca, ours, opener).is_changing
    ours.close()
    theirs.close()


def test_a_change_that_arrives_late_does_not_cost_the_account(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    """A process is paused before it asks the CA; another decides for the old key; then the first goes on."""
    before = log_in_as(ca, store, opener)
    begun = replace(before, next_key=AccountKey.generate(), is_changing=True)
    store.put_record(accounts.FOLDER, before.name, begun.to_record())
    settled = log_in_as(ca, store, opener)
    assert (settled.key, settled.next_key) == (before.key, begun.next_key)
    late = opener(before.key, before.url)
    late.connect()
    assert begun.next_key
    late.change_key(begun.next_key)
    late.close()
    with pytest.raises(AcmeFailure) as caught:
        log_in_as(ca, store, opener)
    assert caught.value.kind is FailureKind.ACCOUNT_GONE
    found = log_in_as(ca, store, opener, gone=before.url)
    assert (found.key, found.url, found.next_key) == (begun.next_key, before.url, None)
    assert len(ca.accounts) == 1


def test_both_keys_forgotten_is_registered_again(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    before = log_in_as(ca, store, opener)
    begun = replace(before, next_key=AccountKey.generate(), is_changing=True)
    store.put_record(accounts.FOLDER, before.name, begun.to_record())
    ca.forget()
    after = log_in_as(ca, store, opener, gone=before.url)
    assert (after.key, list(ca.accounts)) == (before.key, [after.url])


def test_an_account_that_is_not_registered_has_no_key_to_replace(
    ca: CertificateAuthority, store: CertificateStore, opener: Opener
) -> None:
    with pytest.raises(AcmeFailure, match="not registered"):
        roll_over(store, load_or_make(store, ca.directory), opener)


def test_a_record_is_read_as_it_was_written_and_shows_no_key() -> None:
    account = Account("n", "d", AccountKey.generate(), "u", "e", "c", AccountKey.generate(), is_changing=True)
    assert Account.from_record("n", {**account.to_record(), "of a later version": 1}) == account
    assert "PRIVATE" not in repr(account)
    least = Account.from_record("n", {"directory": "d", "key_pem": account.key.pem.decode()})
    assert (least.key, least.url, least.next_key, least.is_changing) == (account.key, "", None, False)
    with pytest.raises(ValueError, match="no account record"):
        Account.from_record("n", {"directory": "d"})


class _Dying(CertificateStore):
    """The store as it is for a process that is killed at its n-th write of an account."""

    def __init__(self, store: CertificateStore, writes: int) -> None:
        self.records, self._left = store.records, writes

    def put_record(self, folder: str, name: str, record: dict[str, Any], lease: Any = None) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed
        super().put_record(folder, name, record, lease)
