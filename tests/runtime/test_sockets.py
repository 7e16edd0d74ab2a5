"""Addresses become sockets, all or none; every refusal says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tlsproxy.runtime import sockets
from tlsproxy.runtime.sockets import (
    Address,
    Listener,
    ListenError,
    bind_listeners,
    close_listeners,
    inherit_listeners,
    parse_address,
)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def _accept_all(listener: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def _connects(family: socket.AddressFamily, host: str, port: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        return sock.connect_ex((host, port)) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":443", Address("", 443)),
        ("1.2.3.4:443", Address("1.2.3.4", 443)),
        ("[::1]:8443", Address("::1", 8443)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["443", "::1:443", "host:", "host:65536", "host:²", "host:+1", "host:123456", ""])
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ListenError, match="listen address"):
        parse_address(text)


def test_a_port_alone_serves_both_families() -> None:
    (listener,) = bind_listeners([":0"], [])
    port = listener.socket.getsockname()[1]
    assert _connects(socket.AF_INET, "127.0.0.1", port)
    assert not socket.has_ipv6 or _connects(socket.AF_INET6, "::1", port)
    assert str(listener) == f"https :{port}"
    close_listeners([listener])


def test_without_ipv6_a_port_alone_is_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_has_ipv6", lambda: False)
    (listener,) = bind_listeners([], [":0"])
    assert listener.socket.family == socket.AF_INET
    assert listener.kind == "http"
    close_listeners([listener])


def test_sockets_do_not_block_and_do_not_leak_into_other_programs() -> None:
    listeners = bind_listeners(["127.0.0.1:0"], ["[::1]:0"])
    assert [str(listener).split(":")[0] for listener in listeners] == ["https 127.0.0.1", "http ["]
    for listener in listeners:
        assert not listener.socket.getblocking()
        assert not listener.socket.get_inheritable()
        assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    close_listeners(listeners)


def test_a_taken_port_names_its_holder(taken: int) -> None:
    with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{taken}: the port is taken by .* \(pid {os.getpid()}\)"):
        bind_listeners([f"127.0.0.1:{taken}"], [])


def test_one_failure_leaves_nothing_bound(taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with pytest.raises(ListenError):
        bind_listeners([f"127.0.0.1:{free}"], [f"127.0.0.1:{taken}"])
    assert not _connects(socket.AF_INET, "127.0.0.1", free)


def test_every_slot_has_sockets_of_its_own_on_the_same_ports() -> None:
    listeners = bind_listeners(["127.0.0.1:0"], ["[::1]:0"], slots=3)
    assert [(each.kind, each.slot) for each in listeners] == [(kind, n) for kind in ("https", "http") for n in range(3)]
    assert len({str(each) for each in listeners}) == 2
    https = [each.socket for each in listeners if each.kind == "https"]
    clients = [socket.create_connection(https[0].getsockname()) for _ in range(60)]
    assert [_accept_all(sock) > 0 for sock in https] == [True] * 3
    for client in clients:
        client.close()
    close_listeners(listeners)


def test_one_slot_shares_its_port_with_nobody() -> None:
    (listener,) = bind_listeners(["127.0.0.1:0"], [])
    assert not listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    close_listeners([listener])


@pytest.mark.parametrize("reuse", [0, 1])
def test_a_port_that_somebody_shares_out_is_taken_all_the_same(reuse: int) -> None:
    """Another tlsproxy would otherwise get half of the connections, without a word."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(ListenError, match="the port is taken by"):
            bind_listeners([f"127.0.0.1:{holder.getsockname()[1]}"], [], slots=2)


def test_two_with_slots_do_not_share_a_port() -> None:
    first = bind_listeners([":0"], [], slots=2)
    port = first[0].socket.getsockname()[1]
    with pytest.raises(ListenError, match="the port is taken by"):
        bind_listeners([f":{port}"], [], slots=2)
    close_listeners(first)


def test_where_the_kernel_does_not_spread_all_slots_share_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_SPREADS", False)
    first, second = bind_listeners(["127.0.0.1:0"], [], slots=2)
    with socket.create_connection(first.socket.getsockname()):
        assert _accept_all(second.socket) == 1
    assert (first.slot, second.slot) == (0, 1)
    close_listeners([first, second])


def test_a_kernel_that_refuses_siblings_gets_one_queue_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        """A kernel that wants SO_REUSEPORT before the first bind."""

        def bind(self, address: Any) -> None:
            if self.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
                raise OSError(errno.EADDRINUSE, "Address already in use")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Refusing)
    listeners = bind_listeners(["127.0.0.1:0"], [], slots=3)
    assert len({listener.socket.getsockname() for listener in listeners}) == 1
    assert [listener.slot for listener in listeners] == [0, 1, 2]
    close_listeners(listeners)


def test_an_address_of_another_machine_is_explained() -> None:
    with pytest.raises(ListenError, match=r'no interface of this machine has that address\. Use ":8443"'):
        bind_listeners(["192.0.2.1:8443"], [])


def test_a_name_that_does_not_resolve_is_explained() -> None:
    with pytest.raises(ListenError, match=r'the name "nowhere\.invalid" does not resolve'):
        bind_listeners(["nowhere.invalid:8443"], [])


def test_a_reserved_port_lists_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        """The kernel's answer to an ordinary user, which a test as root cannot provoke."""

        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(ListenError) as caught:
        bind_listeners(["127.0.0.1:443"], [])
    for advice in ("setcap", "ip_unprivileged_port_start=443", "server.user", "--https :8443"):
        assert advice in str(caught.value)


def test_a_worker_takes_what_it_inherits_by_slot() -> None:
    listeners = bind_listeners(["127.0.0.1:0"], ["127.0.0.1:0"], slots=2)
    slots = inherit_listeners([(each.kind, os.dup(each.socket.fileno()), each.slot) for each in listeners])
    assert [[kind for kind, _ in slots[slot]] for slot in (0, 1)] == [["https", "http"]] * 2
    for listener in listeners:
        sock = dict(slots[listener.slot])[listener.kind]
        assert sock.getsockname() == listener.socket.getsockname()
        assert not sock.get_inheritable()
        sock.close()
    close_listeners(listeners)


def test_a_listener_shows_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert str(Listener("http", sock)) == f"http 127.0.0.1:{sock.getsockname()[1]}"
