"""Answers to a CA's questions: the certifier writes them, any worker reads them.

Knows: tokens, server names, how long an answer is good. Does not know: orders, the CA, connections. Rule: what comes
from the network (a token in a path, a server name in a ClientHello) is judged before it becomes a key; what could not
be a question of ours has no answer.
"""

import re
from datetime import datetime
from typing import Any

from tlsproxy.errors import StoreError
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.certificates import CertificateStore

_FOLDER = "challenges"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}")  # RFC 8555 8.3: base64url without padding
_KEY_AUTHORIZATION = re.compile(r"[A-Za-z0-9_-]{1,256}\.[A-Za-z0-9_-]{1,256}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_SERVER_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


class Challenges:
    """The answers in one store. Reading costs one look at the store, also for questions that nobody expects."""

    def __init__(self, store: CertificateStore) -> None:
        self._store = store

    def put_http(self, token: str, key_authorization: str, expires: datetime) -> None:
        """Answer `/.well-known/acme-challenge/<token>` (RFC 8555 8.3) until then. Raises StoreError, ValueError."""
        if not _KEY_AUTHORIZATION.fullmatch(key_authorization):
            raise ValueError("this is no key authorization")
        self._put(_http_name(token), expires, key_authorization)

    def http(self, token: str, now: datetime) -> str | None:
        """Return the key authorization, None for a token of somebody else. Raises StoreError."""
        answer = self._answer(_http_name(token), now) if _TOKEN.fullmatch(token) else None
        return None if answer is None else str(answer)

    def remove_http(self, token: str) -> None:
        """Forget the answer, if there is one. Raises StoreError, ValueError."""
        self._store.delete_record(_FOLDER, _http_name(token))

    def put_tls_alpn(self, server_name: str, bundle: Bundle, expires: datetime) -> None:
        """Answer a handshake with `acme-tls/1` for this server name (RFC 8737) until then. StoreError, ValueError.

        For an IP address the server name is its reverse pointer (RFC 8738 6).
        """
        self._put(_tls_name(server_name), expires, bundle.to_record())

    def tls_alpn(self, server_name: str, now: datetime) -> Bundle | None:
        """Return the certificate that answers, None for a name that nobody asks about. Raises StoreError."""
        name = _known(server_name)
        answer = self._answer(_tls_name(name), now) if name else None
        try:
            return None if answer is None else Bundle.from_record(answer)
        except ValueError as error:
            raise StoreError(_damaged(name)) from error

    def remove_tls_alpn(self, server_name: str) -> None:
        """Forget the answer, if there is one. Raises StoreError, ValueError."""
        self._store.delete_record(_FOLDER, _tls_name(server_name))

    def version(self) -> str:
        """Return a text that differs from an earlier one if an answer was put or removed since. Raises StoreError."""
        return self._store.version(_FOLDER)

    def expected(self) -> tuple[str, ...]:
        """Return what a CA may ask: `http-01/<token>`, `tls-alpn-01/<server name>`; expired too. Raises StoreError."""
        return self._store.list_records(_FOLDER)

    def sweep(self, now: datetime) -> int:
        """Remove what has expired or can't be read, and return how many that were. Raises StoreError."""
        gone = [name for name in self._store.list_records(_FOLDER) if not self._is_good(name, now)]
        for name in gone:
            self._store.delete_record(_FOLDER, name)
        return len(gone)

    def _put(self, name: str, expires: datetime, answer: str | dict[str, Any]) -> None:
        if expires.tzinfo is None:
            raise ValueError("time without zone")
        self._store.put_record(_FOLDER, name, {"expires": expires.isoformat(), "answer": answer})

    def _answer(self, name: str, now: datetime) -> Any:
        """Return the answer as it was put, None if there is none any more. Raises StoreError."""
        record = self._store.get_record(_FOLDER, name)
        try:
            if record is None or datetime.fromisoformat(record["expires"]) <= now:
                return None
            return record["answer"]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(_damaged(name)) from error

    def _is_good(self, name: str, now: datetime) -> bool:
        try:
            return self._answer(name, now) is not None
        except StoreError:
            return False


def _damaged(name: str) -> str:
    return (
        f"{name}: the answer to the CA's challenge is damaged. Nothing is to be done: the next attempt writes another."
    )


def _http_name(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise ValueError("this is no ACME token")
    return f"http-01/{token}"


def _tls_name(server_name: str) -> str:
    name = _known(server_name)
    if not name:
        raise ValueError("this is no server name")
    return f"tls-alpn-01/{name}"


def _known(server_name: str) -> str:
    """Return the server name in lower case without a last dot, or "" for what is none."""
    name = server_name.lower().removesuffix(".")
    return name if _SERVER_NAME.fullmatch(name) else ""
