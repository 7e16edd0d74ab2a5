"""One HTTP/2 connection to one backend, in the clear and by prior knowledge (RFC 9113 3.3): many requests at once.

Knows the connection: its codec, its budget, its signs of life, its end. What happens to one request is
`MultiplexedStream`'s, which connections there are is `MultiplexedBackend`'s.

Strategy: what is to be sent waits in the codec until `_flush`, one for each turn of the loop. While the backend takes
nothing, nothing is taken out of the codec either, so that each stream's queue fills and stops its own client. Requests
do not wait for the backend's SETTINGS: an application that blocks its server for a while would look dead.

Mutable state: `_streams` (open ones, by number), `_unsent` (begun, and nothing was sent since), `_websockets` (those
that wait for SETTINGS), `_held_back`, `_touched`, `_ending` (streams that nobody reads, since when), `_full`,
`_scheduled`, `begun`, `is_open`, `_is_leaving` (no more requests), `_in_doubt`, `idle_since`,
`_heard_at`, `_pinged_at`, `_is_news`, `_head` (the header block under way).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from tlsproxy.proxy.failures import AnswerTimedOut, BackendFailure, BadAnswer, NotProcessed
from tlsproxy.wire.http2_client import ClientCodec, Http2Error, StreamGone

if TYPE_CHECKING:
    from tlsproxy.proxy.multiplexed_backend import MultiplexedBackend
    from tlsproxy.proxy.multiplexed_stream import MultiplexedStream
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import ResponseHead

logger = logging.getLogger(__name__)

# As nginx has it. With the next one hypercorn 0.18 says GOAWAY, and answers nothing of what is under way.
_MOST_REQUESTS: Final = 1000
_HIGH_WATER: Final = 64 * 1024
_LOW_WATER: Final = 16 * 1024
_AT_ONCE: Final = 128 * 1024  # bytes taken from the codec in one piece
_EARNED: Final = 50  # noise credit a second
_QUIET: Final = 10.0  # seconds of silence, while something is asked for, before a PING asks for a sign of life
# gRPC servers close on a client whose PINGs come more often than this while they have nothing to say.
_PINGS_APART: Final = 305.0
_DOUBT: Final = 5.0  # seconds without an answer to it: new requests go elsewhere
_DEAD: Final = 60.0  # an application may block its server for long
_LONGEST_HEAD: Final = 10.0
_LONGEST_CLOSE: Final = 10.0  # seconds a backend has to end a stream that nobody reads


class MultiplexedConnection(asyncio.Protocol):
    """See the module's text. An `asyncio.Protocol` to the transport, `http2_client.ClientEvents` to the codec."""

    __slots__ = (
        "_asked_at", "_ending", "_full", "_head", "_head_since", "_heard_at", "_held_back", "_in_doubt", "_is_leaving",
        "_is_news", "_loop", "_pinged_at", "_scheduled", "_streams", "_ticked", "_touched", "_unsent",
        "_websockets", "backend", "begun", "codec", "idle_since", "is_open", "transport", "url",
    )  # fmt: skip

    def __init__(self, backend: MultiplexedBackend) -> None:
        self.backend = backend
        self.url = backend.url
        self.codec = ClientCodec(self)
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._streams: dict[int, MultiplexedStream] = {}
        self._unsent: list[MultiplexedStream] = []
        self._websockets: list[MultiplexedStream] = []
        self._held_back: set[MultiplexedStream] = set()
        self._touched: set[MultiplexedStream] = set()
        self._ending: dict[MultiplexedStream, float] = {}
        self._full = False
        self._scheduled = False
        self._is_leaving = False
        self._in_doubt = False
        self._is_news = True  # it has said something since the last PING
        self._pinged_at = 0.0
        self._head = 0
        self._head_since = 0.0
        self._asked_at = self._heard_at = self._ticked = self.idle_since = time.monotonic()
        self.begun = 0
        self.is_open = False

    def __repr__(self) -> str:
        return f"<MultiplexedConnection {self.url} {len(self._streams)} streams>"

    # --- for MultiplexedBackend ---------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more requests it takes; less than none if it has lowered its limit."""
        if not self.is_open or self._is_leaving or self._in_doubt:
            return 0
        most = self.codec.most_streams if self.codec.is_settled else self.backend.usual_streams
        return most - len(self._streams) - len(self._websockets)

    @property
    def is_idle(self) -> bool:
        return not self._streams and not self._websockets

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    def check(self, now: float, idle_limit: float) -> None:
        """Enforce the limits of the connection; called by the tick. `now` is monotonic."""
        self.codec.earn(int((now - self._ticked) * _EARNED) + 1)
        self._ticked = now
        for stream in [each for each, since in self._ending.items() if since <= now - _LONGEST_CLOSE]:
            del self._ending[stream]
            stream.reset()
        if self._is_stuck_in_head(now):
            self._break(f"a header block did not end within {_LONGEST_HEAD:g} s")
        elif self.is_idle:
            if now - self.idle_since > idle_limit:
                self.shut_down()
        elif now - self._heard_at > _QUIET:
            self._look_for_life(now)

    def shut_down(self) -> None:
        """Say goodbye and close. Requests that are under way fail."""
        self._is_leaving = True
        self.codec.shut_down()
        self._flush()
        self._end("the proxy closed the connection")

    # --- for MultiplexedStream ----------------------------------------------------------------------------------------

    def begin(self, stream: MultiplexedStream, head: bytes, *, ended: bool, websocket: bool = False) -> None:
        """Send a request; when that can't be, `stream` is told later."""
        try:
            stream.number = self.codec.request(head, ended=ended, websocket=websocket) if self.is_open else 0
        except StreamGone:
            self._is_leaving = True  # its numbers are used up, or it has left just now
        if not stream.number:
            self._loop.call_soon(stream.fail, NotProcessed(self.url, "the connection was closed before the request"))
            return
        self._streams[stream.number] = stream
        self._unsent.append(stream)
        self._asked_at = time.monotonic()
        self.begun += 1
        self._is_leaving = self._is_leaving or self.begun >= _MOST_REQUESTS
        self.schedule()

    def begin_websocket(self, stream: MultiplexedStream) -> None:
        """Whether the backend knows extended CONNECT is in its SETTINGS (RFC 8441 3)."""
        if self.codec.offers_connect or not self.is_open:
            self.begin(stream, stream.request, ended=False, websocket=True)
        elif self.codec.is_settled:
            self._loop.call_soon(stream.no_websocket)
        else:
            self._websockets.append(stream)

    def schedule(self) -> None:
        """Send what is there at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def hold_back(self, stream: MultiplexedStream) -> None:
        """`stream` has as much queued as it may: tell it when some of that has gone."""
        self._held_back.add(stream)

    def reset(self, stream: MultiplexedStream, code: int) -> None:
        """End a stream; what of it has not been sent is dropped."""
        if self._streams.get(stream.number) is stream:
            self.codec.reset(stream.number, code)
            self.schedule()
        elif stream in self._websockets:
            self._websockets.remove(stream)

    def expect_end(self, stream: MultiplexedStream) -> None:
        """Nobody waits for more of this stream; the backend has its time to end it as well."""
        if stream.number in self._streams:
            self._ending[stream] = time.monotonic()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER, low=_LOW_WATER)
        self.is_open = True
        self.schedule()

    def data_received(self, data: bytes) -> None:
        if not self.is_open:
            return
        self._heard_at = time.monotonic()
        if self._in_doubt:
            self._in_doubt = False
            self.backend.room_made()
        if not self.codec.is_settled and data.startswith(b"HTTP/1."):
            self._break("it answers in HTTP/1.1; write http:// for its URL, or have it speak HTTP/2 without TLS")
            return
        if not self._guarded(self.codec.receive, data):
            return
        if self._touched:
            touched, self._touched = self._touched, set()
            for stream in touched:
                self._deliver(stream, stream.flush)
        if self.codec.wants_to_send:
            self.schedule()

    def eof_received(self) -> None:
        self._end("connection closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost ({exc})" if exc else "connection closed")
        self.codec.close()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    # --- http2_client.ClientEvents ------------------------------------------------------------------------------------

    def settings_received(self) -> None:
        self.backend.usual_streams = self.codec.most_streams or self.backend.usual_streams
        waiting, self._websockets = self._websockets, []
        for stream in waiting:
            self.begin_websocket(stream)
        self.backend.room_made()

    def interim_received(self, stream: int, head: ResponseHead) -> None:
        self._is_news = True
        each = self._streams.get(stream)
        if each is not None:
            self._deliver(each, lambda: each.interim_received(head))

    def head_received(self, stream: int, head: ResponseHead, *, ended: bool) -> None:
        self._is_news = True
        each = self._streams.get(stream)
        if each is None:
            return
        try:
            each.head_received(head, ended=ended)
        except Exception:  # noqa: BLE001  # security rule 9: a fault of ours ends this request, no other
            each.crash()
        self._touched.add(each)

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        self._is_news = True
        each = self._streams.get(stream)
        if each is None:
            self.codec.acknowledge(stream, len(data))
            return
        try:
            each.body_received(data, ended=ended)
        except Exception:  # noqa: BLE001
            each.crash()
        self._touched.add(each)

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        each = self._streams.get(stream)
        if each is not None:
            self._deliver(each, lambda: each.trailers_received(trailers))

    def answer_refused(self, stream: int, note: str) -> None:
        each = self._streams.get(stream)
        if each is not None:
            self._deliver(each, lambda: each.refused(note))

    def stream_closed(self, stream: int, code: int, *, by_backend: bool) -> None:
        each = self._streams.pop(stream, None)
        if each is None:
            return
        self._held_back.discard(each)
        self._ending.pop(each, None)
        try:
            each.closed(code, by_backend=by_backend)
        except Exception:  # noqa: BLE001
            each.crash()
        if self.is_idle:
            self.idle_since = time.monotonic()
            if self._is_leaving:
                self._loop.call_soon(self.shut_down)
        self.backend.room_made()

    def backend_leaves(self, code: int, note: str) -> None:
        self._is_leaving = True
        if code and self.backend.quiet.may_say((code, note)):
            logger.warning("backend.goaway", extra={"backend": self.url, "code": code, "reason": note})
        if self.is_idle:
            self._loop.call_soon(self.shut_down)

    def pong_received(self) -> None:
        """That something came at all is noted with every read."""

    # --- sending ------------------------------------------------------------------------------------------------------

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self._full or not self.is_open or not self._guarded(self._send):
            return
        for stream in [each for each in self._held_back if each.has_room()]:
            self._held_back.discard(stream)
            self._deliver(stream, stream.ready)
        if len(self._streams) > self.codec.most_streams:
            self._take_back()
        if self.codec.error:
            self._break(self.codec.error)
        elif self.codec.is_over:
            self._end("the backend left")

    def _send(self) -> None:
        codec, transport = self.codec, self.transport
        while transport is not None and not self._full:
            is_much = codec.queued() > _AT_ONCE
            data = codec.send(_AT_ONCE if is_much else 0)  # without a limit a body is copied once less
            if data:
                self._unsent.clear()
                transport.write(data)
            if not data or not is_much:
                return

    def _take_back(self) -> None:
        """The backend takes fewer requests at a time than it did: what came too late for that goes elsewhere."""
        for number, stream in tuple(self._streams.items()):
            if not self.codec.has_left(number):
                stream.reset()
                self._deliver(stream, partial(stream.fail, NotProcessed(self.url, "it takes no more requests")))

    # --- life and end -------------------------------------------------------------------------------------------------

    def _look_for_life(self, now: float) -> None:
        if self._pinged_at > self._heard_at:
            self._in_doubt = self._in_doubt or now - self._pinged_at > _DOUBT
            if now - self._pinged_at > _DEAD:
                self._break(f"no sign of life for {now - self._heard_at:.0f} s", AnswerTimedOut)
        elif self._is_news or now - self._pinged_at > _PINGS_APART:
            self._pinged_at = now
            self._is_news = False
            with suppress(StreamGone):
                self.codec.ping()
            self.schedule()
        elif self._asked_at > self._heard_at and now - self._asked_at > _QUIET + _DOUBT:
            self._in_doubt = True  # asked in vain, and too soon for another PING

    def _is_stuck_in_head(self, now: float) -> bool:
        """Whether the same header block has been under way for too long: nothing else can come meanwhile."""
        block = self.codec.header_block
        if block != self._head:
            self._head, self._head_since = block, now
        return block > 0 and now - self._head_since > _LONGEST_HEAD

    def _deliver(self, stream: MultiplexedStream, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # noqa: BLE001  # security rule 9
            stream.crash()

    def _guarded(self, work: Callable[..., None], *args: bytes) -> bool:
        """Let the codec work; False when that was its end, or the connection's."""
        try:
            work(*args)
        except Http2Error as error:
            if self.transport is not None:
                self.transport.write(error.farewell)
            self._break(error.note)
        except Exception:
            logger.exception("backend.crashed", extra={"backend": self.url})
            self._end("internal error")
        return self.is_open

    def _break(self, why: str, failure: type[BackendFailure] = BadAnswer) -> None:
        """The backend can't go on with this connection, or may not."""
        if not self.is_open:
            return
        self._is_leaving = True
        if self.backend.quiet.may_say(why):
            logger.warning("backend.http2_broken", extra={"backend": self.url, "why": why})
        for stream in tuple(self._streams.values()):
            self._deliver(stream, partial(stream.fail, failure(self.url, why)))
        self._end(why)

    def _end(self, why: str) -> None:
        """The connection is over, whoever ended it: whoever waits for an answer learns that there will be none."""
        if not self.is_open:
            return
        self.is_open = False
        transport, self.transport = self.transport, None
        self.backend.gone(self, why)
        unsent = set(self._unsent) | set(self._websockets)
        streams = [*self._streams.values(), *self._websockets]
        self._streams, self._websockets = {}, []
        self._held_back.clear()
        self._ending.clear()
        for stream in streams:
            self._deliver(stream, partial(stream.lost, why, was_sent=stream not in unsent))
        if transport is not None:
            if transport.get_write_buffer_size():
                self.backend.closing.append((time.monotonic(), transport))
            transport.close()
