"""One GET over HTTP/2 without TLS: what goes out, what comes in. No socket; `asking` has it."""

from __future__ import annotations

from tlsproxy.wire.fields import Fields
from tlsproxy.wire.http2_client import ClientCodec, Http2Error
from tlsproxy.wire.messages import ResponseHead

_AT_ONCE = 1 << 16


class Http2Question:
    """Mutable state: status, fields and body pieces of the answer; `is_over`, and `trouble` if that was no good end."""

    def __init__(self, target: str, head: list[tuple[str, str]]) -> None:
        self._codec = ClientCodec(self)
        self._pieces: list[bytes] = []
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.is_over = False
        self.trouble = ""
        # The codec knows where the fields of one request begin by the line that is always new.
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in head)]
        lines += ["X-Request-ID: tlsproxy-doctor", "", ""]
        self._codec.request("\r\n".join(lines).encode("latin-1"), ended=True)

    def to_send(self) -> bytes:
        return b"" if self._codec.is_over else self._codec.send(_AT_ONCE)

    def take(self, octets: bytes) -> None:
        if not octets:
            self.trouble = self.trouble or "the connection was closed instead of an answer in HTTP/2"
            return
        try:
            self._codec.receive(octets)
        except Http2Error as error:
            self.trouble, self.is_over = f"what came is no HTTP/2 ({error})", True

    def pieces(self) -> list[bytes]:
        """Return what has come of the body since the last call."""
        taken, self._pieces = self._pieces, []
        return taken

    # --- ClientEvents

    def settings_received(self) -> None:
        pass

    def interim_received(self, stream: int, head: ResponseHead) -> None:
        pass

    def head_received(self, stream: int, head: ResponseHead, *, ended: bool) -> None:
        self.status = head.status
        self.fields = [(name.lower(), value) for name, value in head.fields]
        if head.server and not any(name == b"server" for name, _ in self.fields):
            self.fields.append((b"server", head.server))
        self.is_over = ended

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        self._pieces.append(data)
        self._codec.acknowledge(stream, len(data))
        self.is_over = ended

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        self.is_over = True

    def answer_refused(self, stream: int, note: str) -> None:
        self.trouble = note

    def stream_closed(self, stream: int, code: int, *, by_backend: bool) -> None:
        self.is_over = True

    def backend_leaves(self, code: int, note: str) -> None:
        self.trouble = self.trouble or f"it said goodbye ({note or code})"

    def pong_received(self) -> None:
        pass
