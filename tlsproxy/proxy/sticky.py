"""Clients that stay with their backend: the cookie of a sticky route, read and written.

Knows fields and backends, not how one is chosen. The cookie's value is a keyed hash of the backend's URL, so that it
tells nobody an address and nobody can make one up; it is the same in all workers and generations, as their key is.
Nothing is kept here per client: a value that belongs to no backend of the route means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.wire.fields import Field, Fields
    from tlsproxy.wire.messages import RequestHead


class Sticky:
    """See the module's text. `path` is the route's. Mutable: `_key`, `_by_value` and `_values` of the backends."""

    __slots__ = ("_attributes", "_by_value", "_key", "_name", "_values")

    def __init__(self, name: str, path: str, key: bytes) -> None:
        self._name = name.encode()
        # Lax: a link from elsewhere leads to the same backend; a request that another site makes need not.
        self._attributes = b"; Path=%b; Secure; HttpOnly; SameSite=Lax" % path.encode()
        self._key = key
        self._by_value: dict[bytes, Backend] = {}
        self._values: dict[Backend, bytes] = {}

    def __repr__(self) -> str:
        return f"<Sticky {self._name.decode()} {len(self._by_value)} backends>"

    def follow(self, backends: Sequence[Backend], key: bytes = b"") -> None:
        """Know these backends from now on, by this key or the same as before."""
        self._key = key or self._key
        self._values = {backend: _value_of(backend.url, self._key) for backend in backends}
        self._by_value = {value: backend for backend, value in self._values.items()}

    def find(self, head: RequestHead) -> Backend | None:
        """The backend that the client of this request belongs to, if it has one that may be asked."""
        for value in _cookies(head.fields, self._name):
            backend = self._by_value.get(value)
            if backend is not None and backend.may_be_asked and not backend.is_left_alone:
                return backend
        return None

    def mark(self, head: RequestHead, backend: Backend | None, fields: Fields) -> Fields:
        """The `fields` of an answer, with the cookie if the client has to learn to whom it belongs from now on."""
        value = self._values.get(backend) if backend is not None else None
        if value is None or value in _cookies(head.fields, self._name):
            return fields
        cookie: Field = (b"Set-Cookie", b"%b=%b%b" % (self._name, value, self._attributes))
        return [*fields, cookie]


def _value_of(url: str, key: bytes) -> bytes:
    return blake2b(url.encode(), key=key, digest_size=12).hexdigest().encode()


def _cookies(fields: Fields, name: bytes) -> list[bytes]:
    """All values of cookies so named (RFC 6265 5.4); over HTTP/2 each may have come in a field of its own."""
    wanted = name + b"="
    return [
        pair.strip(b" \t")[len(wanted) :].strip(b'"')
        for field, value in fields
        if field.lower() == b"cookie" and wanted in value
        for pair in value.split(b";")
        if pair.strip(b" \t").startswith(wanted)
    ]
