"""Which answer goes first when a client can't take all at once (RFC 9218), and that nobody starves of it."""

from __future__ import annotations

from itertools import groupby

import pytest
from hyperframe.frame import DataFrame

from tests.fakes.backend import Backend
from tests.fakes.frames import PRIORITY_UPDATE, Fields, FramePeer, frame
from tests.fakes.stage import Stage

SIZE = 40_000  # less than what may be queued for a stream, so that every answer is there when the window opens
WINDOW = 65_535


class Waiting:
    """A client whose connection window is used up, and answers that wait for it to be opened."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.backend: Backend = stage.backend()
        stage.serve(self.backend)
        self.client: FramePeer = stage.connect_http2(settings={4: 2**20})
        first = self.ask(size=WINDOW)
        assert len(self.client.answer(first).body) == WINDOW
        assert self.client.given(0) == 0

    def ask(self, headers: Fields | None = None, size: int = SIZE) -> int:
        """Have an answer of `size` bytes ready."""
        stream = self.client.request("/", headers or [])
        upstream = self.backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        assert upstream.has_ended()  # all of it was taken
        return stream

    def update(self, stream: int, priority: bytes) -> None:
        self.client.send(frame(PRIORITY_UPDATE, stream.to_bytes(4, "big") + priority))
        self.client.ping()

    def order(self, *streams: int) -> list[int]:
        """Open the window; the streams in the order in which their DATA comes, runs put together."""
        seen = len(self.client.frames)
        self.client.grant(4 * SIZE)
        for stream in streams:
            assert len(self.client.answer(stream).body) == SIZE
        pieces = [each.stream_id for each in self.client.frames[seen:] if isinstance(each, DataFrame) and each.data]
        return [stream for stream, _ in groupby(pieces)]


@pytest.fixture
def waiting(stage: Stage) -> Waiting:
    return Waiting(stage)


def urgency(number: int) -> Fields:
    return [(b"priority", b"u=%d" % number)]


def test_without_a_word_the_answers_go_one_after_the_other(waiting: Waiting) -> None:
    """RFC 9218 10: of equal urgency and not incremental, in the order of the requests."""
    first, second, third = (waiting.ask() for _ in range(3))
    assert waiting.order(first, second, third) == [first, second, third]


def test_the_urgent_one_goes_first(waiting: Waiting) -> None:
    """RFC 9218 4.1: 0 before 7; 3 is the default."""
    late, usual, soon = waiting.ask(urgency(7)), waiting.ask(), waiting.ask(urgency(0))
    assert waiting.order(late, usual, soon) == [soon, usual, late]


def test_an_update_changes_the_order(waiting: Waiting) -> None:
    """RFC 9218 7.1."""
    first, second, third = (waiting.ask() for _ in range(3))
    waiting.update(third, b"u=1")
    waiting.update(first, b"u=5")
    assert waiting.order(first, second, third) == [third, second, first]


def test_an_update_may_come_before_its_request(waiting: Waiting) -> None:
    """RFC 9218 7.1: it is kept for the idle stream."""
    waiting.update(5, b"u=0")
    first, second = waiting.ask(), waiting.ask()
    assert (first, second) == (3, 5)
    assert waiting.order(first, second) == [second, first]


def test_incremental_answers_share(waiting: Waiting) -> None:
    """RFC 9218 4.2, 10: what is used as it comes gets its part by turns."""
    first, second = (waiting.ask([(b"priority", b"i")]) for _ in range(2))
    order = waiting.order(first, second)
    assert len(order) > 2
    assert order[:2] in ([first, second], [second, first])


def test_the_last_of_several_fields_is_not_lost(waiting: Waiting) -> None:
    """RFC 9218 4, RFC 8941 3.2: a dictionary may be spread over lines."""
    usual, soon = waiting.ask(), waiting.ask([(b"priority", b"i=?0"), (b"priority", b"u=1")])
    assert waiting.order(usual, soon)[0] == soon


def test_what_a_client_says_of_it_goes_on_to_the_backend(stage: Stage) -> None:
    """RFC 9218 5: the field is end to end."""
    backend = stage.backend()
    stage.serve(backend)
    stage.connect_http2().request("/", urgency(1))
    assert backend.accept().message().get("priority") == b"u=1"


def test_a_head_does_not_wait_behind_content(waiting: Waiting) -> None:
    """Heads are not flow-controlled: the client learns of every answer at once."""
    streams = [waiting.ask(urgency(number)) for number in (7, 0, 3)]
    for stream in streams:
        assert waiting.client.head_of(stream).status == 200
    assert all(waiting.client.stream(stream).body == b"" for stream in streams)
