"""A child process for tests: says and does what its Start tells it to, so that every turn of a child's life is reached.

`Start.settings` is the part it plays: "serve", "fail REASON", "exit STATUS", "announce NAME" (before it is
ready), "leave" (accepts no more), "babble", "cling" (never leaves).
"""

from __future__ import annotations

import asyncio
import sys

from tlsproxy.runtime.child import open_control_socket, release_signals
from tlsproxy.runtime.control import (
    AdoptListeners,
    CertificatesChanged,
    ControlChannel,
    Drain,
    Drained,
    Failed,
    Leaving,
    Message,
    Ready,
    ReleaseListeners,
    Start,
    Stats,
)


async def _play() -> int:
    channel = await ControlChannel.open(open_control_socket(sys.argv[1:]))
    release_signals()
    start = await channel.receive()
    assert isinstance(start, Start)
    part, _, word = start.settings.partition(" ")
    if part == "exit":
        return int(word)
    if part == "announce":
        channel.send(CertificatesChanged((word,)))
    channel.send(Failed(word) if part == "fail" else Ready())
    if part == "leave":
        channel.send(Leaving())
    if part == "babble":
        channel.send(Stats({}))
        channel.send(Start("a child gives no orders"))
    if part == "cling":
        await asyncio.Event().wait()
    while (message := await channel.receive()) is not None:
        if not _answer(channel, message):
            break
    channel.close()
    await channel.wait_closed()
    return 0


def _answer(channel: ControlChannel, message: Message) -> bool:
    """Return whether to stay."""
    match message:
        case CertificatesChanged(names=names):
            print("heard", *names, flush=True)
        case AdoptListeners(slots=slots):
            print("adopts", *slots, flush=True)
        case ReleaseListeners(slots=slots):
            print("releases", *slots, flush=True)
        case Drain():
            channel.send(Drained(cut=2))
            return False
        case _:
            pass
    return True


if __name__ == "__main__":
    sys.exit(asyncio.run(_play()))
