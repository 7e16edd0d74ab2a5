"""A worker process alone with its control socket: what it answers, and that it never stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.stage import client_context, issued
from tests.proxy.test_tls import alert, first_flight, read_all
from tlsproxy.proxy.front import Front
from tlsproxy.runtime.control import ControlChannel, FrameDecoder, control_pair, encode
from tlsproxy.runtime.messages import (
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
    ReopenLogs,
    Serve,
    Start,
    Stats,
    StatsRequest,
)
from tlsproxy.runtime.sockets import Slots
from tlsproxy.runtime.worker import Worker
from tlsproxy.settings import Settings
from tlsproxy.store.base import open_store

pytestmark = pytest.mark.system

PATIENCE = 20.0
SETTINGS = {"store": {"url": "memory:"}, "log": {"access": "off", "format": "json"}}


class LoneWorker:
    """The process and our end of its socket."""

    def __init__(self, *listeners: socket.socket) -> None:
        self._control, theirs = control_pair()
        self._control.settimeout(PATIENCE)
        self._decoder = FrameDecoder()
        self._heard: list[Message] = []
        with theirs:
            command = [sys.executable, "-m", "tlsproxy.runtime.worker", "--control-fd", str(theirs.fileno())]
            descriptors = [sock.fileno() for sock in (theirs, *listeners)]
            self.process = subprocess.Popen(command, pass_fds=descriptors, stderr=subprocess.PIPE, text=True)

    def send(self, message: Message) -> None:
        self._control.sendall(encode(message))

    def send_raw(self, line: bytes) -> None:
        self._control.sendall(line)

    def hear(self) -> Message | None:
        """Return its next message, None at its end."""
        while not self._heard:
            received = self._control.recv(65536)
            if not received:
                return None
            self._heard += self._decoder.feed(received)
        return self._heard.pop(0)

    def hang_up(self) -> None:
        self._control.close()

    def wait(self) -> tuple[int, str]:
        """Return its exit code and what it logged."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said

    def close(self) -> None:
        self._control.close()
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    alone = LoneWorker()
    yield alone
    if alone.process.returncode is None:
        alone.close()
    alone.hang_up()


def _start(settings: dict[str, object] | None = None) -> Start:
    return Start(json.dumps(settings or SETTINGS), ticket_secret="00" * 32)


def test_its_life_from_start_to_drain(worker: LoneWorker) -> None:
    worker.send(_start())
    assert worker.hear() == Ready()
    worker.send(StatsRequest())
    stats = worker.hear()
    assert isinstance(stats, Stats)
    assert stats.values["connections"] == 0
    worker.send(ReopenLogs())
    worker.send(CertificatesChanged(("internal/a.test",)))
    worker.send(Drain(5))
    assert worker.hear() == Leaving()
    assert isinstance(worker.hear(), Stats)
    assert worker.hear() == Drained(cut=0)
    assert worker.hear() is None
    assert worker.wait() == (0, "")


def test_a_certificate_on_demand_is_asked_for_and_awaited(tmp_path: Path) -> None:
    site = {"hosts": ["*"], "certificate": "on_demand", "backends": ["http://127.0.0.1:9"]}
    url = f"file://{tmp_path}/store"
    written = {**SETTINGS, "store": {"url": url}, "on_demand": {"ask": "/ask"}, "sites": [site]}
    settings = Settings.model_validate(written).for_child()
    host = "new.example.com"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        alone = LoneWorker(listener)
        try:
            alone.send(Start(settings, (("https", listener.fileno(), 0),), ticket_secret="00" * 32))
            assert alone.hear() == Ready()
            alone.send(Serve())
            with socket.create_connection(listener.getsockname(), PATIENCE) as refused:
                refused.sendall(first_flight("bad.example.com", client_context()))
                assert alone.hear() == CertificateWanted("bad.example.com", "127.0.0.1")
                alone.send(CertificateRefused("bad.example.com", "the application said no", 60.0))
                assert read_all(refused) == alert(112)
            with socket.create_connection(listener.getsockname(), PATIENCE) as served:
                served.sendall(first_flight(host, client_context()))
                assert alone.hear() == CertificateWanted(host, "127.0.0.1")
                open_store(url).put(f"acme/{host}", issued(host))
                alone.send(CertificatesChanged((f"acme/{host}",)))
                assert served.recv(1) == b"\x16"  # a ServerHello
        finally:
            alone.close()


@pytest.mark.parametrize("serves", [True, False])
def test_it_accepts_from_nobody_until_all_are_ready(serves: bool) -> None:
    """A generation that is not to serve after all has nobody to cut."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(LoneWorker(listener)) as alone:
        alone.send(Start(json.dumps(SETTINGS), (("http", listener.fileno(), 0),), ticket_secret="00" * 32))
        assert alone.hear() == Ready()
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            client.sendall(b"GET / HT")
            if serves:
                alone.send(Serve())
                while not _connections(alone):
                    pass
            else:
                assert [_connections(alone) for _ in range(3)] == [0, 0, 0]


def _connections(alone: LoneWorker) -> int:
    alone.send(StatsRequest())
    told = alone.hear()
    assert isinstance(told, Stats)
    return told.values["connections"]


def test_it_leaves_when_there_is_nobody_before_the_start(worker: LoneWorker) -> None:
    worker.hang_up()
    assert worker.wait() == (0, "")


def test_it_leaves_when_told_to_before_the_start(worker: LoneWorker) -> None:
    worker.send(Drain(5))
    assert worker.hear() is None
    assert worker.wait() == (0, "")


def test_it_leaves_when_the_supervisor_does(worker: LoneWorker) -> None:
    worker.send(_start())
    assert worker.hear() == Ready()
    worker.hang_up()
    assert worker.wait() == (0, "")


def test_a_terminal_cannot_end_it_but_sigterm_drains(worker: LoneWorker) -> None:
    worker.send(_start())
    assert worker.hear() == Ready()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        worker.process.send_signal(number)
    worker.send(StatsRequest())
    assert isinstance(worker.hear(), Stats)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.hear() == Leaving()
    assert isinstance(worker.hear(), Stats)
    assert worker.hear() == Drained(cut=0)
    assert worker.wait() == (0, "")


def test_a_reason_not_to_start_is_handed_over(worker: LoneWorker) -> None:
    worker.send(_start(settings={**SETTINGS, "server": {"user": "no-such-user"}}))
    failed = worker.hear()
    assert isinstance(failed, Failed)
    assert 'there is no user "no-such-user"' in failed.reason
    assert worker.wait() == (1, "")


def test_a_flaw_of_ours_is_handed_over_and_logged_with_its_trace(worker: LoneWorker) -> None:
    worker.send(Start(json.dumps(SETTINGS), ticket_secret="not hex"))
    failed = worker.hear()
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("worker 0 could not be set up: ValueError")
    code, said = worker.wait()
    assert code == 1
    assert json.loads(said)["event"] == "worker.failed"


def test_a_supervisor_that_talks_nonsense_is_left(worker: LoneWorker) -> None:
    worker.send(_start())
    assert worker.hear() == Ready()
    worker.send_raw(b'{"type":"Explode"}\n')
    code, said = worker.wait()
    assert code == 0
    assert json.loads(said)["event"] == "worker.unintelligible"


def test_an_order_that_fails_costs_no_worker(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Front) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(Front, "reopen_logs", fail)

    async def scene() -> list[Message]:
        ours, theirs = control_pair()
        supervisor, channel = await ControlChannel.open(ours), await ControlChannel.open(theirs)
        settings = Settings.model_validate(SETTINGS)
        front = Front(settings, store=open_store("memory:"), ticket_secret=b"s" * 32, loop=asyncio.get_running_loop())
        front.start([])
        for order in (ReopenLogs(), StatsRequest(), Drain(5)):
            supervisor.send(order)
        await Worker(channel, front, {}, slot=0, drain=5).serve()
        channel.close()
        heard = [message async for message in supervisor]
        supervisor.close()
        await asyncio.gather(supervisor.wait_closed(), channel.wait_closed())
        return heard

    assert [type(message) for message in asyncio.run(scene())] == [Ready, Stats, Leaving, Stats, Drained]
    assert [record.message for record in caplog.records] == ["worker.order_failed"]


def test_an_order_that_is_not_for_workers_is_logged(worker: LoneWorker) -> None:
    worker.send(_start())
    assert worker.hear() == Ready()
    worker.send(Ready())
    worker.hang_up()
    _, said = worker.wait()
    assert json.loads(said)["message_type"] == "Ready"


def test_orders_about_listeners_that_crossed_its_leave_mean_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The supervisor gives them before it hears of that; the sockets are closed then, and others listen on theirs."""

    async def scene(listener: socket.socket, own: socket.socket) -> list[Message]:
        ours, theirs = control_pair()
        supervisor, channel = await ControlChannel.open(ours), await ControlChannel.open(theirs)
        settings = Settings.model_validate(SETTINGS)
        front = Front(settings, store=open_store("memory:"), ticket_secret=b"s" * 32, loop=asyncio.get_running_loop())
        front.start([("http", own)])
        slots: Slots = {1: [("http", listener)]}
        living = asyncio.create_task(Worker(channel, front, slots, slot=0, drain=5).serve())
        supervisor.send(AdoptListeners((1,)))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HT")  # a request that is under way keeps the worker for the time of the drain
        while not front.stats()["connections"]:
            await asyncio.sleep(0.01)
        for order in (Drain(0.5), ReleaseListeners((1,)), Serve(), AdoptListeners((2,)), StatsRequest()):
            supervisor.send(order)
        await living
        writer.close()
        channel.close()
        heard = [message async for message in supervisor]
        supervisor.close()
        await asyncio.gather(supervisor.wait_closed(), channel.wait_closed(), return_exceptions=True)
        assert await reader.read() == b""
        return heard

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as own:
        heard = asyncio.run(scene(listener, own))
    assert [type(message) for message in heard] == [Ready, Leaving, Stats, Stats, Drained]
    assert [record.message for record in caplog.records if record.message.startswith("worker.")] == []
