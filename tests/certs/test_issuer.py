"""One order against a fake CA: every step, and what a failure of each leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certs.ordering import Desk, job_for, make_desk
from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs.inflight import OrdersInFlight
from tlsproxy.certs.job import Issued, Job
from tlsproxy.certs.problems import AcmeFailure, FailureKind


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.fixture
def desk() -> Iterator[Desk]:
    with make_desk() as desk:
        yield desk


def obtain(desk: Desk, job: Job) -> Issued:
    return asyncio.run(desk.issuer.obtain(job, desk.progress))


def failure_of(desk: Desk, job: Job) -> AcmeFailure:
    with pytest.raises(AcmeFailure) as caught:
        obtain(desk, job)
    return caught.value


def test_an_order_leads_to_a_bundle_and_leaves_nothing(desk: Desk, ca: CertificateAuthority) -> None:
    issued = obtain(desk, job_for(ca, "a.test", "b.test", "192.0.2.7"))
    bundle = issued.bundle
    assert bundle.check_names(["a.test", "b.test", "192.0.2.7"]) == []
    assert (bundle.source, bundle.directory, bundle.key_type) == ("acme", ca.directory, "ecdsa-p256")
    assert bundle.account in ca.accounts
    assert bundle.ari_id
    assert issued.winners == {"a.test": "tls-alpn-01", "b.test": "tls-alpn-01", "192.0.2.7": "tls-alpn-01"}
    assert desk.solvers[0].present_now == set()
    assert [step.kind for step in desk.steps][0::100] == ["account"]
    assert {step.kind for step in desk.steps} == {"account", "order", "challenge", "validation", "finalize", "download"}
