"""Listeners of one configuration after the other: what stays, what comes, what goes, and nobody is turned away."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator, Sequence

import pytest

from tlsproxy.runtime.relisten import Relisten, change_listeners
from tlsproxy.runtime.sockets import Listener, ListenError, bind_listeners, close_listeners, is_listening

ANY = "127.0.0.1:0"


@contextlib.contextmanager
def listening(https: Sequence[str], http: Sequence[str] = (), slots: int = 1) -> Iterator[tuple[Listener, ...]]:
    listeners = bind_listeners(https, http, slots)
    try:
        yield listeners
    finally:
        close_listeners(listeners)


@contextlib.contextmanager
def changed(
    before: Sequence[Listener], https: Sequence[str], http: Sequence[str] = (), slots: int = 1
) -> Iterator[Relisten]:
    change = change_listeners(before, https, http, slots)
    try:
        yield change
    finally:
        change.undo()


def port(listener: Listener) -> int:
    number: int = listener.socket.getsockname()[1]
    return number


def can_connect(number: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", number)) == 0


def test_what_stays_keeps_its_sockets() -> None:
    with listening([ANY], [ANY]) as before, changed(before, [ANY], [ANY]) as change:
        assert [each.socket for each in change.listeners] == [each.socket for each in before]
        assert (change.new, change.dropped) == ((), ())


def test_each_protocol_keeps_its_own_where_the_kernel_has_chosen_the_ports() -> None:
    with listening([ANY, ANY], [ANY]) as before, changed(before, [ANY], [ANY, ANY]) as change:
        first, _, plain = before
        kept, left, new = change.listeners
        assert (kept.socket, left.socket) == (first.socket, plain.socket)
        assert [each.kind for each in change.listeners] == ["https", "http", "http"]
        assert change.new == (new,)
        assert change.dropped == (before[1],)


def test_what_is_new_is_bound_at_once_and_listens_when_all_are_ready() -> None:
    with listening([ANY]) as before, changed(before, [ANY], [ANY]) as change:
        (new,) = change.new
        assert not is_listening(new.socket)
        assert not can_connect(port(new))
        change.commit()
        assert can_connect(port(new))


def test_what_is_undone_leaves_nothing() -> None:
    with listening([ANY]) as before:
        change = change_listeners(before, [ANY], [ANY], 3)
        change.undo()
        assert all(each.socket.fileno() == -1 for each in change.new)
        assert can_connect(port(before[0]))


def test_what_goes_is_still_open() -> None:
    with listening([ANY], [ANY]) as before, changed(before, [ANY]) as change:
        assert change.dropped == (before[1],)
        assert can_connect(port(before[1]))


def test_two_addresses_may_change_their_roles() -> None:
    with listening([ANY], [ANY]) as before:
        ours = [Listener(each.kind, each.socket, each.slot, f"127.0.0.1:{port(each)}", each.entry) for each in before]
        with changed(ours, [ours[1].text], [ours[0].text]) as change:
            assert [(each.kind, each.socket) for each in change.listeners] == [
                ("https", before[1].socket),
                ("http", before[0].socket),
            ]
            assert (change.new, change.dropped) == ((), ())


def test_more_workers_get_sockets_of_their_own_on_the_same_port() -> None:
    with listening([ANY], slots=1) as before, changed(before, [ANY], slots=3) as change:
        change.commit()
        assert [(each.slot, port(each)) for each in change.listeners] == [(slot, port(before[0])) for slot in range(3)]
        assert {accepted_by(change.listeners) for _ in range(64)} == {0, 1, 2}


def test_fewer_workers_give_up_no_socket() -> None:
    with listening([ANY], slots=3) as before, changed(before, [ANY], slots=1) as change:
        assert len(change.listeners) == 3
        assert (change.new, change.dropped) == ((), ())


def test_a_new_address_has_as_many_sockets_as_the_others() -> None:
    with listening([ANY], slots=3) as before, changed(before, [ANY], [ANY], slots=1) as change:
        assert [each.slot for each in change.new] == [0, 1, 2]


def test_a_port_that_another_process_has_is_refused_and_nothing_is_left(taken: int) -> None:
    with listening([ANY]) as before:
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{taken}: the port is taken by"):
            change_listeners(before, [ANY, ANY, f"127.0.0.1:{taken}"], [], 2)
        with pytest.raises(ListenError, match=r"Stop it, or .* another port \(listen\.http in the configuration\)\.$"):
            change_listeners(before, [ANY], [ANY, f"127.0.0.1:{taken}"], 2)
        assert can_connect(port(before[0]))


def test_a_port_that_is_taken_in_the_last_moment_is_refused() -> None:
    with listening([ANY]) as before, changed(before, [ANY], [ANY]) as change, socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port(change.new[0])))
        thief.listen()
        with pytest.raises(ListenError, match=r"the port is taken by .*\(listen\.http in the configuration\)"):
            change.commit()


@pytest.mark.parametrize("form", [":{}", "0.0.0.0:{}"])
def test_what_overlaps_with_ourselves_is_refused(form: str) -> None:
    with listening([ANY]) as before:
        ours = [Listener("https", before[0].socket, 0, f"127.0.0.1:{port(before[0])}", 0)]
        with pytest.raises(ListenError, match="itself, which overlaps"):
            change_listeners(ours, [form.format(port(before[0]))], [], 1)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def accepted_by(listeners: Sequence[Listener]) -> int:
    """Connect; return the slot whose socket the kernel gives it to."""
    with socket.create_connection(listeners[0].socket.getsockname()):
        ready, _, _ = select.select([each.socket for each in listeners], [], [], 5)
        ready[0].accept()[0].close()
        return next(each.slot for each in listeners if each.socket is ready[0])
