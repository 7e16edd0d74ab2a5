"""What the certifier answers to each verb of the admin API, with a real keeper and a fake CA behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.certs.ordering import SOON
from tests.fakes.certificate_authority import CertificateAuthority
from tests.store.pki import issue
from tlsproxy.certs import conversation
from tlsproxy.certs.acme_manager import AcmeManager
from tlsproxy.runtime import certifier_calls
from tlsproxy.runtime.certifier_calls import CertifierCalls
from tlsproxy.runtime.control import ControlError
from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult
from tlsproxy.settings import Settings
from tlsproxy.store.base import CertificateStore, open_store


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@dataclass
class Desk:
    """The certifier's answering side, with everything it has sent."""

    calls: CertifierCalls
    store: CertificateStore
    manager: AcmeManager
    sent: list[AdminProgress | AdminResult] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    last: int = 0

    async def ask(self, verb: str, name: str = "", **options: str) -> AdminResult:
        self.last = number = self.last + 1
        self.calls.take(AdminCall(number, verb, name, options))
        while not (results := [each for each in self.sent if isinstance(each, AdminResult) and each.id == number]):
            await asyncio.sleep(0.01)
        assert "PRIVATE KEY" not in json.dumps([str(each) for each in self.sent])
        return results[0]

    def steps(self) -> set[str]:
        return {each.step for each in self.sent if isinstance(each, AdminProgress)}


@asynccontextmanager
async def open_desk(ca: CertificateAuthority, *, has_acme: bool = True) -> AsyncIterator[Desk]:
    sites = [
        {"hosts": ["a.test", "b.test"], "certificate": "acme", "backends": ["http://127.0.0.1:1"]},
        {"hosts": ["localhost"], "certificate": "internal", "backends": ["http://127.0.0.1:1"]},
        {"hosts": ["*.shop.test"], "certificate": "on_demand", "backends": ["http://127.0.0.1:1"]},
    ]
    acme = {"directory": ca.directory, "ca_bundle": str(ca.ca_bundle)}
    settings = Settings.model_validate({"acme": acme, "on_demand": {"ask": "/ask"}, "sites": sites})
    store = open_store("memory:")
    manager = AcmeManager(settings, store, announce=lambda names: None, refuse=lambda host, reason, seconds: None)
    sent: list[AdminProgress | AdminResult] = []
    announced: list[str] = []
    calls = CertifierCalls(settings, store, sent.append, announced.append)
    await manager.start()
    if has_acme:
        calls.acme = manager
    try:
        yield Desk(calls, store, manager, sent, announced)
    finally:
        await calls.close()
        await manager.stop(0.2)


def story(ca: CertificateAuthority, tell: Callable[[Desk], Awaitable[None]], *, has_acme: bool = True) -> None:
    async def run() -> None:
        with mock.patch.object(conversation, "FIRST_PAUSE", SOON):
            async with open_desk(ca, has_acme=has_acme) as desk:
                await tell(desk)

    asyncio.run(asyncio.wait_for(run(), 60))


def error(result: AdminResult) -> str:
    body: Any = result.body
    return str(body["error"])


def test_obtaining_shows_its_steps_and_the_certificate(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        result = await desk.ask("obtain", "B.test")
        assert (result.status, result.body["name"]) == (200, "acme/a.test")
        assert sorted(result.body["names"]) == ["a.test", "b.test"]
        assert result.body["not_after"].endswith("Z")
        again = await desk.ask("obtain", "acme/a.test")
        assert again.status == 409
        assert error(again).startswith("acme/a.test: nothing is ordered before ")
        assert error(again).endswith("See: tlsproxy admin certs why acme/a.test")

    story(ca, tell)


def test_renewing_makes_another(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        first = (await desk.ask("renew", "a.test")).body["serial"]
        result = await desk.ask("renew", "a.test")
        assert result.body["serial"] != first
        assert {"account", "order", "challenge", "validation", "finalize", "download"} <= desk.steps()

    story(ca, tell)


def test_a_failure_is_the_ca_s_own_words(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        ca.validation_fails("a.test", "connection", "192.0.2.1: Fetching http://a.test/x: Connection refused")
        result = await desk.ask("renew", "a.test")
        assert result.status == 502
        assert "192.0.2.1" in error(result)

    story(ca, tell)


def test_a_limit_of_the_ca_has_its_status(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        await desk.ask("obtain", "a.test")
        ca.next_order_fails("rateLimited", "too many", status=429, headers={"Retry-After": "7200"})
        assert (await desk.ask("renew", "a.test")).status == 429
        assert (await desk.ask("renew", "a.test")).status == 409  # not asked again before it is time
        assert (await desk.ask("renew", "a.test", force="true")).status == 200

    story(ca, tell)


@pytest.mark.parametrize(("name", "status"), [("localhost", 409), ("strange.test", 404), ("acme/strange.test", 404)])
def test_what_no_ca_is_asked_for(ca: CertificateAuthority, name: str, status: int) -> None:
    async def tell(desk: Desk) -> None:
        for verb in ("obtain", "renew"):
            result = await desk.ask(verb, name)
            assert result.status == status
            assert name in error(result)

    story(ca, tell)


def test_a_person_may_obtain_an_on_demand_host(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        assert (await desk.ask("obtain", "x.shop.test")).status == 200
        assert desk.store.get("acme/x.shop.test")

    story(ca, tell)


def test_a_reason_that_there_is_not_revokes_nothing(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        await desk.ask("renew", "a.test")
        result = await desk.ask("revoke", "a.test", reason="foo")
        assert result.status == 409
        assert "'foo' is no reason to revoke. Give one of unspecified, keyCompromise," in error(result)
        assert ca.revoked == {}

    story(ca, tell)


def test_revoking_replaces(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        first = (await desk.ask("renew", "a.test")).body["serial"]
        result = await desk.ask("revoke", "a.test", reason="superseded")
        assert (result.status, result.body["revoked"]) == (200, True)
        assert result.body["serial"] != first
        assert ca.revoked == {int(first, 16): 4}
        assert (await desk.ask("revoke", "strange.test")).status == 409

    story(ca, tell)


def test_removing_what_a_site_needs_has_to_be_meant(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        first = (await desk.ask("renew", "a.test")).body["serial"]
        refused = await desk.ask("remove", "a.test")
        assert (refused.status, "--force" in error(refused)) == (409, True)
        assert (await desk.ask("remove", "a.test", force="true")).status == 200
        await desk.manager.keeper.settle()
        bundle = desk.store.get("acme/a.test")
        assert bundle
        assert bundle.serial != first
        desk.store.put("acme/old.test", issue("old.test").bundle())
        assert (await desk.ask("remove", "old.test")).status == 200
        assert (await desk.ask("remove", "old.test")).status == 404

    story(ca, tell)


def test_what_is_removed_during_the_start_is_removed_by_the_keeper(ca: CertificateAuthority) -> None:
    """Without it workers would go on to serve what is gone, and its state would stay."""

    async def tell(desk: Desk) -> None:
        desk.store.put("acme/a.test", issue("a.test", "b.test").bundle())
        await desk.manager.notice("acme/a.test")
        removing = asyncio.create_task(desk.ask("remove", "a.test", force="true"))
        await desk.ask("list")
        desk.calls.acme = desk.manager
        desk.calls.tried.set()
        assert (await removing).status == 200
        await desk.manager.keeper.settle()
        bundle = desk.store.get("acme/a.test")
        assert bundle
        assert bundle.source == "acme"  # it has been replaced, at once

    story(ca, tell, has_acme=False)


def test_work_that_is_asked_for_during_the_start_waits_for_its_end(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        renewing = asyncio.create_task(desk.ask("renew", "a.test"))
        await desk.ask("list")
        desk.calls.acme = desk.manager
        desk.calls.tried.set()
        assert (await renewing).status == 200

    story(ca, tell, has_acme=False)


def test_what_is_removed_without_a_keeper_is_announced(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        desk.store.put("acme/old.test", issue("old.test").bundle())
        desk.calls.trouble = "OSError: no disk"
        desk.calls.tried.set()
        assert (await desk.ask("remove", "old.test")).status == 200
        assert desk.announced == ["acme/old.test"]
        assert not desk.store.list()

    story(ca, tell, has_acme=False)


def test_what_nobody_has_looked_at_is_not_counted(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        await desk.ask("renew", "a.test")
        desk.manager.keeper._has_looked = False
        status = (await desk.ask("status")).body
        assert status == {"state": "starting", "valid": 1, "pending": 0, "failed": 0}  # that of the internal CA
        await desk.manager.keeper.look()
        assert (await desk.ask("status")).body == {"state": "running", "valid": 2, "pending": 0, "failed": 0}

    story(ca, tell)


def test_what_was_imported_is_announced(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        await desk.ask("renew", "a.test")
        desk.store.put("acme/a.test", issue("a.test", "b.test", days=(-1, 80)).bundle())
        assert (await desk.ask("announce", "a.test")).status == 200
        held = desk.manager.shelf.held("acme/a.test")
        assert held
        assert held.source == "file"

    story(ca, tell)


def test_questions_are_answered(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        await desk.ask("renew", "a.test")
        rows = (await desk.ask("list")).body
        assert [row["name"] for row in rows] == ["acme/a.test", "internal/localhost"]
        assert (await desk.ask("show", "b.test")).body["name"] == "acme/a.test"
        assert (await desk.ask("why", "a.test")).body["sentences"]
        assert (await desk.ask("quota")).body == []
        status = (await desk.ask("status")).body
        assert (status["state"], status["valid"], status["failed"]) == ("running", 2, 0)
        unknown = await desk.ask("show", "strange.test")
        assert (unknown.status, "strange.test" in error(unknown)) == (404, True)
        assert (await desk.ask("dance")).status == 404

    story(ca, tell)


def test_why_tells_what_is_under_way(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        ca.processing_polls = -1
        desk.calls.take(AdminCall(7, "renew", "a.test"))
        while "finalize" not in desk.steps():
            await asyncio.sleep(0.01)
        why = (await desk.ask("why", "b.test")).body
        assert why["now"] == {"step": "finalize", "host": "", "text": "asking for the signature"}
        assert why["sentences"][1] == "Under way now: asking for the signature."

    story(ca, tell)


def test_account_keys_are_replaced(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        await desk.ask("renew", "a.test")
        (url,) = ca.accounts
        key = dict(ca.accounts[url]["jwk"])
        result = await desk.ask("rollover")
        assert result.body == [{"directory": ca.directory, "account": url}]
        assert ca.accounts[url]["jwk"] != key
        assert (await desk.ask("renew", "a.test")).status == 200

    story(ca, tell)


def test_before_the_ca_can_be_asked(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifier_calls, "LONGEST_START", 0.05)

    async def tell(desk: Desk) -> None:
        for verb in ("obtain", "renew", "revoke", "rollover"):
            refused = await desk.ask(verb, "a.test")
            assert (refused.status, "it has just started" in error(refused)) == (503, True)
        assert (await desk.ask("list")).status == 200
        assert (await desk.ask("status")).status == 200

    story(ca, tell, has_acme=False)


def test_whoever_waits_when_the_certifier_leaves_gets_an_answer(ca: CertificateAuthority) -> None:
    async def tell(desk: Desk) -> None:
        ca.processing_polls = -1
        desk.calls.take(AdminCall(7, "renew", "a.test"))
        while "finalize" not in desk.steps():
            await asyncio.sleep(0.01)
        await desk.calls.close()
        result = desk.sent[-1]
        assert isinstance(result, AdminResult)
        assert (result.id, result.status) == (7, 503)

    story(ca, tell)


def test_an_answer_that_is_too_long_is_still_a_result(tmp_path: Path) -> None:
    sent: list[AdminProgress | AdminResult] = []

    def send(message: AdminProgress | AdminResult) -> None:
        if isinstance(message, AdminResult) and message.status == 200:
            raise ControlError("control message AdminResult has 9 bytes, the limit is 8")
        sent.append(message)

    async def story() -> None:
        calls = CertifierCalls(Settings(), open_store("memory:"), send, lambda _: None)
        calls.take(AdminCall(1, "list"))
        while not sent:
            await asyncio.sleep(0.01)
        await calls.close()

    asyncio.run(asyncio.wait_for(story(), 10))
    assert sent == [AdminResult(1, 500, {"error": sent[0].body["error"]})]  # type: ignore[union-attr]
    assert "too long" in str(sent[0])
