"""The backends of one route and the policy to choose among them.

Strategy: `choose` is a synchronous look-up over the backends that may be asked now; only `connect` waits. When all of a
route are left alone, one request a second tries one of them all the same.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from tlsproxy.proxy.failures import ConnectFailed, OutOfResources

if TYPE_CHECKING:
    from tlsproxy.proxy.backendside import BackendStream
    from tlsproxy.proxy.pool import Backend


class Upstream:
    """The backends of one route and the policy to choose among them.

    `limit` is how many requests of this worker a backend may have at a time, of whatever routes; 0 is no limit.
    """

    def __init__(self, backends: Sequence[Backend], balance: str, limit: int = 0) -> None:
        self.backends = tuple(backends)
        self.balance = balance
        self.limit = limit
        self._most = limit or sys.maxsize
        self._only = self.backends[0] if len(self.backends) == 1 else None
        for backend in self.backends:
            backend.has_siblings = backend.has_siblings or len(self.backends) > 1
        self._turn = random.randrange(len(self.backends))  # noqa: S311  # workers should not all start with the first
        self._choose = {
            "least_conn": self._least_conn,
            "round_robin": self._round_robin,
            "random": self._random,
            "ip_hash": self._ip_hash,
        }[balance]

    def __repr__(self) -> str:
        active = sum(backend.active for backend in self.backends)
        idle = sum(len(backend.idle) for backend in self.backends)
        return f"<Upstream {len(self.backends)} backends, {active} active, {idle} idle>"

    def choose(self, client: str, tried: Sequence[Backend] = ()) -> Backend | None:
        """A backend for the next request of `client` that is not in `tried`; None if there is none to be tried now."""
        only = self._only
        if only is not None:
            return only if only.may_be_asked and only.active < self._most and only not in tried else None
        most = self._most
        untried = [b for b in self.backends if b.may_be_asked and b.active < most and b not in tried]
        candidates = [backend for backend in untried if not backend.is_left_alone]
        if len(candidates) < len(untried):
            now = time.monotonic()
            # One that is merely busy is worth waiting for: no reason to ask one that fails before its time.
            early = not any(b.may_be_asked and not b.is_left_alone and b not in tried for b in self.backends)
            on_trial = next((backend for backend in untried if backend.take_trial(now, early=early)), None)
            if on_trial is not None:
                return on_trial
        return self._choose(_spare(candidates), client) if candidates else None

    def has_room(self, backend: Backend) -> bool:
        """Whether it may have one more request."""
        return backend.active < self._most

    def is_busy(self, own: Backend | None = None) -> bool:
        """Whether some backend would take a request if it had fewer of them: to wait for that makes sense.

        `own` counts the request that asks, which does not wait for itself.
        """
        return self.limit > 0 and any(
            backend.may_be_asked
            and (backend is self._only or not backend.is_left_alone)  # another route may have siblings for it
            and backend.active - (backend is own) >= self.limit
            for backend in self.backends
        )

    async def connect(
        self, backend: Backend, client: str, *, timeout: float, move_to: Callable[[Backend], None], reuse: bool
    ) -> BackendStream:
        """A new connection to `backend`, or to the next one that can be had: nothing was sent, so any request may move.

        `move_to` is told of each move; with `reuse` an idle connection there will do. Raises the last ConnectFailed
        when no backend is left to try.
        """
        tried: list[Backend] = []
        while True:
            try:
                return await backend.connect(timeout)
            except OutOfResources:
                raise  # no other backend can be reached either, and none is to blame
            except ConnectFailed as failure:
                if failure.counts:
                    backend.failed(failure.note)
                tried.append(backend)
                following = self.choose(client, tried)
                if following is None:
                    raise
                backend = following
                move_to(backend)
                idle = backend.claim() if reuse else None
                if idle is not None:
                    return idle

    def _least_conn(self, candidates: Sequence[Backend], client: str) -> Backend:
        fewest = min(backend.active for backend in candidates)
        return self._round_robin([b for b in candidates if b.active == fewest], client)

    def _round_robin(self, candidates: Sequence[Backend], _client: str) -> Backend:
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    def _random(self, candidates: Sequence[Backend], _client: str) -> Backend:
        return random.choice(candidates)  # noqa: S311

    def _ip_hash(self, candidates: Sequence[Backend], client: str) -> Backend:
        # Rendezvous hashing: when a backend leaves, only its own clients move. CRC-32 would be quicker by 1 µs, but is
        # linear: of three backends one got half of all clients.
        return max(candidates, key=lambda backend: blake2b(f"{client} {backend.url}".encode(), digest_size=8).digest())


def _spare(candidates: list[Backend]) -> list[Backend]:
    """`candidates` without those that have just come back and are not to have this request; all if that leaves none."""
    for backend in candidates:
        if backend.is_recovering:
            now = time.monotonic()
            return [each for each in candidates if each.takes_share(now)] or candidates
    return candidates
