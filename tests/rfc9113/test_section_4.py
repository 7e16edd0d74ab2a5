"""RFC 9113 4: frames, their sizes, and header blocks."""

from __future__ import annotations

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fakes.frames import (
    ACK,
    COMPRESSION_ERROR,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE_ERROR,
    HEADERS,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    SETTINGS,
    FramePeer,
    block,
    frame,
    headers_frames,
    plain_block,
)
from tests.fakes.stage import Stage
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import connection_error, either_error, goes_on

_LARGEST = 16_384  # SETTINGS_MAX_FRAME_SIZE of the server: the initial value
_RESERVED = 1 << 31


@pytest.mark.parametrize("kind", [0x0B, 0x16, 0x7F, 0xFF])
@pytest.mark.parametrize("stream", [0, 1, 2, 1001])
def test_4_1_unknown_types_are_ignored(peer: FramePeer, kind: int, stream: int) -> None:
    """4.1, 5.5: frames of unknown type are ignored and discarded, whatever their stream."""
    peer.send(frame(kind, b"whatever", flags=0xFF, stream=stream))
    goes_on(peer)


def test_4_1_unknown_type_between_headers_and_data(peer: FramePeer, origin: Origin) -> None:
    """4.1: that holds in the middle of a message as well."""
    stream = peer.request("/4-1-between", end=False)
    peer.send(frame(0xEE, b"?", stream=stream))
    peer.data(stream, b"body", end=True)
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/4-1-between").body == b"body"


def test_4_1_undefined_flags_are_ignored(peer: FramePeer, origin: Origin) -> None:
    """4.1: flags that have no meaning for a type are ignored."""
    peer.send(frame(PING, b"12345678", flags=0xFF & ~ACK))
    peer.until(lambda: b"12345678" in peer.pongs)
    peer.send(frame(SETTINGS, flags=0xFF & ~ACK))
    stream = peer.new_stream()
    head = block(peer.head("/4-1-flags", method=b"POST"))
    peer.send(frame(HEADERS, head, flags=END_HEADERS | 0x02 | 0x10 | 0x40 | 0x80, stream=stream))
    peer.send(frame(DATA, b"abc", flags=END_STREAM | 0x02 | 0x04 | 0x10 | 0x20 | 0x40 | 0x80, stream=stream))
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/4-1-flags").body == b"abc"


def test_4_1_reserved_bit_is_ignored(peer: FramePeer) -> None:
    """4.1: the bit before the stream's number has no meaning."""
    peer.send(frame(PING, b"reserved", stream=_RESERVED))
    peer.until(lambda: b"reserved" in peer.pongs)
    stream = peer.new_stream()
    peer.send(frame(HEADERS, block(peer.head()), flags=END_HEADERS | END_STREAM, stream=stream | _RESERVED))
    assert peer.answer(stream).body == b"ok"


def test_4_1_frames_in_any_pieces(peer: FramePeer, origin: Origin) -> None:
    """4.1: a frame is what its length says, however the bytes arrive."""
    stream = peer.new_stream()
    frames = [
        *headers_frames(block(peer.head("/4-1-pieces", method=b"POST")), stream, end_stream=False),
        DataFrame(stream, b"one"),
        PingFrame(0, b"in-piece"),
        DataFrame(stream, b"two", flags=["END_STREAM"]),
    ]
    for byte in b"".join(each.serialize() for each in frames):
        peer.send(bytes([byte]))
    assert peer.answer(stream).body == b"ok"
    assert b"in-piece" in peer.pongs
    assert origin.only("/4-1-pieces").body == b"onetwo"


def test_4_2_frame_of_the_largest_size(peer: FramePeer, origin: Origin) -> None:
    """4.2: every implementation takes frames of 2^14 bytes."""
    stream = peer.request("/4-2-largest", end=False)
    peer.data(stream, b"x" * _LARGEST, end=True)
    assert peer.answer(stream).body == b"ok"
    assert len(origin.only("/4-2-largest").body) == _LARGEST


def test_4_2_header_frame_of_the_largest_size(peer: FramePeer, origin: Origin) -> None:
    """4.2: for HEADERS too."""
    fields = [*peer.head("/4-2-head"), (b"x-long", b"")]
    room = _LARGEST - len(plain_block(fields)) - 2  # a longer text has a longer length before it
    data = plain_block([*fields[:-1], (b"x-long", b"y" * room)])
    assert len(data) == _LARGEST
    stream = peer.new_stream()
    peer.send(*headers_frames(data, stream))
    assert peer.answer(stream).status == 200
    assert len(origin.only("/4-2-head").all("x-long")[0]) == room


def test_4_2_data_too_large(peer: FramePeer, origin: Origin) -> None:
    """4.2: FRAME_SIZE_ERROR for more than SETTINGS_MAX_FRAME_SIZE, of the stream or of the connection."""
    stream = peer.request("/4-2-too-large", end=False)
    peer.send(frame(DATA, b"x" * (_LARGEST + 1), flags=END_STREAM, stream=stream))
    either_error(peer, stream, FRAME_SIZE_ERROR)
    assert not any(each.is_whole for each in origin.seen("/4-2-too-large"))


@pytest.mark.parametrize("kind", ["headers", "continuation", "settings", "ping", "unknown"])
def test_4_2_too_large_for_the_connection(peer: FramePeer, kind: str) -> None:
    """4.2: where the frame has state of the connection (header blocks, SETTINGS, stream 0): a connection error."""
    fields = [*peer.head("/4-2-too-large"), (b"x-long", b"y" * _LARGEST)]
    match kind:
        case "headers":
            peer.send(*headers_frames(plain_block(fields), 1))
        case "continuation":
            peer.send(*headers_frames(plain_block(fields), 1, cuts=[20]))
        case "settings":
            peer.send(frame(SETTINGS, b"\x00\x04\x00\x00\xff\xff" * 2731))
        case "ping":
            peer.send(frame(PING, bytes(_LARGEST + 1)))
        case "unknown":
            peer.send(frame(0xF1, bytes(_LARGEST + 1)))
    connection_error(peer, FRAME_SIZE_ERROR)


@pytest.mark.parametrize("size", [1, 4, 6, 7])
def test_4_2_priority_of_a_wrong_size(peer: FramePeer, size: int) -> None:
    """4.2, 6.3: a frame whose content can't be right for its type."""
    stream = peer.request("/4-2-priority", end=False)
    peer.send(frame(PRIORITY, bytes(size), stream=stream))
    either_error(peer, stream, FRAME_SIZE_ERROR)


def test_4_2_padded_frame_without_room_for_the_length(peer: FramePeer) -> None:
    """4.2: a frame too small to contain its mandatory data is a FRAME_SIZE_ERROR."""
    stream = peer.request("/4-2-small", end=False)
    peer.send(frame(DATA, b"", flags=0x08, stream=stream))
    either_error(peer, stream, FRAME_SIZE_ERROR, PROTOCOL_ERROR)  # 6.1: padding that is too long


def test_4_2_server_keeps_to_the_size_it_was_given(stage: Stage) -> None:
    """4.2: frames of ours are never larger than the peer's SETTINGS_MAX_FRAME_SIZE (FramePeer looks)."""
    peer = stage.connect_http2(settings={SettingsFrame.MAX_FRAME_SIZE: 65_536})
    peer.generous = True
    assert len(peer.get("/big/300000").body) == 300_000
    assert max(peer.stream(1).pieces) <= 65_536


def test_4_2_server_keeps_to_the_initial_size(peer: FramePeer) -> None:
    """4.2: without a word of the client that is 2^14."""
    peer.generous = True
    assert len(peer.get("/big/300000").body) == 300_000


def test_4_3_block_in_many_frames(peer: FramePeer, origin: Origin) -> None:
    """4.3: HEADERS and CONTINUATION frames together are one block, wherever it is cut; empty pieces are allowed."""
    data = block(peer.head("/4-3-many", [(b"x-a", b"b" * 50)]))
    stream = peer.new_stream()
    peer.send(*headers_frames(data, stream, cuts=[0, 1, 1, 7, len(data) - 1, len(data)]))
    assert peer.answer(stream).body == b"ok"
    assert origin.only("/4-3-many").all("x-a") == [b"b" * 50]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x80",  # RFC 7541 6.1: index 0
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # an integer beyond all bounds
        b"\xbf",  # an index into an empty dynamic table
        b"\x00\x05abc",  # a literal that is longer than the block
        b"\x00\x81\xff\x01a",  # a Huffman code that is none
    ],
    ids=["index-0", "integer", "dynamic", "short", "huffman"],
)
def test_4_3_invalid_block(peer: FramePeer, wrong: bytes) -> None:
    """4.3: a block that can't be decompressed is a connection error of type COMPRESSION_ERROR."""
    peer.send(frame(HEADERS, block(peer.head()) + wrong, flags=END_HEADERS | END_STREAM, stream=1))
    connection_error(peer, COMPRESSION_ERROR)


def test_4_3_invalid_block_in_trailers(peer: FramePeer, origin: Origin) -> None:
    """4.3: the same for trailers, and the backend never sees a whole request."""
    stream = peer.request("/4-3-trailers", body=b"x", end=False)
    peer.send(frame(HEADERS, b"\x80", flags=END_HEADERS | END_STREAM, stream=stream))
    connection_error(peer, COMPRESSION_ERROR)
    assert not any(each.is_whole for each in origin.seen("/4-3-trailers"))


@pytest.mark.parametrize(
    "between",
    [
        PriorityFrame(1),
        PriorityFrame(3),
        DataFrame(1, b"x"),
        PingFrame(0, bytes(8)),
        SettingsFrame(0),
        SettingsFrame(0, flags=["ACK"]),
        WindowUpdateFrame(0, 1),
        WindowUpdateFrame(1, 1),
        RstStreamFrame(1),
        HeadersFrame(3, b"\x82"),
        HeadersFrame(1, b"\x82"),
        ContinuationFrame(3, b"", flags=["END_HEADERS"]),
        ExtensionFrame(0xF0, 1),
        ExtensionFrame(0xF0, 0),
    ],
    ids=lambda each: f"{type(each).__name__}-{each.stream_id}",
)
def test_4_3_nothing_comes_between_the_frames_of_a_block(peer: FramePeer, between: Frame) -> None:
    """4.3, 6.2, 6.10: any other frame, or one of another stream, is a connection error of type PROTOCOL_ERROR."""
    first, last = headers_frames(block(peer.head("/4-3-between")), 1, cuts=[9])
    peer.send(first, between, last)
    connection_error(peer, PROTOCOL_ERROR)


def test_4_3_unfinished_block_is_nobodys_request(peer: FramePeer, origin: Origin) -> None:
    """4.3: a block is handled when it is whole, not before."""
    peer.send(*headers_frames(block(peer.head("/4-3-unfinished")), 1, cuts=[9])[:1])
    peer.close()
    assert origin.seen("/4-3-unfinished") == []


def test_4_3_compression_goes_on_behind_a_malformed_request(peer: FramePeer, origin: Origin) -> None:
    """4.3: the state of compression is the connection's: what a refused block added to the table is there."""
    entry = b"\x40\x03x-a\x05later"  # with incremental indexing (RFC 7541 6.2.1)
    stream = peer.new_stream()
    peer.send(*headers_frames(block(peer.head("/4-3-wrong")) + entry + b"\x00\x01A\x01b", stream))
    peer.over(stream)
    stream = peer.new_stream()
    peer.send(*headers_frames(plain_block(peer.head("/4-3-right")) + b"\xbe", stream))
    assert peer.answer(stream).status == 200
    assert origin.only("/4-3-right").all("x-a") == [b"later"]
    assert origin.seen("/4-3-wrong") == []


def test_4_3_1_server_obeys_a_smaller_table(peer: FramePeer) -> None:
    """4.3.1: after SETTINGS_HEADER_TABLE_SIZE 0 is acknowledged, the server's next block begins by obeying it."""
    goes_on(peer)
    peer.change_settings({SettingsFrame.HEADER_TABLE_SIZE: 0})
    goes_on(peer)  # hpack insists on the update
    goes_on(peer)
    peer.change_settings({SettingsFrame.HEADER_TABLE_SIZE: 65_536})
    goes_on(peer)


def test_4_3_1_table_changed_twice_between_blocks(peer: FramePeer) -> None:
    """4.3.1, RFC 7541 4.2: the smallest of several sizes has to be signalled too."""
    goes_on(peer)
    peer.change_settings({SettingsFrame.HEADER_TABLE_SIZE: 0})
    peer.change_settings({SettingsFrame.HEADER_TABLE_SIZE: 4096})
    goes_on(peer)
    goes_on(peer)
