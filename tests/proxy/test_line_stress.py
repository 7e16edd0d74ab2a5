"""Many clients, few places, and operators who change everything meanwhile: each request is sent once, none is lost."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.peer import CUT, Peer
from tests.fakes.stage import Stage
from tests.proxy.lines import GET, ONE, apply, line_of
from tlsproxy.runtime.messages import BackendPlan

CLIENTS = 10
REQUESTS = 8
ROUTE = "a.test /"


class Answering:
    """Servers that answer whatever comes, each connection in a thread, and remember what that was."""

    def __init__(self) -> None:
        self.targets: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, backend: Backend) -> None:
        self._run(self._accept, backend)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)

    def _run(self, target: object, argument: object) -> None:
        thread = threading.Thread(target=target, args=(argument,))  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, backend: Backend) -> None:
        with contextlib.suppress(OSError):
            while True:
                if backend.is_called(0.05):
                    self._run(self._answer, backend.accept())
                elif backend.fileno() < 0:
                    return

    def _answer(self, upstream: Peer) -> None:
        with contextlib.suppress(EOFError, *CUT, OSError):
            while True:
                target = upstream.message().target
                with self._lock:
                    self.targets[target] += 1
                time.sleep(0.001)  # what it does for each
                upstream.send(OK)


def plans(urls: list[str], chance: random.Random) -> Iterator[BackendPlan]:
    """Everything operators can say, at random; there is always somebody left to ask."""
    while True:
        drained = (chance.choice(urls),) if chance.random() < 0.3 else ()
        to = (chance.choice([url for url in urls if url not in drained]),)
        swapped: dict[str, tuple[str, ...]] = {ROUTE: to} if chance.random() < 0.4 else {}
        paused = {"a.test": time.time() + 60} if chance.random() < 0.4 else {}
        yield BackendPlan(drained=drained, swapped=swapped, paused=paused)


@pytest.mark.parametrize("sticky", ["", "who"])
def test_each_is_sent_once_and_answered(stage: Stage, sticky: str) -> None:
    chance = random.Random(20)
    backends = [stage.backend(), stage.backend()]
    servers = Answering()
    stage.serve(*backends, route={"max_requests": 2, "hold": 5, "sticky": sticky}, server=ONE)
    answered: Counter[bytes] = Counter()
    left: set[bytes] = set()
    lock = threading.Lock()

    def visit(number: int) -> None:
        mine = random.Random(number)
        client = stage.connect()
        for turn in range(REQUESTS):
            target = b"/%d-%d" % (number, turn)
            client.send(GET % target)
            if mine.random() < 0.15:
                client.close()
                client = stage.connect()
                left.add(target)
                continue
            assert client.message().status == 200
            with lock:
                answered[target] += 1

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(CLIENTS)]
    for backend in backends:
        servers.start(backend)
    for visitor in visitors:
        visitor.start()
    for plan in itertools.islice(plans([backend.url for backend in backends], chance), 40):
        apply(stage, plan)
        time.sleep(0.005)  # lets something happen under this plan
    apply(stage, BackendPlan())
    for visitor in visitors:
        visitor.join(20)
    stage.wait(lambda: len(line_of(stage)) == 0)
    stage.wait(lambda: all(backend.active == 0 for backend in stage.front._backends.values()))
    apply(stage, BackendPlan(drained=tuple(backend.url for backend in backends)))  # which ends their connections
    for backend in backends:
        backend.refuse()
    servers.join()

    asked = {b"/%d-%d" % (number, turn) for number in range(CLIENTS) for turn in range(REQUESTS)}
    assert set(answered) == asked - left
    assert set(servers.targets.values()) == {1}
    assert set(answered) <= set(servers.targets)
