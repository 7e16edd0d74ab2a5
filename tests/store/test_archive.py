"""A store in one file: what comes out goes in again, checked, and never over something newer."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.store.pki import issue
from tests.store.stores import BOTH, KINDS, NEW_RING, OLD_RING, make_store
from tlsproxy.errors import StoreError
from tlsproxy.store.archive import Exported, Imported, export_store, import_store
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.memory import MemoryRecords, MemoryStore
from tlsproxy.store.sealed import is_sealed

ONE = replace(issue("one.test").bundle(), source="acme", ari_id="x.y")
TWO = issue("two.test").bundle()
ACCOUNT = {"directory": "https://ca/d", "key_pem": "secret"}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CertificateStore:
    return filled(make_store(request.param, tmp_path / "store"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backup.json"


def filled(store: CertificateStore) -> CertificateStore:
    store.put("acme/one.test", ONE)
    store.put("x" * 300, TWO)
    store.put_record("accounts", "a", ACCOUNT)
    store.put_record("state", "acme/one.test", {})
    store.put_record("challenges", "http-01/x", {"expires": "", "answer": ""})
    return store


def read(store: CertificateStore) -> dict[str, Any]:
    """Return everything in a store, as it would be read."""
    records = {
        f"{folder}/{name}": store.get_record(folder, name)
        for folder in ("accounts", "state", "challenges")
        for name in store.list_records(folder)
    }
    return {**records, **{name: store.get(name) for name in store.list()}}


def edited(path: Path, key: str, **changes: Any) -> None:
    """Change one record of a plain archive; an `...` takes a field away."""
    archive = json.loads(path.read_text())
    record = archive["records"][key] | changes
    archive["records"][key] = {field: value for field, value in record.items() if value is not ...}
    path.write_text(json.dumps(archive))


def test_out_and_in_again(store: CertificateStore, path: Path) -> None:
    assert store.acquire("a")
    sealed = bool(store.records.keyring)
    seen: list[tuple[int, int]] = []
    exported = export_store(store, path, progress=lambda done, total: seen.append((done, total)))
    assert exported == Exported(4, sealed, ())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert is_sealed(path.read_bytes()) == sealed
    assert [file.name for file in path.parent.iterdir() if file.name != "store"] == [path.name]

    empty = CertificateStore(MemoryRecords(), store.records.keyring)
    assert import_store(empty, path) == Imported(4, 0, (), ())
    assert read(empty) == {name: value for name, value in read(store).items() if not name.startswith("challenges")}
    assert empty.acquire("a")
    assert import_store(empty, path) == Imported(0, 4, (), ())
    assert import_store(store, path) == Imported(0, 4, (), ())


def test_from_one_key_to_another_and_to_none(path: Path) -> None:
    export_store(filled(CertificateStore(MemoryRecords(), OLD_RING)), path)
    other = CertificateStore(MemoryRecords(), BOTH)
    assert import_store(other, path).written == 4
    with pytest.raises(StoreError, match="not among store"):
        import_store(CertificateStore(MemoryRecords(), NEW_RING), path)
    with pytest.raises(StoreError, match="Give the key that it was sealed with"):
        import_store(MemoryStore(), path)
    export_store(filled(MemoryStore()), path)
    assert import_store(CertificateStore(MemoryRecords(), OLD_RING), path).written == 4


def test_newer_records_stay_unless_forced(path: Path) -> None:
    store = filled(MemoryStore())
    export_store(store, path)
    edited(path, "state/acme/one.test", record={"old": 1}, written="2020-01-01T00:00:00+00:00")
    edited(path, "accounts/a", record={"later": 1}, written="2999-01-01T00:00:00+00:00")
    assert import_store(store, path) == Imported(1, 2, ("state/acme/one.test",), ())
    assert store.get_record("accounts", "a") == {"later": 1}
    assert store.get_record("state", "acme/one.test") == {}
    assert import_store(store, path, force=True) == Imported(1, 3, (), ())
    assert store.get_record("state", "acme/one.test") == {"old": 1}


def test_of_two_records_as_old_as_each_other_the_one_of_the_file_wins(path: Path) -> None:
    """Times in records are whole seconds, and whoever restores means what is in the file."""
    store = filled(MemoryStore())
    export_store(store, path)
    edited(path, "accounts/a", record={"other": 1})
    assert import_store(store, path) == Imported(1, 3, (), ())
    assert store.get_record("accounts", "a") == {"other": 1}


def test_a_record_that_does_not_say_when_it_was_written_is_as_old_as_its_certificate(path: Path) -> None:
    store = MemoryStore()
    store.put("a", issue("a.test", days=(-20, 30)).bundle())
    export_store(store, path)
    edited(path, "certificates/a", written=...)
    assert import_store(store, path) == Imported(0, 0, ("certificates/a",), ())


def test_damage_in_the_store_is_told_and_replaced(store: CertificateStore, path: Path) -> None:
    export_store(store, path)
    whole = path.read_bytes()
    store.records.write("state/acme/one.test", b"{")
    exported = export_store(store, path)
    assert (exported.records, len(exported.failed)) == (3, 1)
    assert "acme" in exported.failed[0]
    path.write_bytes(whole)
    assert import_store(store, path) == Imported(1, 3, (), ())
    assert store.get_record("state", "acme/one.test") == {}


def test_a_sealed_record_that_is_damaged_is_replaced(path: Path) -> None:
    """That is what a backup is for."""
    raw = MemoryRecords()
    store = filled(CertificateStore(raw, OLD_RING))
    export_store(store, path)
    for key in ("certificates/acme/one.test", "state/acme/one.test"):
        raw.write(key, (raw.read(key) or b"")[:-1])
    assert import_store(store, path) == Imported(2, 2, (), ())
    assert (store.get("acme/one.test"), store.get_record("state", "acme/one.test")) == (ONE, {})


@pytest.mark.parametrize("force", [False, True])
def test_what_the_store_refuses_of_one_record_keeps_nobody_from_the_others(path: Path, force: bool) -> None:
    raw = MemoryRecords()
    store = filled(CertificateStore(raw, OLD_RING))
    export_store(store, path)
    raw.write("accounts/a", NEW_RING.seal("accounts/a", b"{}"))  # with its key it is as good as new
    lost = raw.read("accounts/a")
    raw.remove("state/acme/one.test")
    result = import_store(store, path, force=force)
    assert (result.written, result.unchanged, len(result.failed)) == (1, 2, 1)
    assert result.failed[0].startswith(f"{path}: the record 'accounts/a' is left out. memory: accounts/a: sealed with")
    assert raw.read("accounts/a") == lost


def test_a_backup_is_not_replaced_by_nothing(path: Path) -> None:
    records = MemoryRecords()
    filled(CertificateStore(records, OLD_RING))
    path.write_text("yesterday's backup")
    with pytest.raises(StoreError, match=r"is not written: not one record could be read. The first: memory: "):
        export_store(CertificateStore(records, NEW_RING), path)
    assert path.read_text() == "yesterday's backup"
    store = MemoryStore()
    store.put_record("challenges", "http-01/x", {})
    with pytest.raises(StoreError, match="is not written: nothing there is to be saved"):
        export_store(store, path)
    assert path.read_text() == "yesterday's backup"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("certificates/acme/one.test", {"name": "acme/two.test"}),
        ("certificates/acme/one.test", {"key_pem": TWO.key_pem.decode()}),
        ("certificates/acme/one.test", {"key_pem": "x"}),
        ("certificates/acme/one.test", {"chain_pem": ...}),
        ("certificates/acme/one.test", {"not_before": "2026-01-01"}),
        ("certificates/acme/one.test", {"written": "yesterday"}),
        ("certificates/acme/one.test", {"written": "2026-01-01T00:00:00"}),
        ("certificates/acme/one.test", {"written": 5}),
        ("certificates/acme/one.test", {"source": "x"}),
        ("accounts/a", {"record": ...}),
        ("accounts/a", {"record": "x"}),
        ("accounts/a", {"name": ...}),
    ],
)
def test_each_record_is_judged(path: Path, key: str, changes: dict[str, Any]) -> None:
    export_store(filled(MemoryStore()), path)
    edited(path, key, **changes)
    result = import_store(store := MemoryStore(), path)
    assert (result.written, len(result.failed)) == (3, 1)
    assert result.failed[0].startswith(f"{path}: the record '{key}' can't be used (")
    assert "PRIVATE" not in result.failed[0]
    assert len(read(store)) == 3


@pytest.mark.parametrize("key", ["leases/a", "../a", "certificates", "/etc/passwd", "new/x"])
def test_keys_of_no_store_are_refused(path: Path, key: str) -> None:
    archive = {"archive": "tlsproxy store", "version": 1, "records": {key: {"name": "a", "record": {}}}}
    path.write_text(json.dumps(archive))
    assert len(import_store(MemoryStore(), path).failed) == 1


def test_challenges_do_not_come_in(path: Path) -> None:
    records = {"challenges/a": {"name": "a", "record": {}}}
    path.write_text(json.dumps({"archive": "tlsproxy store", "version": 1, "records": records}))
    assert import_store(store := MemoryStore(), path) == Imported(0, 0, (), ())
    assert store.list_records("challenges") == ()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"TP1", b"\xff", b'{"archive": "x", "version": 1}', b"[" * 100_000]
)
def test_files_that_are_no_archive(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(StoreError, match=r"backup\.json: "):
        import_store(MemoryStore(), path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none" / "x"):
        with pytest.raises(StoreError, match="can't be read"):
            import_store(MemoryStore(), place)
        with pytest.raises(StoreError, match="can't be written"):
            export_store(filled(MemoryStore()), place)
    assert list(tmp_path.iterdir()) == []
