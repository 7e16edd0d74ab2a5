"""Backends that speak HTTP/2 and are hostile or broken (tests.fakes.h2_hostile): what their clients get, what it costs.

A backend is trusted with what it says, not with how much or in what form. Whatever it does, its own clients get an
answer that says whose fault it is, in time, the worker stays as it was, and clients of other backends notice nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import trustme

from tests.fakes.counting_backend import CountingBackend
from tests.fakes.h2_hostile import HOSTILITIES, HostileBackend, Hostility
from tests.system.attacked import MIB, Victim, Visitors
from tests.system.pressure import resident
from tests.system.running import client_context, running_proxy, write_pair

pytestmark = pytest.mark.system

CUT = 0  # the answer is broken off, so that nobody takes it for whole
EXPECTED = {  # where it is not 502 alone
    "says nothing": {504},
    "SETTINGS and no more": {504},
    "half a head": {504, 502},  # the next request's head falls into the first one's
    "no streams": {504},
    "body too short": {CUT},
    "body too long": {CUT},
    "trailers of 100 KiB": {CUT},
    "DATA beyond the window": {CUT, 502},
    "DATA, empty": {CUT, 502},
    "DATA, padding only": {CUT, 502},
    "DATA behind the end": {200},
    "heads behind the end": {200, 502},
    "refuses everything": {503},  # nothing was done, so it is asked once more
    "leaves at once": {503},
    "leaves, and is angry": {503},
    "frames of 16 MiB allowed": {200},
    "a table of 4 GiB": {200},
    "a window of 2^31": {502, 503},  # it may come before the request is on its way: then nothing was done
}


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileBackend]:
    with HostileBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, hostile: HostileBackend
) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("hostile")
    with CountingBackend() as backend:
        sites = f"""
            [[sites]]
            hosts = ["localhost"]
            certificate = {write_pair(folder, authority, "localhost")}
            [[sites.routes]]
            path = "/"
            backends = ["{backend.url}"]
            [[sites.routes]]
            path = "/hostile"
            backends = ["{hostile.url}"]
            response_timeout = "1s"
        """
        with (
            running_proxy(
                folder, client_context(authority), sites, head='limits = { connect_timeout = "1s" }'
            ) as proxy,
            Visitors(proxy) as visitors,
        ):
            yield Victim(proxy, backend, visitors)
            print(f"visitors: {visitors.answered} answers, the slowest took {visitors.slowest * 1000:.0f} ms")


def ask(client: httpx.Client) -> int:
    """Return the status, or CUT."""
    try:
        return client.get("/hostile").status_code
    except (httpx.ReadError, httpx.RemoteProtocolError):
        return CUT


@pytest.mark.parametrize("way", HOSTILITIES, ids=lambda way: way.name)
def test_hostility(victim: Victim, hostile: HostileBackend, way: Hostility) -> None:
    with (
        victim.proxy.client() as old,
        victim.proxy.client(http2=True) as new,
        victim.watched() as cost,
        hostile.being(way) as reactions,
    ):
        statuses = [ask(client) for client in (old, new, old)]
    sent = sum(each.sent for each in reactions)
    print(f"{way.name}: {statuses} by {len(reactions)} connections, {reactions[0]}; {cost.said(sent)}")
    assert set(statuses) <= EXPECTED.get(way.name, {502})
    assert cost.cpu < 1
    assert cost.peak < 16 * MIB
    assert cost.lines <= 9


def test_hundreds_of_broken_connections_leave_nothing(victim: Victim, hostile: HostileBackend) -> None:
    """Each request breaks its connection: none of them stays with the worker, and the log is not filled."""
    floods = [each for each in HOSTILITIES if each.name in ("PING", "HPACK bomb", "DATA, padding only", "pushes")]
    lines = len(victim.proxy.lines)
    grown = []
    with victim.proxy.client() as client:
        for _ in range(3):
            before = resident(victim.worker)
            for way in floods * 10:
                with hostile.being(way):
                    ask(client)
            grown.append(resident(victim.worker) - before)
    lines = len(victim.proxy.lines) - lines
    print(f"grown by {', '.join(f'{each / MIB:.1f}' for each in grown)} MiB; {lines} lines logged")
    assert sum(grown[1:]) < MIB
    assert lines < 100
