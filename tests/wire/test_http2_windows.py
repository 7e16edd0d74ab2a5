"""Flow control and priorities of the HTTP/2 codec: both windows in both directions, and who is served first."""

from __future__ import annotations

from hyperframe.frame import DataFrame

from tests.fakes.frames import (
    CANCEL,
    DATA,
    NO_ERROR,
    PADDED,
    PREFACE,
    PRIORITY_UPDATE,
    SETTINGS,
    frame,
)
from tests.fakes.h2_memory import (
    FULL,
    GET,
    POST,
    Wire,
    body,
    request,
    settings_frame,
    window_update,
)


def test_a_window_opens_when_content_is_acknowledged() -> None:
    """RFC 9113 6.9: not before."""
    wire = Wire()
    wire.feed(request(1, POST, ended=False), body(1, bytes(FULL)), body(1, bytes(FULL)), body(1, bytes(FULL)))
    assert wire.granted(1) == 0
    wire.codec.acknowledge(1, 3 * FULL)
    wire.pump()
    assert wire.granted(1) == 3 * FULL


def test_content_of_a_stream_that_is_gone_is_acknowledged_too() -> None:
    wire = Wire()
    before = 65_535 + wire.granted(0)
    streams = range(1, 2001, 2)
    for stream in streams:
        wire.feed(request(stream, POST, ended=False), body(stream, bytes(FULL)))
        wire.codec.reset(stream, NO_ERROR)
        wire.pump()
        wire.codec.acknowledge(stream, FULL)
        wire.pump()
    assert 65_535 + wire.granted(0) - len(streams) * FULL > before // 2


def test_content_behind_a_reset_opens_the_window_by_itself() -> None:
    wire = Wire()
    before = 65_535 + wire.granted(0)
    wire.feed(request(1, POST, ended=False))
    wire.codec.reset(1, CANCEL)
    wire.pump()
    for _ in range(1000):
        wire.feed(body(1, bytes(FULL)))
    assert 65_535 + wire.granted(0) - 1000 * FULL > before // 2
    assert wire.told.bodies == {}


def test_the_window_gets_back_what_a_cut_frame_took() -> None:
    """An early answer ends a stream while a piece of it is under way; libnghttp2 forgets the part that has come."""
    wire = Wire()
    start = wire.granted(0)
    for stream in (1, 3, 5):
        wire.feed(request(stream, POST, ended=False))
        piece = body(stream, bytes(FULL))
        wire.codec.receive(piece[:10_009])
        wire.codec.reset(stream, NO_ERROR)
        wire.pump()
        wire.feed(piece[10_009:])
    assert wire.told.closed == [1, 3, 5]
    assert wire.granted(0) - start == 3 * 10_000


def test_a_connection_that_lost_half_its_window_to_cut_frames_is_ended() -> None:
    """For the window that libnghttp2 counts grows with each: after some more it would never be opened again."""
    wire = Wire()
    for stream in range(1, 4001, 2):
        wire.feed(request(stream, POST, ended=False))
        wire.codec.receive(body(stream, bytes(FULL))[:-1])
        wire.codec.reset(stream, NO_ERROR)
        wire.pump()
        wire.feed(b"\0")
        if wire.codec.is_over:
            break
    assert wire.goaways() == [(stream, NO_ERROR)]
    assert stream > 600


def test_padding_is_consumed_at_once() -> None:
    """RFC 9113 6.1: it counts against the windows, and no application will ever take it."""
    wire = Wire()
    wire.feed(request(1, POST, ended=False))
    size = 0
    for _ in range(300):
        wire.feed(frame(DATA, b"\xff" + bytes(1000) + bytes(255), flags=PADDED, stream=1))
        wire.codec.acknowledge(1, 1000)
        wire.pump()
        size += 1256
    assert len(wire.told.bodies[1]) == 300_000
    assert 65_536 + wire.granted(1) - size > 32_768


def test_a_window_can_be_made_larger() -> None:
    wire = Wire()
    wire.feed(frame(SETTINGS, flags=1), request(1, POST, ended=False))
    wire.codec.grow_window(1, 1024 * 1024)
    wire.pump()
    assert 65_536 + wire.granted(1) == 1024 * 1024


def test_answers_keep_to_the_windows_of_the_client() -> None:
    wire = Wire(begin=PREFACE + settings_frame((4, 10)))
    wire.feed(request(1))
    wire.codec.respond(1, 200, [], ended=False)
    wire.codec.send_data(1, b"x" * 25, ended=True)
    wire.pump()
    assert list(map(len, wire.content(1))) == [10]
    assert (wire.codec.queued(1), wire.codec.has_window(1)) == (15, False)
    wire.feed(window_update(1, 10))
    assert ("window", 1) in wire.told.calls
    assert wire.codec.queued(1) == 5
    wire.feed(window_update(1, 100))
    assert wire.codec.has_window(1) is False  # it is over
    assert wire.told.closed == [1]


def test_takes_no_more_than_it_was_asked_for() -> None:
    wire = Wire()
    wire.feed(request(1))
    wire.codec.respond(1, 200, [], ended=False)
    wire.codec.send_data(1, bytes(50_000), ended=True)
    sizes = []
    while data := wire.pump(7000):
        sizes.append(len(data))
    assert sizes[:-1] == [7000] * (len(sizes) - 1)
    assert sum(map(len, wire.content(1))) == 50_000


def order_of_answers(first: bytes, second: bytes, update: bytes = b"") -> list[int]:
    wire = Wire()
    wire.feed(request(1, [*GET, (b"priority", first)]), request(3, [*GET, (b"priority", second)]))
    if update:
        wire.feed(update)
    for stream in (1, 3):
        wire.codec.respond(stream, 200, [], ended=False)
        wire.codec.send_data(stream, bytes(25_000), ended=True)
    wire.pump()
    return [each.stream_id for each in wire.of(DataFrame)]


def test_urgent_streams_go_first() -> None:
    """RFC 9218 4.1, 10."""
    assert order_of_answers(b"u=7", b"u=0") == [3, 3, 1, 1]
    assert order_of_answers(b"u=3", b"u=3") == [1, 1, 3, 3]


def test_incremental_streams_take_turns() -> None:
    """RFC 9218 4.2."""
    assert order_of_answers(b"u=3, i", b"u=3, i") == [1, 3, 1, 3]


def test_a_priority_can_change() -> None:
    """RFC 9218 7.1."""
    update = frame(PRIORITY_UPDATE, b"\0\0\0\3u=0")
    assert order_of_answers(b"u=3", b"u=3", update) == [3, 3, 1, 1]
