"""The access log: one line per exchange, formatted on the request path, written off it.

Strategy: a line is one f-string over strings that are mostly known already (what is fixed for a connection is
formatted once); `json.dumps` of a dictionary costs four times as much. Lines gather in a list; the worker's tick, or
256 KiB, hands them to a writer thread, so that a slow disk or a full pipe never holds a request. If the thread falls
8 MiB behind, lines are dropped and counted.

Rules kept: no credentials, no value of a query parameter named in `log.redact_query`, no body; no line that is longer
than what a pipe takes in one piece.
"""

from __future__ import annotations

import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from json.encoder import encode_basestring_ascii as _quote
from sys import intern
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from tlsproxy.proxy.record import Record
    from tlsproxy.proxy.stream import ConnectionInfo
    from tlsproxy.wire.messages import RequestHead

logger = logging.getLogger(__name__)

_BATCH: Final = 256 * 1024  # characters; each batch wakes the writer thread, which then competes for the GIL
_BACKLOG: Final = 8 * 1024 * 1024  # characters: a quiet proxy sends small batches, and many of them are little
_PIPE_ATOM: Final = 4096  # POSIX PIPE_BUF: several workers share one pipe, and longer writes could interleave
_LONGEST_PATH: Final = 1024
_LONGEST_TEXT: Final = 512
_LONGEST_HOST: Final = 255
_LONGEST_METHOD: Final = 32
_VERSIONS: Final = {10: "1.0", 11: "1.1", 20: "2"}
_ROOMS: Final = (800, 500, 200)  # for each text of a line that was too long; the first that does

_QUOTED_REMEMBERED: Final = 2048


class _Quoted(dict[bytes, str]):
    """Bytes -> JSON string, cut to `_LONGEST_TEXT`. Methods and user agents repeat; bounded, and emptied when full."""

    def __missing__(self, value: bytes) -> str:
        quoted = _quote(value[:_LONGEST_TEXT].decode("latin-1"))
        if len(value) <= _LONGEST_TEXT:
            if len(self) >= _QUOTED_REMEMBERED:
                self.clear()
            self[value] = quoted
        return quoted


class AccessLog:
    """Formats and batches. Mutable state: `_lines`, `_size`; `_second` and `_stamp` (the last formatted second)."""

    def __init__(self, sink: LogWriter | NoLog, *, redact_query: Iterable[str] = (), console: bool = False) -> None:
        self._sink = sink
        self._redacted = frozenset(name.lower().encode() for name in redact_query)
        # A query without any of these has nothing to redact; "token" stands for "access_token", "%" may hide a name.
        self._marks = [b"%", *(n for n in self._redacted if not any(o != n and o in n for o in self._redacted))]
        self._format: Callable[[Record], str] = self._console_line if console else self._json_line
        self._lines: list[str] = []
        self._size = 0
        self._second = 0
        self._stamp = ""
        self._quoted = _Quoted()

    def record(self, exchange: Record) -> None:
        """Append the line of an exchange that has ended."""
        line = self._format(exchange)
        self._lines.append(line)
        self._size += len(line)
        if self._size > _BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand what has gathered to the writer."""
        if self._lines:
            self._sink.put("".join(self._lines))
            self._lines = []
            self._size = 0

    def _json_line(self, exchange: Record) -> str:
        head = exchange.head
        path, mark, query = head.target.partition(b"?")
        line = self._compose(
            exchange,
            head.log_part or self._describe_head(head),
            _quote(path[:_LONGEST_PATH].decode("latin-1")),
            _quote(self.redact(query)[:_LONGEST_PATH].decode("latin-1")) if mark else "",
            _quote(exchange.error) if exchange.error else "",
        )
        return line if len(line) <= _PIPE_ATOM else self._shorter_line(exchange)

    def _shorter_line(self, exchange: Record) -> str:
        """The line again with less of each text: an escape takes up to six characters for one byte."""
        head = exchange.head
        path, mark, query = head.target.partition(b"?")
        line = ""
        for room in _ROOMS:
            quote = partial(_fit, room=room)
            line = self._compose(
                exchange,
                self._head_part(head, quote),
                quote(path),
                quote(self.redact(query)) if mark else "",
                quote(exchange.error.encode("latin-1", "replace")) if exchange.error else "",
            )
            if len(line) <= _PIPE_ATOM:
                break
        return line

    def _compose(self, exchange: Record, head_part: str, path: str, query: str, error: str) -> str:
        info, backend, forward = exchange.info, exchange.backend, exchange.forward
        started = exchange.started_at
        second = int(started)
        stamp = self._stamp if second == self._second else self._new_stamp(second)
        return (
            f'{{"ts":"{stamp}{int((started - second) * 1000):03d}Z","client":"{exchange.client}",'
            f'{head_part}"path":{path},{_query_part(query) if query else ""}'
            f'"status":{exchange.status},"bytes_in":{exchange.bytes_in},"bytes_out":{exchange.bytes_out},'
            f'"duration_ms":{(exchange.ended - exchange.started) * 1000:.3f},'
            f'"backend":{backend.quoted if backend is not None else "null"},'
            f'"backend_ms":{f"{exchange.backend_ms:.3f}" if exchange.backend_ms >= 0 else "null"},'
            f'"reused":{"true" if exchange.reused else "false"},"retries":{exchange.retries},'
            f'{info.log_part or _describe(info)}"request_id":"{exchange.request_id.decode()}",'
            f"{_trace_part(exchange.trace) if exchange.trace else ''}"
            f"{_error_part(error) if error else ''}"
            f"{forward.quoted if forward is not None else _site_part(exchange)}"
            f"{_template_part(exchange.template) if exchange.template else ''}}}\n"
        )

    def _describe_head(self, head: RequestHead) -> str:
        """The part of a line that follows from the fields; a repeated head brings it along."""
        head.log_part = self._head_part(head, self._quoted.__getitem__)
        return head.log_part

    def _head_part(self, head: RequestHead, quote: Callable[[bytes], str]) -> str:
        return (
            f'"method":{quote(head.method)},"host":{quote(head.host.encode("latin-1", "replace"))},'
            f'"http":"{_VERSIONS[head.version]}",'
            f'"user_agent":{quote(head.user_agent) if head.user_agent else "null"},'
            f'"referer":{quote(self._without_secrets(head.referer)) if head.referer else "null"},'
        )

    def _without_secrets(self, referer: bytes) -> bytes:
        """A page's address may carry secrets as well: in its query, or before its host."""
        page, mark, query = referer.partition(b"?")
        if b"@" in page:
            scheme, separator, rest = page.partition(b"://")
            page = scheme + separator + rest.rpartition(b"@")[2]
        return page + mark + self.redact(query)

    def _console_line(self, exchange: Record) -> str:
        head = exchange.head
        clock = time.strftime("%H:%M:%S", time.localtime(exchange.started_at))
        color = "32" if exchange.status < 400 else "33" if exchange.status < 500 else "31"
        took = (exchange.ended - exchange.started) * 1000
        where = f"{head.host[:_LONGEST_HOST]}{head.path[:_LONGEST_PATH].decode('latin-1')}"
        backend = exchange.backend.url if exchange.backend is not None else "-"
        error = f"  {exchange.error[:_LONGEST_TEXT]}" if exchange.error else ""
        text = (
            f"{head.method[:_LONGEST_METHOD].decode():<7} {where}  {took:.1f} ms  {exchange.client} -> {backend}{error}"
        )
        return f"{clock} \x1b[{color}m{exchange.status}\x1b[0m {_printable(text)}\n"

    def _new_stamp(self, second: int) -> str:
        self._second = second
        self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return self._stamp

    def redact(self, query: bytes) -> bytes:
        """`query` with the values of parameters that carry secrets replaced."""
        lower = query.lower()
        for word in self._marks:
            if word in lower:
                return self._redact(query)
        return query

    def _redact(self, query: bytes) -> bytes:
        parts = [part.partition(b"=") for part in query.split(b"&")]
        return b"&".join(
            name + equals + (b"REDACTED" if value and unquote_to_bytes(name).lower() in self._redacted else value)
            for name, equals, value in parts
        )


def _describe(info: ConnectionInfo) -> str:
    """The part of a line that is the same for all requests of a connection, and for most connections of a site."""
    if not info.tls:
        info.log_part = '"tls":null,"cipher":null,"sni":null,"alpn":null,"resumed":false,'
    else:
        info.log_part = intern(
            f'"tls":{_quote(info.tls)},"cipher":{_quote(info.cipher)},"sni":{_quote(info.sni)},'
            f'"alpn":{_quote(info.alpn)},"resumed":{"true" if info.resumed else "false"},'
        )
    return info.log_part


def _query_part(query: str) -> str:
    return f'"query":{query},'


def _template_part(template: str) -> str:
    """No character of it needs an escape (wire.templates.is_template)."""
    return f',"template":"{template}"'


def _trace_part(trace: bytes) -> str:
    """32 hexadecimal digits; what may stand behind them is for spans."""
    return f'"trace_id":"{trace[:32].decode()}",'


def _error_part(error: str) -> str:
    return f'"error":{error},'


def _fit(value: bytes, room: int) -> str:
    """As much of `value` as a JSON string of at most `room` characters holds."""
    text = value[:room].decode("latin-1")
    while len(quoted := _quote(text)) > room:
        text = text[: len(text) * room // len(quoted)]
    return quoted


def _site_part(exchange: Record) -> str:
    return f'"site":{_quote(exchange.site.name) if exchange.site is not None else "null"},"route":null'


def _printable(text: str) -> str:
    """Nothing a client sends may steer the operator's terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


class LogWriter:
    """Writes batches to a file descriptor in a thread. `destination` is "-" (stdout) or a path, opened for appending.

    A write that fails (disk full, reader gone) drops its batch, counts it in `dropped` and says so once per trouble.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._batches: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reopen = threading.Event()
        self._in_trouble = False
        self.dropped = 0
        # Characters, each counted by one thread alone: what the first is ahead by is waiting.
        self._given = 0
        self._done = 0
        self._descriptor = self._open_first()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self._descriptor)

    def put(self, batch: str) -> None:
        """Queue a batch of whole lines; dropped if the thread is too far behind."""
        if self._given - self._done + len(batch) > _BACKLOG:
            self._drop("the writer is 8 MiB behind")
            return
        self._given += len(batch)
        self._batches.put(batch)

    def reopen(self) -> None:
        """Open the file anew before the next batch: log rotation (SIGUSR1)."""
        self._reopen.set()

    def close(self, timeout: float = 2.0) -> None:
        """Write what is queued, for at most `timeout` seconds."""
        self._batches.put(None)
        self._thread.join(timeout)
        if not self._thread.is_alive() and self._destination != "-":
            os.close(self._descriptor)

    def _open_first(self) -> int:
        try:
            return self._open()
        except OSError as error:
            raise TlsproxyError(
                f"log.access: cannot open {self._destination}: {error.strerror or error}. Make its directory, let "
                'server.user write there, or choose another place ("-" is stdout).'
            ) from None

    def _open(self) -> int:
        if self._destination == "-":
            return sys.stdout.fileno()
        return os.open(self._destination, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            if self._reopen.is_set() and self._destination != "-":
                self._reopen.clear()
                self._open_again()
            try:
                self._write(batch.encode())
                self._in_trouble = False
            except OSError as error:
                self._drop(error.strerror or str(error))
            self._done += len(batch)

    def _open_again(self) -> None:
        try:
            fresh = self._open()
        except OSError as error:
            logger.error("access_log.reopen_failed", extra={"path": self._destination, "error": error.strerror})  # noqa: TRY400
            return
        os.close(self._descriptor)
        self._descriptor = fresh

    def _write(self, data: bytes) -> None:
        for piece in _pieces(data) if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode) else (data,):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if not self._in_trouble:
            self._in_trouble = True
            logger.error("access_log.dropped", extra={"why": why, "destination": self._destination})


class NoLog:
    """`log.access = "off"`."""

    is_terminal = False
    dropped = 0

    def put(self, batch: str) -> None:
        """Forget it."""

    def reopen(self) -> None:
        """There is nothing to open."""

    def close(self, timeout: float = 0.0) -> None:
        """There is nothing to close."""


def _pieces(data: bytes) -> Iterable[bytes]:
    """`data` in pieces of whole lines that a pipe takes in one go."""
    start = 0
    while start < len(data):
        end = len(data) if len(data) - start <= _PIPE_ATOM else data.rfind(b"\n", start, start + _PIPE_ATOM) + 1
        if end <= start:
            end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
