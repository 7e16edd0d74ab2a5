"""RFC 9113 5: states and numbers of streams, how many, priorities, errors, extensions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)

from tests.fakes.frames import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    FramePeer,
    block,
    frame,
    headers_frames,
)
from tests.fakes.stage import Stage
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import connection_error, discarded_or_closed, goes_on

# --- 5.1 states -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unexpected",
    [
        frame(DATA, b"x", flags=END_STREAM, stream=5),
        frame(DATA, b"", stream=5),
        frame(RST_STREAM, bytes(4), stream=5),
        frame(WINDOW_UPDATE, b"\0\0\0\1", stream=5),
        frame(CONTINUATION, b"\x82", flags=END_HEADERS, stream=5),
        frame(PUSH_PROMISE, b"\0\0\0\2\x82", flags=END_HEADERS, stream=5),
    ],
    ids=["data", "empty-data", "rst", "window-update", "continuation", "push-promise"],
)
def test_5_1_idle_stream(peer: FramePeer, unexpected: bytes) -> None:
    """5.1 idle: anything but HEADERS and PRIORITY is a connection error of type PROTOCOL_ERROR."""
    peer.send(unexpected)
    connection_error(peer, PROTOCOL_ERROR)


def test_5_1_idle_priority(peer: FramePeer) -> None:
    """5.1 idle: PRIORITY is allowed, and changes no state."""
    peer.send(PriorityFrame(1, depends_on=0, stream_weight=200))
    assert peer.get("/5-1-idle").body == b"ok"


def test_5_1_open_takes_every_frame(peer: FramePeer, origin: Origin) -> None:
    """5.1 open: either side may send any frame."""
    stream = peer.request("/5-1-open", end=False)
    peer.send(PriorityFrame(stream), WindowUpdateFrame(stream, 1), DataFrame(stream, b"a"), frame(0xF5, stream=stream))
    peer.data(stream, b"b", end=True)
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/5-1-open").body == b"ab"


def test_5_1_open_reset(peer: FramePeer, origin: Origin) -> None:
    """5.1 open: RST_STREAM ends it; nothing more is sent on it, no RST_STREAM either (5.4.2)."""
    stream = peer.request("/5-1-open-reset", body=b"half", end=False)
    peer.reset(stream)
    goes_on(peer)
    assert "RSTSTREAM" not in peer.kinds(stream)
    assert not any(each.is_whole for each in origin.seen("/5-1-open-reset"))


@pytest.mark.parametrize(
    "allowed",
    [WindowUpdateFrame(1, 2), PriorityFrame(1, stream_weight=3), frame(0xF5, b"?", stream=1)],
    ids=["window-update", "priority", "unknown"],
)
def test_5_1_half_closed_remote_allowed(stingy: FramePeer, allowed: bytes) -> None:
    """5.1 half-closed (remote): WINDOW_UPDATE and PRIORITY may come (and what has no meaning)."""
    stream = stingy.request("/5-1-half")
    stingy.head_of(stream)
    stingy.send(allowed)
    stingy.ping()
    stingy.grant(10, stream)
    assert stingy.answer(stream).body == b"ok"


def test_5_1_half_closed_remote_reset(stingy: FramePeer) -> None:
    """5.1 half-closed (remote): RST_STREAM closes it."""
    stream = stingy.request("/big/100")
    stingy.head_of(stream)
    stingy.reset(stream)
    stingy.grant(10, stingy.request("/5-1-next"))
    assert stingy.answer(stream + 2).body == b"ok"
    assert stingy.stream(stream).reset is None


@pytest.mark.parametrize("what", ["data", "empty-data", "headers"])
def test_5_1_half_closed_remote(stingy: FramePeer, what: str, origin: Origin) -> None:
    """5.1 half-closed (remote): DATA and HEADERS are an error of type STREAM_CLOSED."""
    stream = stingy.request("/5-1-half-closed/" + what)
    stingy.head_of(stream)
    stingy.send(_after_the_end(stingy, stream, what))
    stingy.until_ended(lambda: stingy.stream(stream).reset is not None)
    if stingy.ended:
        stingy.expect_goaway(STREAM_CLOSED)
    else:
        stingy.expect_reset(stream, STREAM_CLOSED)
        stingy.grant(10, stingy.request("/next"))
        assert stingy.answer(stream + 2).body == b"ok"
    assert origin.only("/5-1-half-closed/" + what).body == b""


@pytest.mark.parametrize("flags", [0, END_HEADERS])
def test_5_1_half_closed_remote_continuation(stingy: FramePeer, flags: int) -> None:
    """5.1, 6.10: CONTINUATION without an open block is a connection error."""
    stream = stingy.request("/5-1-half")
    stingy.head_of(stream)
    stingy.send(frame(CONTINUATION, b"\x82", flags=flags, stream=stream))
    connection_error(stingy, PROTOCOL_ERROR, STREAM_CLOSED)


@pytest.mark.parametrize("what", ["data", "headers", "priority", "window-update", "rst", "unknown"])
def test_5_1_closed_by_end(peer: FramePeer, what: str, origin: Origin) -> None:
    """5.1 closed, after END_STREAM both ways: PRIORITY, WINDOW_UPDATE and RST_STREAM may come late.

    Anything else is an error of type STREAM_CLOSED, or processed minimally and discarded.
    """
    path = "/5-1-closed/" + what
    stream = peer.request(path)
    peer.answer(stream)
    peer.send(_after_the_end(peer, stream, what))
    if what in ("data", "headers"):
        discarded_or_closed(peer, stream)
    else:
        goes_on(peer)
    assert len(origin.seen(path)) == 1


@pytest.mark.parametrize("what", ["data", "headers", "priority", "window-update", "rst", "unknown"])
def test_5_1_closed_by_our_reset(peer: FramePeer, what: str) -> None:
    """5.1 closed, after the server's RST_STREAM: whatever the client sent before it knew is discarded."""
    stream = peer.request("/5-1-reset", [(b"connection", b"close")], end=False)
    peer.expect_reset(stream, PROTOCOL_ERROR)
    peer.send(_after_the_end(peer, stream, what))
    goes_on(peer)


@pytest.mark.parametrize("what", ["data", "headers", "priority", "window-update", "rst", "unknown"])
def test_5_1_closed_by_the_clients_reset(peer: FramePeer, what: str, origin: Origin) -> None:
    """5.1 closed, after the client's RST_STREAM: what it sends then is an error of type STREAM_CLOSED, or discarded."""
    path = "/5-1-reset-by-client/" + what
    stream = peer.request(path, body=b"x", end=False)
    peer.reset(stream)
    peer.send(_after_the_end(peer, stream, what))
    discarded_or_closed(peer, stream)
    assert not any(each.is_whole for each in origin.seen(path))


@pytest.mark.parametrize("flags", [0, END_HEADERS])
def test_5_1_closed_continuation(peer: FramePeer, flags: int) -> None:
    """5.1, 6.10: CONTINUATION on a closed stream is a connection error."""
    stream = peer.request("/5-1-closed")
    peer.answer(stream)
    peer.send(frame(CONTINUATION, b"\x82", flags=flags, stream=stream))
    connection_error(peer, PROTOCOL_ERROR, STREAM_CLOSED)


def test_5_1_discarded_data_counts_for_the_connection(tmp_path: Path, origin: Origin) -> None:
    """5.1: DATA that is discarded is flow-controlled: the connection's window is opened again."""
    with Stage(tmp_path) as stage:
        sites = [{"hosts": ["a.test"], "routes": [{"backends": [origin.url]}]}]
        stage.serve(sites=sites, limits={"http2_streams": 1})  # the window is in proportion
        peer = stage.connect_http2()
        window = peer.room(0)
        stream = peer.request("/5-1-window", [(b"connection", b"close")], end=False)
        peer.expect_reset(stream)
        for _ in range(window // 16_384 + 20):
            peer.until(lambda: peer.room(0) >= 16_384, "room on the connection")
            peer.data(stream, b"x" * 16_384)
        goes_on(peer)


def test_5_1_discarded_headers_count_for_compression(peer: FramePeer, origin: Origin) -> None:
    """5.1: header blocks that are discarded still change the state of compression."""
    stream = peer.request("/5-1-hpack", [(b"connection", b"close")], end=False)
    peer.expect_reset(stream)
    peer.send(*headers_frames(b"\x40\x03x-h\x04kept", stream))
    head = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in peer.head("/5-1-h")
    )
    peer.send(*headers_frames(head + b"\xbe", stream + 2))
    assert peer.answer(stream + 2).status == 200
    assert origin.only("/5-1-h").all("x-h") == [b"kept"]


# --- 5.1.1 numbers ----------------------------------------------------------------------------------------------------


def test_5_1_1_stream_0_has_no_headers(peer: FramePeer) -> None:
    """5.1.1: stream 0 is the connection."""
    peer.send(frame(HEADERS, block(peer.head()), flags=END_HEADERS | END_STREAM, stream=0))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("stream", [2, 100])
def test_5_1_1_even_stream_id(peer: FramePeer, stream: int) -> None:
    """5.1.1: streams of clients have odd numbers."""
    peer.send(*headers_frames(block(peer.head("/5-1-1-even")), stream))
    connection_error(peer, PROTOCOL_ERROR)


def test_5_1_1_smaller_stream_id(peer: FramePeer, origin: Origin) -> None:
    """5.1.1: a number below one that was used: a connection error of type PROTOCOL_ERROR, or a closed stream (5.1).

    The first use of a number closes the idle ones before it, so a server that keeps no list of closed streams can't
    tell them apart: what comes may be late, and is processed minimally.
    """
    peer.send(*headers_frames(block(peer.head("/5-1-1-five")), 5))
    assert peer.answer(5).body == b"ok"
    peer._next_stream = 7
    peer.send(*headers_frames(block(peer.head("/5-1-1-three")), 3))
    discarded_or_closed(peer, 3, PROTOCOL_ERROR)
    assert origin.seen("/5-1-1-three") == []


def test_5_1_1_numbers_may_be_skipped(peer: FramePeer) -> None:
    """5.1.1: only the order matters."""
    for stream in (7, 1001, 1_000_001):
        peer.send(*headers_frames(block(peer.head("/5-1-1-skip")), stream))
        assert peer.answer(stream).body == b"ok"


def test_5_1_1_the_last_number_of_all(peer: FramePeer) -> None:
    """5.1.1: 2^31-1 is a stream like any other, and the last."""
    last = 2**31 - 1
    peer.send(*headers_frames(block(peer.head("/5-1-1-last")), last))
    assert peer.answer(last).body == b"ok"
    peer.ping()


def test_5_1_1_number_used_again(peer: FramePeer, origin: Origin) -> None:
    """5.1.1: numbers can't be used twice; with the stream closed see 5.1."""
    peer.answer(peer.request("/5-1-1-first"))
    peer.send(*headers_frames(block(peer.head("/5-1-1-again")), 1))
    discarded_or_closed(peer, 1)
    assert origin.seen("/5-1-1-again") == []


# --- 5.1.2 how many ---------------------------------------------------------------------------------------------------


def test_5_1_2_more_streams_than_allowed(tmp_path: Path, origin: Origin) -> None:
    """5.1.2: beyond SETTINGS_MAX_CONCURRENT_STREAMS it's a stream error of type PROTOCOL_ERROR or REFUSED_STREAM.

    As for every stream error the connection may end instead (5.4.1): who has acknowledged the limit knows it.
    """
    with Stage(tmp_path) as stage:
        sites = [{"hosts": ["a.test"], "routes": [{"backends": [origin.url]}]}]
        stage.serve(sites=sites, limits={"http2_streams": 3})
        peer = stage.connect_http2(settings={4: 0})
        assert peer.server_settings[3] == 3
        answers = [peer.request(f"/5-1-2/{number}") for number in range(3)]  # open: their content can't be sent
        for each in answers:
            peer.head_of(each)
        peer.grant(2, answers[0])
        peer.answer(answers[0])
        again = peer.request("/5-1-2/again")
        peer.head_of(again)
        refused = peer.request("/5-1-2/refused")
        peer.until_ended(lambda: peer.stream(refused).reset is not None)
        if peer.ended:
            peer.expect_goaway(PROTOCOL_ERROR)
        else:
            peer.expect_reset(refused, PROTOCOL_ERROR, REFUSED_STREAM)
        assert origin.seen("/5-1-2/refused") == []


def test_5_1_2_idle_and_closed_streams_do_not_count(peer: FramePeer) -> None:
    """5.1.2: only streams that are open or half-closed count towards the limit."""
    for number in range(120):
        peer.send(PriorityFrame(2 * number + 1))
    for _ in range(120):
        goes_on(peer)


# --- 5.3 priorities ---------------------------------------------------------------------------------------------------


def test_5_3_headers_that_depend_on_themselves(peer: FramePeer) -> None:
    """5.3: an error of type PROTOCOL_ERROR by RFC 7540 5.3.1; of no meaning now that the scheme is deprecated."""
    stream = peer.new_stream()
    flags = ["END_HEADERS", "END_STREAM", "PRIORITY"]
    peer.send(HeadersFrame(stream, block(peer.head("/5-3")), depends_on=stream, stream_weight=1, flags=flags))
    peer.until_ended(lambda: peer.stream(stream).is_over)
    if peer.ended:
        peer.expect_goaway(PROTOCOL_ERROR)
    elif not peer.stream(stream).ended:
        peer.expect_reset(stream, PROTOCOL_ERROR)


def test_5_3_priority_of_itself(peer: FramePeer) -> None:
    """5.3: the same for PRIORITY, where there is no stream to reset."""
    peer.send(PriorityFrame(101, depends_on=101))
    mark = peer.send_ping()
    peer.until_ended(lambda: mark in peer.pongs)
    if peer.ended:
        peer.expect_goaway(PROTOCOL_ERROR)


def test_5_3_2_priority_everywhere(peer: FramePeer) -> None:
    """5.3.2: PRIORITY may come for any stream at any time, and is of no effect."""
    stream = peer.request("/5-3-2", end=False)
    for number in (stream, 2, 101, 2**31 - 1):
        peer.send(PriorityFrame(number, depends_on=77, exclusive=True, stream_weight=255))
    peer.data(stream, end=True)
    peer.answer(stream)
    peer.send(PriorityFrame(stream))
    goes_on(peer)


def test_5_3_2_headers_with_priority(peer: FramePeer) -> None:
    """5.3.2, 6.2: HEADERS may carry the fields of the old priorities."""
    stream = peer.new_stream()
    data = block(peer.head("/5-3-2-headers"))
    flags = ["END_HEADERS", "END_STREAM", "PRIORITY"]
    peer.send(HeadersFrame(stream, data, depends_on=0, stream_weight=255, exclusive=True, flags=flags))
    assert peer.answer(stream).body == b"ok"


# --- 5.4 errors -------------------------------------------------------------------------------------------------------


def test_5_4_1_goaway_names_the_last_stream(peer: FramePeer) -> None:
    """5.4.1: GOAWAY comes before the end and tells the last stream that may have been processed."""
    for _ in range(3):
        goes_on(peer)
    peer.send(frame(DATA, b"x", stream=0))
    assert peer.expect_goaway(PROTOCOL_ERROR).last_stream_id == 5


def test_5_4_1_what_follows_an_error_is_not_processed(peer: FramePeer, origin: Origin) -> None:
    """5.4.1: the connection is over; requests behind the error are nobody's."""
    peer.send(frame(DATA, b"x", stream=0), *headers_frames(block(peer.head("/5-4-1-behind")), 1))
    goaway = peer.expect_goaway(PROTOCOL_ERROR)
    assert goaway.last_stream_id == 0
    assert not peer.streams
    assert origin.seen("/5-4-1-behind") == []


def test_5_4_2_no_reset_for_a_reset(peer: FramePeer) -> None:
    """5.4.2: to avoid looping, RST_STREAM is never answered by RST_STREAM."""
    stream = peer.request("/5-4-2", end=False)
    peer.send(RstStreamFrame(stream, CANCEL), RstStreamFrame(stream, CANCEL))
    goes_on(peer)
    assert peer.kinds(stream) == []


def test_5_4_2_frames_behind_a_reset_of_ours(peer: FramePeer) -> None:
    """5.4.2: after sending RST_STREAM an endpoint must be ready to receive what was under way."""
    stream = peer.new_stream()
    head = block(peer.head("/5-4-2-under-way", [(b"connection", b"close")], method=b"POST"))
    peer.send(
        *headers_frames(head, stream, end_stream=False),
        DataFrame(stream, b"x" * 1000),
        WindowUpdateFrame(stream, 10),
        *headers_frames(b"\x00\x01a\x01b", stream),
    )
    peer.expect_reset(stream, PROTOCOL_ERROR)
    goes_on(peer)


def test_5_4_3_client_that_just_closes(stage: Stage) -> None:
    """5.4.3: a connection can end at any point; streams in flight are over (the fixture looks at everybody else)."""
    before = stage.call(lambda: set(stage.front.connections))
    peer = stage.connect_http2(settings={4: 0})
    for path in ("/big/100", "/5-4-3"):
        peer.head_of(peer.request(path))
    peer.request("/5-4-3-upload", body=b"half", end=False)
    (mine,) = stage.call(lambda: set(stage.front.connections)) - before
    peer.close()
    stage.wait(lambda: mine not in stage.front.connections)


# --- 5.5 extensions ---------------------------------------------------------------------------------------------------


def test_5_5_unknown_frames_are_discarded(peer: FramePeer) -> None:
    """5.5: unknown or unsupported frames are ignored, on every kind of stream."""
    stream = peer.request("/5-5", end=False)
    for number in (0, stream, stream + 2, 2):
        peer.send(frame(0xFA, b"extension", flags=0x55, stream=number))
    peer.data(stream, end=True)
    assert peer.answer(stream).body == b"ok"


def test_5_5_unknown_frame_in_a_header_block(peer: FramePeer) -> None:
    """5.5: in the middle of a header block even those are a connection error of type PROTOCOL_ERROR."""
    first, last = headers_frames(block(peer.head()), 1, cuts=[3])
    peer.send(first, frame(0xFA, b"extension", stream=1), last)
    connection_error(peer, PROTOCOL_ERROR)


# ----------------------------------------------------------------------------------------------------------------------


def _after_the_end(peer: FramePeer, stream: int, what: str) -> bytes:
    """A frame for a stream that takes none any more."""
    head = block(peer.head("/after-the-end"))
    return {
        "data": frame(DATA, b"late", flags=END_STREAM, stream=stream),
        "empty-data": frame(DATA, b"", stream=stream),
        "headers": frame(HEADERS, head, flags=END_HEADERS | END_STREAM, stream=stream),
        "priority": PriorityFrame(stream).serialize(),
        "window-update": WindowUpdateFrame(stream, 1).serialize(),
        "rst": RstStreamFrame(stream, CANCEL).serialize(),
        "unknown": frame(0xF5, b"?", stream=stream),
    }[what]
