"""A worker that leaves: what clients of HTTP/2 are told (RFC 9113 6.8), and that nothing they have begun is lost."""

from __future__ import annotations

import json

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.frames import NO_ERROR, FramePeer
from tests.fakes.stage import Stage
from tlsproxy.proxy import draining

NEVER = 2**31 - 1


@pytest.fixture
def backend(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The one behind a.test. Connections that came just now are told at once as well."""
    monkeypatch.setattr(draining, "_GRACE", 0.0)
    backend = stage.backend()
    stage.serve(backend)
    return backend


def told(client: FramePeer, times: int) -> list[int]:
    """Wait until the client was told so often to go away; the last streams it was told of."""
    client.until(lambda: len(client.goaways) >= times, f"GOAWAY {times}")
    assert {each.error_code for each in client.goaways} == {NO_ERROR}
    return [each.last_stream_id for each in client.goaways]


def left(client: FramePeer) -> None:
    """Wait until the server has closed, and close as well: it reads on for a moment after its FIN."""
    client.expect_closed()
    client.close()


def test_an_idle_connection_is_told_and_closed(stage: Stage, backend: Backend) -> None:
    client = stage.connect_http2()
    end = stage.begin_drain()
    assert told(client, 1) == [NEVER]
    stage.tick(after=1.1)  # longer than a round trip: what was under way has come
    client.expect_closed()
    assert told(client, 2) == [NEVER, 0]
    client.close()
    assert end.result(5) == 0


def test_what_is_in_flight_is_finished(stage: Stage, backend: Backend) -> None:
    client = stage.connect_http2()
    stream = client.request("/")
    upstream = backend.accept()
    upstream.message()
    end = stage.begin_drain()
    assert told(client, 1) == [NEVER]
    stage.tick(after=1.1)
    assert told(client, 2) == [NEVER, stream]
    assert not client.ended
    upstream.send(OK)
    assert client.answer(stream).body == b"ok"
    left(client)
    assert end.result(5) == 0
    assert [json.loads(line)["status"] for line in stage.log_path.read_text().splitlines()] == [200]


def test_a_request_that_crossed_the_first_word_is_served(stage: Stage, backend: Backend) -> None:
    """The client could not know yet; only the second GOAWAY names the last stream."""
    client = stage.connect_http2()
    end = stage.begin_drain()
    told(client, 1)
    stream = client.request("/crossed")
    upstream = backend.accept()
    upstream.message()
    stage.tick(after=1.1)
    assert told(client, 2) == [NEVER, stream]
    upstream.send(OK)
    assert client.answer(stream).body == b"ok"
    left(client)
    assert end.result(5) == 0


def test_a_request_behind_the_second_is_not_processed(stage: Stage, backend: Backend) -> None:
    """RFC 9113 6.8: it may be sent again elsewhere, so it must not be done here."""
    client = stage.connect_http2()
    stream = client.request("/in-flight")
    upstream = backend.accept()
    upstream.message()
    end = stage.begin_drain()
    stage.tick(after=1.1)
    told(client, 2)
    late = client.request("/late")
    client.ping()
    assert client.kinds(late) in ([], ["RSTSTREAM"])
    assert not backend.is_called(0)
    upstream.send(OK)
    assert client.answer(stream).body == b"ok"
    left(client)
    assert end.result(5) == 0


def test_an_upload_and_a_download_go_on(stage: Stage, backend: Backend) -> None:
    """Windows are still opened, on both sides."""
    body = b"x" * 200_000
    client = stage.connect_http2()
    stream = client.request("/", [(b"content-length", b"%d" % len(body))], end=False)
    upstream = backend.accept()
    upstream.until(b"\r\n\r\n")
    end = stage.begin_drain()
    stage.tick(after=1.1)
    told(client, 2)
    client.upload(stream, body)
    assert upstream.exactly(len(body)) == body
    client.generous = True
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert client.answer(stream).body == body
    left(client)
    assert end.result(5) == 0


def test_several_streams_end_one_by_one(stage: Stage, backend: Backend) -> None:
    client = stage.connect_http2()
    streams = [client.request(f"/{number}") for number in range(3)]
    upstreams = {each.message().target: each for each in (backend.accept() for _ in streams)}
    end = stage.begin_drain()
    stage.tick(after=1.1)
    told(client, 2)
    for number in (2, 0, 1):
        upstreams[b"/%d" % number].send(OK)
        assert client.answer(streams[number]).body == b"ok"
    left(client)
    assert end.result(5) == 0


def test_what_takes_too_long_is_cut_and_logged(stage: Stage, backend: Backend) -> None:
    client = stage.connect_http2()
    client.request("/")
    upstream = backend.accept()
    upstream.message()
    assert stage.begin_drain(0.05).result(5) == 1
    left(client)
    assert upstream.has_ended()
    [line] = map(json.loads, stage.log_path.read_text().splitlines())
    assert line["status"] == 499


def test_a_client_that_goes_away_itself_is_let_go(stage: Stage, backend: Backend) -> None:
    """Its GOAWAY and ours may cross."""
    client = stage.connect_http2()
    stream = client.request("/")
    upstream = backend.accept()
    upstream.message()
    client.goaway()
    end = stage.begin_drain()
    upstream.send(OK)
    assert client.answer(stream).body == b"ok"
    left(client)
    assert end.result(5) == 0
