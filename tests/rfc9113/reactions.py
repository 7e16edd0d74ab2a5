"""How a server may react to what is wrong (RFC 9113 5.4), each with what must hold afterwards."""

from __future__ import annotations

from tests.fakes.frames import PROTOCOL_ERROR, STREAM_CLOSED, FramePeer, Stream


def goes_on(peer: FramePeer) -> None:
    """The connection serves another request."""
    assert peer.get("/next").body == b"ok"


def stream_error(peer: FramePeer, stream: int, *codes: int) -> None:
    """5.4.2: that stream is reset, and nothing else happens."""
    peer.expect_reset(stream, *codes)
    goes_on(peer)


def connection_error(peer: FramePeer, *codes: int) -> None:
    """5.4.1: GOAWAY with this code, then the end. (Others are served: the fixture `others` looks.)"""
    peer.expect_goaway(*codes)


def either_error(peer: FramePeer, stream: int, *codes: int) -> None:
    """A stream error, or the connection error of the same code (5.4.1 allows that always)."""
    peer.until_ended(lambda: peer.stream(stream).reset is not None)
    if peer.ended:
        peer.expect_goaway(*codes)
    else:
        stream_error(peer, stream, *codes)


def discarded_or_closed(peer: FramePeer, stream: int, *codes: int) -> None:
    """What a closed stream gets (5.1): no attention, or an error of type STREAM_CLOSED (or one of `codes`)."""
    before = peer.stream(stream).reset
    mark = peer.send_ping()
    peer.until_ended(lambda: mark in peer.pongs)
    if peer.ended:
        peer.expect_goaway(STREAM_CLOSED, *codes)
        return
    assert peer.stream(stream).reset in {before, STREAM_CLOSED}
    goes_on(peer)


def malformed(peer: FramePeer, stream: int) -> Stream:
    """8.1.1: a stream error of type PROTOCOL_ERROR, before which an answer (here: 400) may be sent."""
    answer = peer.over(stream)
    if answer.fields:
        assert answer.status == 400
    else:
        assert answer.reset == PROTOCOL_ERROR
    goes_on(peer)
    return answer
