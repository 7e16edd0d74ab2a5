"""Memory of the store: read again when somebody has written, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.pki import issue
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.state import State
from tlsproxy.certs.tools import Tools
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore, Lease, LeaseLost, open_store

NAMES = ("acme/a.test", "acme/b.test")


@pytest.fixture(params=["memory", "file"])
def tools(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tools]:
    tools = Tools.make(open_store("memory:" if request.param == "memory" else f"file://{tmp_path}/store"))
    yield tools
    tools.close()


def counting(store: CertificateStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of what is read from now on."""
    read, seen = store.records.read, list[str]()

    def note(key: str) -> bytes | None:
        seen.append(key)
        return read(key)

    monkeypatch.setattr(store.records, "read", note)
    return seen


def test_what_nobody_has_written_is_read_once(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.store.put(NAMES[0], issue("a.test").bundle())
    shelf = Shelf(tools)
    seen = counting(tools.store, monkeypatch)

    async def story() -> None:
        assert await shelf.refresh(NAMES) == {NAMES[0]}
        assert await shelf.refresh(NAMES) == set()
        assert seen == [f"certificates/{NAMES[0]}"]
        await shelf.put(NAMES[1], issue("b.test").bundle(), None)
        await shelf.save(NAMES[1], State(attempts=2), None)
        assert await shelf.refresh(NAMES) == set()

    asyncio.run(story())
    assert len(seen) == 1
    held = shelf.held(NAMES[1])
    assert held
    assert held.names == ("b.test",)
    assert shelf.state(NAMES[1]).attempts == 2


def test_what_somebody_else_has_written_is_found(tools: Tools) -> None:
    shelf = Shelf(tools)

    async def story() -> None:
        await shelf.refresh(NAMES)
        await shelf.put(NAMES[0], issue("a.test").bundle(), None)
        tools.store.put(NAMES[1], issue("b.test").bundle())
        tools.store.put_record("state", NAMES[0], State(attempts=3).to_record())
        await shelf.put(NAMES[0], issue("a.test").bundle(), None)
        assert await shelf.refresh(NAMES) == {NAMES[1]}

    asyncio.run(story())
    assert shelf.state(NAMES[0]).attempts == 3


def test_what_is_gone_is_gone(tools: Tools) -> None:
    shelf = Shelf(tools)

    async def story() -> None:
        await shelf.put(NAMES[0], issue("a.test").bundle(), None)
        await shelf.refresh(NAMES)
        tools.store.delete(NAMES[0])
        assert await shelf.refresh(NAMES) == {NAMES[0]}
        await shelf.put(NAMES[0], issue("a.test").bundle(), None)
        await shelf.remove(NAMES[0], None)

    asyncio.run(story())
    assert shelf.held(NAMES[0]) is None
    assert tools.store.list() == ()


def test_a_state_that_can_not_be_saved_counts_all_the_same(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tools)

    def fail(key: str, value: bytes, lease: Lease | None = None) -> None:
        raise StoreError("the disk is full")

    async def story() -> None:
        with monkeypatch.context() as broken:
            broken.setattr(tools.store.records, "write", fail)
            await shelf.save(NAMES[0], State(attempts=4), None)
        tools.store.put_record("state", NAMES[1], State(attempts=1).to_record())
        await shelf.refresh(NAMES)
        assert (await shelf.reread(NAMES[0]))[1].attempts == 4
        assert shelf.state(NAMES[0]).attempts == 4
        await shelf.save(NAMES[0], State(attempts=5), None)

    asyncio.run(story())
    assert tools.store.get_record("state", NAMES[0]) == State(attempts=5).to_record()


def test_one_that_can_not_be_read_keeps_what_was_known(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tools)

    async def story() -> None:
        await shelf.put(NAMES[0], issue("a.test").bundle(), None)
        read = tools.store.records.read

        def fail(key: str) -> bytes | None:
            if key == f"certificates/{NAMES[0]}":
                raise StoreError("sealed with another key")
            return read(key)

        monkeypatch.setattr(tools.store.records, "read", fail)
        tools.store.put(NAMES[1], issue("b.test").bundle())
        assert await shelf.refresh(NAMES) == {NAMES[1]}
        with pytest.raises(StoreError):
            await shelf.reread(NAMES[0])

    asyncio.run(story())
    assert shelf.held(NAMES[0])
    assert shelf.problem(NAMES[0]) == "sealed with another key"


def test_a_lost_lease_is_not_swallowed(tools: Tools) -> None:
    shelf = Shelf(tools)
    lease = tools.store.acquire("x")
    assert lease
    tools.store.release(lease)
    with pytest.raises(LeaseLost):
        asyncio.run(shelf.save(NAMES[0], State(attempts=1), lease))
    assert shelf.state(NAMES[0]).attempts == 0
