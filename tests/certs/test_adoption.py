"""A site that is named otherwise keeps its certificate."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.certs.keeping import House, make_house, wanted_from
from tests.fakes.certificate_authority import CertificateAuthority
from tests.store.pki import issue
from tlsproxy.certs.adoption import adopt
from tlsproxy.certs.ari import with_ari
from tlsproxy.certs.catalogue import Catalogue
from tlsproxy.certs.state import State, after_revocation
from tlsproxy.certs.wanted import Held
from tlsproxy.errors import StoreError
from tlsproxy.settings import Settings
from tlsproxy.store.base import CertificateStore, open_store
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.memory import MemoryRecords

CA = "https://ca.test/directory"
NOW, DAY = datetime.now(UTC).replace(microsecond=0), timedelta(days=1)


def settings(*hosts: tuple[str, ...], directory: str = CA, on_demand: str = "") -> Settings:
    acme: dict[str, Any] = {"directory": directory, "quota": "off"}
    sites = [{"hosts": list(each), "certificate": "acme", "backends": ["http://127.0.0.1:1"]} for each in hosts]
    if on_demand:
        sites.append({"hosts": [on_demand], "certificate": "on_demand", "backends": ["http://127.0.0.1:1"]})
    return Settings.model_validate({"acme": acme, "on_demand": {"ask": "/may"}, "sites": sites})


def bundle(*hosts: str, directory: str = CA, days: tuple[float, float] = (-1, 60)) -> Bundle:
    made = issue(*hosts, days=days).bundle()
    return replace(made, source="acme" if directory else "file", directory=directory, ari_id=f"aki.{hosts[0]}")


@pytest.fixture
def store() -> CertificateStore:
    return open_store("memory:")


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.mark.parametrize(
    ("stored", "hosts"),
    [
        (("a.test", "b.test"), ("b.test", "a.test")),
        (("a.test", "b.test"), ("b.test",)),
        (("*.a.test", "a.test"), ("x.a.test", "a.test")),
        (("a.test", "192.0.2.1"), ("192.0.2.1",)),
    ],
)
def test_what_covers_all_hosts_and_is_used_by_nobody_is_taken(
    store: CertificateStore, stored: tuple[str, ...], hosts: tuple[str, ...]
) -> None:
    old, name = f"acme/{stored[0]}", f"acme/{hosts[0]}"
    store.put(old, bundle(*stored))
    assert adopt(settings(hosts), store, NOW) == (name,)
    assert store.get(name) == store.get(old)
    assert adopt(settings(hosts), store, NOW) == ()


def test_what_is_known_of_it_goes_with_it(store: CertificateStore) -> None:
    made = bundle("a.test", "b.test")
    store.put("acme/a.test", made)
    state = with_ari(State(attempts=2), Held.of(made), NOW, NOW + DAY, retry_after=None, now=NOW)
    store.put_record("state", "acme/a.test", state.to_record())
    adopt(settings(("b.test", "a.test")), store, NOW)
    after = State.from_record(store.get_record("state", "acme/b.test"))
    assert (after.ari, after.attempts) == (state.ari, 2)
    assert [(event.what, event.text) for event in after.history] == [
        ("adopted", "from acme/a.test, which no site uses any more")
    ]


@pytest.mark.parametrize(
    "stored",
    [
        bundle("a.test"),
        bundle("a.test", "b.test", days=(-90, -1)),
        bundle("a.test", "b.test", days=(1, 60)),
        bundle("a.test", "b.test", directory="https://other.test/directory"),
    ],
    ids=["not all hosts", "expired", "not yet valid", "another CA"],
)
def test_what_will_not_do_is_left(store: CertificateStore, stored: Bundle) -> None:
    store.put("acme/a.test", stored)
    assert adopt(settings(("b.test", "a.test")), store, NOW) == ()
    assert store.list() == ("acme/a.test",)


def test_what_another_site_uses_is_left(store: CertificateStore) -> None:
    store.put("acme/a.test", bundle("a.test", "b.test"))
    assert adopt(settings(("b.test",), ("a.test",)), store, NOW) == ()


def test_what_clients_may_ask_for_is_left(store: CertificateStore) -> None:
    store.put("acme/x.a.test", bundle("x.a.test", "b.test"))
    assert adopt(settings(("b.test",), on_demand="*.a.test"), store, NOW) == ()


def test_what_was_revoked_is_left(store: CertificateStore) -> None:
    made = bundle("a.test", "b.test")
    store.put("acme/a.test", made)
    store.put_record("state", "acme/a.test", after_revocation(State(), Held.of(made), NOW).to_record())
    assert adopt(settings(("b.test", "a.test")), store, NOW) == ()


def test_what_is_good_is_not_replaced_and_what_is_not_is(store: CertificateStore) -> None:
    own = bundle("b.test", "a.test", days=(-1, 2))
    store.put("acme/a.test", bundle("a.test", "b.test"))
    store.put("acme/b.test", own)
    assert adopt(settings(("b.test", "a.test")), store, NOW) == ()
    assert adopt(settings(("b.test", "a.test")), store, NOW + 3 * DAY) == ("acme/b.test",)


def test_what_a_person_has_imported_is_kept_as_well(store: CertificateStore) -> None:
    store.put("acme/a.test", bundle("a.test", "b.test", directory=""))
    assert adopt(settings(("b.test", "a.test")), store, NOW) == ("acme/b.test",)


def test_of_two_the_one_that_lasts_longer(store: CertificateStore) -> None:
    store.put("acme/a.test", bundle("a.test", "b.test", days=(-1, 10)))
    store.put("acme/c.test", bundle("c.test", "b.test", days=(-1, 20)))
    adopt(settings(("b.test",)), store, NOW)
    assert store.get("acme/b.test") == store.get("acme/c.test")


def test_what_another_process_works_on_is_left_to_it(store: CertificateStore) -> None:
    store.put("acme/a.test", bundle("a.test", "b.test"))
    assert store.acquire("acme/b.test")
    assert adopt(settings(("b.test", "a.test")), store, NOW) == ()


def test_what_can_not_be_read_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    class Sealed(MemoryRecords):
        def read(self, key: str) -> bytes | None:
            if key in ("certificates/acme/b.test", "certificates/acme/z.test"):
                raise StoreError("sealed with another key")
            return super().read(key)

    store = CertificateStore(Sealed())
    for name in ("acme/a.test", "acme/b.test", "acme/z.test"):
        store.put(name, bundle("a.test", "b.test", "c.test"))
    configured = settings(("b.test", "a.test"), ("c.test",))
    assert adopt(configured, store, NOW) == ("acme/c.test",)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["certificate.not_adopted"]


def test_a_reordered_site_costs_no_order_and_is_renewed_when_the_old_one_was_due(
    tmp_path: Path, ca: CertificateAuthority
) -> None:
    before, after = settings(("a.test", "b.test"), directory=ca.directory), ("b.test", "a.test")
    configured = settings(after, directory=ca.directory)
    with make_house(ca) as house:
        ca.now = house.desk.clock
        house.keeper.want([wanted_from(house.issuers, *before.sites[0].hosts)])
        asyncio.run(house.look())
        first = house.serial("acme/a.test")
    with make_house(ca, store=house.store) as again:
        ca.now = again.desk.clock
        again.desk.logins.urls.update(house.desk.logins.urls)
        assert adopt(configured, again.store, again.desk.clock()) == ("acme/b.test",)
        again.keeper.want([wanted_from(again.issuers, *after)])
        asyncio.run(keep(again, first, ca, configured))
    assert ca.count["order"] == 2
    assert ca.payloads["order"][-1]["replaces"]


async def keep(house: House, first: str, ca: CertificateAuthority, configured: Settings) -> None:
    await house.look()
    await house.look(later=30 * DAY)
    assert (ca.count["order"], house.serial("acme/b.test")) == (1, first)
    rows = {row["name"]: row for row in Catalogue(configured, house.store).rows(house.desk.clock())}
    assert [rows[f"acme/{host}.test"]["status"] for host in "ab"] == ["valid", "valid"]
    assert Catalogue(configured, house.store).entry("acme/a.test").kind == "unused"
    assert "acme/a.test" in Catalogue(configured, house.store).why("b.test", house.desk.clock())["sentences"][-1]
    await house.look(later=35 * DAY)
    assert house.serial("acme/b.test") not in ("", first)
    assert house.serial("acme/a.test") == first


def test_ten_thousand_sites_and_nothing_unused_cost_next_to_nothing(store: CertificateStore) -> None:
    """Nothing is read but the names."""

    class Blind(MemoryRecords):
        def read(self, key: str) -> bytes | None:
            raise AssertionError(key)

    records = Blind()
    hosts = [f"h{number}.test" for number in range(2_000)]
    for host in hosts:
        records.write(f"certificates/acme/{host}", b"x")
    assert adopt(settings(*((host,) for host in hosts)), CertificateStore(records), NOW) == ()
