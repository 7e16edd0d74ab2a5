"""Accounts at CAs, as records of the store: one for each directory and external account, shared by all processes.

Knows: which key is whose, how a key is replaced, what to do when a CA has forgotten us. Does not know: orders, requests
(session.py does, and is imported by whoever makes the sessions). Rules: a key is in the store before a CA hears of it,
and leaves it only when another is known to be the account's; so a crash at any point costs no account.

Why no lease guards registration: `exclusive` makes sure that all processes have the same key, and a CA gives the same
account to the same key however often it is asked (RFC 8555 7.3).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.resources import Eab
from tlsproxy.store.base import CertificateStore, Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlsproxy.certs.session import AcmeSession

logger = logging.getLogger(__name__)

FOLDER = "accounts"
_LEASE = 180.0  # seconds; a roll-over is five requests, most of them short

OpenSession = Callable[[AccountKey, str], "AcmeSession"]
"""Makes a session from a key and the URL of its account, "" if that is not known. It is not connected yet."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA, and as whom we come."""

    directory: str
    email: str = ""
    eab: Eab | None = None

    @property
    def kid(self) -> str:
        return self.eab.kid if self.eab else ""


@dataclass(frozen=True, slots=True)
class Account:
    """Our account at one CA. `url` is "" until the CA has confirmed it. The keys show in no repr.

    `next_key` is the one to replace `key` with: it stays until it has done so, whatever happens. `is_changing`: the CA
    may have taken it or not; `settle` finds out.
    """

    name: str
    directory: str
    key: AccountKey
    url: str = ""
    email: str = ""
    created: str = field(default="", compare=False)
    next_key: AccountKey | None = None
    is_changing: bool = False

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record of a store. It holds the private keys."""
        return {
            "directory": self.directory,
            "key_pem": self.key.pem.decode("ascii"),
            "url": self.url,
            "email": self.email,
            "created": self.created,
            "next_key_pem": self.next_key.pem.decode("ascii") if self.next_key else "",
            "is_changing": self.is_changing,
        }

    @classmethod
    def from_record(cls, name: str, record: Mapping[str, Any]) -> Self:
        """Rebuild from `to_record`; unknown fields are ignored. Raises ValueError without directory and key."""
        try:
            following = str(record.get("next_key_pem", ""))
            return cls(
                name=name,
                directory=str(record["directory"]),
                key=AccountKey(str(record["key_pem"]).encode("ascii")),
                url=str(record.get("url", "")),
                email=str(record.get("email", "")),
                created=str(record.get("created", "")),
                next_key=AccountKey(following.encode("ascii")) if following else None,
                is_changing=record.get("is_changing") is True,
            )
        except KeyError as error:
            raise ValueError(f"no account record (it has no {error})") from error


def account_name(directory: str, kid: str = "") -> str:
    """Return the name of the record: one for each CA and customer of it. Another e-mail is no other account."""
    digest = hashlib.sha256(f"{directory}\n{kid}".encode()).hexdigest()
    return f"{urlsplit(directory).netloc}/{digest[:32]}"


# --- steps that touch the store only


def load(store: CertificateStore, directory: str, kid: str = "") -> Account | None:
    """Return our account there, None if there is none yet. Raises StoreError."""
    name = account_name(directory, kid)
    record = store.get_record(FOLDER, name)
    return Account.from_record(name, record) if record else None


def load_or_make(store: CertificateStore, directory: str, kid: str = "") -> Account:
    """Return our account there; if there is none, one with a new key, which is in the store and not registered."""
    found = load(store, directory, kid)
    if found:
        return found
    with store.exclusive():
        found = load(store, directory, kid)
        if found:
            return found
        created = datetime.now(UTC).isoformat(timespec="seconds")
        made = Account(account_name(directory, kid), directory, AccountKey.generate(), created=created)
        store.put_record(FOLDER, made.name, made.to_record())
    logger.info("acme.account_made", extra={"directory": directory})
    return made


def registered(store: CertificateStore, account: Account, url: str, email: str = "") -> Account:
    """Remember what the CA calls the account. Returns what the store then says: somebody may have been faster."""
    return _change(store, account, replace(account, url=url, email=email))


def forget(store: CertificateStore, account: Account, *, key_too: bool = False) -> Account:
    """The CA does not know the account any more, or not by this key: return what to go on with.

    First another look at both keys if there are two, else the same key, to be registered again; `key_too`: a new key,
    for a CA that has closed the account for good. Does nothing if somebody has seen to it meanwhile.
    """
    if key_too:
        return _change(store, account, Account(account.name, account.directory, AccountKey.generate()))
    if account.next_key and not account.is_changing:
        return _change(store, account, replace(account, is_changing=True))
    return _change(store, account, replace(account, url="", is_changing=False))


def _change(store: CertificateStore, seen: Account, wanted: Account, lease: Lease | None = None) -> Account:
    """Replace what was seen; leave it and return it if it is something else by now."""
    with store.exclusive():
        record = store.get_record(FOLDER, seen.name)
        present = Account.from_record(seen.name, record) if record else None
        if present is not None and present != seen:
            return present
        changed = replace(wanted, created=seen.created or wanted.created)
        store.put_record(FOLDER, changed.name, changed.to_record(), lease)
    return changed


# --- steps that talk to the CA


def log_in(
    store: CertificateStore,
    authority: Authority,
    open_session: OpenSession,
    *,
    permit: Callable[[], None] = lambda: None,
    gone: str = "",
) -> tuple[Account, AcmeSession]:
    """Return our account and a session that is ready to order; the caller closes it. May be repeated after a failure.

    Registers if need be; `permit` is called before that and may raise AcmeFailure. `gone` is the URL of an account that
    the CA has just refused to know, or by that key. Two to six requests.
    """
    found = load(store, authority.directory, authority.kid)
    account = found or load_or_make(store, authority.directory, authority.kid)
    if gone and account.url == gone:
        account = forget(store, account)
    if account.is_changing:
        account = settle(store, account, open_session)
    session = open_session(account.key, account.url)
    try:
        session.connect()
        # A key that was there may have an account all the same: only its URL was not stored, or only its key replaced.
        if not account.url and found and (url := _find(session)):
            account = registered(store, account, url, account.email)
        if account.url:
            return _with_contact(store, account, authority.email, session), session
        permit()
        url = session.register(authority.email, authority.eab)
        return registered(store, account, url, authority.email), session
    except AcmeFailure as failure:
        session.close()
        if failure.kind is not FailureKind.ACCOUNT_GONE or account.url:
            raise
    except BaseException:
        session.close()
        raise
    return _register_anew(store, account, authority, open_session)


def _register_anew(
    store: CertificateStore, closed: Account, authority: Authority, open_session: OpenSession
) -> tuple[Account, AcmeSession]:
    """The CA has closed the account of this key for good: go on with another key."""
    logger.warning("acme.account_closed", extra={"directory": authority.directory, "advice": "a new one is made"})
    account = forget(store, closed, key_too=True)
    session = open_session(account.key, "")
    try:
        session.connect()
        url = session.register(authority.email, authority.eab)
        return registered(store, account, url, authority.email), session
    except BaseException:
        session.close()
        raise


def _with_contact(store: CertificateStore, account: Account, email: str, session: AcmeSession) -> Account:
    """Tell the CA another e-mail address. That it does not like the address must not keep certificates from coming."""
    if email == account.email:
        return account
    try:
        session.update_contact(email)
    except AcmeFailure as failure:
        if failure.kind is not FailureKind.REFUSED:
            raise
        logger.warning("acme.contact_refused", extra={"directory": account.directory, "error": str(failure)})
    return _change(store, account, replace(account, email=email))


def settle(store: CertificateStore, account: Account, open_session: OpenSession) -> Account:
    """Find out which of two keys is the account's, after a roll-over of which nobody knows how it ended.

    While somebody else is at it, the account is returned as it is: its present key may do for now.
    """
    with _changing(store, account.name) as lease:
        present = load_again(store, account)
        if lease is None or not present.is_changing:
            return present
        for key in filter(None, (present.next_key, present.key)):
            url = _account_of(key, open_session)
            if url:
                found = replace(present, key=key, url=url, is_changing=False)
                return _change(store, present, _without_used_key(found), lease)
        return _change(store, present, replace(present, url="", is_changing=False), lease)


def roll_over(store: CertificateStore, account: Account, open_session: OpenSession) -> Account:
    """Replace the account's key by a new one (RFC 8555 7.3.5). Raises AcmeFailure; BUSY while another process is at it.

    Kill it anywhere: the new key is in the store before the CA hears of it, and the old one until the CA has agreed.
    """
    if account.is_changing:
        account = settle(store, account, open_session)
    with _changing(store, account.name) as lease:
        present = load_again(store, account)
        if lease is None or present.is_changing or not present.url:
            raise AcmeFailure(
                FailureKind.BUSY,
                detail="the account's key can't be replaced now: another process is at it, or it is not registered yet",
                step="rollover",
                directory=account.directory,
            )
        # A key that an earlier attempt has left may be on its way to the CA even now: no other is made beside it.
        begun = replace(present, next_key=present.next_key or AccountKey.generate(), is_changing=True)
        _change(store, present, begun, lease)
        _tell(begun, open_session)
        changed = _without_used_key(replace(begun, key=begun.next_key or begun.key, is_changing=False))
        result = _change(store, begun, changed, lease)
    logger.info("acme.key_changed", extra={"directory": account.directory, "account": account.url})
    return result


def _tell(account: Account, open_session: OpenSession) -> None:
    session = open_session(account.key, account.url)
    try:
        session.connect()
        session.change_key(account.next_key or account.key)
    except AcmeFailure as failure:
        # 409: some account has the new key. Nobody but this one ever had it, so an answer got lost (RFC 8555 7.3.5).
        if failure.status != 409:
            raise
    finally:
        session.close()


def load_again(store: CertificateStore, account: Account) -> Account:
    """Return the account as it is now."""
    record = store.get_record(FOLDER, account.name)
    return Account.from_record(account.name, record) if record else account


def _without_used_key(account: Account) -> Account:
    return replace(account, next_key=None) if account.next_key == account.key else account


def _account_of(key: AccountKey, open_session: OpenSession) -> str:
    """Return the URL of a key's account, "" if the CA knows none. Raises AcmeFailure if it can't be asked."""
    session = open_session(key, "")
    try:
        session.connect()
        return _find(session)
    finally:
        session.close()


def _find(session: AcmeSession) -> str:
    """Return the URL of the session's key's account, "" if the CA knows none, or has closed it."""
    try:
        return session.find_account()
    except AcmeFailure as failure:
        if failure.kind is not FailureKind.ACCOUNT_GONE:
            raise
        return ""


@contextmanager
def _changing(store: CertificateStore, name: str) -> Iterator[Lease | None]:
    """Hold the lease for changing the key of this account; None if somebody else has it."""
    lease = store.acquire(f"account {name}", _LEASE)
    try:
        yield lease
    finally:
        if lease:
            store.release(lease)
