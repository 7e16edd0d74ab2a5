"""What becomes of certificates over time: a keeper of real parts against fake CAs, with a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.certs.keeping import House, make_house
from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs.attempt import Obtained

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
NAME = "acme/a.test"


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.fixture
def house(ca: CertificateAuthority) -> Iterator[House]:
    with make_house(ca) as house:
        ca.now = house.desk.clock
        house.want("a.test")
        yield house


def test_what_is_missing_is_obtained_announced_and_left_alone(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        await house.look()
        await house.look(later=10 * DAY)

    asyncio.run(story())
    assert house.notes.changes == [NAME]
    assert [type(each) for each in house.notes.outcomes] == [Obtained]
    assert ca.count["order"] == 1
    assert house.state(NAME).winners == {"a.test": "tls-alpn-01"}
    assert house.store.list_records("orders") == ()


def test_a_renewal_names_its_predecessor_and_has_a_new_key(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        first = house.store.get(NAME)
        await house.look(later=65 * DAY)
        second = house.store.get(NAME)
        assert first
        assert second
        assert first.key_pem != second.key_pem
        assert ca.payloads["order"][-1]["replaces"] == first.ari_id

    asyncio.run(story())
    assert house.notes.changes == [NAME, NAME]
    assert ca.count["order"] == 2


def test_the_ca_is_asked_for_its_window_once_and_moves_the_renewal(house: House, ca: CertificateAuthority) -> None:
    async def story() -> None:
        await house.look()
        assert ca.count["renewal-info"] == 1
        for _ in range(3):
            await house.look(later=MINUTE)
        assert ca.count["renewal-info"] == 1
        held = house.shelf.held(NAME)
        assert held
        now = house.desk.clock()
        ca.ari(held.ari_id, now - DAY, now - DAY / 2, explanation="https://ca.test/why")
        await house.look(later=7 * timedelta(hours=1))
        assert ca.count["renewal-info"] == 2
        await house.look(later=DAY)

    asyncio.run(story())
    assert len(house.notes.outcomes) == 2
    assert ca.payloads["order"][-1]["replaces"]
