"""What gRPC adds to HTTP/2, as far as a proxy needs it: how a call is known, and how one that broke off ends.

A client of gRPC takes a stream that is reset in the middle of an answer for a fault of its own library (INTERNAL). What
it can act on is a status in the trailers: UNAVAILABLE, behind which it may try again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import RequestHead

_CONTENT_TYPE: Final = b"application/grpc"
_GOES_ON: Final = (b"", b"+", b";")
BROKEN_OFF: Final[Fields] = [
    (b"grpc-status", b"14"),  # UNAVAILABLE
    (b"grpc-message", b"The application behind this server stopped in the middle of its answer."),
]


def is_call(head: RequestHead) -> bool:
    """Whether a request is a call of gRPC: `application/grpc`, maybe with a format (+proto, +json) or a parameter.

    Not `application/grpc-web`: its status is in the body, and for it half an answer would look like a whole one.
    """
    types = [value for name, value in head.fields if name.lower() == b"content-type"]
    return any(value.startswith(_CONTENT_TYPE) and value[len(_CONTENT_TYPE) :][:1] in _GOES_ON for value in types)
