"""RFC 8441: extended CONNECT. What opens a WebSocket is shown elsewhere; here is what does not."""

from __future__ import annotations

import pytest

from tests.fakes.frames import Fields, FramePeer, headers_frames, plain_block
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import goes_on, malformed


def _extended(path: str, *, without: bytes = b"", protocol: bytes = b"websocket") -> Fields:
    fields = [
        (b":method", b"CONNECT"),
        (b":protocol", protocol),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"a.test"),
        (b"sec-websocket-version", b"13"),
    ]
    return [field for field in fields if field[0] != without]


def _ask(peer: FramePeer, fields: Fields, *, end: bool = False) -> int:
    stream = peer.new_stream()
    peer.send(*headers_frames(plain_block(fields), stream, end_stream=end))
    return stream


def test_3_server_announces_it(peer: FramePeer) -> None:
    """RFC 8441 3: SETTINGS_ENABLE_CONNECT_PROTOCOL is 1."""
    assert peer.server_settings[8] == 1


@pytest.mark.parametrize("without", [b":scheme", b":path", b":authority"])
def test_4_needs_what_an_ordinary_request_needs(peer: FramePeer, origin: Origin, without: bytes) -> None:
    """RFC 8441 4: unlike CONNECT, it has :scheme and :path, and :authority is the server."""
    path = f"/8441-4/{without.decode()}"
    malformed(peer, _ask(peer, _extended(path, without=without)))
    assert origin.seen(path) == []


@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
def test_4_protocol_belongs_to_connect(peer: FramePeer, origin: Origin, method: bytes) -> None:
    """RFC 8441 4: other methods have no :protocol."""
    path = f"/8441-4-method/{method.decode()}"
    malformed(peer, _ask(peer, [*peer.head(path, method=method), (b":protocol", b"websocket")]))
    assert origin.seen(path) == []


@pytest.mark.parametrize("protocol", [b"connect-udp", b"webtransport", b"websocket2"])
def test_4_protocol_is_unknown(peer: FramePeer, origin: Origin, protocol: bytes) -> None:
    """RFC 8441 4, RFC 9220 3: a protocol that the server does not know gets 501."""
    path = f"/8441-4-protocol/{protocol.decode()}"
    answer = peer.over(_ask(peer, _extended(path, protocol=protocol)))
    assert answer.status == 501
    goes_on(peer)
    assert origin.seen(path) == []


def test_4_protocol_twice(peer: FramePeer, origin: Origin) -> None:
    """RFC 9113 8.3: a pseudo-header comes once."""
    fields = _extended("/8441-4-twice")
    malformed(peer, _ask(peer, [fields[1], *fields]))
    assert origin.seen("/8441-4-twice") == []


def test_4_ended_at_once(peer: FramePeer, origin: Origin) -> None:
    """RFC 8441 5: END_STREAM is the client's end of the tunnel: there would be none."""
    answer = peer.over(_ask(peer, _extended("/8441-ended"), end=True))
    assert answer.status in {0, 400}
    goes_on(peer)
    assert origin.seen("/8441-ended") == []


def test_5_upgrade_field_is_still_malformed(peer: FramePeer, origin: Origin) -> None:
    """RFC 8441 5: the handshake has neither Connection nor Upgrade."""
    malformed(peer, _ask(peer, [*_extended("/8441-5"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]))
    assert origin.seen("/8441-5") == []


def test_5_backend_that_knows_no_websocket(peer: FramePeer, origin: Origin) -> None:
    """RFC 8441 5: what the backend answers instead is the answer; the handshake it saw was one of HTTP/1.1."""
    answer = peer.answer(_ask(peer, _extended("/8441-5-plain")))
    assert (answer.status, answer.body) == (200, b"ok")
    seen = origin.only("/8441-5-plain")
    assert seen.method == b"GET"
    assert seen.all("upgrade") == [b"websocket"]
    assert seen.all("connection") == [b"Upgrade"]
    assert len(seen.all("sec-websocket-key")) == 1
    assert seen.all("sec-websocket-version") == [b"13"]
