"""Renewals under load: nobody who is connected notices, whoever connects gets the new certificate, people can watch."""

from __future__ import annotations

import contextlib
from itertools import takewhile
from pathlib import Path

import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, served, site, trusting
from tests.system.commands import admin_json, following, row
from tests.system.running import until
from tests.system.visitors import staying, talking, visiting

pytestmark = pytest.mark.system

RENEWALS = 5


def test_five_renewals_cost_no_connection(tmp_path: Path, app: str) -> None:
    ports = Ports()
    with (
        ChallTestSrv(tmp_path, ipv6="") as dns,
        Pebble(tmp_path, dns=dns.address, http_port=ports.http) as ca,
        running(tmp_path, ca, site("a.test", backend=app), ports=ports, workers=2) as proxy,
    ):
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        trust = trusting(ca.root())
        serials = []
        with contextlib.ExitStack() as visitors:
            stayers = []
            for worker in proxy.workers():
                with proxy.alone(worker):
                    stayers += [
                        visitors.enter_context(staying(proxy, "a.test", trust)),
                        visitors.enter_context(talking(proxy, "a.test", trust)),
                    ]
            visits = visitors.enter_context(visiting(proxy, "a.test", trust))
            for _ in range(RENEWALS):
                with following(proxy, "certs", "renew", "a.test") as lines:
                    seen = list(lines)
                assert "served: a.test: the new certificate is served" in seen
                for worker in proxy.workers():
                    with proxy.alone(worker):
                        certificate = served(proxy, "a.test")
                        assert certificate is not None
                        serials.append(certificate.serial_number)
        assert serials[::2] == serials[1::2]  # both workers
        assert len(set(serials)) == RENEWALS
        assert set(visits.serials) > set(serials)
        assert min(each.good for each in stayers) > RENEWALS
        until(lambda: proxy.count("certificate.renewed", certificate="acme/a.test") == RENEWALS, "all are told")
        assert proxy.count("certificate.served_mismatch") == 0
        assert row(proxy, "acme/a.test")["served"] is True
        assert admin_json(proxy, "status")["certificates"] == {"valid": 1, "pending": 0, "failed": 0}


def test_who_asked_for_a_renewal_sees_each_step_as_it_begins(tmp_path: Path) -> None:
    ports = Ports()
    with (
        CertificateAuthority(tmp_path, http_port=ports.http) as ca,
        running(tmp_path, ca, site("a.test"), ports=ports) as proxy,
    ):
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        gate = ca.gate("finalize")
        with following(proxy, "certs", "renew", "a.test") as lines:
            until_held = list(takewhile(lambda line: not line.startswith("finalize: "), lines))
            gate.wait()
            assert proxy.count("certificate.renewed") == 0
            gate.open()
            rest = list(lines)
    assert until_held == [
        "store: trying the store",
        f"account: asking {ca.directory}",
        f"order: ordering for a.test from {ca.directory}",
        "challenge: a.test: making http-01 ready",
        "challenge: a.test: the answer for http-01 lies in the store",
        "validation: a.test: the CA looks at http-01",
        "validation: a.test: valid",
    ]
    assert rest[:2] == ["download: downloading the certificate", "served: a.test: the new certificate is served"]
    assert rest[2].startswith("acme/a.test: valid until ")
