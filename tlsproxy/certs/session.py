"""One conversation with one ACME CA: each method is one request, and blocks until it is answered or its time is up.

Knows: RFC 8555, 8737, 8738, 9773 and the gaps of the `acme` library, which it alone imports. Does not know: polling,
retries, stores, how a challenge is answered. Rules: a call ends within `timeout` seconds; whatever goes wrong is an
AcmeFailure; a session belongs to one thread at a time (make one for each order that runs at the same time).
"""

from __future__ import annotations

from collections.abc import Sequence

from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.resources import Authorization, Challenge, Directory, Eab, Order, RenewalInfo

__all__ = ["AccountKey", "AcmeSession", "Authorization", "Challenge", "Directory", "Eab", "Order", "RenewalInfo"]


class AcmeSession:
    """An account's key in conversation with the CA at `directory`. Every method raises AcmeFailure, and only that."""

    def __init__(
        self, directory: str, key: AccountKey, *, account: str = "", ca_bundle: str = "", timeout: float = 30.0
    ) -> None:
        """`account` is the account's URL if it is known, `ca_bundle` a PEM file with the roots to trust instead of the
        public ones, `timeout` the seconds that one call may take."""
        raise NotImplementedError

    def connect(self) -> Directory:
        """Fetch the directory. To be called first."""
        raise NotImplementedError

    def register(self, email: str, eab: Eab | None = None) -> str:
        """Return the URL of this key's account, made if there is none (RFC 8555 7.3)."""
        raise NotImplementedError

    def find_account(self) -> str:
        """Return the URL of this key's account; ACCOUNT_GONE if it has none (RFC 8555 7.3.1)."""
        raise NotImplementedError

    def update_contact(self, email: str) -> None:
        """Set the account's e-mail address; "" removes it."""
        raise NotImplementedError

    def new_order(self, identifiers: Sequence[str], *, profile: str = "", replaces: str = "") -> Order:
        """Order a certificate for these hosts (DNS names, wildcards, IP addresses).

        `replaces` is the `ari_id` of the predecessor: give it only if the same CA and account issued that one.
        """
        raise NotImplementedError

    def fetch_order(self, url: str) -> Order:
        raise NotImplementedError

    def fetch_authorization(self, url: str) -> Authorization:
        raise NotImplementedError

    def answer(self, challenge: Challenge) -> None:
        """Tell the CA that it may look."""
        raise NotImplementedError

    def key_authorization(self, token: str) -> str:
        """Return what http-01 serves and tls-alpn-01 hashes. No request."""
        raise NotImplementedError

    def dns_value(self, token: str) -> str:
        """Return the TXT value of dns-01 (RFC 8555 8.4). No request."""
        raise NotImplementedError

    def finalize(self, order: Order, csr_der: bytes) -> Order:
        raise NotImplementedError

    def fetch_chain(self, order: Order, preferred_chain: str = "") -> bytes:
        """Return the chain as PEM, leaf first.

        `preferred_chain` is the common name of the issuer of the topmost certificate: if the CA's first chain does not
        end there, its alternates are fetched until one does, one request each; if none does, the first is returned.
        """
        raise NotImplementedError

    def renewal_info(self, ari_id: str) -> RenewalInfo:
        raise NotImplementedError

    def revoke(self, certificate_pem: bytes, reason: int = 0) -> None:
        """Revoke with the account's key. A certificate that is revoked already is no failure."""
        raise NotImplementedError

    def change_key(self, new: AccountKey) -> None:
        """Replace the account's key (RFC 8555 7.3.5); this session goes on with the new one."""
        raise NotImplementedError

    def deactivate_authorization(self, url: str) -> None:
        """Give an authorization up, so that the next order starts afresh."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connections to the CA. May be called twice."""
        raise NotImplementedError
