"""Session ticket keys that every worker of a machine shares, and no two sites or policies do.

Python has no call to set them, OpenSSL has: `SSL_CTX_ctrl`, reached through the pointer that CPython keeps first in
the object behind an `SSLContext`. Known to be right on CPython 3.11 to 3.13 with the GIL, looked up nowhere else, and
believed only when the keys read back are the keys written. Otherwise tickets are each context's own: a client that
meets another worker pays a full handshake, nothing worse.

Rule: a key is derived from everything that decides who may connect. OpenSSL accepts any ticket it can open, also one
of another name whose client certificates come from another CA (nginx's CVE-2025-23419).
"""

from __future__ import annotations

import _ssl
import ctypes
import logging
import ssl
import sys
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

logger = logging.getLogger(__name__)

EPOCH_SECONDS: Final = 86_400  # RFC 8446 4.6.1 allows seven days; OpenSSL's tickets live for two hours
_KEYS_SIZE: Final = 80  # name 16, HMAC key 32, AES key 32
# openssl/ssl.h
_SET_SESS_CACHE_MODE, _GET_TICKET_KEYS, _SET_TICKET_KEYS = 44, 58, 59
_SESS_CACHE_OFF: Final = 0

_Control = Callable[[int, int, int, "bytes | ctypes.Array[ctypes.c_char] | None"], int]


def derive_keys(master: bytes, site: str, policy: str, epoch: int) -> bytes:
    """Return 80 bytes that depend on all four; the site and the policy can't be shifted into each other."""
    parts = (b"tlsproxy session tickets 1", site.encode(), policy.encode(), str(epoch).encode())
    context = b"".join(len(part).to_bytes(4) + part for part in parts)
    return HKDF(algorithm=hashes.SHA256(), length=_KEYS_SIZE, salt=None, info=context).derive(master)


def share_tickets(context: ssl.SSLContext, keys: bytes) -> bool:
    """Give the context these ticket keys. False = not possible here (said once in the log), nothing changed.

    Also turns the context's session cache off: it could resume within one worker only, and holds up to 20 480
    sessions per context for clients without tickets.
    """
    if _control is None:
        _say_once()
        return False
    pointer = _pointer(context)
    _control(pointer, _SET_TICKET_KEYS, _KEYS_SIZE, keys)
    _control(pointer, _SET_SESS_CACHE_MODE, _SESS_CACHE_OFF, None)
    return True


def _pointer(context: ssl.SSLContext) -> int:
    """`PySSLContext` is PyObject_HEAD (16 bytes with the GIL), then `SSL_CTX *ctx`."""
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value or 0


def _find_control() -> _Control | None:
    if not _is_known_layout():
        return None
    try:
        library = _library()
        function = library.SSL_CTX_ctrl
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
    function.restype = ctypes.c_long
    return function if _reads_back(function) else None


def _is_known_layout() -> bool:
    return (
        sys.implementation.name == "cpython"
        and (3, 11) <= sys.version_info[:2] <= (3, 13)
        and getattr(sys, "_is_gil_enabled", lambda: True)()
        and sys.maxsize > 2**32
        and object.__basicsize__ == 16
    )


def _library() -> ctypes.CDLL:
    """Open the libssl that `_ssl` itself is linked with, through `_ssl`: another copy would misread the pointer.

    Where `_ssl` is part of the interpreter (static builds), so is libssl, if its symbols can be seen at all.
    """
    library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    version = library.OpenSSL_version
    version.argtypes, version.restype = (ctypes.c_int,), ctypes.c_char_p
    if version(0) != ssl.OPENSSL_VERSION.encode():
        raise OSError("another copy of OpenSSL answered")
    return library


def _reads_back(control: _Control) -> bool:
    """Try on two contexts of our own. A wrong pointer is caught by asking for the size of the keys first."""
    first, second = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for context, keys in ((first, bytes(range(80))), (second, bytes(range(80, 160)))):
        if control(_pointer(context), _GET_TICKET_KEYS, 0, None) != _KEYS_SIZE:
            return False
        control(_pointer(context), _SET_TICKET_KEYS, _KEYS_SIZE, keys)
    return _read(control, first) == bytes(range(80)) and _read(control, second) == bytes(range(80, 160))


def _read(control: _Control, context: ssl.SSLContext) -> bytes:
    buffer = ctypes.create_string_buffer(_KEYS_SIZE)
    control(_pointer(context), _GET_TICKET_KEYS, _KEYS_SIZE, buffer)
    return buffer.raw


def _say_once() -> None:
    global _said
    if not _said:
        _said = True
        logger.warning(
            "tickets.not_shared",
            extra={
                "python": sys.version.split()[0],
                "effect": "TLS sessions resume only on the worker that began them",
            },
        )


_said = False
_control = _find_control()
