"""From the listeners of one configuration to those of the next, without a moment in which nobody listens.

Knows addresses and sockets, nothing of processes. An address that stays keeps its sockets, and with them whoever waits
in their queues. The kernel gives a share of an address's connections to each socket that listens there: new ones are
bound at once, so that a taken port is known, and listen from `commit` on, when somebody is there to accept. For the
same reason a slot is never given up again: a socket that closes takes its queue with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tlsproxy.runtime.messages import ListenerKind
from tlsproxy.runtime.sockets import (
    Address,
    Listener,
    ListenError,
    bind_entry,
    close_listeners,
    join_listeners,
    parse_address,
    start_listening,
    while_running,
)

_EVERYWHERE = frozenset({"", "::", "0.0.0.0"})


@dataclass(frozen=True)
class Relisten:
    """Listeners that are ready to take the place of others. Ends with `commit`, or with `undo`.

    `listeners` is what the next generation inherits, kept and new ones. Of the `dropped` the caller closes its copies
    after the commit, before it tells those who accept from them to leave.
    """

    listeners: tuple[Listener, ...]
    new: tuple[Listener, ...]
    dropped: tuple[Listener, ...]

    def commit(self) -> None:
        """Listen with the new ones too. Raises ListenError when another process came first; then `undo` is due."""
        for listener in self.new:
            with _naming(listener.kind):
                start_listening(listener)

    def undo(self) -> None:
        """Close the new ones; the others are as they were."""
        close_listeners(self.new)


def change_listeners(before: Sequence[Listener], https: Iterable[str], http: Iterable[str], slots: int) -> Relisten:
    """Keep what stays, bind what is new, with at least `slots` sockets for each address. Raises ListenError."""
    wanted: list[tuple[ListenerKind, str]] = [("https", text) for text in https]
    wanted += [("http", text) for text in http]
    slots = max([slots, *(listener.slot + 1 for listener in before)])
    kept = _match(before, wanted)
    staying = {id(listener) for group in kept.values() for listener in group}
    listeners: list[Listener] = []
    new: list[Listener] = []
    with contextlib.ExitStack() as undo:
        undo.callback(lambda: close_listeners(new))
        for entry, (kind, text) in enumerate(wanted):
            group = [replace(each, kind=kind, entry=entry) for each in kept.get(entry, ())]
            if not group:
                _refuse_overlap(text, [*before, *listeners])
                with _naming(kind):
                    group = bind_entry(kind, text, entry, slots, listens=False)
                new += group
            for slot in range(max(each.slot for each in group) + 1, slots):
                new += (joined := join_listeners(group, slot))
                group += joined
            listeners += group
        undo.pop_all()
    return Relisten(tuple(listeners), tuple(new), tuple(each for each in before if id(each) not in staying))


@contextlib.contextmanager
def _naming(kind: ListenerKind) -> Iterator[None]:
    """Who has changed the file is told what to change in it."""
    try:
        yield
    except ListenError as error:
        raise while_running(error, f"listen.{kind}") from error


def _match(before: Iterable[Listener], wanted: Sequence[tuple[ListenerKind, str]]) -> dict[int, list[Listener]]:
    """Return for each wanted address that there is already, by its number, its sockets.

    First those that stay what they are, then those that are to speak the other protocol from now on.
    """
    left: dict[int, list[Listener]] = {}
    for listener in before:
        left.setdefault(listener.entry, []).append(listener)
    kept: dict[int, list[Listener]] = {}
    for same_kind in (True, False):
        for number, (kind, text) in enumerate(wanted):
            fits = (
                entry
                for entry, group in left.items()
                if _means(group[0].text, text, strictly=same_kind) and (group[0].kind == kind or not same_kind)
            )
            if number not in kept and (found := next(fits, None)) is not None:
                kept[number] = left.pop(found)
    return kept


def _means(known: str, text: str, *, strictly: bool) -> bool:
    """Whether both say the same. With port 0 they do so only for what is to stay what it is."""
    return known == text and (strictly or parse_address(text).port != 0)


def _refuse_overlap(text: str, others: Iterable[Listener]) -> None:
    """Two that listen on one address share its connections out, and the kernel says no such thing of sockets of ours.

    Also for an address that is given up by the same reload: until the new generation is there, it is in use.
    """
    address = parse_address(text)
    for other in others:
        if _overlap(address, parse_address(other.text or other.address)):
            raise ListenError(
                f"cannot listen on {address}: this proxy listens on {other.text or other.address} itself, which "
                "overlaps. Choose another port, or restart tlsproxy to exchange one for the other."
            )


def _overlap(one: Address, other: Address) -> bool:
    is_same_host = one.host == other.host or bool(_EVERYWHERE & {one.host, other.host})
    return is_same_host and one.port == other.port != 0
