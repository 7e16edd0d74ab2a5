"""What a server chose for the keys of a connection, read from the bytes it sent: Python's `ssl` does not tell. Pure.

In TLS 1.3 the group stands in the ServerHello (RFC 8446 4.1.3, 4.2.8), in TLS 1.2 in the ServerKeyExchange (RFC 8422
5.4); both come in the clear. What is not understood is no answer, never an error: this is for a person to look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_HANDSHAKE: Final = 22
_SERVER_HELLO: Final = 2
_SERVER_KEY_EXCHANGE: Final = 12
_KEY_SHARE: Final = 51
_NAMED_CURVE: Final = 3
# IANA, TLS Supported Groups
GROUPS: Final = {
    0x0017: "secp256r1", 0x0018: "secp384r1", 0x0019: "secp521r1", 0x001D: "x25519", 0x001E: "x448",
    0x0100: "ffdhe2048", 0x0101: "ffdhe3072", 0x0102: "ffdhe4096",
    0x11EB: "SecP256r1MLKEM768", 0x11EC: "X25519MLKEM768", 0x11ED: "SecP384r1MLKEM1024",
}  # fmt: skip


def key_exchange(received: bytes) -> str:
    """Return the name of the group ("x25519"), "0x…" for one that has no name here, "" if it can't be found."""
    found = ""
    for kind, body in _messages(_handshake_bytes(received)):
        group = _of_hello(body) if kind == _SERVER_HELLO else _of_exchange(body) if kind == _SERVER_KEY_EXCHANGE else 0
        # A HelloRetryRequest is a ServerHello too (RFC 8446 4.1.4): the last one counts.
        found = GROUPS.get(group, f"0x{group:04x}") if group else found
    return found


def _handshake_bytes(received: bytes) -> bytes:
    """Join the records of the handshake that are in the clear; behind the first other one everything is sealed."""
    joined, at = b"", 0
    while at + 5 <= len(received):
        size = int.from_bytes(received[at + 3 : at + 5])
        if received[at] == _HANDSHAKE:
            joined += received[at + 5 : at + 5 + size]
        elif received[at] != 20:  # ChangeCipherSpec: between a HelloRetryRequest and the ServerHello
            break
        at += 5 + size
    return joined


def _messages(handshake: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(handshake):
        size = int.from_bytes(handshake[at + 1 : at + 4])
        yield handshake[at], handshake[at + 4 : at + 4 + size]
        at += 4 + size


def _of_hello(body: bytes) -> int:
    at = 34 + 1 + (body[34] if len(body) > 34 else 0) + 3 + 2  # version, random, session id, suite, compression, length
    while at + 4 <= len(body):
        kind, size = int.from_bytes(body[at : at + 2]), int.from_bytes(body[at + 2 : at + 4])
        if kind == _KEY_SHARE and size >= 2:
            return int.from_bytes(body[at + 4 : at + 6])
        at += 4 + size
    return 0


def _of_exchange(body: bytes) -> int:
    return int.from_bytes(body[1:3]) if len(body) > 3 and body[0] == _NAMED_CURVE else 0
