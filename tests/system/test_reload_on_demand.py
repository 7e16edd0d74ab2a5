"""A reload or an upgrade while a client waits in its handshake for a certificate: who leaves finishes, who stays takes
over."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tests.system.acme import Ports, acme, blind, site, trusting
from tests.system.running import PATIENCE, running_proxy
from tests.system.test_on_demand import app, greet, on_demand, ports

__all__ = ["app", "ports"]  # fixtures

ASK = '[on_demand]\nask = "/may-have-certificate"'

pytestmark = pytest.mark.system


CHANGES = {
    "reload": (signal.SIGHUP, "proxy.reloaded", "generation.ended"),
    "upgrade": (signal.SIGUSR2, "proxy.upgraded", "proxy.left"),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("held", ["order", "finalize"])
def test_who_waits_for_a_certificate_gets_it(tmp_path: Path, ports: Ports, app: str, held: str, how: str) -> None:
    number, done, ended = CHANGES[how]
    sites = on_demand(app, "*.shop.test") + site("a.test", backend=app)
    http, https = f"127.0.0.1:{ports.http}", f"127.0.0.1:{ports.https}"
    with (
        CertificateAuthority(tmp_path, http_port=ports.http) as ca,
        running_proxy(tmp_path, blind(), sites, head=acme(ca, more=ASK), http=http, https=https, drain="9.5s") as proxy,
        ThreadPoolExecutor(1) as pool,
    ):
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        trust, gate = trusting(ca.root), ca.gate(held)
        waiting = pool.submit(greet, proxy, "one.shop.test", trust)
        gate.wait()
        os.kill(proxy.pid, number)
        proxy.wait_for(done, generation=2)
        assert not waiting.done()
        gate.open()
        assert waiting.result(PATIENCE)
        proxy.wait_for("generation.ended", generation=1, cut=0)
        proxy.wait_for(ended)
        assert greet(proxy, "one.shop.test", trust) == waiting.result()
