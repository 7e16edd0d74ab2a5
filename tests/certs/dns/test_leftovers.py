"""TXT records that a kill has left behind."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest

from tlsproxy.certs.dns.base import DnsProviderError
from tlsproxy.certs.dns.leftovers import KEPT, Leftovers
from tlsproxy.certs.dns.record import TxtRecord
from tlsproxy.certs.housekeeping import Housekeeping
from tlsproxy.certs.tools import Tools
from tlsproxy.store.base import CertificateStore, open_store
from tlsproxy.store.challenges import Challenges

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NAME, VALUE = "_acme-challenge.a.test", "v" * 43


class Zone:
    """A provider whose zone is a set; `is_away`: it answers nobody."""

    def __init__(self) -> None:
        self.records: set[tuple[str, str]] = set()
        self.is_away = False

    def create(self, name: str, value: str) -> None:
        self.records.add((name, value))

    def delete(self, name: str, value: str) -> None:
        if self.is_away:
            raise DnsProviderError("the API does not answer")
        self.records.discard((name, value))


def leftovers(store: CertificateStore, zone: Zone, kind: str = "exec", later: timedelta = timedelta()) -> Leftovers:
    return Leftovers(store, zone, kind, lambda: NOW + later)


@pytest.fixture
def store() -> CertificateStore:
    return open_store("memory:")


def test_what_a_kill_leaves_behind_is_removed_by_the_next_process(store: CertificateStore) -> None:
    zone, later = Zone(), timedelta(hours=2)
    TxtRecord(zone, NAME, VALUE, leftovers(store, zone)).create()  # and then the process was killed
    Challenges(store).sweep(NOW + timedelta(minutes=50))
    assert leftovers(store, zone, later=timedelta(minutes=50)).sweep() == 0
    assert zone.records == {(NAME, VALUE)}, "it may be of an order under way"
    assert leftovers(store, zone, kind="lexicon", later=later).sweep() == 0
    tools = Tools.make(store, lambda: NOW + later)
    asyncio.run(Housekeeping(tools, leftovers(store, zone, later=later)).tidy([]))
    tools.close()
    assert zone.records == set()
    assert store.list_records("challenges") == ()


def test_what_was_removed_is_not_remembered(store: CertificateStore) -> None:
    zone = Zone()
    record = TxtRecord(zone, NAME, VALUE, leftovers(store, zone))
    record.create()
    assert len(store.list_records("challenges")) == 1
    assert record.give_up()
    record.delete()
    assert (zone.records, store.list_records("challenges")) == (set(), ())


def test_what_could_not_be_removed_is_tried_again(store: CertificateStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    zone = Zone()
    record = TxtRecord(zone, NAME, VALUE, leftovers(store, zone))
    record.create()
    zone.is_away = True
    record.give_up()
    record.delete()
    later = timedelta(days=1)
    assert leftovers(store, zone, later=later).sweep() == 0
    assert [each.message for each in caplog.records] == ["dns.cleanup_failed", "dns.leftover_stays"]
    zone.is_away = False
    assert leftovers(store, zone, later=later).sweep() == 1
    leftovers(store, zone).remember(NAME, VALUE)
    assert Challenges(store).sweep(NOW + KEPT) == 1, "nothing is kept for ever"
