"""kill -9 at each step of an order: no certificate, key or account is lost, and at most one more order is made.

The CA (or the store) holds up one step, the test kills, then the step goes on or is lost. What was killed comes back by
itself; only the supervisor is started again. The tables say what each point costs in orders: 2 where nobody but the CA
knew of the first one, or where the CA came to look while nobody was there.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.certificate_authority import FETCH, CertificateAuthority
from tests.fakes.gate import Gate
from tests.system.acme import Ports, StoreGate, certifier_of, check_store, running, site, store_of, until_served
from tests.system.pressure import client_ports, is_gone
from tests.system.running import Proxy, until

pytestmark = pytest.mark.system

HOST, NAME, FILE = "a.test", "acme/a.test", "acme%2fa.test.json"


@dataclass(frozen=True)
class Point:
    """A moment of an order: a kind of request, before or after the CA has done it, or a change of the store."""

    what: str
    is_after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.is_after else 'before'} {self.what.removeprefix('os.')}"

    @property
    def is_in_store(self) -> bool:
        return self.what.startswith("os.")


def before(kind: str) -> Point:
    return Point(kind)


def after(kind: str) -> Point:
    return Point(kind, is_after=True)


def write(folder: str) -> Point:
    """Before a record is in its place: it has been written and synced beside it."""
    return Point(f"os.rename {folder}/{FILE}")


def remove(folder: str) -> Point:
    return Point(f"os.remove {folder}/{FILE}")


CERTIFIER = [
    (after("account"), 1),
    (before("order"), 1),
    (after("order"), 2),
    (write("orders"), 2),
    (before("authorization"), 1),
    (before("challenge"), 1),
    (before(FETCH), 1),
    (after(FETCH), 1),
    (after("challenge"), 1),
    (before("finalize"), 1),
    (after("finalize"), 1),
    (after("order-poll"), 1),
    (after("certificate"), 1),
    (write("certificates"), 1),
    (write("state"), 1),
    (remove("orders"), 1),
]
# Its certifier ends the request that is under way, remembers what came of it and leaves.
SUPERVISOR = [
    (after("account"), 1),
    (after("order"), 1),
    (write("orders"), 1),
    (before("authorization"), 1),
    (before("challenge"), 2),
    (before(FETCH), 2),
    (after(FETCH), 1),
    (before("finalize"), 1),
    (after("finalize"), 1),
    (after("certificate"), 1),
    (write("certificates"), 1),
    (write("state"), 1),
]
# Several points of one order each: it does not care.
WORKERS = [
    [after("account"), before("order"), before("authorization"), after("challenge"), before("finalize")],
    [before("account"), after("order"), Point("os.rename /challenges/"), before("challenge"), after("finalize")],
    [after("authorization"), after(FETCH), before("order-poll"), after("order-poll"), before("certificate")],
]


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def ca(tmp_path: Path, ports: Ports) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path, http_port=ports.http) as ca:
        ca.processing_polls = 2
        yield ca


@contextlib.contextmanager
def held(ca: CertificateAuthority, *points: Point) -> Iterator[tuple[list[Gate], tuple[str, ...]]]:
    """Yield a gate for each point, and the command that the proxy is to be started with."""
    with contextlib.ExitStack() as stack:
        gates: list[Gate] = []
        command: tuple[str, ...] = ()
        for point in points:
            if point.is_in_store:
                gate = stack.enter_context(contextlib.closing(StoreGate(point.what)))
                command = gate.command
                gates.append(gate)
            else:
                gates.append(ca.gate(point.what, after=point.is_after))
        yield gates, command


@contextlib.contextmanager
def proxy_of(
    folder: Path, ca: CertificateAuthority, ports: Ports, command: tuple[str, ...], n: int = 1
) -> Iterator[Proxy]:
    kinds = ("http-01", "tls-alpn-01")
    with running(folder, ca, site(HOST), ports=ports, challenges=kinds, workers=n, before=command) as proxy:
        yield proxy


@pytest.mark.parametrize(("point", "orders"), CERTIFIER, ids=str)
def test_the_certifier_is_killed(
    tmp_path: Path, ca: CertificateAuthority, ports: Ports, point: Point, orders: int
) -> None:
    with held(ca, point) as ([gate], command), proxy_of(tmp_path, ca, ports, command) as proxy:
        gate.wait()
        os.kill(certifier_of(proxy), signal.SIGKILL)
        proxy.wait_for("certifier.died")
        # A request that was on its way is lost; of what the CA has done nobody hears.
        gate.open() if point.is_after else gate.drop()
        expect_certificate(ca, proxy)
    check(tmp_path, ca, orders)


@pytest.mark.parametrize(("point", "orders"), SUPERVISOR, ids=str)
def test_the_supervisor_is_killed(
    tmp_path: Path, ca: CertificateAuthority, ports: Ports, point: Point, orders: int
) -> None:
    with held(ca, point) as ([gate], command), proxy_of(tmp_path, ca, ports, command) as proxy:
        gate.wait()
        workers = proxy.workers()
        os.kill(proxy.pid, signal.SIGKILL)
        until(lambda: all(map(is_gone, workers)), "the workers have left")
        gate.open()
        with proxy_of(tmp_path, ca, ports, command) as successor:
            expect_certificate(ca, successor)
        assert proxy.count("certificate.failing") == 0
    check(tmp_path, ca, orders)


@pytest.mark.parametrize("point", [before("authorization"), after("finalize")], ids=str)
def test_a_stop_in_the_middle_is_no_failure(
    tmp_path: Path, ca: CertificateAuthority, ports: Ports, point: Point
) -> None:
    """Told to leave, it does not invite the CA to ports that are closed by then; the next proxy goes on."""
    with held(ca, point) as ([gate], command), proxy_of(tmp_path, ca, ports, command) as proxy:
        gate.wait()
        workers = proxy.workers()
        os.kill(proxy.pid, signal.SIGTERM)
        until(lambda: all(map(is_gone, workers)), "the workers have left")
        gate.open()
        assert proxy.wait() == 0
        assert proxy.count("certificate.failing") == 0
        with proxy_of(tmp_path, ca, ports, command) as successor:
            expect_certificate(ca, successor)
    check(tmp_path, ca, orders=1)


@pytest.mark.parametrize("points", WORKERS, ids=lambda points: ", ".join(map(str, points)))
def test_workers_are_killed(tmp_path: Path, ca: CertificateAuthority, ports: Ports, points: list[Point]) -> None:
    with held(ca, *points) as (gates, command), proxy_of(tmp_path, ca, ports, command, n=3) as proxy:
        first, killed = set(proxy.workers()), set[int]()

        def serving() -> set[int]:
            replaced = {event["child"] for event in proxy.events if event["event"] == "worker.replaced"}
            return first.union(replaced) - killed

        for gate in gates:
            gate.wait()
            victim = min(until(serving, "a worker serves"))
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)
            gate.open()
        expect_certificate(ca, proxy)
        until(lambda: proxy.count("worker.died") == len(points), "all deaths are said")
    check(tmp_path, ca, orders=1)


def test_the_worker_that_the_ca_talks_to_is_killed(tmp_path: Path, ca: CertificateAuthority, ports: Ports) -> None:
    """The CA takes that for a refusal; the next kind of challenge needs an order of its own."""
    with held(ca, before(FETCH)) as ([gate], command), proxy_of(tmp_path, ca, ports, command) as proxy:
        gate.wait()
        (worker,) = proxy.workers()
        until(lambda: client_ports(worker, ports.http), "the CA's connection is accepted")
        os.kill(worker, signal.SIGKILL)
        proxy.wait_for("worker.died")
        gate.open()
        expect_certificate(ca, proxy)
    check(tmp_path, ca, orders=2)


def expect_certificate(ca: CertificateAuthority, proxy: Proxy) -> None:
    """Wait until the CA's certificate is served. Nobody may have waited for another attempt: a kill is no failure."""
    until((proxy.folder / "store" / "certificates" / FILE).exists, "the certificate is in the store")
    until_served(proxy, HOST, ca)
    assert proxy.count("certificate.failing") == 0


def check(folder: Path, ca: CertificateAuthority, orders: int) -> None:
    """Look at what is left when everybody has gone."""
    check_store(folder / "store")
    with contextlib.closing(store_of(folder)) as store:
        bundle = store.get(NAME)
        assert bundle is not None
        assert int(bundle.serial, 16) == ca.issued[-1].serial_number
        assert len(store.list_records("accounts")) == 1
    assert len(ca.accounts) == 1
    assert len(ca.issued) == 1
    assert len(ca.payloads["order"]) == orders
