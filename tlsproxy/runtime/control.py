"""The words that the supervisor and its children say to each other, and the wire they say them on.

One JSON object per line over a socketpair: `{"type": "Ready", …}`. Encoding and decoding are pure; `ControlChannel` is
the only part that touches a socket. Knows nothing of what a message leads to. Rules: an unknown or malformed message
is an error that names it, never skipped; no error text repeats a value (Start carries a secret); the peer's silence
and the peer's end are different things (`receive` waits, or returns None).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, cast, get_args

from pydantic import TypeAdapter, ValidationError

from tlsproxy.errors import TlsproxyError
from tlsproxy.runtime.messages import Message

MAX_FRAME = 32 * 1024 * 1024
"""Longest line in bytes. Start carries the whole configuration, AdminResult a row for each certificate: with 10 000
sites about 3 and 8 MiB."""


class ControlError(TlsproxyError):
    """The other end of a control socket said something that this version does not understand."""


_ADAPTERS: dict[str, TypeAdapter[Message]] = {
    kind.__name__: cast("TypeAdapter[Message]", TypeAdapter(kind)) for kind in get_args(Message)
}


def encode(message: Message) -> bytes:
    """Return the message as one line, newline included. Raises ControlError when it is longer than MAX_FRAME."""
    name = type(message).__name__
    line = json.dumps({"type": name, **dataclasses.asdict(message)}, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_FRAME:
        raise ControlError(f"control message {name} has {len(line)} bytes, the limit is {MAX_FRAME}")
    return line


def decode(line: bytes) -> Message:
    """Return the message in one line (without its newline). Raises ControlError."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ControlError(f"control message of {len(line)} bytes is not JSON") from error
    if not isinstance(fields, dict):
        raise ControlError("control message is not a JSON object")
    name = fields.pop("type", None)
    if not isinstance(name, str) or name not in _ADAPTERS:
        raise ControlError(f"unknown control message {_shorten(name)}")
    return _build(name, fields)


class FrameDecoder:
    """Cuts a byte stream into messages. Holds at most one unfinished line of MAX_FRAME bytes."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, received: bytes) -> list[Message]:
        """Return the messages that `received` completes, in order. Raises ControlError."""
        # Only the new part is searched: a Start of 3 MiB comes in dozens of reads.
        searched = len(self._pending)
        self._pending += received
        if self._pending.find(b"\n", searched) < 0:
            self._check_length()
            return []
        *lines, rest = bytes(self._pending).split(b"\n")
        self._pending = bytearray(rest)
        self._check_length()
        return [decode(line) for line in lines]

    def _check_length(self) -> None:
        if len(self._pending) > MAX_FRAME:
            raise ControlError(f"control message is longer than {MAX_FRAME} bytes")


class ControlChannel(asyncio.Protocol):
    """One end of a control socketpair inside an event loop; the supervisor and the children use the same class.

    One task receives; anyone may send. `close` may be called twice. After the peer's end, `send` does nothing:
    the one who receives learns of it and decides.
    """

    # Mutable: _transport (set once), _decoder, _inbox, _closed.

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._inbox: asyncio.Queue[Message | ControlError | None] = asyncio.Queue()
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, sock: socket.socket) -> ControlChannel:
        """Take over `sock`: the channel closes it from now on."""
        sock.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_unix_connection(cls, sock=sock)
        return channel

    def send(self, message: Message) -> None:
        """Queue a message. A peer that has stopped reading is cut off: the buffer has a limit."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(encode(message))
        if transport.get_write_buffer_size() > 2 * MAX_FRAME:
            transport.abort()

    async def receive(self) -> Message | None:
        """Return the next message, or None for ever once the peer has closed. Raises ControlError, then it is over."""
        item = await self._inbox.get()
        if item is None:
            self._inbox.put_nowait(None)
        if isinstance(item, ControlError):
            raise item
        return item

    def deliver(self, message: Message | None) -> None:
        """Hand the receiver an order as if the peer had given it (None: to leave). For signals."""
        self._inbox.put_nowait(message)

    async def __aiter__(self) -> AsyncIterator[Message]:
        while (message := await self.receive()) is not None:
            yield message

    def close(self) -> None:
        """Flush what was sent, then close."""
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Return when the socket is closed, by either side."""
        await asyncio.shield(self._closed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, received: bytes) -> None:
        try:
            for message in self._decoder.feed(received):
                self._inbox.put_nowait(message)
        except ControlError as error:
            self._inbox.put_nowait(error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inbox.put_nowait(None)
        if not self._closed.done():
            self._closed.set_result(None)


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Return (the supervisor's end, the child's end). The child's end is to be passed on with `pass_fds`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _build(name: str, fields: dict[str, Any]) -> Message:
    try:
        return _ADAPTERS[name].validate_python(fields)
    except ValidationError as error:
        # include_input=False: the input may be Start with its secret.
        wrong = "; ".join(
            f"{'.'.join(str(step) for step in item['loc'])}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise ControlError(f"control message {name} is malformed: {wrong}") from None


def _shorten(name: object) -> str:
    return repr(name)[:60]
