"""What the store holds for ACME certificates, as small values in memory: certificates without keys, and states.

Knows: how to find out cheaply that something was written, and by whom it was not. Does not know: what it means. Rules:
the store is the only truth and is read again under a lease before anything is decided; memory only spares reading ten
thousand records every ten minutes. A record that is damaged counts as none, one that can't be read now is not judged. A
state that could not be written (a full disk) counts here until it can.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from tlsproxy.certs import state as states
from tlsproxy.certs.state import State
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.wanted import Held
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore, Lease, LeaseLost, RecordDamaged
from tlsproxy.store.bundle import Bundle

T = TypeVar("T")

logger = logging.getLogger(__name__)

CERTIFICATES = "certificates"
_FOLDERS = (CERTIFICATES, states.FOLDER)
_FRESH = State()


class Shelf:
    """The certificates and states of some names. Its coroutines are for one event loop."""

    # Mutable: _held, _states (by name), _unreadable (name -> why), _unsaved (states that the store could not take),
    # _versions (by folder, as of the last reading or of our own last writing), _names (as of the last reading).

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held: dict[str, Held] = {}
        self._states: dict[str, State] = {}
        self._unreadable: dict[str, str] = {}
        self._unsaved: dict[str, State] = {}
        self._versions: dict[str, str] = {}
        self._names: frozenset[str] = frozenset()

    def held(self, name: str) -> Held | None:
        return self._held.get(name)

    def state(self, name: str) -> State:
        return self._states.get(name, _FRESH)

    def problem(self, name: str) -> str:
        """Return why the record of this certificate could not be read the last time, or ""."""
        return self._unreadable.get(name, "")

    async def refresh(self, names: Iterable[str]) -> set[str]:
        """Read what somebody else may have written; return the names whose certificate is another than before.

        Raises StoreError when the store as a whole can't be read.
        """
        wanted = frozenset(names)
        store, known = self._tools.store, self._versions if wanted == self._names else {}
        versions = await self._tools.in_store(lambda: {folder: store.version(folder) for folder in _FOLDERS})
        changed: set[str] = set()
        if versions[CERTIFICATES] != known.get(CERTIFICATES):
            held, self._unreadable = await self._tools.in_store(_read_all, store, wanted)
            held |= {name: self._held[name] for name in self._unreadable if name in self._held}
            changed = {name for name in wanted if held.get(name) != self._held.get(name)}
            self._held = held
        if versions[states.FOLDER] != known.get(states.FOLDER):
            self._states = await self._tools.in_store(_read_states, store, wanted) | self._unsaved
        self._versions, self._names = versions, wanted
        return changed

    async def reread(self, name: str) -> tuple[Held | None, State]:
        """Read one certificate and its state, whatever memory says. Raises StoreError."""
        store = self._tools.store
        held, state = await self._tools.in_store(lambda: (read_held(store, name), read_state(store, name)))
        state = self._unsaved.get(name) or state
        self._unreadable.pop(name, None)
        # Strangers may choose the name: nothing is kept of one that has nothing.
        if state is None:
            self._states.pop(name, None)
        else:
            self._states[name] = state
        if held is None:
            self._held.pop(name, None)
        else:
            self._held[name] = held
        return held, state or _FRESH

    async def put(
        self, name: str, bundle: Bundle, lease: Lease | None, keeps: Callable[[Held], bool] | None = None
    ) -> Held:
        """Store a certificate, unless `keeps` says yes to the one that is there; return the one that is there then.

        No lease holds off a person who imports one. Raises StoreError, LeaseLost.
        """

        def write() -> Held:
            if keeps and (present := read_held(self._tools.store, name)) and keeps(present):
                return present
            self._tools.store.put(name, bundle, lease)
            return Held.of(bundle)

        held = self._held[name] = await self._write(CERTIFICATES, write)
        return held

    async def save(self, name: str, state: State, lease: Lease | None) -> None:
        """Keep a state: in the store, or in memory as long as the store can't take it. Raises LeaseLost."""
        store, folder = self._tools.store, states.FOLDER
        try:
            await self._write(folder, lambda: store.put_record(folder, name, state.to_record(), lease))
        except LeaseLost:
            raise
        except StoreError as error:
            self._unsaved[name] = state
            logger.error("certificate.state_not_saved", extra={"certificate": name, "error": str(error)})  # noqa: TRY400
        else:
            self._unsaved.pop(name, None)
        self._states[name] = state

    async def remove(self, name: str, lease: Lease | None) -> None:
        """Forget a certificate and its state. Raises StoreError, LeaseLost."""
        store = self._tools.store
        await self._write(CERTIFICATES, lambda: store.delete(name, lease))
        await self._write(states.FOLDER, lambda: store.delete_record(states.FOLDER, name, lease))
        for name_is_known in (self._held, self._states, self._unsaved, self._unreadable):
            name_is_known.pop(name, None)

    async def _write(self, folder: str, write: Callable[[], T]) -> T:
        return await self._tools.in_store(self._write_here, folder, write)

    def _write_here(self, folder: str, write: Callable[[], T]) -> T:
        """Write, and know afterwards whether anybody else has written since the last look."""
        store = self._tools.store
        with store.exclusive():
            is_current = store.version(folder) == self._versions.get(folder)
            result = write()
            if is_current:
                self._versions[folder] = store.version(folder)
        return result


def read_held(store: CertificateStore, name: str) -> Held | None:
    """Return the certificate without its key; a damaged record counts as none. Blocks; raises StoreError."""
    try:
        bundle = store.get(name)
    except RecordDamaged as error:
        logger.warning("certificate.record_damaged", extra={"certificate": name, "error": str(error)})
        return None
    return Held.of(bundle) if bundle else None


def read_state(store: CertificateStore, name: str) -> State | None:
    """Return the state; a damaged one counts as none. Blocks; raises StoreError."""
    try:
        record = store.get_record(states.FOLDER, name)
    except RecordDamaged as error:
        logger.warning("certificate.state_damaged", extra={"certificate": name, "error": str(error)})
        return None
    return State.from_record(record) if record is not None else None


def _read_all(store: CertificateStore, names: Iterable[str]) -> tuple[dict[str, Held], dict[str, str]]:
    """Return what is there, and why the rest could not be read. Absent ones are listed first: no failed open each."""
    found: dict[str, Held] = {}
    unreadable: dict[str, str] = {}
    for name in set(store.list()).intersection(names):
        try:
            held = read_held(store, name)
        except StoreError as error:
            unreadable[name] = str(error)
        else:
            found |= {name: held} if held else {}
    return found, unreadable


def _read_states(store: CertificateStore, names: Iterable[str]) -> dict[str, State]:
    found: dict[str, State] = {}
    for name in set(store.list_records(states.FOLDER)).intersection(names):
        try:
            state = read_state(store, name)
        except StoreError as error:
            logger.warning("certificate.state_unreadable", extra={"certificate": name, "error": str(error)})
        else:
            found |= {name: state} if state else {}
    return found
