"""RFC 9113 6: each type of frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fakes.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    LARGEST_WINDOW,
    NO_ERROR,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    FramePeer,
    block,
    frame,
    headers_frames,
)
from tests.fakes.stage import Stage
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import connection_error, either_error, goes_on, stream_error

_INITIAL_WINDOW = SettingsFrame.INITIAL_WINDOW_SIZE


def _setting(number: int, value: int) -> bytes:
    return number.to_bytes(2, "big") + value.to_bytes(4, "big")


# --- 6.1 DATA ---------------------------------------------------------------------------------------------------------


def test_6_1_data(peer: FramePeer, origin: Origin) -> None:
    """6.1: content in one frame, in several, and in empty ones."""
    stream = peer.request("/6-1", end=False)
    for piece in (b"a", b"", b"bc", b""):
        peer.data(stream, piece)
    peer.data(stream, end=True)
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/6-1").body == b"abc"


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_6_1_padding_is_no_content(peer: FramePeer, origin: Origin, padding: int) -> None:
    """6.1: padding is left out of the content."""
    path = f"/6-1-padding/{padding}"
    stream = peer.request(path, end=False)
    peer.send(DataFrame(stream, b"abc", pad_length=padding, flags=["PADDED", "END_STREAM"]))
    assert peer.answer(stream).body == b"ok"
    assert origin.only(path).body == b"abc"


def test_6_1_nothing_but_padding(peer: FramePeer, origin: Origin) -> None:
    """6.1: the whole payload may be padding."""
    stream = peer.request("/6-1-only-padding", end=False)
    peer.send(DataFrame(stream, b"", pad_length=100, flags=["PADDED"]))
    peer.send(DataFrame(stream, b"", pad_length=100, flags=["PADDED", "END_STREAM"]))
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/6-1-only-padding").body == b""


def test_6_1_padding_is_flow_controlled(peer: FramePeer) -> None:
    """6.1, 6.9.1: padding counts towards the windows, and is given back."""
    stream = peer.request("/6-1-window", end=False)
    room = peer.room(stream)
    for _ in range(room // 256 + 10):  # more than a window of padding
        peer.until(lambda: peer.room(stream) >= 256, "room for padding")
        peer._take_room(stream, 256)
        peer.send(DataFrame(stream, b"", pad_length=255, flags=["PADDED"]))
    peer.data(stream, end=True)
    assert peer.answer(stream).body == b"ok"


def test_6_1_data_on_stream_0(peer: FramePeer) -> None:
    """6.1: DATA belongs to a stream."""
    peer.send(frame(DATA, b"x", stream=0))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("padding", [4, 5, 255])
def test_6_1_more_padding_than_payload(peer: FramePeer, origin: Origin, padding: int) -> None:
    """6.1: padding as long as the payload or longer is a connection error of type PROTOCOL_ERROR."""
    stream = peer.request("/6-1-too-much", end=False)
    peer.send(frame(DATA, bytes([padding]) + b"abc", flags=PADDED | END_STREAM, stream=stream))
    connection_error(peer, PROTOCOL_ERROR)
    assert not any(each.is_whole for each in origin.seen("/6-1-too-much"))


# --- 6.2 HEADERS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 255])
@pytest.mark.parametrize("priority", [False, True])
def test_6_2_padding_and_priority(peer: FramePeer, padding: int, priority: bool) -> None:
    """6.2: both are stepped over."""
    flags = ["END_HEADERS", "END_STREAM", "PADDED", *(["PRIORITY"] if priority else [])]
    stream = peer.new_stream()
    peer.send(HeadersFrame(stream, block(peer.head("/6-2")), pad_length=padding, stream_weight=9, flags=flags))
    assert peer.answer(stream).body == b"ok"


def test_6_2_headers_on_stream_0(peer: FramePeer) -> None:
    """6.2: HEADERS belongs to a stream."""
    peer.send(frame(HEADERS, block(peer.head()), flags=END_HEADERS | END_STREAM))
    connection_error(peer, PROTOCOL_ERROR)


def test_6_2_more_padding_than_payload(peer: FramePeer) -> None:
    """6.2: padding that leaves no room for the rest is a connection error of type PROTOCOL_ERROR."""
    data = block(peer.head())
    peer.send(frame(HEADERS, bytes([len(data) + 1]) + data, flags=END_HEADERS | END_STREAM | PADDED, stream=1))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize(("flags", "size"), [(PADDED, 0), (WITH_PRIORITY, 4), (PADDED | WITH_PRIORITY, 5)])
def test_6_2_too_short_for_its_flags(peer: FramePeer, flags: int, size: int) -> None:
    """6.2, 4.2: a frame that can't hold what its flags promise."""
    peer.send(frame(HEADERS, bytes(size), flags=flags | END_HEADERS | END_STREAM, stream=1))
    connection_error(peer, FRAME_SIZE_ERROR, PROTOCOL_ERROR)


def test_6_2_block_that_goes_on_elsewhere(peer: FramePeer) -> None:
    """6.2: without END_HEADERS the next frame is a CONTINUATION of the same stream."""
    peer.send(*headers_frames(block(peer.head()), 1, cuts=[5])[:1], *headers_frames(block(peer.head()), 3))
    connection_error(peer, PROTOCOL_ERROR)


def test_6_2_empty_block(peer: FramePeer) -> None:
    """6.2: a block without a field is well-formed compression, and no request (8.3.1)."""
    peer.send(frame(HEADERS, b"", flags=END_HEADERS | END_STREAM, stream=peer.new_stream()))
    stream_error(peer, 1, PROTOCOL_ERROR)


# --- 6.3 PRIORITY -----------------------------------------------------------------------------------------------------


def test_6_3_priority_on_stream_0(peer: FramePeer) -> None:
    """6.3: PRIORITY belongs to a stream."""
    peer.send(frame(PRIORITY, bytes(5)))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 4, 6])
def test_6_3_priority_of_a_wrong_size(peer: FramePeer, size: int) -> None:
    """6.3: a size other than 5 is a stream error of type FRAME_SIZE_ERROR."""
    stream = peer.request("/6-3", end=False)
    peer.send(frame(PRIORITY, bytes(size), stream=stream))
    either_error(peer, stream, FRAME_SIZE_ERROR)


# --- 6.4 RST_STREAM ---------------------------------------------------------------------------------------------------


def test_6_4_reset_on_stream_0(peer: FramePeer) -> None:
    """6.4: RST_STREAM belongs to a stream."""
    peer.send(frame(RST_STREAM, bytes(4)))
    connection_error(peer, PROTOCOL_ERROR)


def test_6_4_reset_of_an_idle_stream(peer: FramePeer) -> None:
    """6.4: what has not begun can't be reset."""
    peer.send(RstStreamFrame(1, NO_ERROR))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_6_4_reset_of_a_wrong_size(peer: FramePeer, size: int) -> None:
    """6.4: a size other than 4 is a connection error of type FRAME_SIZE_ERROR."""
    stream = peer.request("/6-4", end=False)
    peer.send(frame(RST_STREAM, bytes(size), stream=stream))
    connection_error(peer, FRAME_SIZE_ERROR)


# --- 6.5 SETTINGS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 20])
def test_6_5_settings_are_acknowledged(peer: FramePeer, count: int) -> None:
    """6.5.3: each SETTINGS frame is acknowledged, an empty one too, in order."""
    before = peer.kinds().count("SETTINGS")
    for _ in range(3):
        peer.send(frame(SETTINGS, _setting(0xF000, 1) * count))
    peer.ping()
    peer.until(lambda: peer.kinds().count("SETTINGS") == before + 3, "three ACK")


def test_6_5_ack_with_a_payload(peer: FramePeer) -> None:
    """6.5: an ACK is empty, or a connection error of type FRAME_SIZE_ERROR."""
    peer.send(frame(SETTINGS, _setting(1, 4096), flags=ACK))
    connection_error(peer, FRAME_SIZE_ERROR)


def test_6_5_settings_on_a_stream(peer: FramePeer) -> None:
    """6.5: SETTINGS are the connection's."""
    peer.send(frame(SETTINGS, stream=1))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_6_5_settings_of_a_wrong_size(peer: FramePeer, size: int) -> None:
    """6.5: six bytes for each."""
    peer.send(frame(SETTINGS, bytes(size)))
    connection_error(peer, FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("number", "value", "code"),
    [
        (SettingsFrame.ENABLE_PUSH, 2, PROTOCOL_ERROR),
        (SettingsFrame.ENABLE_PUSH, 2**32 - 1, PROTOCOL_ERROR),
        (SettingsFrame.INITIAL_WINDOW_SIZE, 2**31, FLOW_CONTROL_ERROR),
        (SettingsFrame.INITIAL_WINDOW_SIZE, 2**32 - 1, FLOW_CONTROL_ERROR),
        (SettingsFrame.MAX_FRAME_SIZE, 2**14 - 1, PROTOCOL_ERROR),
        (SettingsFrame.MAX_FRAME_SIZE, 0, PROTOCOL_ERROR),
        (SettingsFrame.MAX_FRAME_SIZE, 2**24, PROTOCOL_ERROR),
        (SettingsFrame.ENABLE_CONNECT_PROTOCOL, 2, PROTOCOL_ERROR),  # RFC 8441 3
        (9, 2, PROTOCOL_ERROR),  # SETTINGS_NO_RFC7540_PRIORITIES, RFC 9218 2.1
    ],
)
def test_6_5_2_invalid_value(peer: FramePeer, number: int, value: int, code: int) -> None:
    """6.5.2: values that a setting can't have."""
    peer.send(frame(SETTINGS, _setting(number, value)))
    connection_error(peer, code)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (SettingsFrame.HEADER_TABLE_SIZE, 0),
        (SettingsFrame.HEADER_TABLE_SIZE, 2**32 - 1),
        (SettingsFrame.ENABLE_PUSH, 0),
        (SettingsFrame.ENABLE_PUSH, 1),
        (SettingsFrame.MAX_CONCURRENT_STREAMS, 0),
        (SettingsFrame.INITIAL_WINDOW_SIZE, 2**31 - 1),
        (SettingsFrame.MAX_FRAME_SIZE, 2**14),
        (SettingsFrame.MAX_FRAME_SIZE, 2**24 - 1),
        (SettingsFrame.MAX_HEADER_LIST_SIZE, 2**32 - 1),
        (0, 7),
        (0xF000, 2**32 - 1),
    ],
)
def test_6_5_2_valid_value(peer: FramePeer, number: int, value: int) -> None:
    """6.5.2: values at the borders, and settings that nobody knows, which are ignored."""
    peer.change_settings({number: value})
    goes_on(peer)


def test_6_5_3_the_last_of_equal_settings_counts(peer: FramePeer) -> None:
    """6.5.3: settings are processed in the order in which they appear."""
    peer.send(frame(SETTINGS, _setting(_INITIAL_WINDOW, 100) + _setting(_INITIAL_WINDOW, 1)))
    stream = peer.request("/big/10")
    peer.ping()
    peer.until(lambda: peer.stream(stream).body == b"x", "one byte")
    peer.grant(9, stream)
    assert peer.answer(stream).pieces == [1, 9]


# --- 6.6 PUSH_PROMISE -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [0, 1])
def test_6_6_clients_cannot_push(peer: FramePeer, stream: int) -> None:
    """6.6, 8.4: PUSH_PROMISE of a client is a connection error of type PROTOCOL_ERROR."""
    if stream:
        peer.request("/6-6", end=False)
    peer.send(frame(PUSH_PROMISE, b"\0\0\0\2" + block(peer.head()), flags=END_HEADERS, stream=stream))
    connection_error(peer, PROTOCOL_ERROR)


# --- 6.7 PING ---------------------------------------------------------------------------------------------------------


def test_6_7_ping_is_answered(peer: FramePeer) -> None:
    """6.7: with ACK and the same eight bytes."""
    peer.send(PingFrame(0, b"\x00\xffabcdef"))
    peer.until(lambda: b"\x00\xffabcdef" in peer.pongs)


def test_6_7_pings_are_answered_in_order(peer: FramePeer) -> None:
    """6.7: each of them."""
    marks = [b"ping-%03d" % number for number in range(20)]
    peer.send(*(PingFrame(0, mark) for mark in marks))
    peer.until(lambda: marks[-1] in peer.pongs)
    assert peer.pongs == marks


def test_6_7_acknowledgement_is_not_answered(peer: FramePeer) -> None:
    """6.7: a PING with ACK, asked for or not, gets no answer."""
    peer.send(PingFrame(0, b"not-this", flags=["ACK"]))
    peer.ping()
    assert b"not-this" not in peer.pongs


def test_6_7_ping_on_a_stream(peer: FramePeer) -> None:
    """6.7: PING is the connection's."""
    peer.send(frame(PING, bytes(8), stream=1))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_6_7_ping_of_a_wrong_size(peer: FramePeer, size: int) -> None:
    """6.7: eight bytes."""
    peer.send(frame(PING, bytes(size)))
    connection_error(peer, FRAME_SIZE_ERROR)


# --- 6.8 GOAWAY -------------------------------------------------------------------------------------------------------


def test_6_8_goaway_on_a_stream(peer: FramePeer) -> None:
    """6.8: GOAWAY is the connection's."""
    peer.send(frame(GOAWAY, bytes(8), stream=1))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 4, 7])
def test_6_8_goaway_of_a_wrong_size(peer: FramePeer, size: int) -> None:
    """6.8, 4.2: too small for what it must contain."""
    peer.send(frame(GOAWAY, bytes(size)))
    connection_error(peer, FRAME_SIZE_ERROR)


def test_6_8_streams_in_flight_are_finished(stingy: FramePeer) -> None:
    """6.8: GOAWAY of the client is no end: what it has begun is answered, then the server closes."""
    stream = stingy.request("/big/1000")
    stingy.head_of(stream)
    stingy.goaway()
    stingy.ping()
    stingy.grant(1000, stream)
    assert len(stingy.answer(stream).body) == 1000
    stingy.expect_closed()
    assert all(each.error_code == NO_ERROR for each in stingy.goaways)


def test_6_8_upload_in_flight_is_finished(peer: FramePeer, origin: Origin) -> None:
    """6.8: so is a request whose content is still to come."""
    stream = peer.request("/6-8-upload", end=False)
    peer.goaway()
    peer.ping()
    peer.data(stream, b"later", end=True)
    assert peer.answer(stream).body == b"ok"
    peer.expect_closed()
    assert origin.only("/6-8-upload").body == b"later"


def test_6_8_goaway_of_an_idle_client(peer: FramePeer) -> None:
    """6.8: with nothing in flight the connection ends."""
    peer.send(GoAwayFrame(0, 0, NO_ERROR, additional_data=b"bye"))
    peer.expect_closed()
    assert all(each.error_code == NO_ERROR for each in peer.goaways)


# --- 6.9 WINDOW_UPDATE ------------------------------------------------------------------------------------------------


def test_6_9_increment_0_on_the_connection(peer: FramePeer) -> None:
    """6.9: a connection error of type PROTOCOL_ERROR."""
    peer.send(frame(WINDOW_UPDATE, bytes(4)))
    connection_error(peer, PROTOCOL_ERROR)


def test_6_9_increment_0_on_a_stream(peer: FramePeer) -> None:
    """6.9: a stream error of type PROTOCOL_ERROR."""
    stream = peer.request("/6-9", end=False)
    peer.send(frame(WINDOW_UPDATE, bytes(4), stream=stream))
    either_error(peer, stream, PROTOCOL_ERROR)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("size", [0, 3, 5, 8])
def test_6_9_window_update_of_a_wrong_size(peer: FramePeer, stream: int, size: int) -> None:
    """6.9: a size other than 4 is a connection error of type FRAME_SIZE_ERROR."""
    peer.request("/6-9", end=False)
    peer.send(frame(WINDOW_UPDATE, b"\0\0\0\1\0\0\0\1"[:size], stream=stream))
    connection_error(peer, FRAME_SIZE_ERROR)


def test_6_9_reserved_bit_is_ignored(stingy: FramePeer) -> None:
    """6.9: the bit before the increment has no meaning."""
    stream = stingy.request("/big/5")
    stingy.head_of(stream)
    stingy._given[stream] = 5
    stingy.send(frame(WINDOW_UPDATE, b"\x80\0\0\5", stream=stream))
    assert stingy.answer(stream).body == b"xxxxx"


def test_6_9_1_server_keeps_to_the_stream_window(stingy: FramePeer) -> None:
    """6.9.1: no byte more than was granted, and no end either (FramePeer looks at every frame)."""
    stream = stingy.request("/big/10")
    stingy.head_of(stream)
    for count in range(1, 10):
        stingy.grant(1, stream)
        stingy.until(lambda count=count: len(stingy.stream(stream).body) == count, "one more byte")  # type: ignore[misc]
        assert not stingy.stream(stream).ended
    stingy.grant(1, stream)
    assert stingy.answer(stream).pieces[:10] == [1] * 10


def test_6_9_1_server_keeps_to_the_connection_window(peer: FramePeer) -> None:
    """6.9.1: a stream's window does not help where the connection has none."""
    stream = peer.request("/big/100000")
    peer.until(lambda: peer.given(0) == 0, "a window used up")
    peer.grant(100_000, stream)
    peer.ping()
    assert len(peer.stream(stream).body) == 65_535
    other = peer.request("/6-9-1-other")
    peer.head_of(other)
    assert peer.stream(other).body == b""
    peer.grant(100_000)
    assert len(peer.answer(stream).body) == 100_000
    assert peer.answer(other).body == b"ok"


def test_6_9_1_end_of_stream_needs_no_window(stingy: FramePeer) -> None:
    """6.9.1: an empty DATA frame is not flow-controlled: an answer without content ends at once."""
    assert stingy.get("/big/0").body == b""


def test_6_9_1_headers_are_not_flow_controlled(stingy: FramePeer) -> None:
    """6.9.1: of all frames only DATA is."""
    assert stingy.head_of(stingy.request("/big/1")).status == 200


def test_6_9_1_window_of_the_connection_overflows(peer: FramePeer) -> None:
    """6.9.1: beyond 2^31-1 it's a connection error of type FLOW_CONTROL_ERROR."""
    peer.send(WindowUpdateFrame(0, LARGEST_WINDOW))
    connection_error(peer, FLOW_CONTROL_ERROR)


def test_6_9_1_window_of_a_stream_overflows(peer: FramePeer) -> None:
    """6.9.1: for a stream, RST_STREAM with FLOW_CONTROL_ERROR."""
    stream = peer.request("/6-9-1", end=False)
    peer.send(WindowUpdateFrame(stream, LARGEST_WINDOW))
    either_error(peer, stream, FLOW_CONTROL_ERROR)


def test_6_9_1_the_largest_window(peer: FramePeer) -> None:
    """6.9.1: exactly 2^31-1 is allowed."""
    stream = peer.request("/6-9-1-largest", end=False)
    peer.grant(LARGEST_WINDOW - peer.given(0))
    peer.grant(LARGEST_WINDOW - peer.given(stream), stream)
    peer.data(stream, end=True)
    assert peer.answer(stream).body == b"ok"


def test_6_9_1_client_exceeds_the_window(tmp_path: Path) -> None:
    """6.9.1: DATA beyond the server's window is an error of type FLOW_CONTROL_ERROR.

    The backend takes nothing, so that the window stays closed once the kernel's buffers are full.
    """
    with Stage(tmp_path) as stage:
        backend = stage.backend(receive_buffer=4096)
        stage.serve(backend)
        peer = stage.connect_http2()
        stream = peer.request("/6-9-1-exceeds", end=False)
        for _ in range(200):
            peer.send(*[frame(DATA, b"x" * 16_384, stream=stream)] * 16)
            mark = peer.send_ping()
            peer.until_ended(lambda mark=mark: mark in peer.pongs)  # type: ignore[misc]
            if peer.ended or peer.stream(stream).reset is not None:
                break
        if peer.ended:
            peer.expect_goaway(FLOW_CONTROL_ERROR)
        else:
            peer.expect_reset(stream, FLOW_CONTROL_ERROR)
            peer.ping()


def test_6_9_2_window_of_open_streams_changes(stingy: FramePeer) -> None:
    """6.9.2: a new SETTINGS_INITIAL_WINDOW_SIZE changes the windows of the streams there are."""
    stream = stingy.request("/big/10")
    stingy.head_of(stream)
    stingy.change_settings({_INITIAL_WINDOW: 1})
    stingy.until(lambda: stingy.stream(stream).body == b"x", "the first byte")
    stingy.change_settings({_INITIAL_WINDOW: 10})
    assert len(stingy.answer(stream).body) == 10


def test_6_9_2_window_becomes_negative(stage: Stage) -> None:
    """6.9.2: a window can fall below zero; what is granted fills the hole first."""
    peer = stage.connect_http2(settings={_INITIAL_WINDOW: 5})
    stream = peer.request("/big/10")
    peer.until(lambda: len(peer.stream(stream).body) == 5, "five bytes")
    peer.change_settings({_INITIAL_WINDOW: 2})
    peer.grant(3, stream)  # -3 and 3 are nothing
    peer.ping()
    assert len(peer.stream(stream).body) == 5
    peer.grant(1, stream)
    peer.until(lambda: len(peer.stream(stream).body) == 6, "one byte more")
    peer.change_settings({_INITIAL_WINDOW: 6})
    assert len(peer.answer(stream).body) == 10


def test_6_9_2_settings_do_not_change_the_connection_window(stingy: FramePeer) -> None:
    """6.9.2: only WINDOW_UPDATE does."""
    assert stingy.given(0) == 65_535
    stingy.change_settings({_INITIAL_WINDOW: 200_000})
    stream = stingy.request("/big/100000")
    stingy.until(lambda: len(stingy.stream(stream).body) == 65_535, "a window")
    stingy.ping()
    assert len(stingy.stream(stream).body) == 65_535
    stingy.grant(100_000)
    stingy.answer(stream)


def test_6_9_2_settings_make_a_window_overflow(peer: FramePeer) -> None:
    """6.9.2: a change that takes any window over 2^31-1 is a connection error of type FLOW_CONTROL_ERROR."""
    stream = peer.request("/6-9-2", end=False)
    peer.send(WindowUpdateFrame(stream, LARGEST_WINDOW - 65_535))
    peer.send(frame(SETTINGS, _setting(_INITIAL_WINDOW, 65_536)))
    connection_error(peer, FLOW_CONTROL_ERROR)


# --- 6.10 CONTINUATION ------------------------------------------------------------------------------------------------


def test_6_10_several(peer: FramePeer) -> None:
    """6.10: any number of them, as long as END_HEADERS comes."""
    data = block(peer.head("/6-10"))
    stream = peer.new_stream()
    peer.send(*headers_frames(data, stream, cuts=range(4, len(data), 4)))
    assert peer.answer(stream).body == b"ok"


def test_6_10_end_stream_is_of_headers(peer: FramePeer, origin: Origin) -> None:
    """6.10, 6.2: a HEADERS frame with END_STREAM ends the stream though CONTINUATION follows."""
    stream = peer.new_stream()
    peer.send(*headers_frames(block(peer.head("/6-10-end")), stream, cuts=[4]))
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/6-10-end").is_whole


@pytest.mark.parametrize("stream", [0, 3])
def test_6_10_of_another_stream(peer: FramePeer, stream: int) -> None:
    """6.10: it goes on where HEADERS began."""
    first, _ = headers_frames(block(peer.head()), 1, cuts=[4])
    peer.send(first, frame(CONTINUATION, b"", flags=END_HEADERS, stream=stream))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("before", ["headers", "continuation", "data", "priority"])
def test_6_10_without_an_open_block(peer: FramePeer, before: str) -> None:
    """6.10: it follows HEADERS or CONTINUATION without END_HEADERS, and nothing else."""
    stream = peer.new_stream()
    data = block(peer.head(method=b"POST"))
    peer.send(*headers_frames(data, stream, end_stream=False, cuts=[4] if before == "continuation" else []))
    if before == "data":
        peer.data(stream, b"x")
    elif before == "priority":
        peer.send(PriorityFrame(stream))
    peer.send(frame(CONTINUATION, b"\x00\x01a\x01b", flags=END_HEADERS, stream=stream))
    connection_error(peer, PROTOCOL_ERROR)
