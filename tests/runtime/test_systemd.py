"""What is said to a service manager and what it says: with a socket of our own in the part of systemd."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlsproxy.runtime import systemd
from tlsproxy.runtime.notifier import Notifier
from tlsproxy.runtime.systemd import ActivationError, Service, ServiceNotifier, feed_watchdog, take_service


class Manager:
    """The end that systemd has: a datagram each time something is said."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return the lines of one datagram; it is there as soon as it was sent."""
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@tlsproxy-test-{os.getpid()}")
    yield manager
    manager.close()


def test_nothing_is_wanted_where_there_is_no_manager() -> None:
    environ = {"PATH": "/bin"}
    assert take_service(environ, 1) == Service()
    assert environ == {"PATH": "/bin"}
    assert type(systemd.make_notifier("")) is Notifier


def test_variables_are_taken_out_so_that_no_child_believes_them() -> None:
    environ = {
        "PATH": "/bin",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": "7",
        "LISTEN_PID": "7",
        "LISTEN_FDS": "3",
        "LISTEN_FDNAMES": "https:http",
    }
    service = take_service(environ, 7)
    assert environ == {"PATH": "/bin"}
    assert (service.notify, service.watchdog) == ("/run/systemd/notify", 30.0)
    assert service.sockets == (("https", 3), ("http", 4), ("", 5))


def test_what_is_meant_for_another_process_is_not_ours() -> None:
    environ = {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "8", "LISTEN_PID": "8", "LISTEN_FDS": "1"}
    assert take_service(environ, 7) == Service()
    assert environ == {}


@pytest.mark.parametrize("name", ["WATCHDOG_USEC", "LISTEN_FDS"])
def test_a_number_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ActivationError, match=f'^{name}="many" is not a number'):
        take_service({"LISTEN_PID": "7", name: "many"}, 7)


def test_each_turn_of_a_life_is_told(manager: Manager) -> None:
    notifier = ServiceNotifier(manager.address)
    notifier.ready("3 sites")
    assert manager.heard() == ["READY=1", "STATUS=3 sites"]
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    state, clock, status = manager.heard()
    assert (state, status) == ("RELOADING=1", "STATUS=Changing over")
    assert before <= int(clock.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready()
    assert manager.heard() == ["READY=1", "STATUS=3 sites"]
    notifier.hand_over(4711)
    assert manager.heard() == ["MAINPID=4711", "READY=1", "STATUS=3 sites"]
    notifier.stopping()
    assert manager.heard()[0] == "STOPPING=1"


def test_an_error_of_many_lines_sets_nothing_else(manager: Manager) -> None:
    ServiceNotifier(manager.address).failed("wrong here\nMAINPID=1")
    assert manager.heard() == ["STATUS=wrong here MAINPID=1"]


def test_a_manager_that_is_gone_is_complained_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = ServiceNotifier(str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.alive()
    assert [record.message for record in caplog.records] == ["systemd.unreachable"]


def test_the_watchdog_is_fed_only_while_somebody_answers(manager: Manager) -> None:
    answers = iter([True, False, False, True])

    async def is_answering(_: float) -> bool:
        answer = next(answers, None)
        if answer is None:
            raise asyncio.CancelledError
        return answer

    async def feed() -> None:
        with pytest.raises(asyncio.CancelledError):
            await feed_watchdog(ServiceNotifier(manager.address), 0.004, is_answering)

    asyncio.run(feed())
    assert [manager.heard(), manager.heard()] == [["WATCHDOG=1"]] * 2
    with pytest.raises(BlockingIOError):
        manager.heard()
