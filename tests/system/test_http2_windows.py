"""HTTP/2 clients that hold on: windows that stay shut, answers nobody reads, heads and bodies that never end.

Time is the weapon here, so limits are a second or two. Each test says what the worker and the backend hold while the
attack lasts, that honest clients are served meanwhile, and that all of it is let go when the limit is reached.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.fakes.counting_backend import CountingBackend
from tests.fakes.h2_attacker import (
    CONTINUATION,
    DATA,
    HEADERS,
    MOST,
    PING,
    PREFACE,
    Attacker,
    frame,
    get,
    head,
    post,
    settings,
    streams,
    window_update,
)
from tests.fakes.h2_plans import INITIAL_WINDOW, WAVE, many
from tests.system.attacked import MIB, Victim, Visitors, site_of
from tests.system.pressure import descriptors
from tests.system.running import client_context, running_proxy, until, write_pair

pytestmark = pytest.mark.system

CONNECTIONS = 10
CALM, CANCEL, NO_ERROR = 11, 8, 0
LIMITS = 'header_timeout = "1s", body_idle = "1s", write_idle = "2s", keep_alive = "2s"'


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("windows")
    site = site_of(write_pair(folder, authority, "localhost"), "")
    with (
        CountingBackend() as backend,
        running_proxy(
            folder,
            client_context(authority),
            site.replace('""', f'"{backend.url}"'),
            head=f"limits = {{ {LIMITS} }}",
        ) as proxy,
        Visitors(proxy) as visitors,
    ):
        yield Victim(proxy, backend, visitors)
        print(f"visitors: {visitors.answered} answers, the slowest took {visitors.slowest * 1000:.0f} ms")


@contextlib.contextmanager
def crowd(
    victim: Victim, *pairs: tuple[int, int], count: int = CONNECTIONS, reads: bool = True
) -> Iterator[list[Attacker]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(victim.attacker(*pairs, reads=reads))
            stack.callback(made[-1].close)
        yield made


def drained(attackers: list[Attacker], condition: Callable[[Attacker], bool], patience: float = 10.0) -> None:
    """Let each hear what comes until the condition holds for all."""
    deadline = time.monotonic() + patience
    while not all(map(condition, attackers)):
        assert time.monotonic() < deadline, [str(each.reaction) for each in attackers]
        for each in attackers:
            each.wait(lambda each=each: condition(each), 0.05)  # type: ignore[misc]


class TestWindows:
    def test_a_thousand_streams_without_one(self, victim: Victim) -> None:
        """Everybody asks for a GiB and lets nothing of it come: some KiB of each are held, as long as write_idle."""
        with victim.watched() as cost, crowd(victim, (INITIAL_WINDOW, 0)) as attackers:
            for each in attackers:
                each.write(many(b"/big"))
                each.sync()
            victim.visitors.more(3)
            drained(attackers, lambda each: each.reaction.resets[CANCEL] >= WAVE // 10)
        print(f"1 000 streams without a window: {cost.said(CONNECTIONS * WAVE)}; {attackers[0].reaction}")
        assert all(each.reaction.body == 0 for each in attackers)
        assert cost.backend.requests <= CONNECTIONS * WAVE
        assert cost.peak < 64 * MIB
        assert cost.cpu < 5

    def test_it_again_costs_no_more_memory(self, victim: Victim) -> None:
        """What the first such attack needed may stay with the process; it is used again, and nothing is lost."""
        grown = []
        for _ in range(3):
            with victim.watched() as cost, crowd(victim, (INITIAL_WINDOW, 0)) as attackers:
                for each in attackers:
                    each.write(many(b"/big"))
                    each.sync()
                victim.visitors.more(3)
            grown.append(cost.left)
        print(f"again: grown by {', '.join(f'{each / MIB:.1f}' for each in grown)} MiB")
        assert sum(grown[1:]) < 16 * MIB

    def test_streams_without_one_hold_up_no_other(self, victim: Victim) -> None:
        """Forty answers wait for their windows (a page of videos that are paused), others on the connection flow."""
        with crowd(victim, (INITIAL_WINDOW, 0), count=1) as (client,):
            client.write(many(b"/big", 40))
            victim.visitors.more(10)
            first = 1 + 2 * 40
            for stream in streams(20, first):
                before = client.ends
                client.write(get(stream) + window_update(stream, 1000))
                assert client.wait(lambda before=before: client.ends > before, 1), f"{stream}: {client.reaction}"  # type: ignore[misc]
            assert not client.reaction.resets

    def test_a_thousand_streams_with_tiny_ones(self, victim: Victim) -> None:
        """A byte for each frame: the credit for such frames is used up soon."""
        with victim.watched() as cost, crowd(victim, (INITIAL_WINDOW, 0)) as attackers:
            for each in attackers:
                each.write(many(b"/big"))
                each.sync()
            dribs = b"".join(window_update(stream, 1) for stream in streams(WAVE))
            for _ in range(100):
                for each in attackers:
                    each.write(dribs)
            drained(attackers, lambda each: bool(each.reaction.ended))
        frames = CONNECTIONS * WAVE * 100
        print(f"1 000 streams with tiny windows: {cost.said(frames)}; {attackers[0].reaction}")
        assert all(each.reaction.goaway == [CALM] for each in attackers)
        assert cost.peak < 64 * MIB
        assert cost.cpu < 5

    def test_answers_that_nobody_reads(self, victim: Victim) -> None:
        """Every window is as wide as can be, and then the socket is left alone."""
        widest = (INITIAL_WINDOW, MOST)
        with victim.watched() as cost, crowd(victim, widest, reads=False) as attackers:
            sent = victim.backend.seen().sent
            for each in attackers:
                each.write(window_update(0, MOST - 65_535) + many(b"/big"))
            victim.visitors.more(20)
            files = descriptors(victim.worker)
            assert files >= CONNECTIONS
            until(lambda: descriptors(victim.worker) <= files - CONNECTIONS, "write_idle ends them")
            sent = victim.backend.seen().sent - sent
        print(f"answers that nobody reads: {cost.said(CONNECTIONS * WAVE)}; backends sent {sent / MIB:.0f} MiB")
        assert cost.peak < 64 * MIB
        assert cost.cpu < 5


class TestSlowHeads:
    """The time of a header block runs from its first byte."""

    @pytest.mark.parametrize(
        ("begin", "drip"),
        [
            (frame(HEADERS, 0, 1, head()), frame(CONTINUATION, 0, 1, b"")),
            (frame(HEADERS, 0, 1, head()), b""),
            (frame(HEADERS, 4, 1, head())[:-10], b""),
            (frame(HEADERS, 0, 1, head())[:4], b""),
        ],
        ids=["empty CONTINUATION", "no END_HEADERS", "half a block", "half a frame header"],
    )
    def test_they_end(self, victim: Victim, begin: bytes, drip: bytes) -> None:
        with victim.watched() as cost, crowd(victim) as attackers:
            began = time.monotonic()
            for each in attackers:
                each.write(begin)

            def is_over(attacker: Attacker) -> bool:
                attacker.write(drip)
                return bool(attacker.reaction.ended)

            drained(attackers, is_over)
            took = time.monotonic() - began
        print(f"{took:.1f} s of 1 s; {attackers[0].reaction}; {cost.said(1)}")
        assert {each.reaction.goaway[-1] for each in attackers} == {CALM}
        assert took < 1 + 4
        assert cost.backend.requests == 0

    def test_byte_by_byte(self, victim: Victim) -> None:
        """Each byte in a TLS record of its own; the whole block would take ten seconds."""
        block = get(1) * 10
        with victim.watched() as cost, crowd(victim, count=1) as (attacker,):
            began = time.monotonic()
            for byte in block:
                attacker.write(bytes((byte,)))
                if attacker.wait(lambda: bool(attacker.reaction.ended), 0.1):
                    break
            took = time.monotonic() - began
        print(f"byte by byte: {took:.1f} s; {attacker.reaction}; {cost.said(1)}")
        assert took < 1 + 4
        assert attacker.reaction.goaway

    @pytest.mark.parametrize("preface", [b"", PREFACE[:10], PREFACE, PREFACE + settings()[:5]])
    def test_the_preface(self, victim: Victim, preface: bytes) -> None:
        """Who says nothing, or not all of the beginning, is not waited for long."""
        with contextlib.closing(Attacker(victim.proxy.open(context=victim.trust))) as attacker:
            began = time.monotonic()
            attacker.write(preface)
            assert attacker.wait(lambda: bool(attacker.reaction.ended), 8), attacker.reaction
            took = time.monotonic() - began
        print(f"{preface!r}: {attacker.reaction} after {took:.1f} s")
        assert took < 2 + 4


class TestIdle:
    def test_pings_keep_nothing_alive(self, victim: Victim) -> None:
        """Without a stream a connection is idle, whatever else it says."""
        with crowd(victim, count=1) as (attacker,):
            began = time.monotonic()

            while not attacker.wait(lambda: bool(attacker.reaction.ended), 0.1) and time.monotonic() < began + 8:
                attacker.write(frame(PING, 0, 0, bytes(8)))
            took = time.monotonic() - began
        assert attacker.reaction.goaway[-1] == NO_ERROR
        assert 1 < took < 2 + 4


class TestBodies:
    def test_a_thousand_that_never_come(self, victim: Victim) -> None:
        """408 for each after body_idle; the connections go on, the backends are free."""
        with victim.watched() as cost, crowd(victim) as attackers:
            for each in attackers:
                each.write(b"".join(map(post, streams(WAVE))))
                each.sync()
            victim.visitors.more(3)
            drained(attackers, lambda each: each.reaction.statuses[408] == WAVE)
            for each in attackers:
                assert each.sync(), each.reaction
        print(f"1 000 bodies that never come: {cost.said(CONNECTIONS * WAVE)}; {attackers[0].reaction}")
        assert cost.peak < 64 * MIB

    def test_a_thousand_that_nobody_takes(self, victim: Victim) -> None:
        """Each stream sends as much as its window allows, to a backend that reads nothing."""
        with victim.watched() as cost, crowd(victim) as attackers:
            for each in attackers:
                for stream in streams(WAVE):
                    each.write(post(stream, b"/stuck") + frame(DATA, 0, stream, bytes(16_384)) * 3)
                each.sync()
            victim.visitors.more(3)
        print(f"1 000 bodies that nobody takes: {cost.said(CONNECTIONS * WAVE * 4)}; {attackers[0].reaction}")
        assert cost.peak < 96 * MIB


class TestChurn:
    COUNT = 60

    @pytest.mark.parametrize(
        "last",
        [b"", many(b"/never"), many(b"/ok"), frame(HEADERS, 0, 1, head()), many(b"/big")],
        ids=["nothing", "/never", "/ok", "half a head", "/big"],
    )
    def test_connections_that_come_and_go(self, victim: Victim, last: bytes) -> None:
        with victim.watched() as cost:
            for _ in range(self.COUNT):
                attacker = Attacker(victim.proxy.open(context=victim.trust))
                attacker.write(PREFACE + settings() + last)
                attacker.close()
        print(f"{self.COUNT} connections, {last[:12]!r}: {cost.said(self.COUNT)}")
        assert cost.peak < 32 * MIB
        assert cost.cpu < 5


def test_streams_do_not_use_up_the_descriptors(tmp_path: Path, authority: trustme.CA) -> None:
    """Ten clients ask a hundred slow things each, of a worker that may open four hundred files: others are served."""
    with (
        CountingBackend() as backend,
        running_proxy(
            tmp_path,
            client_context(authority),
            site_of(write_pair(tmp_path, authority, "localhost"), backend.url),
            before=("prlimit", "--nofile=400:400"),
        ) as proxy,
        Visitors(proxy) as visitors,
    ):
        victim = Victim(proxy, backend, visitors)
        with victim.watched() as cost, crowd(victim) as attackers:
            for each in attackers:
                each.write(many(b"/never"))
                each.sync()
            held = descriptors(victim.worker)
            visitors.more(5)
        refused = [each.reaction.statuses[503] for each in attackers]
        print(f"{held} of 400 descriptors; refused: {refused}; {cost.said(CONNECTIONS * WAVE)}")
        assert held < 300
        assert max(refused) < WAVE
        assert proxy.count("listener.exhausted") == 0
