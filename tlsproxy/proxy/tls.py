"""The pump: one TLS client connection as an `SSLObject` between two memory BIOs, over the raw transport.

Knows when the ClientHello is complete, who chooses the context, how sealed bytes become plain ones and back. Does not
know sites, certificates or HTTP. Rules: the context is chosen BEFORE the handshake and never changed in it; a client
whose certificate is being obtained waits alone; a failure while choosing refuses; whatever alert OpenSSL left in the
outgoing BIO is sent before the connection closes.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import nullcontext, suppress
from sys import intern
from typing import TYPE_CHECKING, Final, Literal

from tlsproxy.proxy.choice import NO_PROTOCOL, NOT_IN_TIME, Refused
from tlsproxy.proxy.connection import HANDSHAKE, HELLO, OPEN, WAITING, Accepted, Connection, client_address, logger
from tlsproxy.proxy.heap import Apart
from tlsproxy.proxy.replies import plain_http_on_tls_page
from tlsproxy.proxy.sitetls import ServerContext
from tlsproxy.proxy.waiting import LONGEST_WAIT, Awaited
from tlsproxy.wire.clienthello import (
    HANDSHAKE_RECORD,
    INTERNAL_ERROR,
    MAX_HELLO,
    PROTOCOL_VERSION,
    UNEXPECTED_MESSAGE,
    ClientHello,
    ClientHelloError,
    parse_client_hello,
)

if TYPE_CHECKING:
    from tlsproxy.proxy.stream import ConnectionOwner

RECORD: Final = 16_384  # no record holds more plain bytes (RFC 8446 5.1)
# A memory BIO never shrinks. Feeding it in slices bounds what an idle connection keeps after a bulk transfer (85 KiB
# less after a 60 KiB message). One slice is a full record of TLS 1.3, so that most reads end with the BIO empty.
SLICE: Final = RECORD + 22
_APART: Final = Apart()
_TOGETHER: Final = nullcontext()
_REQUEST_LINE: Final = re.compile(rb"[A-Z][A-Z-]{2,19} (?:[/*]|https?:|[a-z0-9.-]+:)")
_MAYBE_REQUEST: Final = re.compile(rb"[A-Z-]{1,20}(?: [a-z0-9.:-]{0,255})?\Z")
_MOST_EARLY: Final = 2 * MAX_HELLO  # what a client that waits for its certificate may have sent
_ACME_TLS: Final = "acme-tls/1"


class TlsConnection(Connection):
    """One TLS client. `_held`: writes are gathered, the pump sends them when the driver has had its bytes.

    `_awaited`: the certificate that it waits or has waited for. A `waiting.Waiter`.
    """

    __slots__ = ("_awaited", "_held", "_incoming", "_outgoing", "_read", "_seal_write", "_ticket", "_tls")
    scheme: Literal["https", "http"] = "https"

    def __init__(self, owner: ConnectionOwner, accepted: Accepted | None = None) -> None:
        super().__init__(owner, accepted)
        self._held = False
        self._ticket = 0  # bytes of a session ticket that wait to go out with the first answer
        self._tls: ssl.SSLObject | None = None
        self._awaited: Awaited | None = None

    def data_received(self, data: bytes) -> None:
        try:
            if self._state is OPEN:
                self._pump(data)
            elif self._state is HANDSHAKE:
                self._incoming.write(data)
                self._handshake()
            else:
                self._receive_early(data)
        except Exception:  # noqa: BLE001 - whatever it is, it must not reach the event loop
            self._crash()

    def write(self, data: bytes) -> None:
        """Seal and send. OpenSSL takes all or nothing: partial writes are not enabled, a memory BIO is never full."""
        if self._state is not OPEN or not data:
            return
        try:
            if len(data) <= RECORD:
                self._seal_write(data)
                if not self._held or self._outgoing.pending > SLICE:
                    self._flush()
            else:
                self._write_slices(data)
        except ssl.SSLError as error:
            self._broken(error)

    # -- plain bytes up and down

    def _pump(self, data: bytes) -> None:
        """Hand up what `data` brings, in one call; send what the driver answers meanwhile, in one write."""
        chunks: list[bytes] = []
        try:
            if len(data) <= SLICE:
                self._incoming.write(data)
                ended = self._read_into(chunks)
            else:
                ended = self._read_slices(data, chunks)
        except ssl.SSLError as error:
            self._broken(error)
            return
        if chunks and self._driver is not None:
            self._held = True
            self._driver.data_received(chunks[0] if len(chunks) == 1 else b"".join(chunks))
            self._held = False
        if ended:
            self._end(truncated=False)
        if self._state is OPEN and self._outgoing.pending > self._ticket:
            self._flush()

    def _read_into(self, chunks: list[bytes], few: int = 0) -> bool:
        """Append the plain bytes that are there; True = the client said close_notify.

        A read returns one record at most. With the BIO empty after it there is nothing more to get, and asking would
        only raise: that exception is half of the cost of a small message. With `few` bytes or less, asking can wait.
        """
        read, incoming = self._read, self._incoming
        try:
            while chunk := read(RECORD):
                chunks.append(chunk)
                if incoming.pending <= few:
                    return False
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            pass
        return True

    def _read_slices(self, data: bytes, chunks: list[bytes]) -> bool:
        """Where records do not end where slices do, less than a slice is likely to be half a record: the next slice
        brings the rest (4 µs of 24 for 64 KiB, in exceptions).
        """
        view = memoryview(data)
        last = len(view) - SLICE
        for start in range(0, len(view), SLICE):
            self._incoming.write(view[start : start + SLICE])
            if self._read_into(chunks, SLICE - 1 if start < last else 0):
                return True
        return False

    def _write_slices(self, data: bytes) -> None:
        """Keep the outgoing BIO small too. `writelines` costs 3 % over one big write, a `write` per slice 14 %."""
        view = memoryview(data)
        self._ticket = 0
        sealed = []
        for start in range(0, len(view), RECORD):
            self._seal_write(view[start : start + RECORD])
            sealed.append(self._outgoing.read())
        self._written += sum(map(len, sealed))
        self._transport.writelines(sealed)

    def _write_last(self, data: bytes) -> None:
        self._held = True  # one write for the answer and close_notify
        self.write(data)

    def check_deadline(self, now: float) -> None:
        if self._state is WAITING:
            if now >= self._deadline:
                self.certificate_refused(NOT_IN_TIME)
            return
        if self._ticket and self._state is OPEN:
            self._flush()
        super().check_deadline(now)

    def _flush(self) -> None:
        self._ticket = 0
        sealed = self._outgoing.read()
        self._written += len(sealed)
        self._transport.write(sealed)

    def _broken(self, error: ssl.SSLError) -> None:
        """The client's bytes don't verify, or it sent an alert: say so if OpenSSL has something to say, then close."""
        logger.debug("connection.broken", extra={"client": self.info.client, "reason": error.reason})
        self.truncated = True
        self._held = False
        if self._outgoing.pending:
            self._flush()
        self._linger()

    # -- before the handshake

    def _started(self) -> None:
        if self._early[0] != HANDSHAKE_RECORD:
            self._refuse_foreign()
            return
        try:
            hello = parse_client_hello(self._early)
        except ClientHelloError as error:
            self._refuse(error.alert, str(error))
            return
        if hello is not None:
            self._choose(hello)

    def _choose(self, hello: ClientHello) -> None:
        name = hello.server_name or ""
        try:
            chosen = self._owner.contexts.choose(hello, "" if name else self._find_address(), self.info.client)
        except Exception:  # noqa: BLE001 - fail closed, whatever it is
            logger.exception("tls.choose_failed", extra={"client": self.info.client, "sni": name})
            self._refuse(INTERNAL_ERROR, "no usable certificate", name)
            return
        if not isinstance(chosen, ServerContext):
            self._go_without(chosen, name)
            return
        if not chosen.speaks(hello.alpn):
            self._go_without(NO_PROTOCOL, name)
            return
        self.info.sni = name
        self._wrap(chosen)
        # OpenSSL takes its buffer when the handshake begins. A client of HTTP/1.1 has nothing that would lie there.
        with _APART if b"h2" in hello.alpn else _TOGETHER:
            self._handshake()

    def _go_without(self, chosen: Refused | Awaited, name: str) -> None:
        """There is no context for this client, or not yet."""
        if isinstance(chosen, Refused):
            self._refuse(chosen.alert, chosen.reason, name, is_said=chosen.is_said)
        elif self._awaited is not None:  # it was there, and is gone again
            self._refuse(NOT_IN_TIME.alert, NOT_IN_TIME.reason, name)
        elif (refused := chosen.join(self, self.info.client)) is not None:
            self._refuse(refused.alert, refused.reason, name)
        else:
            self.info.sni = name
            self._awaited = chosen
            self._state = WAITING
            self._deadline = self._owner.loop.time() + LONGEST_WAIT

    # -- waiting for a certificate

    def certificate_ready(self) -> None:
        """Choose again: now the context is there."""
        if self._state is WAITING:
            self._state = HELLO
            self._deadline = self._owner.loop.time() + self._owner.handshake_timeout
            self._guard(self._started)

    def certificate_refused(self, refused: Refused) -> None:
        """End the handshake: there will be none, or it takes too long."""
        if self._state is WAITING:
            self._leave_waiting()
            self._guard(self._refuse, refused.alert, refused.reason, self.info.sni)

    def drain(self) -> None:
        if self._state is WAITING:
            self._draining = True  # it may wait as long as the worker does: nobody else has heard its question
        else:
            super().drain()

    def _receive_early(self, data: bytes) -> None:
        if self._state is not WAITING:
            super()._receive_early(data)
            return
        self._early += data
        if len(self._early) > _MOST_EARLY:
            self._leave_waiting()
            self._refuse(UNEXPECTED_MESSAGE, "more than a ClientHello", self.info.sni)

    def _leave_waiting(self) -> None:
        if self._awaited is not None:
            self._awaited.leave(self)

    def _find_address(self) -> str:
        """Where the client called. Asked for only when it gave no name; a PROXY header may have said it already."""
        if not self.info.address and self._accepted is not None:
            self.info.address = client_address(self._accepted.sock.getsockname())[0].partition("%")[0]
        return self.info.address

    def _wrap(self, chosen: ServerContext) -> None:
        self.info.site = chosen.site
        self.info.policy = chosen.policy
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._incoming.write(self._early)
        self._early = b""
        self._tls = chosen.ssl.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._read = self._tls.read
        self._seal_write = self._tls.write
        self._state = HANDSHAKE

    def _refuse_foreign(self) -> None:
        """The first byte is not TLS. People do send plain HTTP here, and deserve a page that says so."""
        first = self._early[:300]
        if _REQUEST_LINE.match(first):
            self._send(plain_http_on_tls_page())
            self._handshake_failed("plain HTTP on the TLS port")
            self._linger()
        elif not _MAYBE_REQUEST.match(first):
            old_hello = first[0] & 0x80 and first[2:3] == b"\x01"  # SSL 2 (RFC 5246 E.2)
            self._refuse(PROTOCOL_VERSION if old_hello else UNEXPECTED_MESSAGE, "not TLS")

    def _refuse(self, alert: int, reason: str, name: str = "", *, is_said: bool = False) -> None:
        self._send(bytes((21, 3, 3, 0, 2, 2, alert)))  # RFC 8446 6: level fatal
        self._handshake_failed(reason, name, is_said=is_said)
        self._linger()

    # -- the handshake

    def _handshake(self) -> None:
        assert self._tls is not None  # noqa: S101
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            if self._outgoing.pending:
                self._flush()
        except ssl.SSLError as error:
            if self._outgoing.pending:  # the alert
                self._flush()
            self._handshake_failed(_reason(error), self.info.sni)
            self._linger()
        else:
            self._established(self._tls)

    def _established(self, tls: ssl.SSLObject) -> None:
        info = self.info
        cipher = tls.cipher()
        info.tls = intern(tls.version() or "")  # OpenSSL's names are the same for thousands of connections
        info.cipher = intern(cipher[0] if cipher else "")
        info.alpn = intern(tls.selected_alpn_protocol() or "")
        info.resumed = bool(tls.session_reused)
        if info.policy is not None and info.policy.client_auth != "off":
            info.client_certificate = tls.getpeercert(binary_form=True)
        if info.alpn == _ACME_TLS:
            self._end_challenge()
            return
        if info.tls == "TLSv1.3":
            self._hold_ticket()
        elif self._outgoing.pending:
            self._flush()
        self._open()
        if self._incoming.pending:
            self._pump(b"")

    def _end_challenge(self) -> None:
        """The CA has seen the certificate, which is all this connection is for (RFC 8737 3)."""
        self._early = b""
        self._state = OPEN  # to say close_notify
        self.finish()

    def _hold_ticket(self) -> None:
        """What is left is a session ticket, of use after this connection: let it save a write and a wake-up.

        The client's Finished must be acknowledged all the same: a client with Nagle's algorithm on would hold back its
        request until our delayed ACK, for 40 ms.
        """
        self._ticket = self._outgoing.pending
        if self._ticket and not self._incoming.pending:
            self._set_option(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    # -- the end

    def _seal(self) -> None:
        """Send close_notify (RFC 8446 6.1). Not waited for: the client may close at its leisure."""
        if self._state is not OPEN or self._tls is None:
            return
        with suppress(ssl.SSLError):  # wants the client's close_notify, or finds data instead: ours is written anyway
            self._tls.unwrap()
        self._held = False
        if self._outgoing.pending:
            self._flush()

    def _release(self) -> None:
        self._leave_waiting()
        if self._tls is not None:
            self._tls = None
            del self._read, self._seal_write, self._incoming, self._outgoing


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "handshake failure").lower().replace("_", " ")
