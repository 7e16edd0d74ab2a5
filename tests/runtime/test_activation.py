"""Sockets of a socket unit find their addresses in the configuration; what is for nothing is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tlsproxy.runtime.activation import adopt_sockets
from tlsproxy.runtime.relisten import change_listeners
from tlsproxy.runtime.sockets import close_listeners
from tlsproxy.runtime.systemd import ActivationError


@pytest.fixture
def given() -> Iterator[socket.socket]:
    """What systemd has bound: listening, blocking."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def copy_of(sock: socket.socket) -> int:
    """Return a descriptor for the one who takes it over."""
    return os.dup(sock.fileno())


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("name", ["tlsproxy.socket", "", "http"])
def test_the_port_says_what_a_socket_is_for(given: socket.socket, host: str, name: str) -> None:
    text = f"{host}:{port_of(given)}"
    (listener,) = adopt_sockets([(name, copy_of(given))], [":1"], [":2", text])
    try:
        assert (listener.kind, listener.slot, listener.text, listener.entry) == ("http", 0, text, 2)
        assert not listener.socket.getblocking()
    finally:
        close_listeners([listener])


def test_a_name_decides_where_two_have_the_port(given: socket.socket) -> None:
    text = f":{port_of(given)}"
    (listener,) = adopt_sockets([("http", copy_of(given))], [text], [text])
    close_listeners([listener])
    assert listener.kind == "http"


def test_any_port_is_that_of_the_name(given: socket.socket) -> None:
    (listener,) = adopt_sockets([("https", copy_of(given))], ["127.0.0.1:0"], ["127.0.0.1:0"])
    close_listeners([listener])
    assert listener.kind == "https"


def test_a_socket_for_nothing_is_an_error_that_says_what_to_write(given: socket.socket) -> None:
    port = port_of(given)
    with pytest.raises(ActivationError, match=rf'systemd listens on 127.0.0.1:{port} .* https = \[":{port}"\]'):
        adopt_sockets([("https", copy_of(given))], [":1"], [":2"])


def test_what_is_no_listening_socket_is_an_error() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ActivationError, match="is no listening TCP socket"):
            adopt_sockets([("https", copy_of(sock))], [":1"], [])
    with pytest.raises(ActivationError, match="is no socket"):
        adopt_sockets([("", 1_000_000)], [":1"], [])


def test_each_worker_gets_one_and_what_was_not_given_is_bound(given: socket.socket) -> None:
    text = f"127.0.0.1:{port_of(given)}"
    held = adopt_sockets([("https", copy_of(given))], [text], ["127.0.0.1:0"])
    change = change_listeners(held, [text], ["127.0.0.1:0"], 3)
    change.commit()
    try:
        assert [(each.kind, each.slot) for each in change.listeners] == [
            *(("https", slot) for slot in range(3)),
            *(("http", slot) for slot in range(3)),
        ]
        with socket.create_connection(("127.0.0.1", port_of(given)), 5):
            pass
    finally:
        close_listeners(change.listeners)
