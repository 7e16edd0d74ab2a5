"""From a configuration to the generation that serves it: what each child is told, and what it inherits.

Knows settings, listeners and what all generations have in common; starts nothing. Rule: children of two generations
differ in what their configurations say and in nothing else, so that a client can't tell which one it talks to.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tlsproxy.proxy.openssl import openssl_environment
from tlsproxy.runtime.generation import Ears, Generation
from tlsproxy.runtime.messages import BackendPlan, ListenerKind, Start
from tlsproxy.runtime.process import ChildSpec
from tlsproxy.runtime.sockets import Listener
from tlsproxy.settings import Settings

TICKET_SECRET_BYTES = 32


@dataclass(frozen=True)
class Heirloom:
    """What is handed on from generation to generation. With one ticket secret, TLS sessions resume in all of them."""

    ticket_secret: str = field(default_factory=lambda: secrets.token_hex(TICKET_SECRET_BYTES), repr=False)
    ears: Ears = field(default_factory=Ears)


def make_generation(
    number: int, settings: Settings, listeners: Sequence[Listener], heirloom: Heirloom, plan: BackendPlan
) -> Generation:
    """Return a generation that is yet to be started. It does not own the listeners."""
    inherited: tuple[tuple[ListenerKind, int, int], ...] = tuple(
        (listener.kind, listener.socket.fileno(), listener.slot) for listener in listeners
    )
    first = Start(settings.for_child(), generation=number, addresses=https_addresses(listeners))
    certifier = ChildSpec("certifier", "tlsproxy.runtime.certifier", first, {})
    for_worker, environment = settings.for_worker(), openssl_environment()
    starts = [
        Start(for_worker, inherited, heirloom.ticket_secret, slot, number) for slot in range(settings.resolve_workers())
    ]
    workers = [ChildSpec("worker", "tlsproxy.runtime.worker", start, environment) for start in starts]
    slots = max((listener.slot + 1 for listener in listeners), default=len(workers))
    return Generation(number, certifier, workers, slots=slots, plan=plan, ears=heirloom.ears)


def https_addresses(listeners: Iterable[Listener]) -> tuple[str, ...]:
    """Return what getsockname says, once for the sockets of all slots."""
    return tuple(listener.address for listener in listeners if listener.kind == "https" and listener.slot == 0)
