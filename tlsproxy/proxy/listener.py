"""Accepting connections from the sockets the supervisor made. Knows addresses and limits, not protocols.

Strategy: each worker waits on sockets of its own, which the kernel deals new connections to, so that one wakes nobody
else. One accept per wake-up: a second one is almost always in vain, and limits are exact while each connection is
counted before the next. (libuv's own listener would take all there is, and gives up its socket on EMFILE.)

Rules kept: running out of descriptors or memory is said once, waited out and survived; at the limit of connections the
ones that have been idle longest are shed before a new client is turned away. A proxy in front of us is no client: what
it forwards is counted by who the PROXY header says it is from, or not at all.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from tlsproxy.proxy.connection import Accepted, client_address
from tlsproxy.wire.forwarding import Trust

if TYPE_CHECKING:
    from tlsproxy.proxy.connection import Connection

logger = logging.getLogger(__name__)

_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_LONGEST_QUEUE: Final = 4096  # what `take_queued` accepts at most, so that a flood can't keep it from ending
_PAUSE: Final = 0.1  # seconds without accepting after running out
_SHED_PART: Final = 16  # one in so many connections is shed at a time: the scan is paid for many accepts
_NOBODY: Final = Trust(())


class Connections:
    """The client connections of a worker; counted per client address while `per_client` limits them (0 = no limit).

    One counts from the moment it is admitted: between the accept and its transport the loop may accept many others.
    Peers in `senders` begin with a PROXY header; theirs count for a client once `identify` has named it. Peers in
    `shared` speak for many clients, who can be told apart by requests alone: theirs count in the total only.
    """

    def __init__(self, *, total: int, per_client: int, senders: Trust = _NOBODY, shared: Trust = _NOBODY) -> None:
        self._open: set[Connection] = set()
        self.total = total
        self.per_client = per_client
        self._senders = senders
        self._shared = shared
        self._turned_away = 0
        self._last_turned_away = ""
        self._clients: dict[Connection, str] = {}
        self._counts: Counter[str] = Counter()
        self._arriving = 0  # admitted, and not added yet
        self._all_busy = False  # the last search for idle ones found none
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        """Over a copy: what is done to a connection may end it."""
        return iter(tuple(self._open))

    def add(self, connection: Connection) -> None:
        """Take in a connection that was admitted."""
        self._arriving -= 1
        self._open.add(connection)
        self.empty.clear()
        client = connection.info.client
        if self._counts_at_once(client):
            self._clients[connection] = client

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self.empty.set()
        client = self._clients.pop(connection, None)
        if client is not None:
            self._count_out(client)

    def admit(self, client: str) -> bool:
        """Let one more connection of `client` in, if there is room; sheds idle ones if the total is reached.

        Followed by `add`, or by `lose` if the connection did not come about.
        """
        counts = self._counts_at_once(client)
        if counts and self._counts[client] >= self.per_client:
            return self._turn_away(client)
        if len(self._open) + self._arriving >= self.total and not self._shed():
            return self._turn_away(client)
        self._arriving += 1
        if counts:
            self._counts[client] += 1
        return True

    def identify(self, connection: Connection, client: str) -> bool:
        """Count a connection that was added as one of `client`, whom its PROXY header names; False: one too many."""
        if not self.per_client or client in self._shared:
            return True
        if self._counts[client] >= self.per_client:
            return self._turn_away(client)
        self._counts[client] += 1
        self._clients[connection] = client
        return True

    def lose(self, client: str) -> None:
        """A connection of `client` that was admitted was gone before it could be added."""
        self._arriving -= 1
        if self._counts_at_once(client):
            self._count_out(client)

    def report(self) -> int:
        """Say, and return, how many clients were turned away since the last report; called by the tick."""
        turned_away, self._turned_away = self._turned_away, 0
        if turned_away:
            logger.warning(
                "connections.turned_away",
                extra={
                    "count": turned_away,
                    "last_client": self._last_turned_away,
                    "open": len(self._open),
                    "limits.connections": self.total,
                    "limits.connections_per_client": self.per_client,
                },
            )
        return turned_away

    def _counts_at_once(self, peer: str) -> bool:
        return self.per_client > 0 and peer not in self._senders and peer not in self._shared

    def _turn_away(self, client: str) -> bool:
        self._turned_away += 1
        self._last_turned_away = client
        return False

    def _count_out(self, client: str) -> None:
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]

    def _shed(self) -> bool:
        if self._all_busy:
            return False
        idle = sorted(self._idle(), key=lambda pair: pair[0])[: max(1, len(self) // _SHED_PART)]
        for _, connection in idle:
            connection.close()
        self._all_busy = not idle
        return bool(idle)

    def count_phases(self) -> dict[str, int]:
        """How many connections are at what, as "connections_idle"."""
        phases = Counter(connection.phase for connection in self._open)
        return {f"connections_{phase}": count for phase, count in phases.items()}

    def look_again(self) -> None:
        """Called by the tick: somebody may have become idle. In between, a full worker does not search for it."""
        self._all_busy = False

    def _idle(self) -> Iterator[tuple[float, Connection]]:
        for connection in self:
            since = connection.idle_since
            if since is not None:
                yield since, connection


class Listener:
    """Accepts from one socket, which it owns until `close` or `stop`, and makes a `factory()` for each connection."""

    def __init__(
        self,
        sock: socket.socket,
        factory: Callable[[Accepted], Connection],
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._sock = sock
        self._port = client_address(sock.getsockname())[1]
        self._factory = factory
        self._connections = connections
        self._loop = loop
        self._pending: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._in_trouble = False
        sock.setblocking(False)
        loop.add_reader(sock, self._accept)

    @property
    def descriptor(self) -> int:
        return self._sock.fileno()

    def stop(self) -> socket.socket:
        """Stop accepting and hand the socket back. What is queued stays there for whoever listens on a copy of it."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        else:
            self._loop.remove_reader(self._sock)
        return self._sock

    def close(self) -> None:
        """Stop accepting. What is queued is lost (reset) if this was the last copy of the socket."""
        self.stop().close()

    def take_queued(self) -> None:
        """Accept everything that waits, for a close that nobody comes after."""
        for _ in range(_LONGEST_QUEUE):
            if not self._accept():
                return

    async def settle(self) -> None:
        """Return when every connection that was accepted is one of `connections`, or is gone."""
        if self._pending:
            await asyncio.wait(self._pending)

    def _accept(self) -> bool:
        """Return whether there may be more to accept."""
        try:
            sock, address = self._sock.accept()
        except ConnectionAbortedError:
            return True  # the client is gone already
        except (BlockingIOError, InterruptedError):
            return False  # taken by another process: an adopted slot's worker is back
        except OSError as error:
            self._wait_out(error)
            return False
        self._in_trouble = False
        self._admit(sock, client_address(address))
        return True

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        if not self._connections.admit(peer[0]):
            sock.close()
            return
        task = self._loop.create_task(self._connect(sock, peer))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _connect(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        try:
            await self._loop.connect_accepted_socket(partial(self._factory, Accepted(sock, peer, self._port)), sock)
        except OSError:
            sock.close()  # the client is gone already
            self._connections.lose(peer[0])

    def _wait_out(self, error: OSError) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            what = "file descriptors or memory ran out" if error.errno in _EXHAUSTED else "accept failed"
            hint = "waiting; raise the open-file limit or lower limits.connections"
            logger.error("listener.exhausted", extra={"error": f"{what} ({error.strerror}); {hint}"})
        self.stop()
        self._resume = self._loop.call_later(_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._loop.add_reader(self._sock, self._accept)
