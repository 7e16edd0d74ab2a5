"""Whatever frames a client sends, in whatever order: nothing of ours crashes, and others are served (the fixture)."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY_UPDATE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    plain_block,
)
from tests.fakes.stage import Stage

STREAMS = st.sampled_from([1, 1, 3, 3, 5, 7, 9])
NUMBERS = st.sampled_from([0, 1, 5, 65_535, 2**14, 2**24 - 1, 2**31 - 1, 2**32 - 1])
PATHS = st.sampled_from([b"/any", b"/big/100000", b"/trailers", b"/hints", b"/status/204"])
MORE = st.lists(
    st.sampled_from(
        [(b"content-length", b"5"), (b"expect", b"100-continue"), (b"te", b"trailers"), (b"x-a", b"b" * 300),
         (b"priority", b"u=1, i"), (b"cookie", b"a=b"), (b"connection", b"close"), (b"host", b"a.test")]
    ),
    max_size=3,
)  # fmt: skip


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big")


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"CONNECT"]))
    fields = [(b":method", method), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", draw(PATHS))]
    if method == b"CONNECT" and draw(st.booleans()):
        fields.append((b":protocol", b"websocket"))
    return plain_block([*fields, *draw(MORE)])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    stream, flags = draw(STREAMS), draw(st.sampled_from([END_HEADERS, END_HEADERS | END_STREAM, 0, END_STREAM]))
    head = draw(heads())
    whole = frame(HEADERS, head, flags=flags, stream=stream)
    return whole if flags & END_HEADERS else whole + frame(CONTINUATION, b"", flags=END_HEADERS, stream=stream)


FRAMES = st.one_of(
    requests(),
    requests(),
    st.builds(
        lambda body, flags, stream: frame(DATA, body, flags=flags, stream=stream),
        st.binary(max_size=40), st.sampled_from([0, END_STREAM, PADDED]), STREAMS,
    ),
    st.builds(lambda stream, code: frame(RST_STREAM, number(code), stream=stream), STREAMS, NUMBERS),
    st.builds(
        lambda pairs: frame(SETTINGS, b"".join(number(key, 2) + number(value) for key, value in pairs)),
        st.lists(st.tuples(st.integers(0, 10), NUMBERS), max_size=3),
    ),
    st.builds(lambda stream, size: frame(WINDOW_UPDATE, number(size), stream=stream), STREAMS | st.just(0), NUMBERS),
    st.builds(lambda stream, value: frame(PRIORITY_UPDATE, number(stream) + value), STREAMS, st.binary(max_size=8)),
    st.just(frame(PING, b"12345678")),
    st.just(frame(SETTINGS, flags=1)),
    st.builds(lambda code: frame(GOAWAY, bytes(4) + number(code)), NUMBERS),
    st.builds(
        lambda kind, flags, stream, payload: frame(kind, payload, flags=flags, stream=stream),
        st.integers(DATA, CONTINUATION) | st.sampled_from([PRIORITY_UPDATE, 99]),
        st.integers(0, 255), st.integers(0, 9), st.binary(max_size=30),
    ),
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FRAMES, max_size=12), st.integers(0, 3))
def test_any_frames(stage: Stage, frames: list[bytes], cut: int) -> None:
    """RFC 9113 5.4: each sequence ends in answers, resets, a GOAWAY, or nothing at all; and in the client's close."""
    peer = stage.connect_http2(settings={4: 2**31 - 1, 5: 2**24 - 1}, begin=False)
    peer._given[0] = 2**31 - 1  # what the frames above allow is not followed here
    data = PREFACE + frame(SETTINGS) + b"".join(frames)
    if cut:
        data = data[:-cut]
    peer.send(data)
    mark = peer.send_ping()
    peer.until_ended(lambda: mark in peer.pongs or cut > 0)
    peer.close()
