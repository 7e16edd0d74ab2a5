"""Clients whose handshake waits for a certificate that is being obtained for their name.

Knows hosts, who waits for each, and which the certifier has refused; knows no certificates. Rules: a certifier is
asked once per host however many wait; every memory here has a limit, because anybody can invent names; who is told
"ready" chooses again, so that the certificate comes from one place only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol

from tlsproxy.proxy.choice import TOO_MANY_WAIT, Refused
from tlsproxy.proxy.rate import Bucket, Buckets
from tlsproxy.wire.clienthello import UNRECOGNIZED_NAME

LONGEST_WAIT: Final = 60.0
"""Seconds that a client waits, and for which the certifier is not asked again for the same host."""

_MOST_REFUSED: Final = 10_000  # hosts that are remembered as refused
_LONGEST_REFUSAL: Final = 86_400.0  # seconds
_QUESTIONS: Final = 20  # to the certifier, a second
_QUESTIONS_AT_ONCE: Final = 100
_OF_A_NETWORK: Final = 5  # of them: one network must not use up what there is for all
_OF_A_NETWORK_AT_ONCE: Final = 10
_NETWORKS: Final = 10_000  # that are told apart


class Waiter(Protocol):
    """A handshake that waits. Called once, from the event loop; must not raise."""

    def certificate_ready(self) -> None: ...

    def certificate_refused(self, refused: Refused) -> None: ...


class Awaited:
    """A host whose certificate is not there, and may come."""

    __slots__ = ("_room", "host")

    def __init__(self, room: WaitingRoom, host: str) -> None:
        self._room = room
        self.host = host

    def join(self, waiter: Waiter, client: str) -> Refused | None:
        """Wait for it, as `client`; the answer may also be no. Ends with a call of the waiter, or with `leave`."""
        return self._room.join(self.host, waiter, client)

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer. May be called when the waiting is over."""
        self._room.leave(self.host, waiter)

    def __repr__(self) -> str:
        return f"<Awaited {self.host}>"


class _Question:
    """What was asked of the certifier for a host, for `client`. It is not asked again before `expires`."""

    __slots__ = ("client", "expires", "waiters")

    def __init__(self) -> None:
        self.client = ""
        self.expires = 0.0
        self.waiters: dict[Waiter, str] = {}  # and the network of each


class WaitingRoom:
    """One per worker. `want(host, client)` passes a wish on to the certifier."""

    # Mutable: _questions by host, _networks (waiters of each), _refused (until when, and why, by host).

    def __init__(
        self,
        want: Callable[[str, str], None],
        *,
        total: int = 100,
        per_network: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `total` clients wait, and `per_network` of an IPv4 /24 or an IPv6 /64."""
        self._want = want
        self._total = total
        self._per_network = per_network
        self._clock = clock
        self._bucket = Bucket(_QUESTIONS, _QUESTIONS_AT_ONCE, clock=clock)
        self._shares = Buckets(_OF_A_NETWORK, _OF_A_NETWORK_AT_ONCE, _NETWORKS, clock=clock)
        self._questions: dict[str, _Question] = {}
        self._networks: Counter[str] = Counter()
        self._refused: dict[str, tuple[float, Refused]] = {}

    def __len__(self) -> int:
        """How many clients wait."""
        return self._networks.total()

    def __repr__(self) -> str:
        return f"<WaitingRoom {len(self)} wait for {len(self.hosts())} hosts, {len(self._refused)} refused>"

    def hosts(self) -> list[str]:
        """The hosts that somebody waits for."""
        return [host for host, question in self._questions.items() if question.waiters]

    def is_waited_for(self, host: str) -> bool:
        question = self._questions.get(host)
        return question is not None and bool(question.waiters)

    def awaited(self, host: str) -> Awaited:
        return Awaited(self, host)

    def refusal(self, host: str) -> Refused | None:
        """Return why nobody need wait for `host`, as long as that holds."""
        until, refused = self._refused.get(host, (0.0, None))
        if refused is not None and self._clock() >= until:
            del self._refused[host]
            return None
        return refused

    def join(self, host: str, waiter: Waiter, client: str) -> Refused | None:
        """See `Awaited.join`."""
        network = _network(client)
        if len(self) >= self._total or self._networks[network] >= self._per_network:
            return TOO_MANY_WAIT
        question = self._questions.get(host) or _Question()
        now = self._clock()
        if now >= question.expires:
            if not self._may_ask(network):
                return TOO_MANY_WAIT
            self._forget_old(now)
            question.client = client
            self._questions[host] = question
            self._ask(host, question)
        question.waiters[waiter] = network
        self._networks[network] += 1
        return None

    def remind(self, host: str, client: str) -> bool:
        """Tell the certifier that a certificate which is to be renewed, or has expired, is in use. Nobody waits.

        False: not told, because there are too many questions just now.
        """
        if not self._may_ask(_network(client)):
            return False
        self._want(host, client)
        return True

    def ask_again(self) -> None:
        """Tell a new certifier what is waited for: the earlier one has taken what it was asked with it."""
        for host, question in list(self._questions.items()):
            if question.waiters:
                self._ask(host, question)
            else:
                del self._questions[host]  # whoever comes next asks

    def leave(self, host: str, waiter: Waiter) -> None:
        """See `Awaited.leave`."""
        question = self._questions.get(host)
        if question is not None and waiter in question.waiters:
            self._count_out(question.waiters.pop(waiter))

    def settle(self, host: str) -> None:
        """The store has a certificate of `host` now: let everybody choose again who waits for it."""
        self._refused.pop(host, None)
        for waiter in self._end(host):
            waiter.certificate_ready()

    def refuse(self, host: str, reason: str, seconds: float) -> None:
        """There will be none for so long: send everybody away who waits for it, and who comes in that time."""
        refused = Refused(UNRECOGNIZED_NAME, f"no certificate: {reason}")
        self._refused.pop(host, None)
        while len(self._refused) >= _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[host] = (self._clock() + min(seconds, _LONGEST_REFUSAL), refused)
        for waiter in self._end(host):
            waiter.certificate_refused(refused)

    def _may_ask(self, network: str) -> bool:
        return self._shares.take(network) and self._bucket.take()

    def _ask(self, host: str, question: _Question) -> None:
        question.expires = self._clock() + LONGEST_WAIT
        self._want(host, question.client)

    def _end(self, host: str) -> list[Waiter]:
        question = self._questions.pop(host, None)
        if question is None:
            return []
        for network in question.waiters.values():
            self._count_out(network)
        return list(question.waiters)

    def _count_out(self, network: str) -> None:
        self._networks[network] -= 1
        if not self._networks[network]:
            del self._networks[network]

    def _forget_old(self, now: float) -> None:
        """The bucket bounds how many there can be: those of the last minute."""
        old = [host for host, each in self._questions.items() if now >= each.expires and not each.waiters]
        for host in old:
            del self._questions[host]


def _network(client: str) -> str:
    """Return what one customer of a provider has: a /24 or a /64. The text itself for what is no address."""
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, IPv6Address):
        return address.packed[:8].hex()
    return client.rpartition(".")[0]
