"""A fake acme-dns: its two requests over HTTP and what it remembers, made after its documentation and source.

It has no name server: `values(fulldomain)` says what it would show. Like the real one it keeps two values per account,
answers 401 to strangers, 400 to a value that is none, and registers only while `is_open`.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import uuid
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

DOMAIN = "auth.acme-dns.test"
_TXT = re.compile(r"[A-Za-z0-9_-]{43}")


class FakeAcmeDnsServer:
    """Serves on a free loopback port from `with` to its end. `broken` is a raw body that replaces every answer."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.is_open, self.broken = is_open, b""
        self.accounts: dict[str, dict[str, Any]] = {}  # by username
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._txt: dict[str, deque[str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def values(self, fulldomain: str) -> list[str]:
        return list(self._txt.get(fulldomain, ()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, user: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append((path, body))
        if path == "/register" and self.is_open:
            return 201, self._register()
        return self._update(user, key, body) if path == "/update" else (404, {"error": "not_found"})

    def _register(self) -> dict[str, Any]:
        subdomain = str(uuid.uuid4())
        account: dict[str, Any] = {
            "username": str(uuid.uuid4()),
            "password": secrets.token_urlsafe(30),
            "fulldomain": f"{subdomain}.{DOMAIN}",
            "subdomain": subdomain,
            "allowfrom": [],
        }
        self.accounts[account["username"]] = account
        self._txt[account["fulldomain"]] = deque(maxlen=2)
        return account

    def _update(self, user: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        account = self.accounts.get(user)
        if account is None or account["password"] != key or account["subdomain"] != body.get("subdomain"):
            return 401, {"error": "forbidden"}
        if not _TXT.fullmatch(body.get("txt", "")):
            return 400, {"error": "bad_txt"}
        self._txt[account["fulldomain"]].append(body["txt"])
        return 200, {"txt": body["txt"]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                user, key = self.headers.get("X-Api-User", ""), self.headers.get("X-Api-Key", "")
                status, answer = fake.answer(self.path, user, key, body)
                content = fake.broken or json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                """Stay silent."""

        return Handler
