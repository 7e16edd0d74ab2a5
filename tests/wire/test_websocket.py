from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from tests.fakes.codec import split
from tlsproxy.wire.websocket import GOING_AWAY, FrameBorders, close_frame


def frame(size: int, *, mask: bool = False, opcode: Opcode = Opcode.BINARY) -> bytes:
    return Frame(opcode, b"x" * size).serialize(mask=mask)


SIZES = st.lists(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536]), min_size=1, max_size=4)


@given(SIZES, st.booleans(), st.lists(st.floats(0, 1), max_size=9), st.integers(0, 16))
def test_borders_are_where_frames_end(sizes: list[int], mask: bool, places: list[float], first: int) -> None:
    frames = [frame(size, mask=mask) for size in sizes]
    data = b"".join(frames)
    ends = set(accumulate(map(len, frames)))
    borders = FrameBorders()
    start = 0
    for piece in split(data, [*range(1, first), *(int(place * len(data)) for place in places)]):
        at_border = borders.at_border
        found = borders.feed(piece)
        inside = sorted(end - start for end in ends if start < end <= start + len(piece))
        assert found == (0 if at_border else inside[0] if inside else -1)
        start += len(piece)
        assert borders.at_border is (start in ends)
    assert not borders.saw_close


@pytest.mark.parametrize("mask", [True, False])
def test_a_close_frame_is_seen(mask: bool) -> None:
    borders = FrameBorders()
    borders.feed(frame(5, mask=mask))
    assert not borders.saw_close
    borders.feed(Frame(Opcode.CLOSE, Close(1000, "bye").serialize()).serialize(mask=mask))
    assert borders.saw_close
    assert borders.at_border


@pytest.mark.parametrize("masked", [True, False])
def test_our_close_frame_is_one(masked: bool) -> None:
    data = close_frame(GOING_AWAY, masked=masked)
    assert data[0] == 0x88
    assert bool(data[1] & 0x80) is masked
    payload = data[2:]
    if masked:
        mask, payload = payload[:4], payload[4:]
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    assert Close.parse(payload).code == GOING_AWAY
    borders = FrameBorders()
    assert borders.feed(data) == 0
    assert borders.at_border
    assert borders.saw_close


def test_masks_differ() -> None:
    assert len({close_frame(GOING_AWAY, masked=True) for _ in range(8)}) > 1
