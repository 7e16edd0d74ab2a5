"""RFC 9113 3: how HTTP/2 begins."""

from __future__ import annotations

import ssl

import pytest
from hyperframe.frame import HeadersFrame, PingFrame, SettingsFrame

from tests.fakes.frames import ACK, PREFACE, PROTOCOL_ERROR, SETTINGS, FramePeer, block, frame, headers_frames
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage, authority
from tests.rfc9113.reactions import goes_on

_HELLO = PREFACE + frame(SETTINGS)


def _offering(stage: Stage, *protocols: str) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context.wrap_socket(stage.dial(), server_hostname="a.test")


def test_3_1_upgrade_to_h2c_is_not_taken(stage: Stage) -> None:
    """3.1: the HTTP/1.1 way to "h2c" is obsolete; a server that does not know it ignores the field (RFC 9110 7.8)."""
    client = stage.connect()
    client.send(
        b"GET /up HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    assert client.message().status == 200


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2",), "h2"), (("h2", "http/1.1"), "h2"), (("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1"), ((), None)],
)
def test_3_2_tls_agrees_on_h2_by_alpn(stage: Stage, offered: tuple[str, ...], chosen: str | None) -> None:
    """3.2: HTTP/2 over TLS is negotiated with ALPN, and only so."""
    with _offering(stage, *offered) as client:
        assert client.selected_alpn_protocol() == chosen


def test_3_2_h2c_is_no_protocol_of_tls(stage: Stage) -> None:
    """3.1: "h2c" is for cleartext and never chosen over TLS."""
    with _offering(stage, "h2c", "http/1.1") as client:
        assert client.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("offered", [(), ("http/1.1",)])
def test_3_2_without_alpn_the_preface_is_no_request(stage: Stage, offered: tuple[str, ...]) -> None:
    """3.2: a connection that has agreed on HTTP/1.1, or on nothing, does not turn into HTTP/2."""
    with _offering(stage, *offered) as client:
        peer = Peer(client)
        peer.send(_HELLO)
        assert peer.message().status in {400, 505}


def test_3_3_prior_knowledge_is_not_for_the_cleartext_port(stage: Stage) -> None:
    """3.3: a server that does not speak HTTP/2 in the clear answers the preface as the bad HTTP/1.1 it is."""
    peer = stage.connect_plain()
    peer.send(_HELLO)
    assert peer.message().status in {400, 505}


def test_3_4_server_preface_is_settings(silent: FramePeer) -> None:
    """3.4: the server's first frame is SETTINGS, maybe empty, and not an ACK."""
    silent.begin()
    first = silent.frames[0]
    assert isinstance(first, SettingsFrame)
    assert "ACK" not in first.flags


def test_3_4_server_acknowledges_the_clients_settings(silent: FramePeer) -> None:
    """3.4: the SETTINGS that are part of the preface are acknowledged."""
    silent.begin()
    acknowledgements = [each for each in silent.frames if isinstance(each, SettingsFrame) and "ACK" in each.flags]
    assert len(acknowledgements) == 1


def test_3_4_request_with_the_preface(silent: FramePeer) -> None:
    """3.4: a client may send requests at once, without waiting for the server's SETTINGS."""
    silent.send(_HELLO, *headers_frames(block(silent.head("/at-once")), 1))
    assert silent.answer(1).body == b"ok"


def test_3_4_preface_in_small_pieces(silent: FramePeer) -> None:
    """3.4: the preface is a sequence of bytes; how they are packed means nothing."""
    for at in range(len(_HELLO)):
        silent.send(_HELLO[at : at + 1])
    goes_on(silent)


@pytest.mark.parametrize(
    "start",
    [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
        b"INVALID CONNECTION PREFACE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        bytes(24),
        frame(SETTINGS) + PREFACE,
        b"pri * http/2.0\r\n\r\nsm\r\n\r\n",
    ],
    ids=["tail", "version", "text", "http1", "zeros", "settings-first", "lower-case"],
)
def test_3_4_invalid_preface(silent: FramePeer, start: bytes) -> None:
    """3.4: a connection error of type PROTOCOL_ERROR; the GOAWAY may be left out, as it's not an HTTP/2 peer."""
    silent.send(start, frame(SETTINGS))
    silent.expect_closed()
    assert all(each.error_code == PROTOCOL_ERROR for each in silent.goaways)
    assert not silent.streams


@pytest.mark.parametrize("other", ["headers", "ping", "ack", "unknown"])
def test_3_4_preface_without_settings(silent: FramePeer, other: str) -> None:
    """3.4: SETTINGS must be the first frame of the client; anything else is an invalid preface."""
    first = {
        "headers": HeadersFrame(1, block(silent.head()), flags=["END_HEADERS", "END_STREAM"]).serialize(),
        "ping": PingFrame(0, bytes(8)).serialize(),
        "ack": frame(SETTINGS, flags=ACK),
        "unknown": frame(0xF0),
    }[other]
    silent.send(PREFACE, first)
    silent.expect_goaway(PROTOCOL_ERROR)
    assert not silent.streams


def test_3_4_second_preface(peer: FramePeer) -> None:
    """3.4: behind the preface come frames; the same bytes again are a frame of absurd size (4.2)."""
    peer.send(PREFACE)
    peer.expect_goaway()
    assert peer.goaways[-1].error_code != 0


def test_3_4_values_of_settings_are_what_we_announce(peer: FramePeer) -> None:
    """3.4, 6.5.2: what this server tells about itself."""
    told = peer.server_settings
    assert told[SettingsFrame.MAX_CONCURRENT_STREAMS] == 100
    assert told[SettingsFrame.ENABLE_CONNECT_PROTOCOL] == 1  # RFC 8441 3
    assert told[9] == 1  # SETTINGS_NO_RFC7540_PRIORITIES, RFC 9218 2.1
    assert told.get(SettingsFrame.ENABLE_PUSH, 0) == 0  # 6.5.2: a server must not say 1
    assert SettingsFrame.MAX_HEADER_LIST_SIZE in told
    goes_on(peer)
