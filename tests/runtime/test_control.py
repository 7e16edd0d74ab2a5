"""The words of supervisor and children survive the wire; anything else is an error that names it."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.runtime import control
from tlsproxy.runtime.control import ControlChannel, ControlError, FrameDecoder, control_pair, decode, encode
from tlsproxy.runtime.messages import (
    AdminCall,
    AdminProgress,
    AdminResult,
    AdoptListeners,
    BackendPlan,
    CertificateRefused,
    CertificatesChanged,
    CertificateWanted,
    Drain,
    Drained,
    Failed,
    Handover,
    Hello,
    Leaving,
    Message,
    Prepared,
    Ready,
    ReleaseListeners,
    ReopenLogs,
    Serve,
    Start,
    Stats,
    StatsRequest,
    TakeOver,
    Totals,
)

MESSAGES: list[Message] = [
    Start('{"sites": []}', (("https", 7, 0), ("http", 8, 1)), "00ff", slot=3, generation=2),
    Start("{}", addresses=("127.0.0.1:8443", "[::]:443")),
    Start("{}"),
    Ready(),
    Serve(),
    Failed("port taken\nby another: ü"),
    CertificatesChanged(("a.test", "*.b.test")),
    CertificatesChanged(()),
    CertificateWanted("shop.test", "192.0.2.1"),
    CertificateRefused("shop.test", "the application does not know it", 60.0),
    AdminCall(1, "list"),
    AdminCall(2, "renew", "a.test", {"force": "true"}),
    AdminProgress(2, "validation", "a.test", "the CA is looking …"),
    AdminResult(2, 200, {"name": "acme/a.test", "serial": "0f", "chain": [{"days": 3}], "ari": None}),
    AdminResult(1, 200, []),
    AdoptListeners((1, 2)),
    ReleaseListeners((1,)),
    Drain(9.5, last=True),
    Drain(),
    Leaving(),
    Drained(cut=2),
    ReopenLogs(),
    StatsRequest(),
    Stats({"requests": 12}),
    Hello(1, "0.1"),
    Handover(3, "00ff", (("https", 7, 0, ":443", 0),), BackendPlan(("http://a",)), ("/run/x.sock", 9), line=4),
    Handover(3, "00ff", (), metrics=(":9180", (5, 6)), totals={"requests": 1.5}),
    Prepared({"a.test": "00"}, (7,)),
    TakeOver(BackendPlan(paused={"a.test": 1.5})),
    Totals({'requests{site="a"}': 2.0}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == message


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.integers(1, 50))
def test_messages_survive_any_cut_of_the_stream(messages: list[Message], size: int) -> None:
    stream = b"".join(map(encode, messages))
    decoder = FrameDecoder()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == messages


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"type":"Explode"}', "unknown control message 'Explode'"),
        (b'{"type":7}', "unknown control message 7"),
        (b"{}", "unknown control message None"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b'{"type":"Drained","cut":"x"}', "Drained is malformed: cut: "),
        (b'{"type":"Failed"}', "Failed is malformed: reason: Field required"),
        (b'{"type":"Start","settings":"{}","listeners":[["quic",3,0]]}', "listeners.0.0"),
    ],
)
def test_what_is_not_understood_is_named(line: bytes, said: str) -> None:
    with pytest.raises(ControlError, match=said):
        decode(line)


def test_errors_and_reprs_do_not_repeat_the_secret() -> None:
    with pytest.raises(ControlError) as caught:
        decode(b'{"type":"Start","settings":{"k":"hush"},"ticket_secret":["hush"],"slot":"hush"}')
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(Start("{}", ticket_secret="hush"))


def test_a_line_has_a_limit_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_FRAME", 100)
    with pytest.raises(ControlError, match=r"Start has .* the limit is 100"):
        encode(Start("x" * 100))
    decoder = FrameDecoder()
    assert decoder.feed(b"x" * 100) == []
    with pytest.raises(ControlError, match="longer than 100"):
        decoder.feed(b"x")


async def _exchange() -> None:
    left, right = control_pair()
    supervisor, child = await ControlChannel.open(left), await ControlChannel.open(right)
    big = Start("s" * 700_000, (("https", 5, 0),))
    supervisor.send(big)
    supervisor.send(Drain(1))
    assert await child.receive() == big
    child.send(Ready())
    assert await supervisor.receive() == Ready()
    child.send(Drained(1))
    child.close()
    assert [message async for message in supervisor] == [Drained(1)]
    assert await supervisor.receive() is None
    supervisor.send(Drain(1))
    assert [message async for message in child] == [Drain(1)]
    supervisor.close()
    await asyncio.gather(supervisor.wait_closed(), child.wait_closed())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_both_ends_talk_until_one_leaves(loop_factory: type[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_exchange())


async def _garbage() -> None:
    left, right = control_pair()
    channel = await ControlChannel.open(left)
    with right:
        right.sendall(encode(Ready()) + b'{"type":"Explode"}\n')
        with pytest.raises(ControlError, match="Explode"):
            await channel.receive()
        assert await channel.receive() is None


def test_garbage_ends_the_channel() -> None:
    asyncio.run(_garbage())


async def _deliver() -> None:
    left, right = control_pair()
    channel = await ControlChannel.open(left)
    channel.deliver(ReopenLogs())
    channel.deliver(None)
    assert [message async for message in channel] == [ReopenLogs()]
    channel.close()
    await channel.wait_closed()
    right.close()


def test_a_signal_speaks_with_the_peers_voice() -> None:
    asyncio.run(_deliver())
