"""The values that cross the codec's border: message heads, and the error that carries its own answer.

Plain classes with slots: a head is built for every request, and a frozen dataclass costs twice as much to build
(style 7). They are not edited after the codec has handed them out.
"""

from __future__ import annotations

from enum import IntEnum

from tlsproxy.wire.fields import Fields, Kind


class Framing(IntEnum):
    """How the end of a body is found (RFC 9112 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3  # answers only


_NO_BODY = Framing.NONE


class ProtocolError(Exception):
    """The peer broke the protocol. `status` is the answer a client gets; towards a backend it is always a 502.

    `reason` is one sentence that may be shown to the peer; `note` says more to the operator (limit, biggest field).
    """

    def __init__(self, status: int, reason: str, note: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.note = note or reason

    def __repr__(self) -> str:
        return f"ProtocolError({self.status}, {self.note!r})"


class RequestHead:
    """A request's head, checked: the target has a known form, the framing is unambiguous, the host is well-formed.

    `host` is the name that routes, in lower case without port and final dot ("" for HTTP/1.0 without Host);
    `authority` is what the backend gets as Host. `fields` pass on unread; `special` holds what somebody has to decide.
    """

    __slots__ = (
        "authority",
        "expect_continue",
        "fields",
        "framing",
        "host",
        "keep_alive",
        "length",
        "log_part",
        "method", "outbound",
        "port",
        "referer",
        "special",
        "target",
        "trailers_accepted",
        "upgrade",
        "user_agent",
        "version",
    )  # fmt: skip

    def __init__(self, method: bytes, target: bytes, version: int) -> None:
        self.method = method
        self.target = target
        self.version = version  # 10, 11 or 20
        self.host = ""
        self.authority = b""
        self.port = b""  # as the Host field had it, maybe nothing
        self.fields: Fields = []
        self.special: list[tuple[Kind, bytes, bytes]] = []
        self.framing = _NO_BODY
        self.length = 0
        self.keep_alive = version == 11
        self.expect_continue = False
        self.upgrade = False  # a WebSocket upgrade was asked for
        self.trailers_accepted = False  # TE: trailers
        self.user_agent = b""
        self.referer = b""
        self.log_part = ""  # what the access log says of these fields, kept there by it
        self.outbound: tuple[object, bytes] | None = None  # what `forwarding` makes of them, kept there by it

    def repeated(self, target: bytes) -> RequestHead:
        """The head of a request that differs from this one in its target only. The lists are shared, not edited."""
        head = RequestHead.__new__(RequestHead)
        head.method = self.method
        head.target = target
        head.version = self.version
        head.host = self.host
        head.authority = self.authority
        head.port = self.port
        head.fields = self.fields
        head.special = self.special
        head.framing = self.framing
        head.length = self.length
        head.keep_alive = self.keep_alive
        head.expect_continue = self.expect_continue
        head.upgrade = self.upgrade
        head.trailers_accepted = self.trailers_accepted
        head.user_agent = self.user_agent
        head.referer = self.referer
        head.log_part = self.log_part
        head.outbound = self.outbound
        return head

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    def __repr__(self) -> str:
        return f"<RequestHead {self.method.decode()} {self.host}{self.target.decode('latin-1')} {self.framing.name}>"


class ResponseHead:
    """An answer's head as the backend sent it, checked. `fields` pass on unread, hop-by-hop fields are gone."""

    __slots__ = (
        "fields",
        "framing",
        "is_dated",
        "keep_alive",
        "length",
        "reason",
        "server",
        "status",
        "template",
        "trailer",
        "upgrade",
    )

    def __init__(self, status: int, reason: bytes) -> None:
        self.status = status
        self.reason = reason
        self.fields: Fields = []
        self.framing = _NO_BODY
        self.length = -1  # the Content-Length if one was sent, also where there is no body (HEAD, 304)
        self.keep_alive = True
        self.upgrade = b""  # lower-case protocol of a 101
        self.trailer = b""
        self.server = b""
        self.template = b""  # of the route that the application says it took; not yet believed
        self.is_dated = False

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.framing.name}>"
