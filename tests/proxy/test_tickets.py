from __future__ import annotations

import ssl
from dataclasses import replace

import pytest
import trustme

from tests.proxy.echo import EchoWorker, bundle, client_context
from tests.proxy.test_contexts import begin, session_of
from tlsproxy.proxy import tickets
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.sitetls import SiteTls
from tlsproxy.proxy.tickets import EPOCH_SECONDS, derive_keys, share_tickets

AUTHORITY = trustme.CA()
SITE = SiteTls(("a.test",), (bundle(AUTHORITY, "a.test"),))
MASTER = bytes(range(32))

shared = pytest.mark.skipif(tickets._control is None, reason="ticket keys can't be set on this Python")
versions = pytest.mark.parametrize("version", ["1.2", "1.3"])


def test_keys_depend_on_everything() -> None:
    keys = {
        derive_keys(MASTER, "a.test", "1.2|off|", 1),
        derive_keys(MASTER[1:], "a.test", "1.2|off|", 1),
        derive_keys(MASTER, "b.test", "1.2|off|", 1),
        derive_keys(MASTER, "a.test", "1.2|require|00", 1),
        derive_keys(MASTER, "a.test", "1.2|off|", 2),
        derive_keys(MASTER, "a.test1", ".2|off|", 1),
    }
    assert len(keys) == 6
    assert {len(key) for key in keys} == {80}
    assert derive_keys(MASTER, "a.test", "1.2|off|", 1) in keys


@shared
@versions
def test_a_session_resumes_on_another_worker(version: str) -> None:
    context = client_context(AUTHORITY, version)
    with (
        EchoWorker(contexts=ContextTable([SITE], ticket_secret=MASTER)) as first,
        EchoWorker(contexts=ContextTable([SITE], ticket_secret=MASTER)) as second,
    ):
        session = session_of(first, "a.test", context)
        assert begin(second, "a.test", context, session) == "resumed"


@shared
@versions
def test_a_session_survives_the_renewal_of_the_certificate(version: str) -> None:
    context = client_context(AUTHORITY, version)
    with EchoWorker(contexts=ContextTable([SITE], ticket_secret=MASTER)) as worker:
        session = session_of(worker, "a.test", context)
        worker.call(lambda: worker.contexts.replace(["a.test"], (bundle(AUTHORITY, "a.test"),)))
        assert begin(worker, "a.test", context, session) == "resumed"


@versions
def test_another_secret_is_another_machine(version: str) -> None:
    context = client_context(AUTHORITY, version)
    with EchoWorker([SITE]) as first, EchoWorker([SITE]) as second:
        session = session_of(first, "a.test", context)
        assert begin(second, "a.test", context, session) == "new"


@shared
def test_keys_change_with_the_day() -> None:
    now = [EPOCH_SECONDS * 20_000.0]
    context = client_context(AUTHORITY)
    with EchoWorker(contexts=ContextTable([SITE], ticket_secret=MASTER, clock=lambda: now[0])) as worker:
        session = session_of(worker, "a.test", context)
        now[0] += EPOCH_SECONDS - 1
        assert begin(worker, "a.test", context, session) == "resumed"
        now[0] += 1
        assert begin(worker, "a.test", context, session) == "new"


@shared
@versions
def test_each_site_and_policy_has_its_own_keys_on_every_worker(version: str) -> None:
    """Shared keys are what brings the bypass of CVE-2025-23419 back; these are shared per site and policy only."""
    authority = trustme.CA()
    mtls = replace(SITE, client_ca_pem=authority.cert_pem.bytes().decode(), client_auth="require")
    context = client_context(AUTHORITY, version)
    with (
        EchoWorker(contexts=ContextTable([SITE], ticket_secret=MASTER)) as open_worker,
        EchoWorker(contexts=ContextTable([mtls], ticket_secret=MASTER)) as strict_worker,
    ):
        session = session_of(open_worker, "a.test", context)
        with pytest.raises(ssl.SSLError):
            begin(strict_worker, "a.test", context, session)


def test_without_the_call_there_are_no_shared_tickets_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tickets, "_control", None)
    monkeypatch.setattr(tickets, "_said", False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert not share_tickets(context, bytes(80))
    assert not share_tickets(context, bytes(80))
    assert [record.message for record in caplog.records] == ["tickets.not_shared"]


def test_an_unknown_python_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 99, 0, "final", 0))
    assert tickets._find_control() is None
