"""What a backend connection carries over from one client to the next: nothing."""

from __future__ import annotations

from tests.fakes.stage import Stage
from tests.proxy.test_backpressure import GET, PIECE, WHOLE, begin_download, push_rest


def test_a_connection_that_was_paused_for_a_slow_client_serves_the_next_one(stage: Stage) -> None:
    """The answer may end while the client is still full; its backend connection must be read from again."""
    backend = stage.backend()
    stage.serve(backend)
    client, upstream = begin_download(stage, backend)
    rest = push_rest(upstream, upstream.push(PIECE, WHOLE))
    while "1 idle" not in stage.pool(backend.url):  # so small a step that the proxy's own buffer is always full
        client.exactly(32 * 1024)
    rest.join()
    following = stage.connect()
    following.send(GET)
    assert upstream.message().target == b"/"
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert following.message().body == b"ok"


def test_a_connection_with_unsent_bytes_of_a_body_is_not_used_again(stage: Stage) -> None:
    """A backend that answers early and keeps the connection open would read the rest as the next request."""
    backend = stage.backend(receive_buffer=16 * 1024)
    stage.serve(backend)
    client = stage.connect()
    body = PIECE * 32
    client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body))
    upstream = backend.accept()
    upstream.until(b"\r\n\r\n")
    client.push(body, len(body))
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert client.message().body == b"ok"
    other = stage.connect()
    other.send(GET)
    second = backend.accept()
    assert second.message().target == b"/"
