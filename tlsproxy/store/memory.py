"""A store in the memory of one process: for tests and for embedding. Forgets everything at exit."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tlsproxy.store.base import check_name
from tlsproxy.store.bundle import Bundle


class MemoryStore:
    """Keeps the contract of CertificateStore, except that nothing outlives the process."""

    # Mutable: _bundles, guarded by _lock.

    def __init__(self) -> None:
        self._bundles: dict[str, Bundle] = {}
        self._lock = threading.RLock()

    def get(self, name: str) -> Bundle | None:
        return self._bundles.get(name)

    def put(self, name: str, bundle: Bundle) -> None:
        check_name(name)
        with self._lock:
            self._bundles[name] = bundle

    def delete(self, name: str) -> None:
        with self._lock:
            self._bundles.pop(name, None)

    def list(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(self._bundles))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._lock:
            yield

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._bundles)} certificates>"
