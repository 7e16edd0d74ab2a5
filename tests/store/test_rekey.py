"""Sealing a store anew: from anything to the newest key or to none, killed at any moment and begun again."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.store.pki import issue
from tests.store.stores import BOTH, NEW, NEW_RING, OLD, OLD_RING, Clock, make_records
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore, Lease, Records, open_records
from tlsproxy.store.memory import MemoryRecords
from tlsproxy.store.rekey import Rekeyed, rekey
from tlsproxy.store.sealed import Keyring, is_sealed

PLAIN = Keyring()
BUNDLE = issue("a.test").bundle()
KEYS = [*(f"certificates/acme/{number}.test" for number in range(5)), "state/acme/0.test", "accounts/x", "other/y"]


@pytest.fixture(params=["memory", "file"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Records:
    return open_records("memory:" if request.param == "memory" else f"file://{tmp_path / 'store'}")


def fill(records: Records, ring: Keyring) -> None:
    store = CertificateStore(records, ring)
    for key in KEYS:
        folder, _, name = key.partition("/")
        if folder == "certificates":
            store.put(name, BUNDLE)
        else:
            store.put_record(folder, name, {"name": name})


def check(records: Records, ring: Keyring) -> None:
    store = CertificateStore(records, ring)
    for key in KEYS:
        folder, _, name = key.partition("/")
        assert is_sealed(records.read(key) or b"") == bool(ring)
        if folder == "certificates":
            assert store.get(name) == BUNDLE
        else:
            assert store.get_record(folder, name) == {"name": name}


@pytest.mark.parametrize(
    ("before", "given", "plain", "after"),
    [
        (PLAIN, OLD_RING, False, OLD_RING),
        (OLD_RING, BOTH, False, NEW_RING),
        (PLAIN, BOTH, False, NEW_RING),
        (OLD_RING, OLD_RING, True, PLAIN),
        (OLD_RING, BOTH, True, PLAIN),
    ],
)
def test_from_one_to_the_other(records: Records, before: Keyring, given: Keyring, plain: bool, after: Keyring) -> None:
    fill(records, before)
    seen: list[tuple[int, int]] = []
    assert rekey(records, given, plain=plain, progress=lambda done, total: seen.append((done, total))) == Rekeyed(
        8, 0, ()
    )
    assert seen == [(number, 8) for number in range(1, 9)]
    check(records, after)
    assert rekey(records, given, plain=plain) == Rekeyed(0, 8, ())


def test_a_mixed_store_becomes_one(records: Records) -> None:
    fill(records, OLD_RING)
    store = CertificateStore(records)
    store.put_record("accounts", "x", {"name": "x"})
    CertificateStore(records, NEW_RING).put("acme/0.test", BUNDLE)
    assert rekey(records, BOTH) == Rekeyed(7, 1, ())
    check(records, NEW_RING)


def test_nothing_to_do(records: Records) -> None:
    assert rekey(records, OLD_RING) == Rekeyed(0, 0, ())
    fill(records, PLAIN)
    assert rekey(records, PLAIN) == Rekeyed(0, 8, ())


def test_what_does_not_open_is_told_and_left_and_keeps_nobody(records: Records) -> None:
    fill(records, OLD_RING)
    damaged = (records.read("certificates/acme/1.test") or b"")[:-1]
    records.write("certificates/acme/1.test", damaged)
    CertificateStore(records, Keyring(["another passphrase of great length"])).put("acme/2.test", BUNDLE)
    result = rekey(records, BOTH)
    assert (result.changed, result.unchanged, len(result.failed)) == (6, 0, 2)
    assert all("acme" in sentence for sentence in result.failed)
    assert "changed, cut short or moved" in result.failed[0]
    assert "not among store.encryption_keys" in result.failed[1]
    assert records.read("certificates/acme/1.test") == damaged


def test_without_the_keys_nothing_opens(records: Records) -> None:
    fill(records, OLD_RING)
    assert len(rekey(records, PLAIN, plain=True).failed) == 8
    assert len(rekey(records, NEW_RING).failed) == 8


def test_a_store_that_cannot_be_written_ends_it() -> None:
    class Full(MemoryRecords):
        def write(self, *_: object) -> None:
            raise StoreError("the disk is full")

    full = Full()
    fill(MemoryRecords(), PLAIN)
    MemoryRecords.write(full, "state/a", b"{}")
    with pytest.raises(StoreError, match="the disk is full"):
        rekey(full, OLD_RING)


def test_nobody_writes_between_reading_and_writing() -> None:
    """Else a certificate that was renewed meanwhile would be replaced by the one before."""

    class Watched(MemoryRecords):
        acts: ClassVar[list[str]] = []

        @contextmanager
        def exclusive(self) -> Iterator[None]:
            with super().exclusive():
                self.acts.append("(")
                yield
                self.acts.append(")")

        def read(self, key: str) -> bytes | None:
            self.acts.append("read")
            return super().read(key)

        def write(self, key: str, value: bytes, lease: Lease | None = None) -> None:
            self.acts.append("write")
            super().write(key, value, lease)

    records = Watched()
    CertificateStore(records).put_record("state", "a", {})
    CertificateStore(records).put_record("state", "b", {})
    records.acts.clear()
    assert rekey(records, OLD_RING).changed == 2
    assert records.acts == ["(", "read", "write", ")"] * 2


def test_leases_stay(tmp_path: Path) -> None:
    records = open_records(f"file://{tmp_path / 'store'}")
    lease = records.acquire("a", 60)
    fill(records, PLAIN)
    assert rekey(records, OLD_RING).changed == 8
    assert lease
    records.renew(lease, 60)


REKEY = """
import sys
from tlsproxy.store.base import open_records
from tlsproxy.store.rekey import rekey
from tlsproxy.store.sealed import Keyring
rekey(open_records(sys.argv[1]), Keyring(sys.argv[2:]), progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.system
def test_killed_it_is_begun_again(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    records = open_records(url)
    fill(records, OLD_RING)
    for number in range(300):
        CertificateStore(records, OLD_RING).put(f"more/{number}", BUNDLE)
    for until in (1, 40, 80, 120):
        with subprocess.Popen([sys.executable, "-c", REKEY, url, NEW, OLD], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert [int(process.stdout.readline()) for _ in range(until)] == [*range(1, until + 1)]
            process.send_signal(signal.SIGKILL)
        store = CertificateStore(records, BOTH)
        assert [store.get(name) for name in store.list()] == [BUNDLE] * 305
    result = rekey(records, BOTH)
    assert (result.failed, result.changed + result.unchanged) == ((), 308)
    assert result.changed
    assert result.unchanged
    check(records, NEW_RING)


def test_the_kinds_of_the_other_tests_are_sealed_with_the_old_key(tmp_path: Path) -> None:
    records = make_records("file sealed", tmp_path / "store", Clock())
    records.write("state/a", b"x")
    assert OLD_RING.open("state/a", (tmp_path / "store/state/a.json").read_bytes(), "here") == b"x"
