"""The driver of one client's HTTP/2 connection: streams in, an exchange for each, frames out in the codec's order.

Knows the connection: its codec, its budget, its deadlines, its end. What happens to one request is `Http2Stream`'s.

Strategy: the codec calls in here for what arrived; what is to be sent waits in the codec until `_flush`, one for each
turn of the loop, so that the answers of many streams become few TLS records and system calls. While the client takes
nothing, nothing is taken out of the codec either: what goes next is decided when it can go (RFC 9218).

Rules kept: a stream that is not taken holds back its own backend only; a connection that is not taken holds `_MOST`
bytes and what its backends had under way, whatever its streams ask for.

Mutable state: `_streams` (open ones, by number), `_waiting` (received, not begun: too much is queued), `_held_back`
and `_finishing` (those that a flush may help), `is_tight`, `_crowded`, `_full`, `_scheduled`, `_over`, `grown`; what
a deadline needs: `moved`, `_quiet_since` (no stream is open), `_block` and `_head_since` (the header block under way),
`_leaving_since`, `_ticked`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy.http2_stream import Http2Stream
from tlsproxy.proxy.vouching import make_peer
from tlsproxy.wire.http2 import Http2Error, Limits, ServerCodec
from tlsproxy.wire.messages import ProtocolError

if TYPE_CHECKING:
    from tlsproxy.proxy.router import Site
    from tlsproxy.proxy.services import Services
    from tlsproxy.proxy.stream import ClientStream, ConnectionInfo
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import RequestHead

logger = logging.getLogger(__name__)

_SOME: Final = 1024 * 1024  # bytes of answers a connection holds before each stream may have but little queued
_MOST: Final = 4 * _SOME  # and before nothing more is asked of its backends: forty streams that nobody takes
_FEW: Final = _MOST // 2
_AT_ONCE: Final = 128 * 1024  # bytes taken from the codec in one piece: what is not taken yet can still be overtaken
_PREFACE: Final = 24 + 9  # bytes of the shortest beginning (RFC 9113 3.4)
_EARNED: Final = 50  # noise credit a second
_CALM: Final = 11  # ENHANCE_YOUR_CALM (RFC 9113 7)
_FAIR: Final = 8  # streams that a connection may have open however busy the worker is
_RESTS_AFTER: Final = 1.0  # seconds without a stream
_NOTICE: Final = 1.0  # seconds between the two GOAWAY of a shutdown: more than a round trip (RFC 9113 6.8)


class Http2Driver:
    """See the module's text. A `stream.Driver` to the connection, `http2.ServerEvents` to the codec."""

    __slots__ = (
        "_block", "_client_leaves", "_crowded", "_finishing", "_full", "_head_since", "_held_back", "_is_resting",
        "_leaving_since", "_over", "_quiet_since", "_received", "_scheduled", "_streams", "_ticked", "_told",
        "_waiting", "codec", "grown", "is_tight", "moved", "peer", "services", "stream",
    )  # fmt: skip

    def __init__(self, stream: ClientStream, services: Services) -> None:
        self.stream = stream
        self.services = services
        self.peer = make_peer(stream.info, services.forwarding)
        self.codec = ServerCodec(self, _limits(services))
        self._streams: dict[int, Http2Stream] = {}
        self._waiting: dict[int, Http2Stream] = {}
        # Dictionaries for their keys: an empty set has 216 bytes, an empty dictionary 64.
        self._held_back: dict[Http2Stream, None] = {}
        self._finishing: dict[Http2Stream, None] = {}
        self._is_resting = False
        self._crowded = False
        self.is_tight = False
        self._full = False
        self._scheduled = False
        self._over = False
        self._client_leaves = False
        self._told = False  # the second GOAWAY of a shutdown is out
        self.grown = 0  # streams whose window was made larger
        self.moved = 0  # bytes of bodies that have left the codec
        self._received = 0
        self._quiet_since = self._ticked = time.monotonic()
        self._block = 0
        self._head_since = 0.0
        self._leaving_since = 0.0
        self.schedule()

    def __repr__(self) -> str:
        return f"<Http2Driver {self.stream.info.client} {len(self._streams)} streams, {len(self._waiting)} waiting>"

    @property
    def info(self) -> ConnectionInfo:
        return self.stream.info

    # --- stream.Driver ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._received += len(data)
        try:
            self.codec.receive(data)
        except Http2Error as error:
            self._fail(error)
            return
        except Exception:  # noqa: BLE001  # security rule 9: a fault of ours ends this connection, no other
            self._crash()
            return
        block = self.codec.header_block
        if block != self._block:
            self._block = block
            self._head_since = time.monotonic() if block else 0.0
        self.schedule()

    def eof_received(self) -> None:
        self._drop_streams()
        self._over = True
        self.stream.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._drop_streams()
        self.codec.close()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    def check_deadline(self, now: float) -> None:
        """Enforce the limits of the connection and of each stream. `now` is monotonic."""
        if self._over:
            return
        self.codec.earn(max(0, int((now - self._ticked) * _EARNED)))
        self._ticked = now
        for each in tuple(self._streams.values()):
            each.check_deadline(now)
        if self._head_since and now - self._head_since > self.services.header_timeout:
            self._leave("a header block did not end within limits.header_timeout", _CALM)
        elif self._leaving_since:
            self._go_on_leaving(now)
        elif not self._streams:
            self._idle(now - self._quiet_since)

    def drain(self) -> None:
        """Tell the client to begin no more streams here; those it has begun end normally (RFC 9113 6.8)."""
        if self._over:
            return
        if self._leaving_since:  # what was let stay is to leave now
            for each in tuple(self._streams.values()):
                each.drain()
            return
        self._leaving_since = time.monotonic()
        self.codec.announce_shutdown()
        for each in tuple(self._streams.values()):
            each.drain()
        self.schedule()

    def sites_in_flight(self) -> list[Site | None]:
        return [each.site for each in self._streams.values()]

    @property
    def idle_since(self) -> float | None:
        return None if self._streams else self._quiet_since

    # --- http2.ServerEvents -------------------------------------------------------------------------------------------

    def request_received(self, stream: int, head: RequestHead, *, ended: bool) -> None:
        each = self._add(stream, head, ended=ended)
        if self.services.open_streams > self.services.most_streams and len(self._streams) > _FAIR:
            each.refuse(_too_busy())
        elif self._crowded:
            self._waiting[stream] = each
        else:
            each.begin()

    def request_refused(self, stream: int, head: RequestHead, error: ProtocolError) -> None:
        self._add(stream, head, ended=False).refuse(error)

    def request_malformed(self) -> None:
        client = self.info.client
        if self.services.quiet.may_say((client, "malformed")):
            logger.info("http2.malformed", extra={"client": client, "sni": self.info.sni})

    def body_received(self, stream: int, data: bytes, *, ended: bool) -> None:
        each = self._streams.get(stream)
        if each is None:
            self.codec.acknowledge(stream, len(data))
        else:
            each.data_received(data, ended=ended)

    def trailers_received(self, stream: int, trailers: Fields) -> None:
        each = self._streams.get(stream)
        if each is not None:
            each.body_ended(trailers)

    def stream_reset(self, stream: int, code: int) -> None:
        """Remember why; `stream_closed` follows."""
        each = self._streams.get(stream)
        if each is not None:
            each.reset_by_client(code)

    def stream_closed(self, stream: int) -> None:
        each = self._streams.pop(stream, None)
        if each is None:
            return
        self.services.open_streams -= 1
        self._waiting.pop(stream, None)
        self._held_back.pop(each, None)
        self._finishing.pop(each, None)
        each.closed()
        if not self._streams:
            self._quiet_since = time.monotonic()

    def window_opened(self, stream: int) -> None:
        """The flush that follows every read sends what can go now."""

    def client_leaves(self) -> None:
        """It begins no more streams; those it has begun end normally."""
        self._client_leaves = True

    def _add(self, stream: int, head: RequestHead, *, ended: bool) -> Http2Stream:
        self.services.open_streams += 1
        self._is_resting = False
        each = self._streams[stream] = Http2Stream(self, stream, head, ended=ended)
        return each

    # --- for Http2Stream ----------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Send what is there at the end of this turn of the loop."""
        if not self._scheduled and not self._over:
            self._scheduled = True
            self.services.loop.call_soon(self._flush_scheduled)

    def hold_back(self, stream: Http2Stream) -> None:
        """`stream` has as much queued as it may: tell it when some of that has gone."""
        self._held_back[stream] = None

    def finish(self, stream: Http2Stream) -> None:
        """`stream` was answered before its request was complete: tell it when the answer has gone."""
        if not self._over:
            self._finishing[stream] = None
            self.schedule()

    def look_at_budget(self) -> None:
        """More was queued: enough for now?"""
        queued = self.codec.queued()
        self.is_tight = queued > _SOME
        if queued > _MOST and not self._crowded:
            self._crowded = True
            for each in self._streams.values():
                each.hold()

    # --- sending ------------------------------------------------------------------------------------------------------

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self._over:
            return
        try:
            is_all = self._send()
            self.look_at_budget()
            if is_all and self._finishing:
                self._stop_requests()
            if self._held_back or self._crowded:
                self._let_go()
        except Http2Error as error:
            self._fail(error)
        except Exception:  # noqa: BLE001
            self._crash()
        if self.codec.is_over or ((self._told or self._client_leaves) and not self._streams):
            self._close()

    def _send(self) -> bool:
        """Send what the client takes; True when that is all that its windows allow."""
        codec = self.codec
        while not self._full:
            queued = codec.queued()
            is_last = queued <= _AT_ONCE
            data = codec.send(0 if is_last else _AT_ONCE)  # without a limit a body is copied once less
            self.moved += queued - codec.queued()
            if data:
                self.stream.write(data)
            if is_last or not data:
                return True
        return False

    def _stop_requests(self) -> None:
        for each in tuple(self._finishing):
            if each.is_sent():
                self._finishing.pop(each, None)
                each.stop_request()

    def _let_go(self) -> None:
        if self._crowded:
            if self.codec.queued() > _FEW:
                return
            self._crowded = False
            for each in tuple(self._streams.values()):
                each.let_go()
            self._begin_waiting()
        for each in tuple(self._held_back):
            if each.has_room():
                self._held_back.pop(each, None)
                each.let_go()

    def _begin_waiting(self) -> None:
        while self._waiting and not self._crowded:
            self._waiting.pop(next(iter(self._waiting))).begin()

    # --- endings ------------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """How long the connection may be without a stream. Who never said anything is not waited for as long."""
        return self.services.keep_alive if self._received >= _PREFACE else self.services.header_timeout

    def _idle(self, seconds: float) -> None:
        if seconds > self._patience():
            self._leave("")
        elif seconds > _RESTS_AFTER and not self._is_resting:
            self._is_resting = True
            self._streams.clear()  # frees what it grew to
            self.codec.rest()

    def _go_on_leaving(self, now: float) -> None:
        if not self._told and now - self._leaving_since >= _NOTICE:
            self._told = True
            self.codec.shut_down()
            self.schedule()

    def _leave(self, why: str, code: int = 0) -> None:
        """Close for a limit that was reached. Nothing is in flight, or it can't go on."""
        if why:
            self._say(why)
        self.codec.shut_down(code)
        self._flush()
        self._close()

    def _close(self) -> None:
        """Say what is left to say, and read on for a moment: unread bytes would turn our FIN into a reset."""
        if self._over:
            return
        self._over = True
        if self.codec.error:
            self._say(self.codec.error)
        self._drop_streams()
        self.stream.finish()

    def _fail(self, error: Http2Error) -> None:
        """The client broke the protocol of the connection."""
        self._say(error.note)
        self._over = True
        self._drop_streams()
        self.stream.write(error.farewell)
        self.stream.finish()

    def _crash(self) -> None:
        logger.exception("connection.crashed", extra={"client": self.info.client, "sni": self.info.sni})
        self._over = True
        self._drop_streams()
        self.stream.abort()

    def _say(self, why: str) -> None:
        client = self.info.client
        if self.services.quiet.may_say((client, why)):
            logger.info("http2.closed", extra={"client": client, "sni": self.info.sni, "reason": why})

    def _drop_streams(self) -> None:
        streams, self._streams = self._streams, {}
        self.services.open_streams -= len(streams)
        self._waiting.clear()
        self._held_back.clear()
        self._finishing.clear()
        for each in streams.values():
            each.closed()


def _too_busy() -> ProtocolError:
    """Each stream may take a descriptor for its backend, of which a client has as many as it has streams."""
    return ProtocolError(
        503,
        "This server has more to do than it can at the moment.",
        "as many streams are open as the open-file limit allows, and this client has many of them; raise nofile",
    )


def _limits(services: Services) -> Limits:
    return Limits(
        header_size=services.header_size,
        header_count=services.header_count,
        target_size=services.target_size,
        streams=services.http2_streams,
    )
