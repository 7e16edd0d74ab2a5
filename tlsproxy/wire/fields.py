"""Which HTTP fields a proxy must look at, and which it passes on unread.

Strategy: every field name is classified once and the verdict is remembered under the exact bytes that came in, so the
request path pays one dictionary look-up per field. Nothing here knows values; the codecs and `forwarding` act on kinds.

Rule kept: what is not PLAIN never passes by accident. A field of another kind goes on only where the code that knows
the rule puts it back.
"""

from __future__ import annotations

from collections.abc import Set
from enum import IntEnum
from typing import Final, TypeAlias

Field: TypeAlias = tuple[bytes, bytes]
Fields: TypeAlias = list[Field]


class Kind(IntEnum):
    """What has to happen to a field."""

    PLAIN = 0
    HOST = 1
    CONTENT_LENGTH = 2
    TRANSFER_ENCODING = 3
    CONNECTION = 4
    UPGRADE = 5
    EXPECT = 6
    TE = 7
    TRAILER = 8
    HOP = 9  # always removed: hop-by-hop, or a name that back ends read as another one
    FORWARDING = 10  # removed unless the peer is a trusted proxy
    NOTED = 11  # passed on, and remembered for the log or for a decision
    TEMPLATE = 12  # of an answer: the route that the application took, for us alone


_REQUEST_KINDS: Final[dict[bytes, Kind]] = {
    b"host": Kind.HOST,
    b"content-length": Kind.CONTENT_LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"connection": Kind.CONNECTION,
    b"upgrade": Kind.UPGRADE,
    b"expect": Kind.EXPECT,
    b"te": Kind.TE,
    b"trailer": Kind.TRAILER,
    b"keep-alive": Kind.HOP,
    b"proxy-connection": Kind.HOP,
    b"proxy-authorization": Kind.HOP,
    b"proxy-authenticate": Kind.HOP,
    b"http2-settings": Kind.HOP,
    b"proxy": Kind.HOP,  # becomes HTTP_PROXY in CGI-like environments ("httpoxy")
    b"client-cert": Kind.HOP,  # RFC 9440: only the TLS terminator may say who the client is
    b"client-cert-chain": Kind.HOP,
    b"forwarded": Kind.FORWARDING,
    b"x-real-ip": Kind.FORWARDING,
    b"x-request-id": Kind.FORWARDING,
    b"x-request-start": Kind.FORWARDING,
    b"user-agent": Kind.NOTED,
    b"referer": Kind.NOTED,
}

_RESPONSE_KINDS: Final[dict[bytes, Kind]] = {
    b"content-length": Kind.CONTENT_LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"connection": Kind.CONNECTION,
    b"upgrade": Kind.UPGRADE,
    b"trailer": Kind.TRAILER,
    b"keep-alive": Kind.HOP,
    b"proxy-connection": Kind.HOP,
    b"proxy-authenticate": Kind.HOP,
    b"te": Kind.HOP,
    b"x-accel-buffering": Kind.HOP,  # an order to the proxy; nothing is ever buffered here
    b"date": Kind.NOTED,
    b"server": Kind.NOTED,
    b"strict-transport-security": Kind.NOTED,
    b"x-tlsproxy-route": Kind.TEMPLATE,
}
_OURS: Final = b"x-tlsproxy-"  # between us and the middleware in the application; a client neither says nor hears it

# RFC 9110 6.5.1: fields that frame, route, authenticate or describe the content have no meaning after it.
_FORBIDDEN_TRAILERS: Final[frozenset[bytes]] = frozenset(
    {
        b"age", b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie",
        b"date", b"expires", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since",
        b"location", b"max-forwards", b"pragma", b"range", b"retry-after", b"set-cookie", b"vary", b"warning",
        b"www-authenticate",
    }
)  # fmt: skip

# Names come from clients, so the memory of verdicts is bounded, and emptied when full: a flood costs look-ups only.
_MEMORY: Final = 4096
_LONGEST_REMEMBERED_NAME: Final = 64


class Classifier(dict[bytes, Kind]):
    """A dictionary from a field name as it came in to its kind; a name seen for the first time is judged on access.

    `to_backend`: names that a back end could take for others, or believe, are not PLAIN. Towards clients they are: an
    answer's `X-Forwarded-*` or `Some_Name` is the application's own affair.
    """

    __slots__ = ("_known", "_to_backend")

    def __init__(self, known: dict[bytes, Kind], *, to_backend: bool) -> None:
        super().__init__()
        self._known = known
        self._to_backend = to_backend

    def __missing__(self, name: bytes) -> Kind:
        kind = self._judge(name.lower())
        if len(name) <= _LONGEST_REMEMBERED_NAME:
            if len(self) >= _MEMORY:
                self.clear()
            self[name] = kind
        return kind

    def _judge(self, name: bytes) -> Kind:
        if not self._to_backend:
            return self._known.get(name, Kind.HOP if name.startswith(_OURS) else Kind.PLAIN)
        if b"_" in name:
            return Kind.HOP  # WSGI, CGI and some ASGI servers read X_Forwarded_For as X-Forwarded-For
        if b"." in name and self._is_known(name.replace(b".", b"-")):
            return Kind.HOP
        if name.startswith(b"x-forwarded-"):
            return Kind.FORWARDING
        if name.startswith(_OURS):
            return Kind.HOP
        return self._known.get(name, Kind.PLAIN)

    def _is_known(self, name: bytes) -> bool:
        return name in self._known or name.startswith((b"x-forwarded-", _OURS))


NO_NAMES: Final[frozenset[bytes]] = frozenset()
REQUEST_KIND: Final = Classifier(_REQUEST_KINDS, to_backend=True)
RESPONSE_KIND: Final = Classifier(_RESPONSE_KINDS, to_backend=False)


def connection_names(value: bytes) -> list[bytes]:
    """The lower-case members of a `Connection` field (RFC 9110 7.6.1); empty members are skipped (5.6.1.2)."""
    return [name for name in (part.strip(b" \t") for part in value.lower().split(b",")) if name]


def without(fields: Fields, names: Set[bytes]) -> Fields:
    """`fields` less those named: the cold path of a message whose `Connection` names fields of its own."""
    return [field for field in fields if field[0].lower() not in names]


def answer_trailers(trailers: Fields) -> Fields:
    """Those of an answer that may be passed on (RFC 9110 6.5.1): what names mean is the application's own affair."""
    return [
        field
        for field in trailers
        if RESPONSE_KIND[field[0]] is Kind.PLAIN
        and field[0].lower() not in _FORBIDDEN_TRAILERS
        and REQUEST_KIND[field[0]] not in (Kind.HOST, Kind.EXPECT)
    ]


def allowed_trailers(trailers: Fields) -> Fields:
    """The trailers of a request that may be passed on: unknown ones and those that only add information."""
    return [
        field
        for field in trailers
        if REQUEST_KIND[field[0]] in (Kind.PLAIN, Kind.NOTED)
        and RESPONSE_KIND[field[0]] is Kind.PLAIN
        and field[0].lower() not in _FORBIDDEN_TRAILERS
    ]
