"""Questions about renewal windows, when the CA does not answer them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from tests.certs.keeping import House, make_house, wanted_from
from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs.attempt import Asked, Obtained
from tlsproxy.certs.progress import unwatched
from tlsproxy.certs.windows import PATIENCE, Windows

HOSTS = ("a.test", "b.test", "c.test", "d.test")


async def _fetch_all(house: House, windows: Windows) -> None:
    assert all(await asyncio.gather(*(windows.fetch(f"acme/{host}") for host in HOSTS)))


@pytest.mark.parametrize("trouble", ["no answer", "an error of its own"])
def test_a_ca_that_does_not_answer_is_asked_for_one_name_only(tmp_path: Path, trouble: str) -> None:
    async def story(house: House, ca: CertificateAuthority) -> None:
        for host in HOSTS:
            house.want(host)
            await house.look()
        windows = Windows(house.desk.tools, house.shelf, house.issuers, rnd=lambda: 0.5)
        house.desk.clock.ahead += timedelta(days=1)
        await _fetch_all(house, windows)
        house.desk.clock.ahead += timedelta(days=1)
        before = ca.count["renewal-info"]
        if trouble == "no answer":
            ca.drops("renewal-info")
        else:
            ca.fails("renewal-info", "serverInternal", status=500)
        await _fetch_all(house, windows)
        assert ca.count["renewal-info"] == before + 1
        states = [house.state(f"acme/{host}").ari for host in HOSTS]
        assert [each.failures for each in states if each] == [1] * len(HOSTS)
        house.desk.clock.ahead += 3 * PATIENCE
        await _fetch_all(house, windows)
        assert ca.count["renewal-info"] == before + 1 + len(HOSTS)
        windows.close()

    with CertificateAuthority(tmp_path) as ca, make_house(ca) as house:
        ca.now = house.desk.clock
        asyncio.run(story(house, ca))


def test_an_order_does_not_wait_for_questions_without_an_answer(tmp_path: Path) -> None:
    async def story(house: House, ca: CertificateAuthority) -> None:
        for host in HOSTS:
            house.want(host)
            await house.look()
        house.keeper.want(wanted_from(house.issuers, host) for host in HOSTS)
        house.desk.clock.ahead += timedelta(days=1)
        gate = ca.gate("renewal-info")
        await house.keeper.look()
        await asyncio.to_thread(gate.wait)
        async with asyncio.timeout(10):  # a gate holds what comes for longer
            for host in HOSTS:
                outcome = await house.keeper.obtain(f"acme/{host}", Asked("by hand"), unwatched)
                assert isinstance(outcome, Obtained)
        gate.open()
        await house.keeper.settle()

    with CertificateAuthority(tmp_path) as ca, make_house(ca) as house:
        ca.now = house.desk.clock
        asyncio.run(story(house, ca))
