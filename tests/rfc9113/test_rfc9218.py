"""RFC 9218 7: PRIORITY_UPDATE frames; and priorities that nobody can read, which are ignored."""

from __future__ import annotations

import pytest

from tests.fakes.frames import FRAME_SIZE_ERROR, PRIORITY_UPDATE, PROTOCOL_ERROR, FramePeer, frame
from tests.rfc9113.reactions import connection_error, goes_on


def _update(prioritized: int, value: bytes = b"u=0", *, stream: int = 0) -> bytes:
    return frame(PRIORITY_UPDATE, prioritized.to_bytes(4, "big") + value, stream=stream)


def test_7_1_update_of_any_state(peer: FramePeer) -> None:
    """RFC 9218 7.1: for a stream that is idle, open, half-closed or closed."""
    stream = peer.request("/7-1", end=False)
    peer.send(_update(stream), _update(stream + 2, b"u=7, i"))
    peer.data(stream, end=True)
    assert peer.answer(stream).body == b"ok"
    peer.send(_update(stream, b""))
    goes_on(peer)


@pytest.mark.parametrize("stream", [1, 2])
def test_7_1_update_on_a_stream(peer: FramePeer, stream: int) -> None:
    """RFC 9218 7.1: it comes on stream 0, or it's a connection error of type PROTOCOL_ERROR."""
    peer.send(_update(1, stream=stream))
    connection_error(peer, PROTOCOL_ERROR)


def test_7_1_update_of_stream_0(peer: FramePeer) -> None:
    """RFC 9218 7.1: the connection has no priority: a connection error of type PROTOCOL_ERROR."""
    peer.send(_update(0))
    connection_error(peer, PROTOCOL_ERROR)


def test_7_1_update_of_a_push(peer: FramePeer) -> None:
    """RFC 9218 7.1: for a push stream that was never promised: a connection error of type PROTOCOL_ERROR."""
    peer.send(_update(2))
    connection_error(peer, PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 3])
def test_7_1_update_too_short(peer: FramePeer, size: int) -> None:
    """RFC 9218 7.1: four bytes at least: a connection error of type FRAME_SIZE_ERROR."""
    peer.send(frame(PRIORITY_UPDATE, bytes(size)))
    connection_error(peer, FRAME_SIZE_ERROR)


@pytest.mark.parametrize("value", [b"u=9", b"u=-1", b"u", b"i=3", b'u="0"', b"x=1", b"???", b"u=1;p, i;q", b"\xff\x00"])
def test_4_values_that_mean_nothing(peer: FramePeer, value: bytes) -> None:
    """RFC 9218 4, 7.1: parameters out of range or unknown are ignored; so is a value that can't be parsed.

    The frame may end the connection with PROTOCOL_ERROR instead; the field never does.
    """
    peer.send(_update(1, value))
    mark = peer.send_ping()
    peer.until_ended(lambda: mark in peer.pongs)
    if peer.ended:
        peer.expect_goaway(PROTOCOL_ERROR)


@pytest.mark.parametrize("value", [b"u=9", b"u=-1", b"u", b"i=3", b"x=1", b"???", b"u=1;p, i;q", b"\xff"])
def test_4_fields_that_mean_nothing(peer: FramePeer, value: bytes) -> None:
    """RFC 9218 4: the request is served like any."""
    assert peer.get("/4", [(b"priority", value)]).body == b"ok"
