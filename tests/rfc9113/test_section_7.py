"""RFC 9113 7: error codes."""

from __future__ import annotations

import pytest
from hyperframe.frame import GoAwayFrame

from tests.fakes.frames import NO_ERROR, FramePeer
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import goes_on


@pytest.mark.parametrize("code", [*range(14), 0xFF, 2**32 - 1])
def test_7_reset_with_any_code(peer: FramePeer, origin: Origin, code: int) -> None:
    """7: a code nobody knows is like INTERNAL_ERROR; whatever it is, the stream is over and nothing else."""
    path = f"/7-reset/{code}"
    stream = peer.request(path, body=b"half", end=False)
    peer.reset(stream, code)
    goes_on(peer)
    assert peer.kinds(stream) == []
    assert not any(each.is_whole for each in origin.seen(path))


@pytest.mark.parametrize("code", [1, 11, 14, 2**32 - 1])
def test_7_goaway_with_any_code(peer: FramePeer, code: int) -> None:
    """7: so is a GOAWAY; the connection ends without reproach."""
    stream = peer.request("/7-goaway")
    peer.send(GoAwayFrame(0, 0, code, additional_data=b"why \xff\x00"))
    peer.until_ended(lambda: peer.stream(stream).is_over)
    peer.expect_closed()
    assert all(each.error_code == NO_ERROR for each in peer.goaways)
