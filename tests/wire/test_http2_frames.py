"""Following HTTP/2 frames by their headers: what is noise, what has begun, and that no cut changes any of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_UPDATE,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tlsproxy.wire.http2_frames import FrameWalk

HEAD = frame(HEADERS, b"abc", flags=END_HEADERS, stream=1)
OPEN_HEAD = frame(HEADERS, b"abc", stream=1)
MORE = frame(CONTINUATION, b"de", stream=1)
LAST = frame(CONTINUATION, b"f", flags=END_HEADERS, stream=1)


def walked(*pieces: bytes) -> FrameWalk:
    walk = FrameWalk()
    for piece in (PREFACE, *pieces):
        walk.feed(piece)
    return walk


def state(walk: FrameWalk) -> tuple[int, ...]:
    seen = walk.data_seen if walk.data_stream else 0
    return walk.noise, walk.resets, walk.heads, walk.block, walk.data_stream, seen


@pytest.mark.parametrize("kind", [PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, PRIORITY_UPDATE, 0x77])
def test_a_frame_that_asks_for_nothing_is_noise(kind: int) -> None:
    assert walked(frame(kind, b"12345678", stream=1)).noise == 1


def test_a_request_and_its_content_are_no_noise() -> None:
    assert walked(HEAD, frame(DATA, b"content", stream=1), frame(DATA, b"", flags=END_STREAM, stream=1)).noise == 0


@pytest.mark.parametrize("payload", [b"", b"\0", b"\5" + bytes(5), b"\xff" + bytes(255)])
def test_content_that_is_empty_is_noise(payload: bytes) -> None:
    """Also where it is all padding (RFC 9113 6.1): nobody has a reason to send that."""
    assert walked(frame(DATA, payload, flags=PADDED if payload else 0, stream=1)).noise == 1


def test_content_that_is_padded_is_no_noise() -> None:
    assert walked(frame(DATA, b"\xff" + b"x" + bytes(255), flags=PADDED, stream=1)).noise == 0


def test_counts_resets_and_heads() -> None:
    walk = walked(HEAD, frame(RST_STREAM, b"1234", stream=1), OPEN_HEAD, MORE, LAST, HEAD)
    assert (walk.resets, walk.heads) == (1, 3)


# --- header blocks (RFC 9113 4.3)


def test_no_block_is_open_between_frames() -> None:
    assert walked().block == 0
    assert walked(HEAD).block == 0
    assert walked(OPEN_HEAD, MORE, LAST).block == 0
    assert walked(HEAD, frame(DATA, b"content", stream=1)[:12]).block == 0


@pytest.mark.parametrize("pieces", [(HEAD[:1],), (HEAD[:8],), (HEAD[:9],), (HEAD[:-1],)])
def test_a_block_has_begun_with_the_first_byte_of_its_frame(pieces: tuple[bytes, ...]) -> None:
    assert walked(*pieces).block == 1


def test_a_block_keeps_its_number_to_its_end() -> None:
    walk = walked(frame(PING, b"12345678"))
    seen = []
    for byte in OPEN_HEAD + MORE + LAST:
        walk.feed(bytes([byte]))
        seen.append(walk.block)
    assert seen == [2] * (len(seen) - 1) + [0]


def test_another_block_has_another_number() -> None:
    """A busy client's reads end inside one block after the other: that is no slow one."""
    walk = walked(HEAD[:-1])
    first = walk.block
    walk.feed(HEAD[-1:] + HEAD[:-1])
    assert walk.block not in (0, first)


def test_a_continuation_without_a_block_opens_none() -> None:
    assert walked(HEAD, MORE).block == 0


# --- content that is cut


def test_tells_what_has_come_of_a_data_frame() -> None:
    data = frame(DATA, b"content", stream=5)
    walk = walked(data[:12])
    assert (walk.data_stream, walk.data_seen) == (5, 3)
    walk.feed(data[12:14])
    assert (walk.data_stream, walk.data_seen) == (5, 5)
    walk.feed(data[14:] + b"\0")
    assert walk.data_stream == 0


def test_no_data_frame_is_under_way_in_another_frame() -> None:
    assert walked(frame(DATA, b"content", stream=5), frame(PING, b"12345678")[:12]).data_stream == 0


# --- what libnghttp2 does not mind


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(PRIORITY, bytes(5)), PROTOCOL_ERROR),  # RFC 9113 6.3
        (frame(CONTINUATION, bytes(16_385), stream=1), FRAME_SIZE_ERROR),  # 4.2
        (frame(PRIORITY, bytes(5), stream=1), 0),
        (frame(CONTINUATION, bytes(16_384), stream=1), 0),
    ],
)
def test_faults(data: bytes, code: int) -> None:
    assert walked(OPEN_HEAD, data).fault == code


# --- any bytes, any cut

FRAMES = st.builds(
    frame,
    st.sampled_from([*range(10), PRIORITY_UPDATE, 0xFA]),
    st.binary(max_size=20),
    flags=st.integers(0, 255),
    stream=st.integers(0, 2**32 - 1),
)


@settings(max_examples=60)
@given(frames=st.lists(FRAMES, max_size=8), end=st.integers(0, 30), cuts=st.lists(st.integers(0, 240), max_size=6))
def test_no_cut_changes_what_is_seen(frames: list[bytes], end: int, cuts: list[int]) -> None:
    data = PREFACE + b"".join(frames)
    data = data[: max(0, len(data) - end)]
    whole, cut = FrameWalk(), FrameWalk()
    whole.feed(data)
    for start, stop in pairwise([0, *sorted(min(at, len(data)) for at in cuts), len(data)]):
        cut.feed(data[start:stop])
    assert state(cut) == state(whole)
