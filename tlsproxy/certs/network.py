"""Signed requests to a CA: what the `acme` library does, without its gaps. The only module that imports it.

Knows: JWS, nonces, problem documents, external account binding, key roll-over. Does not know: what is asked for
(session.py does), sockets (transport.py does). Rule: whatever it takes to bring one request through counts into the
time of one call.

acme signs, and that is all: its messages refuse statuses they don't know, lose status and headers of an error, and know
neither `replaces` nor key roll-over; its polling sleeps, and misreads Retry-After where the time zone is not UTC.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import requests
from acme import client, jws, messages
from josepy.errors import DeserializationError
from josepy.interfaces import JSONDeSerializable
from josepy.json_util import decode_b64jose
from josepy.jwa import ES256
from josepy.jwk import JWKEC
from urllib3 import Timeout

from tlsproxy import __version__
from tlsproxy.certs import transport
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.problems import AcmeFailure, FailureKind, from_problem
from tlsproxy.certs.resources import Eab

USER_AGENT = f"tlsproxy/{__version__} (+acme)"
_NONCE_TRIES = 64  # a CA that rejects nine of ten good nonces still fails a request only once in a thousand
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_TAG = re.compile(r"(?is)<(style|script)\b.*?</\1>|<[^>]*>")


class Network(client.ClientNetwork):
    """acme's signing and nonces, with the gaps closed: see `post` and `_send_request`.

    A call begins with `begin`, and whatever it takes (a nonce, its retries) counts into the time given there.
    """

    # Mutable: _step, _end, _new_nonce (of the call that runs), _own and key, account, _nonces of the base class.

    def __init__(self, directory: str, key: AccountKey, ca_bundle: str) -> None:
        super().__init__(_jwk(key), alg=ES256, user_agent=USER_AGENT)
        self.session.close()
        self.session = transport.open_requests()
        self._own, self.ca_bundle, self._directory = key, ca_bundle, directory
        self.verify: str | bool = ca_bundle or True
        self._step, self._end, self._new_nonce = "", 0.0, ""

    def begin(self, step: str, seconds: float, new_nonce: object) -> None:
        self._step, self._end = step, time.monotonic() + seconds
        self._new_nonce = new_nonce if isinstance(new_nonce, str) else ""

    @property
    def account_url(self) -> str:
        return self.account["uri"] if self.account else ""

    def use_account(self, url: str) -> None:
        """Sign in the name of this account; "" signs with the key itself, as newAccount wants.

        Of the account only the URL is kept: acme can't write one back that has an external account binding.
        """
        self.account = messages.RegistrationResource(body=messages.Registration(), uri=url) if url else None

    def use_key(self, key: AccountKey) -> None:
        self._own, self.key = key, _jwk(key)

    def bind(self, eab: Eab, url: str) -> dict[str, Any]:
        """Return the externalAccountBinding. People paste the key in either base64 alphabet, with and without `=`."""
        secret = eab.hmac_key.strip().rstrip("=").translate({ord("+"): "-", ord("/"): "_"})
        if not _BASE64URL.fullmatch(secret):
            raise self._bad_key()
        place = messages.Directory({"newAccount": url})
        try:
            return messages.ExternalAccountBinding.from_data(_jwk(self._own).public_key(), eab.kid, secret, place)
        except ValueError:  # without the cause: its text may hold the key
            raise self._bad_key() from None

    def _bad_key(self) -> AcmeFailure:
        return AcmeFailure(FailureKind.REFUSED, type="eabKey", step="account", directory=self._directory)

    def key_change(self, new: AccountKey, url: str) -> dict[str, Any]:
        """Return the statement that the account's key becomes `new`, signed with that one (RFC 8555 7.3.5)."""
        statement = {"account": self.account_url, "oldKey": _jwk(self._own).public_key().to_json()}
        signed = jws.JWS.sign(json.dumps(statement).encode(), key=_jwk(new), alg=ES256, nonce=None, url=url)
        partial: dict[str, Any] = signed.to_partial_json()
        return partial

    def post(self, url: str, content: Mapping[str, Any] | None = None, accept: str = "") -> requests.Response:
        """POST as JWS; without content it is a POST-as-GET (RFC 8555 6.3).

        A rejected nonce is no failure of the request (RFC 8555 6.5): it is signed again with the nonce that came with
        the error. acme tries twice, and throws that nonce away.
        """
        headers = {"Content-Type": self.JOSE_CONTENT_TYPE, **({"Accept": accept} if accept else {})}
        payload = None if content is None else _Payload(content)
        for left in range(_NONCE_TRIES, 0, -1):
            signed = self._wrap_in_jws(payload, self._nonce(), url)
            try:
                return self._send_request("POST", url, data=signed, headers=headers)
            except AcmeFailure as failure:
                if failure.type != "badNonce" or left == 1:
                    raise
        raise AssertionError("the last try returns or raises")

    def _nonce(self) -> str:
        if not self._nonces:
            self.head(self._new_nonce)
        if not self._nonces:
            raise AcmeFailure(
                FailureKind.BUSY, type="caAnswer", detail="the CA gives no nonce", directory=self._directory
            )
        return self._nonces.pop()

    def _send_request(self, method: str, url: str, *args: Any, **options: Any) -> requests.Response:
        """Send, and raise what the CA calls a problem. Time that is left, not time per packet; see transport.py."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise requests.Timeout
        options["headers"] = {"User-Agent": self.user_agent, **options.get("headers", {})}
        options |= {"verify": self.verify, "timeout": Timeout(total=left), "allow_redirects": method != "POST"}
        response = self.session.request(method, url, *args, **options)
        response.encoding = "utf-8"
        failure = None if response.status_code in range(200, 300) else self._failure(response)
        self._keep_nonce(response, alone=failure is not None and failure.type == "badNonce")
        if failure:
            raise failure
        return response

    @classmethod
    def _check_response(cls, response: requests.Response, content_type: str | None = None) -> requests.Response:
        """Nothing is left to check."""
        return response

    def _failure(self, response: requests.Response) -> AcmeFailure:
        """Read the problem document, or what somebody else than an ACME server sends in its place."""
        document = _problem(response)
        again = transport.retry_after(response.headers, datetime.now(UTC))
        return from_problem(
            document, status=response.status_code, retry_at=again, step=self._step, directory=self._directory
        )

    def _keep_nonce(self, response: requests.Response, *, alone: bool) -> None:
        """Keep the nonce for the next request; `alone`: those from before are no good either."""
        if alone:
            self._nonces.clear()
        with suppress(DeserializationError):
            if nonce := response.headers.get(self.REPLAY_NONCE_HEADER):
                self._nonces.add(decode_b64jose(nonce))  # type: ignore[arg-type]  # acme says str and means bytes


class _Payload(JSONDeSerializable):
    """A JSON object as acme wants to have it in order to sign it."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def to_partial_json(self) -> Any:
        return self._content

    @classmethod
    def from_json(cls, jobj: Any) -> _Payload:
        return cls(jobj)


def _jwk(key: AccountKey) -> JWKEC:
    return JWKEC(key=key.private)


def _problem(answer: requests.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return {"detail": f"{answer.status_code} {answer.reason}: {_TAG.sub(' ', answer.text[:2000])}"[:300]}
    if isinstance(place := document.get("instance"), str):  # where a person has to go (RFC 8555 6.7, 7.3.3)
        document["detail"] = f"{document.get('detail') or ''} ({place})"
    return document
