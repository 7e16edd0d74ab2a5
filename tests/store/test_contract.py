"""What every certificate store promises, and every place that keeps its records, asked of each of them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.store.pki import issue
from tests.store.stores import KINDS, Clock, make_records, make_store
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore, Lease, LeaseLost, Records, examine_store, open_records, open_store

ONE = issue("one.test").bundle()
TWO = issue("two.test").bundle()
NAMES = [
    "internal-ca",
    "internal/localhost",
    "internal/*.example.org",
    "internal/::1",
    "internal/xn--bcher-kva.test",
    "Bücher",
    "UPPER",
    "upper",
    "..",
    ".",
    "../escape",
    "with%2fpercent",
    "with/slash",
    "with~tilde",
    ".hidden",
    ".new-not-a-leftover",
    "x" * 511 + "a",
    "x" * 511 + "b",
    "line\nbreak\0",
]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CertificateStore]:
    made = make_store(request.param, tmp_path / "store")
    yield made
    made.close()
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
def records(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Records]:
    made = make_records(request.param, tmp_path / "store", clock)
    yield made
    made.close()
    made.close()


class TestCertificates:
    def test_what_is_put_is_got(self, store: CertificateStore) -> None:
        store.put("a", ONE)
        assert store.get("a") == ONE
        store.put("a", TWO)
        assert store.get("a") == TWO

    def test_what_only_an_acme_client_knows_is_kept(self, store: CertificateStore) -> None:
        bundle = replace(
            ONE, source="acme", directory="https://ca/d", account="https://ca/1", profile="p", ari_id="x.y"
        )
        store.put("a", bundle)
        assert store.get("a") == bundle

    def test_what_is_not_there_is_no_error(self, store: CertificateStore) -> None:
        assert store.get("a") is None
        store.delete("a")
        assert store.list() == ()

    def test_delete_forgets_one(self, store: CertificateStore) -> None:
        store.put("a", ONE)
        store.put("b", TWO)
        store.delete("a")
        assert (store.get("a"), store.get("b"), store.list()) == (None, TWO, ("b",))

    def test_names_are_opaque(self, store: CertificateStore) -> None:
        bundles = {name: issue(f"n{number}.test").bundle() for number, name in enumerate(NAMES)}
        for name, bundle in bundles.items():
            store.put(name, bundle)
        assert {name: store.get(name) for name in NAMES} == bundles
        assert store.list() == tuple(sorted(NAMES))

    @pytest.mark.parametrize("name", ["", "x" * 513, "a\ud800.test"])
    def test_impossible_names_are_refused(self, store: CertificateStore, name: str) -> None:
        for forbidden in (lambda: store.put(name, ONE), lambda: store.get(name), lambda: store.acquire(name)):
            with pytest.raises(ValueError, match=r"^record name "):
                forbidden()
        assert store.list() == ()

    def test_a_reader_sees_the_old_or_the_new_record(self, store: CertificateStore) -> None:
        """Key and chain of a record belong together, whoever writes meanwhile."""
        store.put("a", ONE)
        done = threading.Event()

        def write() -> None:
            for number in range(60):
                store.put("a", TWO if number % 2 else ONE)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            assert store.get("a") in (ONE, TWO)
        writer.join()

    def test_repr_shows_no_key(self, store: CertificateStore) -> None:
        store.put("a", ONE)
        assert "PRIVATE" not in repr(store) + repr(store.records.keyring)
        assert "0f0f" not in repr(store) + repr(store.records.keyring)

    def test_the_self_test_leaves_nothing(self, store: CertificateStore) -> None:
        before = store.version()
        store.self_test()
        assert store.version() == before
        assert store.list_records("probe") == ()


class TestRecords:
    def test_an_object_by_folder_and_name(self, store: CertificateStore) -> None:
        store.put_record("state", "acme/a", {"name": "x", "failures": 3, "list": [1, None, "ü"]})
        store.put_record("ledger", "acme/a", {})
        assert store.get_record("state", "acme/a") == {"name": "x", "failures": 3, "list": [1, None, "ü"]}
        assert store.get_record("ledger", "acme/a") == {}
        assert (store.list_records("state"), store.list()) == (("acme/a",), ())
        store.delete_record("state", "acme/a")
        assert store.get_record("state", "acme/a") is None
        assert store.get_record("ledger", "acme/a") == {}

    @pytest.mark.parametrize("folder", ["", "State", "..", "a/b", "leases", "new", "lock", "x" * 33, "a b"])
    def test_impossible_folders_are_refused(self, store: CertificateStore, folder: str) -> None:
        with pytest.raises(ValueError, match="no folder"):
            store.put_record(folder, "a", {})
        with pytest.raises(ValueError, match="no folder"):
            store.list_records(folder)
        with pytest.raises(ValueError, match="no folder"):
            store.version(folder)

    def test_what_json_cannot_say_is_refused(self, store: CertificateStore) -> None:
        with pytest.raises(TypeError):
            store.put_record("state", "a", {"when": datetime.now(UTC)})
        assert store.list_records("state") == ()

    def test_bytes_of_every_value_and_size(self, records: Records) -> None:
        for value in (b"", bytes(range(256)), b"x" * (1 << 16), b"x" * ((1 << 16) + 1), b"y" * (1 << 20)):
            records.write("state/a", value)
            assert records.read("state/a") == value

    def test_folders(self, records: Records) -> None:
        records.write("state/a", b"1")
        records.write("something/a", b"2")
        records.release(taken(records))
        assert set(records.folders()) - {"certificates"} == {"something", "state"}

    def test_a_record_says_where_it_lies(self, records: Records) -> None:
        assert "state" in records.where("state/a")
        assert repr(records).startswith("<")

    def test_the_version_of_a_folder_changes_with_every_write_there_and_no_other(self, records: Records) -> None:
        seen = [records.version("state")]
        for number in range(20):  # far faster than the clock of a file system ticks
            records.write("state/a", b"%d" % number)
            seen.append(records.version("state"))
        records.write("ledger/a", b"1")
        assert records.version("state") == seen[-1]
        records.remove("state/none")
        assert records.version("state") == seen[-1]
        records.remove("state/a")
        seen.append(records.version("state"))
        assert len(set(seen)) == len(seen)


class TestExclusive:
    def test_writing_works_inside_exclusive_and_exclusive_inside_itself(self, store: CertificateStore) -> None:
        with store.exclusive(), store.exclusive():
            store.put("a", ONE)
            store.put("b", ONE)
            store.delete("b")
        assert store.list() == ("a",)

    def test_exclusive_ends_with_an_exception(self, store: CertificateStore) -> None:
        with pytest.raises(StoreError), store.exclusive():
            raise StoreError("x")
        store.put("a", ONE)

    def test_exclusive_keeps_other_threads_out(self, store: CertificateStore) -> None:
        inside = 0
        most = 0

        def enter() -> None:
            nonlocal inside, most
            for _ in range(20):
                with store.exclusive():
                    inside += 1
                    most = max(most, inside)
                    store.put("a", ONE)
                    inside -= 1

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1


def taken(records: Records, name: str = "a", seconds: float = 60) -> Lease:
    lease = records.acquire(name, seconds)
    assert lease
    return lease


class TestLeases:
    def test_one_at_a_time(self, records: Records) -> None:
        lease = taken(records)
        assert records.acquire("a", 60) is None
        assert taken(records, "b").name == "b"
        records.release(lease)
        assert taken(records).name == "a"

    def test_one_winner_of_twenty(self, records: Records) -> None:
        barrier = threading.Barrier(20)

        def attempt(_: int) -> Lease | None:
            barrier.wait(20)
            return records.acquire("a", 60)

        with ThreadPoolExecutor(20) as pool:
            won = [lease for lease in pool.map(attempt, range(20)) if lease]
        assert [lease.token for lease in won] == [1]

    def test_the_token_only_grows(self, records: Records, clock: Clock) -> None:
        tokens = []
        for number in range(6):
            lease = taken(records)
            tokens.append(lease.token)
            if number % 2:
                records.release(lease)
            else:
                clock.now += 61
        assert tokens == [1, 2, 3, 4, 5, 6]

    def test_it_ends_when_its_time_is_up(self, records: Records, clock: Clock) -> None:
        taken(records, seconds=60)
        clock.now += 59.9
        assert records.acquire("a", 60) is None
        clock.now += 0.1
        assert taken(records).token == 2

    def test_renewed_it_lasts(self, records: Records, clock: Clock) -> None:
        lease = taken(records)
        for _ in range(5):
            clock.now += 40
            records.renew(lease, 60)
            assert records.acquire("a", 60) is None
        records.write("state/a", b"1", lease)
        assert records.read("state/a") == b"1"

    def test_whoever_is_late_writes_nothing(self, records: Records, clock: Clock) -> None:
        late = taken(records)
        records.write("state/a", b"first", late)
        clock.now += 61
        taken(records)
        acts: list[Callable[[], None]] = [
            lambda: records.write("state/a", b"late", late),
            lambda: records.remove("state/a", late),
            lambda: records.renew(late, 60),
        ]
        for act in acts:
            with pytest.raises(LeaseLost, match="a: somebody else has taken this work over"):
                act()
        assert records.read("state/a") == b"first"

    def test_whoever_is_late_frees_nothing(self, records: Records, clock: Clock) -> None:
        late = taken(records)
        clock.now += 61
        present = taken(records)
        records.release(late)
        assert records.acquire("a", 60) is None
        records.write("state/a", b"1", present)

    def test_after_its_time_or_its_release_it_is_worth_nothing(self, records: Records, clock: Clock) -> None:
        over = taken(records, "over")
        released = taken(records, "released")
        records.release(released)
        with pytest.raises(LeaseLost, match="released: "):
            records.write("state/a", b"late", released)
        clock.now += 60
        with pytest.raises(LeaseLost, match="over: the time for this work ran out"):
            records.write("state/a", b"late", over)
        with pytest.raises(LeaseLost):
            records.renew(over, 60)
        assert records.read("state/a") is None

    @pytest.mark.parametrize("change", [{"owner": "x"}, {"token": 2}, {"token": 0}, {"name": "b"}])
    def test_strangers_do_nothing(self, records: Records, change: dict[str, Any]) -> None:
        lease = taken(records)
        stranger = Lease(**{"name": lease.name, "token": lease.token, "owner": lease.owner, **change})
        records.release(stranger)
        with pytest.raises(LeaseLost):
            records.write("state/a", b"x", stranger)
        with pytest.raises(LeaseLost):
            records.renew(stranger, 60)
        assert records.acquire("a", 60) is None
        records.write("state/a", b"1", lease)

    def test_released_twice_it_is_released(self, records: Records) -> None:
        lease = taken(records)
        records.release(lease)
        records.release(lease)
        assert taken(records).token == 2

    def test_closing_lets_go(self, records: Records) -> None:
        taken(records)
        records.close()
        assert taken(records).token == 2

    def test_long_names(self, records: Records) -> None:
        taken(records, "x" * 511 + "a")
        taken(records, "x" * 511 + "b")
        assert records.acquire("x" * 511 + "a", 60) is None

    def test_leases_are_no_records(self, records: Records) -> None:
        taken(records)
        assert set(records.folders()) <= {"certificates"}

    def test_certificates_are_guarded_by_them(self, store: CertificateStore) -> None:
        lease = store.acquire("acme/a")
        assert lease
        store.renew(lease)
        store.put("acme/a", ONE, lease)
        store.release(lease)
        with pytest.raises(LeaseLost):
            store.put("acme/a", TWO, lease)
        with pytest.raises(LeaseLost):
            store.delete("acme/a", lease)
        with pytest.raises(LeaseLost):
            store.put_record("state", "acme/a", {}, lease)
        with pytest.raises(LeaseLost):
            store.delete_record("state", "acme/a", lease)
        assert store.get("acme/a") == ONE


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("redis://x", "unknown kind of store"),
            ("/var/lib/tlsproxy", "unknown kind of store"),
            ("file:relative", "must be absolute"),
            ("file://host/path", "must be absolute"),
        ],
    )
    def test_urls_that_are_no_store(self, url: str, said: str) -> None:
        for use in (open_store, open_records, examine_store):
            with pytest.raises(StoreError, match=said):
                use(url)

    def test_a_url_is_decoded(self, tmp_path: Path) -> None:
        open_store(f"file://localhost{tmp_path}/with%20space").close()
        assert (tmp_path / "with space" / "certificates").is_dir()

    def test_keys_seal(self, tmp_path: Path) -> None:
        url = f"file://{tmp_path / 'store'}"
        open_store(url, ["0f" * 32]).put("a", ONE)
        assert open_store(url, ["0f" * 32]).get("a") == ONE
        assert (open_records(url).read("certificates/a") or b"").startswith(b"TP1")
        with pytest.raises(StoreError, match=r"there are no store\.encryption_keys"):
            open_store(url).get("a")


def test_a_time_in_a_record_is_when_it_was_written(store: CertificateStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    store.put_record("state", "a", {})
    text = (store.records.read("state/a") or b"").decode()
    written = datetime.fromisoformat(text.partition('"written": "')[2].partition('"')[0])
    assert before <= written <= datetime.now(UTC)
