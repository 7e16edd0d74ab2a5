"""Clients that leave while nobody reads from them, and backends that take no more: nothing is held for ever."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.fakes.stage import Stage
from tests.proxy.test_backpressure import PIECE, WHOLE, begin_upload, begin_websocket

SMALL = 16 * 1024


@pytest.mark.parametrize("begin", [begin_upload, begin_websocket])
def test_a_client_that_resets_while_reading_is_paused_is_noticed_by_the_tick(stage: Stage, begin: object) -> None:
    backend = stage.backend(receive_buffer=SMALL)
    stage.serve(backend)
    client, upstream = begin(stage, backend)  # type: ignore[operator]
    client.push(PIECE, WHOLE)
    client.reset()
    stage.wait(lambda: not _tick(stage))
    stage.tick(20)  # a backend that takes nothing is not waited for either
    with suppress(ConnectionResetError):
        upstream.rest()


def test_a_backend_that_answers_but_takes_no_more_of_the_request_is_given_up(stage: Stage) -> None:
    backend = stage.backend(receive_buffer=SMALL)
    stage.serve(backend)
    client, upstream = begin_upload(stage, backend)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    client.push(PIECE, WHOLE)
    stage.tick(301)
    assert "response_timeout" in stage.log()[0]["error"]


def _tick(stage: Stage) -> int:
    for connection in stage.front.connections:
        connection.check_deadline(stage.loop.time())
    return len(stage.front.connections)
