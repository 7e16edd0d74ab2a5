"""What becomes of a client's window: every byte of it comes back, whatever becomes of the stream."""

from __future__ import annotations

import pytest

from tests.fakes.h2_memory import POST, Wire, body, request
from tlsproxy.proxy.http2_inflow import Inflow

PIECE = 16_384


class Holder:
    """What an inflow knows of its driver."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.codec = self.wire.codec
        self.grown = 0

    def schedule(self) -> None:
        self.wire.pump()

    def receive(self, inflow: Inflow, pieces: int = 3) -> None:
        for _ in range(pieces):
            self.wire.feed(body(1, bytes(PIECE)))
            inflow.count(PIECE)
            inflow.taken(flows=False)


@pytest.fixture
def holder() -> Holder:
    holder = Holder()
    holder.wire.feed(request(1, POST, ended=False))
    return holder


@pytest.fixture
def inflow(holder: Holder) -> Inflow:
    return Inflow(holder, 1)  # type: ignore[arg-type]  # a driver as far as an inflow knows it


def test_what_was_taken_comes_back(holder: Holder, inflow: Inflow) -> None:
    holder.receive(inflow)
    assert holder.wire.granted(1) == 2 * PIECE  # as soon as it is worth a frame
    holder.receive(inflow, 1)
    assert holder.wire.granted(1) == 4 * PIECE


def test_nothing_comes_back_while_the_taker_is_full(holder: Holder, inflow: Inflow) -> None:
    inflow.pause()
    holder.receive(inflow)
    assert holder.wire.granted(1) == 0
    inflow.resume()
    assert holder.wire.granted(1) == 3 * PIECE


def test_an_end_while_the_taker_is_full_gives_nothing_back_yet(holder: Holder, inflow: Inflow) -> None:
    inflow.pause()
    holder.receive(inflow)
    inflow.end()
    assert holder.wire.granted(1) == 0
    inflow.resume()
    assert holder.wire.granted(1) == 3 * PIECE


def test_what_is_dropped_comes_back_though_its_taker_was_full(holder: Holder, inflow: Inflow) -> None:
    inflow.pause()
    holder.receive(inflow)
    inflow.drop()
    assert holder.wire.granted(1) == 3 * PIECE
    holder.receive(inflow, 2)
    assert holder.wire.granted(1) == 5 * PIECE  # and what still comes, too


def test_what_came_early_comes_back_when_it_is_taken(holder: Holder, inflow: Inflow) -> None:
    for _ in range(3):
        holder.wire.feed(body(1, bytes(PIECE)))
        inflow.count(PIECE)
    inflow.resume()
    inflow.acknowledge()
    assert holder.wire.granted(1) == 3 * PIECE


def test_only_what_flows_to_a_backend_gets_a_larger_window(holder: Holder, inflow: Inflow) -> None:
    holder.receive(inflow)
    assert holder.grown == 0
    holder.wire.feed(body(1, bytes(PIECE)), body(1, bytes(PIECE)))
    inflow.count(2 * PIECE)
    inflow.taken(flows=True)
    assert holder.grown == 1
    inflow.end()
    assert holder.grown == 0
