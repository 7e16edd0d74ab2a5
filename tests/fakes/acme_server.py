"""What the fake CA is made of below ACME: an HTTPS server in a thread that can be killed, and JWS as a server reads it.

Made here once more, without the libraries that the package uses: those are under test.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

URN = "urn:ietf:params:acme:error:"


class Problem(Exception):
    """What the CA answers instead."""

    def __init__(self, problem: str, detail: str = "", status: int = 400) -> None:
        self.document = {"type": URN + problem, "detail": detail or problem, "status": status}
        self.status = status


@dataclass
class Reply:
    """One answer; `body` is JSON unless it is bytes."""

    status: int
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


Answer = Callable[[str, str, bytes, Mapping[str, str]], Reply | None]
"""Method, path, body and headers of a request to its answer; None for none at all."""


class HttpsServer(ThreadingHTTPServer):
    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], answer: Answer, https: trustme.CA) -> None:
        self.answer, self._open = answer, set[socket.socket]()
        super().__init__(address, _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        https.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""

    def stop(self) -> None:
        self.shutdown()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True  # or the first answer waits 40 ms for the client's delayed ACK of the TLS tickets
    server: HttpsServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.answer(self.command, self.path, body, dict(self.headers))
        if reply is None:
            self.close_connection = True
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    do_GET = do_HEAD = do_POST = _serve  # noqa: N815 - the names that http.server calls

    def log_message(self, *arguments: object) -> None:
        """Say nothing: tests count."""


def verify(jwk: Mapping[str, str], signed: Mapping[str, str]) -> None:
    x, y = (int.from_bytes(unb64(jwk[name]), "big") for name in ("x", "y"))
    signature = unb64(signed["signature"])
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    content = f"{signed['protected']}.{signed['payload']}".encode()
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    try:
        key.verify(utils.encode_dss_signature(r, s), content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Problem("malformed", "JWS verification error") from None


def thumbprint(jwk: Mapping[str, str]) -> str:
    members = json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
    return b64(hashlib.sha256(members.encode()).digest())


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
