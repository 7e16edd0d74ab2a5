"""What the parts of an AcmeManager do together, against a fake CA."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs.acme_manager import AcmeManager
from tlsproxy.certs.attempt import Asked, Failed, Obtained
from tlsproxy.certs.progress import unwatched
from tlsproxy.settings import Settings
from tlsproxy.store.base import open_store

NAME = "acme/a.test"


def settings(ca: CertificateAuthority) -> Settings:
    site = {"hosts": ["a.test"], "certificate": "acme", "backends": ["http://127.0.0.1:1"]}
    acme = {"directory": ca.directory, "ca_bundle": str(ca.ca_bundle)}
    return Settings.model_validate({"acme": acme, "sites": [site]})


def test_an_account_s_key_is_changed_after_the_orders_under_way(tmp_path: Path) -> None:
    async def story(ca: CertificateAuthority) -> None:
        manager = AcmeManager(
            settings(ca), open_store("memory:"), announce=lambda names: None, refuse=lambda host, reason, seconds: None
        )
        manager.keeper.want(manager.wishes.of_sites(settings(ca).sites))
        gate = ca.gate("finalize")
        order = asyncio.create_task(manager.obtain(NAME, Asked(), unwatched))
        await asyncio.to_thread(gate.wait)
        change = asyncio.create_task(manager.roll_over())
        ((url, account),) = ca.accounts.items()
        key = dict(account["jwk"])
        await asyncio.wait([change], timeout=0.3)  # ten times as long as it takes
        assert (change.done(), ca.count["key-change"]) == (False, 0)
        gate.open()
        assert isinstance(await order, Obtained)
        assert await change == [(ca.directory, url)]
        assert ca.count["key-change"] == 1
        assert ca.accounts[url]["jwk"] != key
        await manager.stop(1.0)

    with CertificateAuthority(tmp_path) as ca:
        asyncio.run(asyncio.wait_for(story(ca), 30))


def test_failed_attempts_are_counted_until_they_are_taken(tmp_path: Path) -> None:
    async def story(ca: CertificateAuthority) -> None:
        manager = AcmeManager(
            settings(ca), open_store("memory:"), announce=lambda names: None, refuse=lambda host, reason, seconds: None
        )
        manager.keeper.want(manager.wishes.of_sites(settings(ca).sites))
        ca.next_order_fails("rejectedIdentifier", "policy forbids issuing for a.test", status=403)
        assert isinstance(await manager.obtain(NAME, Asked(), unwatched), Failed)
        assert manager.take_failures() == {(NAME, "refused"): 1}
        assert manager.take_failures() == {}
        await manager.stop(1.0)

    with CertificateAuthority(tmp_path) as ca:
        asyncio.run(asyncio.wait_for(story(ca), 30))
