"""A child process for tests: says and does what its Start tells it to, so that every turn of a child's life is reached.

`Start.settings` is the part it plays: "serve", "fail REASON", "exit STATUS", "announce NAME" (before it is
ready), "leave" (accepts no more), "babble", "cling" (never leaves), "wish HOST" (a worker wants a certificate),
"impostor" (speaks as the certifier does), "mute" (answers no question), "tell" (says what comes when), "list" (a
certifier that has certificates). As the certifier it answers an AdminCall by its name: "die" ends it, "long" is work
that is done when somebody asks for "finish", "gone" is not found, all else gets a step and what was asked.
"""

from __future__ import annotations

import asyncio
import os
import sys

from tlsproxy.runtime.child import open_control_socket, release_signals
from tlsproxy.runtime.control import ControlChannel
from tlsproxy.runtime.messages import (
    AdminCall,
    AdminProgress,
    AdminResult,
    AdoptListeners,
    CertificateRefused,
    CertificatesChanged,
    CertificateWanted,
    Drain,
    Drained,
    Failed,
    Leaving,
    Message,
    Ready,
    ReleaseListeners,
    Serve,
    Start,
    Stats,
    StatsRequest,
)

_LONG: list[int] = []
_LISTED: list[int] = []


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
    if part == "tell":
        _say("ready")
    channel.send(Failed(word) if part == "fail" else Ready())
    if part == "leave":
        channel.send(Leaving())
    if part == "babble":
        channel.send(Stats({}))
        channel.send(Start("a child gives no orders"))
    if part == "wish":
        channel.send(CertificateWanted(word, "192.0.2.1"))
    if part == "impostor":
        channel.send(AdminResult(1, 200, {"forged": True}))
    if part == "cling":
        await asyncio.Event().wait()
    while (message := await channel.receive()) is not None:
        if part == "mute" and isinstance(message, StatsRequest):
            continue
        if part == "list" and isinstance(message, AdminCall):
            _list(channel, message)
            continue
        if part == "tell" and isinstance(message, Serve):
            _say("serve")
        if not _answer(channel, message):
            break
    channel.close()
    await channel.wait_closed()
    return 0


def _answer(channel: ControlChannel, message: Message) -> bool:
    """Return whether to stay."""
    match message:
        case CertificatesChanged(names=names):
            _say("heard", *names)
        case CertificateWanted(host=host, client=client):
            channel.send(CertificateRefused(host, f"not for {client}", 60.0))
        case CertificateRefused(host=host, reason=reason):
            _say("refused", host, reason)
        case AdminCall(name="die"):
            return False
        case AdminCall(name="long"):
            _LONG.append(message.id)
            channel.send(AdminProgress(message.id, "order", "long", "working"))
        case AdminCall(name="gone"):
            channel.send(AdminResult(message.id, 404, {"error": "there is no such certificate"}))
        case AdminCall(verb="status"):
            channel.send(AdminResult(message.id, 200, {"valid": 2, "pending": 1, "failed": 0, "state": "idle"}))
        case AdminCall(id=number, verb=verb, name=name):
            for done in (*_LONG, number) if name == "finish" else (number,):
                channel.send(AdminProgress(done, "order", name, "asked"))
                channel.send(AdminResult(done, 200, {"verb": verb, "name": name, **message.options}))
        case StatsRequest():
            channel.send(Stats({"connections": 1, "requests": 7}))
        case AdoptListeners(slots=slots):
            _say("adopts", *slots)
        case ReleaseListeners(slots=slots):
            _say("releases", *slots)
        case Drain():
            channel.send(Drained(cut=2))
            return False
        case _:
            pass
    return True


def _list(channel: ControlChannel, call: AdminCall) -> None:
    """The first answer has the certificate acme/1.test, the second acme/2.test …"""
    _LISTED.append(call.id)
    row = {"issuer": "CA", "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-03-01T00:00:00Z"}
    state = {"status": "valid", "served": True, "next_attempt": None}
    channel.send(AdminResult(call.id, 200, [{"name": f"acme/{len(_LISTED)}.test", **row, **state}]))


def _say(*words: object) -> None:
    """One write a line: several of us share one output, and print may make three of it."""
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


if __name__ == "__main__":
    sys.exit(asyncio.run(_play()))
