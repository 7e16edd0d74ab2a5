"""Sites whose hosts were put into another order, or moved, go on with the certificate that is there."""

import logging
from datetime import timedelta

import pytest

from tests.store.pki import NOW, issue
from tlsproxy.certs.adopting import adopt
from tlsproxy.certs.state import Ari, State
from tlsproxy.errors import StoreError
from tlsproxy.settings import Route, Site
from tlsproxy.store.base import Lease
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.memory import MemoryStore

ROUTES = (Route(backends=("http://127.0.0.1:1",)),)


def site(*hosts: str, certificate: str = "acme") -> Site:
    return Site.model_validate({"hosts": hosts, "certificate": certificate, "routes": ROUTES})


def store_with(**certificates: tuple[str, ...]) -> MemoryStore:
    """Return a store with certificates of 30 days, by the label of their first host."""
    store = MemoryStore()
    for label, hosts in certificates.items():
        store.put(f"acme/{label}.test", issue(*hosts).bundle())
    return store


def held(store: MemoryStore, name: str) -> tuple[str, ...] | None:
    bundle = store.get(name)
    return bundle.names if bundle else None


def test_a_host_that_was_put_first_does_not_take_the_others_down(caplog: pytest.LogCaptureFixture) -> None:
    store = store_with(api=("api.test",))
    caplog.set_level(logging.INFO)
    adopt([site("new.test", "api.test")], store, NOW)
    assert store.get("acme/new.test") == store.get("acme/api.test")
    assert [(each.message, vars(each)["missing"]) for each in caplog.records] == [("certificate.adopted", ["new.test"])]


def test_a_host_that_got_a_site_of_its_own_keeps_its_certificate() -> None:
    store = store_with(api=("api.test", "www.api.test"))
    store.put("acme/www.old.test", issue("www.old.test", "old.test").bundle())
    adopt([site("api.test"), site("www.api.test"), site("old.test"), site("www.old.test")], store, NOW)
    assert held(store, "acme/www.api.test") == ("api.test", "www.api.test")
    assert held(store, "acme/old.test") == ("www.old.test", "old.test")


def test_the_one_that_covers_most_is_taken_and_of_equals_the_one_that_lasts_longest() -> None:
    store = store_with(a=("a.test",), b=("a.test", "b.test"))
    store.put("acme/*.example.test", issue("*.example.test", days=(-1, 90)).bundle())
    store.put("acme/d.test", issue("a.test", "b.test", days=(-1, 60)).bundle())
    adopt([site("x.example.test", "a.test", "b.test", "d.test")], store, NOW)
    assert held(store, "acme/x.example.test") == ("a.test", "b.test")
    assert store.get("acme/x.example.test") == store.get("acme/d.test")


def test_what_is_there_stays() -> None:
    store = store_with(new=("new.test",), api=("new.test", "api.test"))
    adopt([site("new.test", "api.test")], store, NOW)
    assert held(store, "acme/new.test") == ("new.test",)


@pytest.mark.parametrize(
    ("hosts", "certificate", "later"),
    [
        (("other.test",), "acme", timedelta()),
        (("new.test", "api.test"), "acme", timedelta(days=31)),
        (("new.test", "api.test"), "acme", timedelta(days=-2)),
        (("new.test", "api.test"), "internal", timedelta()),
    ],
    ids=["no host in common", "expired", "not yet valid", "of the internal CA"],
)
def test_nothing_is_adopted_that_would_not_help(hosts: tuple[str, ...], certificate: str, later: timedelta) -> None:
    store = store_with(api=("api.test",))
    adopt([site(*hosts, certificate=certificate)], store, NOW + later)
    assert store.list() == ("acme/api.test",)


def test_what_was_revoked_is_not_served_again_under_another_name() -> None:
    store = store_with(api=("api.test",))
    revoked = store.get("acme/api.test")
    assert revoked
    store.put_record("state", "acme/api.test", State(replace_now=revoked.fingerprint).to_record())
    adopt([site("new.test", "api.test")], store, NOW)
    assert held(store, "acme/new.test") is None


def test_what_is_remembered_comes_along_but_replaces_nothing() -> None:
    store = store_with(api=("api.test",), shop=("shop.test",))
    ari = Ari("id", start=NOW, end=NOW)
    for name in ("acme/api.test", "acme/shop.test"):
        store.put_record("state", name, State(ari=ari, attempts=2).to_record())
    store.put_record("state", "acme/other.test", State(attempts=7).to_record())
    adopt([site("new.test", "api.test"), site("other.test", "shop.test")], store, NOW)
    assert State.from_record(store.get_record("state", "acme/new.test")) == State(ari=ari, attempts=2)
    assert State.from_record(store.get_record("state", "acme/other.test")) == State(attempts=7)


class CountingStore(MemoryStore):
    """Counts what is read."""

    reads = 0

    def get(self, name: str) -> Bundle | None:
        self.reads += 1
        return super().get(name)


def test_new_sites_do_not_read_the_store_through() -> None:
    store, bundle = CountingStore(), issue("a.test").bundle()
    for number in range(200):
        store.put(f"acme/s{number}.test", bundle)
    adopt([site(f"new{number}.example") for number in range(200)], store, NOW)
    assert store.reads == 0
    adopt([site("s1.test.example", "s2.test", "s3.test")], store, NOW)
    assert store.reads == 2


def test_whoever_obtains_it_meanwhile_is_not_disturbed() -> None:
    store = store_with(api=("api.test",))
    assert store.acquire("acme/new.test", 60)
    adopt([site("new.test", "api.test")], store, NOW)
    assert held(store, "acme/new.test") is None


class ReadOnlyStore(MemoryStore):
    """A store whose disk takes nothing any more."""

    full = False

    def put(self, name: str, bundle: Bundle, lease: Lease | None = None) -> None:
        if self.full:
            raise StoreError("the disk is read-only")
        super().put(name, bundle, lease)


def test_a_store_that_takes_nothing_keeps_nobody_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    store = ReadOnlyStore()
    store.put("acme/api.test", issue("api.test").bundle())
    store.full = True
    adopt([site("new.test", "api.test")], store, NOW)
    assert [each.message for each in caplog.records] == ["certificate.not_adopted"]
    assert store.acquire("acme/new.test", 60)  # the lease was given back
