"""What every certificate store promises, asked of each of them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.pki import issue
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore, open_store

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


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CertificateStore]:
    made = open_store("memory:" if request.param == "memory" else f"file://{tmp_path / 'store'}")
    yield made
    made.close()
    made.close()


def test_what_is_put_is_got(store: CertificateStore) -> None:
    store.put("a", ONE)
    assert store.get("a") == ONE
    store.put("a", TWO)
    assert store.get("a") == TWO


def test_what_is_not_there_is_no_error(store: CertificateStore) -> None:
    assert store.get("a") is None
    store.delete("a")
    assert store.list() == ()


def test_delete_forgets_one(store: CertificateStore) -> None:
    store.put("a", ONE)
    store.put("b", TWO)
    store.delete("a")
    assert (store.get("a"), store.get("b"), store.list()) == (None, TWO, ("b",))


def test_names_are_opaque(store: CertificateStore) -> None:
    bundles = {name: issue(f"n{number}.test").bundle() for number, name in enumerate(NAMES)}
    for name, bundle in bundles.items():
        store.put(name, bundle)
    assert {name: store.get(name) for name in NAMES} == bundles
    assert store.list() == tuple(sorted(NAMES))


@pytest.mark.parametrize("name", ["", "x" * 513])
def test_impossible_names_are_refused(store: CertificateStore, name: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        store.put(name, ONE)
    assert store.list() == ()


def test_writing_works_inside_exclusive_and_exclusive_inside_itself(store: CertificateStore) -> None:
    with store.exclusive(), store.exclusive():
        store.put("a", ONE)
        store.put("b", ONE)
        store.delete("b")
    assert store.list() == ("a",)


def test_exclusive_ends_with_an_exception(store: CertificateStore) -> None:
    with pytest.raises(StoreError), store.exclusive():
        raise StoreError("x")
    store.put("a", ONE)


def test_exclusive_keeps_other_threads_out(store: CertificateStore) -> None:
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


def test_a_reader_sees_the_old_or_the_new_record(store: CertificateStore) -> None:
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


def test_repr_shows_no_key(store: CertificateStore) -> None:
    store.put("a", ONE)
    assert "PRIVATE" not in repr(store)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://x", "unknown kind of store"),
        ("/var/lib/tlsproxy", "unknown kind of store"),
        ("file:relative", "must be absolute"),
        ("file://host/path", "must be absolute"),
    ],
)
def test_urls_that_are_no_store(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        open_store(url)


def test_a_url_is_decoded(tmp_path: Path) -> None:
    open_store(f"file://localhost{tmp_path}/with%20space").close()
    assert (tmp_path / "with space" / "certificates").is_dir()
