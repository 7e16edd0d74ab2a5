"""One conversation with one ACME CA: each method is one request, and blocks until it is answered or its time is up.

Knows: RFC 8555, 8738 and 9773. Does not know: how a request is signed and repeated (network.py does), polling, stores,
how a challenge is answered. Rules: a call ends within `timeout` seconds (but for a resolver that hangs, which nobody
can interrupt); whatever goes wrong is an AcmeFailure; a session belongs to one thread at a time, so make one for each
order that runs at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tlsproxy.certs import transport
from tlsproxy.certs.account_key import AccountKey, b64url
from tlsproxy.certs.identifiers import acme_identifier
from tlsproxy.certs.network import Network
from tlsproxy.certs.problems import AcmeFailure, FailureKind, clean
from tlsproxy.certs.resources import Authorization, Challenge, Directory, Eab, Order, RenewalInfo

__all__ = ["AccountKey", "AcmeSession", "Authorization", "Challenge", "Directory", "Eab", "Order", "RenewalInfo"]

_MOST_ALTERNATES = 5


class AcmeSession:
    """An account's key in conversation with the CA at `directory`. Every method raises AcmeFailure, and only that."""

    # Mutable: _resources (the directory as it came), _network (its account and key change).

    def __init__(
        self, directory: str, key: AccountKey, *, account: str = "", ca_bundle: str = "", timeout: float = 30.0
    ) -> None:
        """`account` is the account's URL if it is known, `ca_bundle` a PEM file with the roots to trust instead of the
        public ones, `timeout` the seconds that one call may take."""
        self._directory, self._key, self._timeout = directory, key, timeout
        self._resources: Mapping[str, Any] = {}
        self._offer = Directory(directory)
        self._network = Network(directory, key, ca_bundle)
        self._network.use_account(account)

    @property
    def account(self) -> str:
        """The account's URL, "" as long as it is not known."""
        return self._network.account_url

    @property
    def offer(self) -> Directory:
        """What the CA offers, once connected."""
        return self._offer

    def connect(self) -> Directory:
        """Fetch the directory. To be called first."""
        with self._call("directory"):
            document = _json(self._network.get(self._directory))
            self._offer = Directory.parse(document, self._directory)
            self._resources = document
        return self._offer

    def register(self, email: str, eab: Eab | None = None) -> str:
        """Return the URL of this key's account, made if there is none (RFC 8555 7.3)."""
        request: dict[str, Any] = {"termsOfServiceAgreed": True}
        if email:
            request["contact"] = [f"mailto:{email}"]
        if eab:
            request["externalAccountBinding"] = self._network.bind(eab, self._url("newAccount"))
        return self._open_account(request)

    def find_account(self) -> str:
        """Return the URL of this key's account; ACCOUNT_GONE if it has none (RFC 8555 7.3.1)."""
        return self._open_account({"onlyReturnExisting": True})

    def update_contact(self, email: str) -> None:
        """Set the account's e-mail address; "" removes it."""
        with self._call("account"):
            self._network.post(self.account, {"contact": [f"mailto:{email}"] if email else []})

    def new_order(self, identifiers: Sequence[str], *, profile: str = "", replaces: str = "") -> Order:
        """Order a certificate for these hosts (DNS names, wildcards, IP addresses).

        `replaces` is the `ari_id` of the predecessor: give it only if the same CA and account issued that one. A CA
        without renewal information is not told: some refuse the word.
        """
        request: dict[str, Any] = {"identifiers": [acme_identifier(each) for each in identifiers]}
        if profile:
            request["profile"] = self._known_profile(profile)
        if replaces and self._offer.has_renewal_info:
            request["replaces"] = replaces
        with self._call("order"):
            answer = self._network.post(self._url("newOrder"), request)
            return self._order(answer, answer.headers.get("Location", ""))

    def fetch_order(self, url: str) -> Order:
        with self._call("poll"):
            return self._order(self._network.post(url), url)

    def fetch_authorization(self, url: str) -> Authorization:
        with self._call("authorization"):
            answer = self._network.post(url)
            seconds = _seconds(answer)
            return Authorization.parse(_json(answer), url, directory=self._directory, retry_after=seconds)

    def answer(self, challenge: Challenge) -> None:
        """Tell the CA that it may look."""
        with self._call("challenge"):
            self._network.post(challenge.url, {})

    def key_authorization(self, token: str) -> str:
        """Return what http-01 serves and tls-alpn-01 hashes. No request."""
        return self._key.authorization(token)

    def dns_value(self, token: str) -> str:
        """Return the TXT value of dns-01 (RFC 8555 8.4). No request."""
        return self._key.dns_value(token)

    def finalize(self, order: Order, csr_der: bytes) -> Order:
        with self._call("finalize"):
            return self._order(self._network.post(order.finalize, {"csr": b64url(csr_der)}), order.url)

    def fetch_chain(self, order: Order, preferred_chain: str = "") -> bytes:
        """Return the chain as PEM, leaf first.

        `preferred_chain` is the common name of the issuer of the topmost certificate: if the CA's first chain does not
        end there, its alternates are fetched until one does, one request each; if none does, the first is returned.
        """
        with self._call("download"):
            answer = self._network.post(order.certificate, accept="application/pem-certificate-chain")
            first = chain = _chain(answer)
            others = transport.links(answer, "alternate")[:_MOST_ALTERNATES] if preferred_chain else []
            for url in others:
                if _top_issuer(chain) == preferred_chain:
                    break
                chain = _chain(self._network.post(url, accept="application/pem-certificate-chain"))
            chosen = chain if _top_issuer(chain) == preferred_chain else first
        return b"".join(each.public_bytes(Encoding.PEM) for each in chosen)

    def renewal_info(self, ari_id: str) -> RenewalInfo:
        """Ask when the certificate of this id is to be renewed (RFC 9773 4.1). Needs no account."""
        with self._call("renewal"):
            answer = self._network.get(f"{self._url('renewalInfo').rstrip('/')}/{ari_id}")
            return RenewalInfo.parse(_json(answer), directory=self._directory, retry_after=_seconds(answer))

    def revoke(self, certificate_pem: bytes, reason: int = 0) -> None:
        """Revoke with the account's key. A certificate that is revoked already is no failure."""
        der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
        try:
            with self._call("revoke"):
                self._network.post(self._url("revokeCert"), {"certificate": b64url(der), "reason": reason})
        except AcmeFailure as failure:
            if failure.type != "alreadyRevoked":
                raise

    def change_key(self, new: AccountKey) -> None:
        """Replace the account's key (RFC 8555 7.3.5); this session goes on with the new one.

        If it fails without an answer of the CA, either key may be the right one: `find_account` with each tells.
        """
        with self._call("rollover"):
            url = self._url("keyChange")
            self._network.post(url, self._network.key_change(new, url))
            self._key = new
            self._network.use_key(new)

    def deactivate_authorization(self, url: str) -> None:
        """Give an authorization up, so that the next order starts afresh."""
        with self._call("authorization"):
            self._network.post(url, {"status": "deactivated"})

    def close(self) -> None:
        """Close the connections to the CA. May be called twice."""
        self._network.session.close()

    def __repr__(self) -> str:
        return f"<AcmeSession {self._directory} {self.account or 'without account'}>"

    @contextmanager
    def _call(self, step: str) -> Iterator[None]:
        """Run one call: its time begins now, and what it raises is an AcmeFailure that knows the step."""
        self._network.begin(step, self._timeout, self._resources.get("newNonce"))
        try:
            yield
        except AcmeFailure as failure:
            failure.step, failure.directory = failure.step or step, failure.directory or self._directory
            raise
        except (requests.RequestException, OSError) as error:
            raise transport.network_failure(error, step, self._directory, self._network.ca_bundle) from error

    def _url(self, name: str) -> str:
        url = self._resources.get(name)
        if isinstance(url, str):
            return url
        raise AcmeFailure(
            FailureKind.REFUSED if self._resources else FailureKind.INTERNAL,
            type="caAnswer",
            detail=f"the CA offers no {name}" if self._resources else "connect() was not called",
            directory=self._directory,
        )

    def _open_account(self, request: Mapping[str, Any]) -> str:
        """POST newAccount, which is signed with the key itself and not in the name of an account."""
        self._network.use_account("")
        with self._call("account"):
            answer = self._network.post(self._url("newAccount"), request)
            url = answer.headers.get("Location", "")
            if not url:
                raise _nonsense(answer, "an account without a URL")
        self._network.use_account(url)
        return url

    def _known_profile(self, profile: str) -> str:
        """A CA ignores what it does not understand (RFC 8555 7.1), and would issue by another profile."""
        if profile in self._offer.profiles:
            return profile
        offered = ", ".join(self._offer.profiles) or "none"
        raise AcmeFailure(
            FailureKind.REFUSED,
            type="invalidProfile",
            detail=f"the CA offers: {offered}; asked for: {profile}",
            step="order",
            directory=self._directory,
        )

    def _order(self, answer: requests.Response, url: str) -> Order:
        order = Order.parse(_json(answer), url, directory=self._directory, retry_after=_seconds(answer))
        if not order.url or not order.status:
            raise _nonsense(answer, "an order without URL or status")
        return order


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    raise _nonsense(answer, "something else than a JSON object")


def _nonsense(answer: requests.Response, what: str) -> AcmeFailure:
    """Return the failure for an answer that claims success and holds none."""
    kind = str(answer.headers.get("Content-Type", "no type"))
    return AcmeFailure(
        FailureKind.UNREACHABLE, type="caAnswer", detail=clean(f"{what} ({kind})"), status=answer.status_code
    )


def _seconds(answer: requests.Response) -> float | None:
    now = datetime.now(UTC)
    again = transport.retry_after(answer.headers, now)
    return None if again is None else (again - now).total_seconds()


def _chain(answer: requests.Response) -> list[x509.Certificate]:
    """Parse, and thereby drop whatever is no certificate (RFC 8555 7.4.2)."""
    try:
        return x509.load_pem_x509_certificates(answer.content)
    except ValueError as error:
        raise _nonsense(answer, "something else than certificates") from error


def _top_issuer(chain: Sequence[x509.Certificate]) -> str:
    names = chain[-1].issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
