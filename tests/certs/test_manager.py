"""The certificates of all sites, kept good over a fake clock."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.store.pki import issue, replace, write_pair
from tlsproxy.certs.internal import LEAF_LIFE, ensure
from tlsproxy.certs.manager import CHECK_INTERVAL, CertificateManager
from tlsproxy.errors import StoreError
from tlsproxy.settings import CertificateFiles, Route, Site
from tlsproxy.store.base import Lease
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.memory import MemoryStore

NOW = datetime.now(UTC)
ROUTES = (Route(backends=("http://127.0.0.1:1",)),)
INTERNAL = Site(hosts=("localhost", "127.0.0.1"), certificate="internal", routes=ROUTES)


def file_site(directory: Path, *hosts: str) -> Site:
    files = CertificateFiles(chain=directory / "chain.pem", key=directory / "key.pem")
    return Site(hosts=hosts, certificate=files, routes=ROUTES)


class FullStore(MemoryStore):
    """A store whose disk can fill up."""

    full = False

    def put(self, name: str, bundle: Bundle, lease: Lease | None = None) -> None:
        if self.full:
            raise StoreError("the disk is full")
        super().put(name, bundle, lease)


def test_prepare_makes_what_is_missing_and_tick_is_quiet(tmp_path: Path) -> None:
    write_pair(tmp_path, issue("a.test"))
    store = MemoryStore()
    manager = CertificateManager([INTERNAL, file_site(tmp_path, "a.test")], store)
    assert manager.prepare(NOW) == []
    assert store.list() == ("internal-ca", "internal/localhost")
    assert [manager.tick(NOW + timedelta(minutes=minute)) for minute in range(25)] == [()] * 25
    assert manager.stats() == {"certificates_internal": 1, "certificate_sites": 2}


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_pair(tmp_path / "two", issue("b.test"))
    store = FullStore()
    store.full = True
    sites = [file_site(tmp_path / "one", "a.test"), file_site(tmp_path / "two", "c.test"), INTERNAL]
    problems = CertificateManager(sites, store).prepare(NOW)
    assert [problem.replace(str(tmp_path), "DIR")[:45] for problem in problems] == [
        "DIR/one/chain.pem: there is no such file. Cor",
        "DIR/two/chain.pem: the certificate does not c",
        "the disk is full",
    ]


def test_an_expired_file_is_served_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path, issue("a.test", days=(-9, -1)))
    assert CertificateManager([file_site(tmp_path, "a.test")], MemoryStore()).prepare(NOW) == []
    assert "expired on" in caplog.records[0].__dict__["error"]


def test_a_renewal_comes_when_it_is_due_and_is_announced_once() -> None:
    manager = CertificateManager([INTERNAL], MemoryStore())
    manager.prepare(NOW)
    announced = [hour for hour in range(24 * 100) if manager.tick(NOW + timedelta(hours=hour))]
    assert len(announced) == 3
    assert 24 * 31 <= announced[0] <= 24 * 32


def test_a_renewal_by_another_process_is_announced_too() -> None:
    store = MemoryStore()
    manager = CertificateManager([INTERNAL], store)
    manager.prepare(NOW)
    ensure(store, [*INTERNAL.hosts, "more.test"], NOW)
    assert manager.tick(NOW + CHECK_INTERVAL) == ("internal/localhost",)
    assert manager.tick(NOW + 2 * CHECK_INTERVAL) == ()


def test_a_failed_renewal_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    store = FullStore()
    manager = CertificateManager([INTERNAL], store)
    manager.prepare(NOW)
    store.full = True
    due = NOW + LEAF_LIFE * 0.7
    caplog.set_level(logging.WARNING)
    assert [manager.tick(due), manager.tick(due), manager.tick(due + CHECK_INTERVAL)] == [(), (), ()]
    assert [record.message for record in caplog.records] == ["certificate.renewal_failed"] * 2
    store.full = False
    assert manager.tick(due + 2 * CHECK_INTERVAL) == ("internal/localhost",)


def test_a_clock_that_goes_back_does_not_silence_the_plan() -> None:
    manager = CertificateManager([INTERNAL], MemoryStore())
    manager.prepare(NOW)
    before = NOW - timedelta(days=2)
    assert manager.tick(before) == ("internal/localhost",)  # the held one is not valid yet, by this clock
    assert [manager.tick(before + timedelta(minutes=minute)) for minute in range(30)] == [()] * 30


def test_changed_files_are_announced(tmp_path: Path) -> None:
    write_pair(tmp_path, issue("a.test"))
    manager = CertificateManager([INTERNAL, file_site(tmp_path, "a.test")], MemoryStore())
    manager.prepare(NOW)
    write_pair(tmp_path, issue("a.test"))
    assert manager.tick(NOW) == ("file/a.test",)
    replace(tmp_path / "chain.pem", b"bad")
    assert [manager.tick(NOW) for _ in range(3)] == [()] * 3


def test_a_wildcard_that_clients_refuse_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(hosts=("*.localhost", "*.app.localhost"), certificate="internal", routes=ROUTES)
    assert CertificateManager([site], MemoryStore()).prepare(NOW) == []
    (record,) = [record for record in caplog.records if record.message == "certificate.wildcard_too_wide"]
    assert "a certificate for *.localhost: name the hosts, or use *.app.localhost" in record.__dict__["advice"]
