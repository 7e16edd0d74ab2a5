"""Drive the codec as the drivers do, without a network: pieces of bytes in, whole messages and an ending out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tlsproxy.wire.answers import ResponseReader
from tlsproxy.wire.fields import Fields, allowed_trailers
from tlsproxy.wire.forwarding import Options, Peer, Trust, outbound_request
from tlsproxy.wire.http1 import RequestReader, chunk, last_chunk, response_head_bytes
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead, ResponseHead

PEER = Peer("198.51.100.7", "https", Options(Trust([])))
_REASON = {200: b"OK"}


def request_reader(*, header_size: int = 32768, header_count: int = 100, target_size: int = 8192) -> RequestReader:
    return RequestReader(header_size=header_size, header_count=header_count, target_size=target_size)


@dataclass
class Request:
    """A request as far as it was read."""

    head: RequestHead
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    complete: bool = False

    def forwarded(self, peer: Peer = PEER) -> bytes:
        """What a backend would get of it."""
        outbound = outbound_request(self.head, peer, self.head.target, request_id=b"id", started_ms=1, prefix=b"")
        head = outbound.data
        if self.head.framing is not Framing.CHUNKED:
            return head + self.body
        end = last_chunk(allowed_trailers(self.trailers)) if self.complete else b""
        return head + (chunk(self.body) if self.body else b"") + end

    def values(self) -> tuple[object, ...]:
        """Everything that was understood, to compare two readings."""
        head = self.head
        return (
            head.method, head.target, head.version, head.host, head.port, head.authority, head.fields, head.special,
            head.framing, head.length, head.keep_alive, head.expect_continue, head.upgrade, head.trailers_accepted,
            self.body, self.trailers, self.complete,
        )  # fmt: skip


@dataclass
class Conversation:
    """What one connection's bytes meant: requests, the last maybe not complete, and the error that ended it, if any."""

    requests: list[Request]
    error: ProtocolError | None
    unused: int

    @property
    def complete(self) -> list[Request]:
        return [request for request in self.requests if request.complete]

    def values(self) -> tuple[object, ...]:
        # How much of a body came out before an error in it depends on the pieces, and on nothing else.
        requests = self.complete if self.error else self.requests
        return [request.values() for request in requests], self.error is None, self.unused


def read_requests(pieces: Iterable[bytes], reader: RequestReader | None = None) -> Conversation:
    """Read like the driver: a request that is the connection's last ends the reading."""
    reader = reader or request_reader()
    requests: list[Request] = []
    error = None
    try:
        for piece in pieces:
            reader.receive(piece)
            _advance(reader, requests)
    except ProtocolError as raised:
        error = raised
    return Conversation(requests, error, 0 if error else reader.buffered)


def _advance(reader: RequestReader, requests: list[Request]) -> None:
    while True:
        if not requests or requests[-1].complete:
            if requests and not requests[-1].head.keep_alive:
                return
            head = reader.next_head()
            if head is None:
                return
            requests.append(Request(head))
        request = requests[-1]
        try:
            request.body += reader.read_body()
        finally:
            request.complete = reader.body_done
        if not request.complete:
            return
        if request.head.framing is Framing.CHUNKED:
            request.trailers = reader.trailers


@dataclass
class Answer:
    """What one request's answer meant."""

    head: ResponseHead | None = None
    interim: list[ResponseHead] = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    complete: bool = False
    error: ProtocolError | None = None
    unused: int = 0

    @property
    def reusable(self) -> bool:
        return self.complete and self.head is not None and self.head.keep_alive and not self.unused

    def relayed(self) -> bytes:
        """What a client would get of it, framing aside."""
        if self.head is None:
            return b""
        return response_head_bytes(self.head.status, self.head.reason, self.head.fields) + self.body

    def values(self) -> tuple[object, ...]:
        head = self.head
        seen = None if head is None else (
            head.status, head.reason, head.fields, head.framing, head.length, head.keep_alive,
            head.upgrade, head.trailer,
        )  # fmt: skip
        interim = [(each.status, each.fields) for each in self.interim]
        body = b"" if self.error else self.body  # as in Conversation
        return seen, interim, body, self.trailers, self.complete, self.error is None, self.unused


def read_answer(
    pieces: Iterable[bytes], method: bytes = b"GET", *, eof: bool = False, reader: ResponseReader | None = None
) -> Answer:
    """Read one answer like a backend connection; with `eof` the backend closes behind the last piece."""
    reader = reader or ResponseReader()
    reader.expect(method)
    answer = Answer()
    try:
        for piece in pieces:
            reader.receive(piece)
            _read_on(reader, answer)
        if eof and not answer.complete:
            _end(reader, answer)
    except ProtocolError as raised:
        answer.error = raised
        return answer
    answer.unused = reader.buffered
    return answer


def _read_on(reader: ResponseReader, answer: Answer) -> None:
    while answer.head is None:
        head = reader.next_head()
        if head is None:
            return
        if head.status < 200 and head.status != 101:
            answer.interim.append(head)
        else:
            answer.head = head
    if answer.head.status == 101 or answer.complete:
        return
    answer.body += reader.read_body()
    answer.complete = reader.body_done
    if answer.complete:
        answer.trailers = reader.trailers


def _end(reader: ResponseReader, answer: Answer) -> None:
    if answer.head is None:
        raise ProtocolError(502, "closed before the end of the head")
    reader.receive_eof()
    answer.complete = True


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` cut at the offsets `cuts`."""
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def ways(data: bytes, *, every_split_below: int = 700, byte_by_byte_below: int = 70_000) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and cut in two at every offset, where that is cheap."""
    yield [data]
    if len(data) <= byte_by_byte_below:
        yield [data[at : at + 1] for at in range(len(data))]
    if len(data) <= every_split_below:
        for cut in range(1, len(data)):
            yield [data[:cut], data[cut:]]
