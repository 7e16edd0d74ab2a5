"""Leaving in two times: what belongs to a site that stays as it is may take longer than the rest."""

from __future__ import annotations

import contextlib
import logging
import ssl

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Peer
from tests.fakes.stage import Stage, client_context
from tests.proxy.test_tunnel import CLOSE_1001, open_websocket, to_backend, to_client

SOON = 0.05
STAYS = ("a.test",)
LONG = 30.0


def wait_until_the_rest_is_over(stage: Stage, caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    stage.wait(lambda: any(record.message == "drain.staying" for record in caplog.records))
    return next(vars(record) for record in caplog.records if record.message == "drain.staying")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tlsproxy.proxy.draining")


def ask(stage: Stage, host: str = "a.test") -> Peer:
    client = stage.connect(host)
    client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return client


def test_a_websocket_goes_on_until_it_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client, upstream = open_websocket(stage, backend)
    end = stage.begin_drain(SOON, unchanged=STAYS, streams=LONG)
    told = wait_until_the_rest_is_over(stage, caplog)
    assert (told["connections"], told["sites"], told["at_most_seconds"]) == (1, ["a.test"], 30)
    client.send(to_backend(b"still"))
    assert upstream.exactly(11) == to_backend(b"still")
    upstream.send(to_client(b"here"))
    assert client.exactly(6) == to_client(b"here")
    stage.call(lambda: stage.front.hasten(5))
    assert client.exactly(4) == CLOSE_1001
    client.send(to_backend(b"\x03\xe9", 0x88))
    assert end.result(5) == 0


def test_its_time_has_an_end(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client, _ = open_websocket(stage, backend)
    assert stage.begin_drain(SOON, unchanged=STAYS, streams=4 * SOON).result(5) == 1
    assert client.exactly(4) == CLOSE_1001
    assert client.has_ended()


def test_one_that_is_hastened_and_does_not_answer_is_cut(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client, _ = open_websocket(stage, backend)
    end = stage.begin_drain(SOON, unchanged=STAYS, streams=LONG)
    wait_until_the_rest_is_over(stage, caplog)
    stage.call(lambda: stage.front.hasten(SOON))
    assert end.result(5) == 1
    assert client.exactly(4) == CLOSE_1001


def test_only_requests_of_sites_that_stay_get_more_time(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    backend = stage.backend()
    stage.serve(sites=[{"hosts": [host], "backends": [backend.url]} for host in ("a.test", "b.test")])
    stays, first = ask(stage), backend.accept()
    first.message()
    leaves, second = ask(stage, "b.test"), backend.accept()
    second.message()
    end = stage.begin_drain(SOON, unchanged=STAYS, streams=LONG)
    told = wait_until_the_rest_is_over(stage, caplog)
    assert (told["connections"], told["sites"]) == (1, ["a.test"])
    assert leaves.has_ended()
    first.send(OK)
    answer = stays.message()
    assert (answer.body, answer.get("connection")) == (b"ok", b"close")
    assert end.result(5) == 1


def test_a_stream_of_http2_stays(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client = stage.connect_http2()
    stream = client.request("/")
    upstream = backend.accept()
    upstream.message()
    end = stage.begin_drain(SOON, unchanged=STAYS, streams=LONG)
    wait_until_the_rest_is_over(stage, caplog)
    upstream.send(OK)
    assert client.answer(stream).body == b"ok"
    client.close()
    assert end.result(5) == 0


def test_without_more_time_for_them_nobody_stays(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client, _ = open_websocket(stage, backend)
    assert stage.begin_drain(SOON, unchanged=STAYS, streams=SOON).result(5) == 1
    assert client.exactly(4) == CLOSE_1001


def test_one_that_is_hastened_before_it_has_begun(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend)
    client, _ = open_websocket(stage, backend)
    stage.call(lambda: stage.front.hasten(SOON))
    assert stage.begin_drain(LONG, unchanged=STAYS, streams=2 * LONG).result(5) == 1
    assert client.exactly(4) == CLOSE_1001


def test_a_drain_that_is_over_can_be_hastened(stage: Stage) -> None:
    stage.serve(stage.backend())
    assert stage.begin_drain(SOON).result(5) == 0
    stage.call(lambda: stage.front.hasten(5))


def test_a_handshake_under_way_keeps_its_time(stage: Stage) -> None:
    """The client's round trips are slow: its Finished comes three seconds after the worker began to leave."""
    backend = stage.backend()
    stage.serve(backend)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="a.test")
    with stage.dial() as raw:
        raw.settimeout(5)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        raw.sendall(outgoing.read())
        incoming.write(raw.recv(65_536))
        end = stage.begin_drain(LONG)
        stage.wait(lambda: all(each._draining for each in stage.front.connections))
        stage.tick(after=3)
        tls.do_handshake()
        tls.write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        raw.sendall(outgoing.read())
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        answer = b""
        while not answer:  # session tickets may come on their own
            piece = raw.recv(65_536)
            assert piece, "closed without an answer"
            incoming.write(piece)
            with contextlib.suppress(ssl.SSLWantReadError):
                answer = tls.read(65_536)
        assert b"connection: close" in answer.lower()
    assert end.result(5) == 0
