"""Processes that leave, die or change their certificates under clients of HTTP/2: what they had begun is not lost.

Which requests a client may count on is said by the server: those up to the last stream that its GOAWAY names. The rest
was not processed, and is safe to send again (RFC 9113 6.8). curl does that; h2load and httpx are no witnesses here, for
a GOAWAY ends them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.system.curl import Curl, needs_curl
from tests.system.http2_client import ANY_STREAM, Closed, Http2Client, Stream, WebSocket
from tests.system.running import PATIENCE, Proxy, running_proxy, until, write_pair
from tests.system.visitors import serial_of, visiting

pytestmark = pytest.mark.system

Start = Callable[..., Proxy]

STREAMS = 20


@pytest.fixture
def start(tmp_path: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str) -> Iterator[Start]:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair = write_pair(tmp_path, authority, "localhost")
    site = f'[[sites]]\nhosts = ["localhost"]\ncertificate = {pair}\nbackends = ["{app}"]'
    with contextlib.ExitStack() as stack:

        def run(*, workers: int = 1, drain: str = "9.5s") -> Proxy:
            return stack.enter_context(running_proxy(tmp_path, trust, site, workers=workers, drain=drain))

        yield run


@pytest.fixture
def direct(app: str) -> Iterator[httpx.Client]:
    """The way to the application that is not the proxy's."""
    with httpx.Client(base_url=app, timeout=PATIENCE, trust_env=False) as client:
        yield client


def begin_streams(client: Http2Client, name: str) -> list[Stream]:
    """Begin answers that stay half-way until they are let go."""
    streams = [client.request(f"/stream/{name}-{number}?count=2") for number in range(STREAMS)]
    client.wait_until(lambda: all(stream.body == b"piece 0\n" for stream in streams))
    return streams


def let_go(direct: httpx.Client, name: str) -> None:
    for number in range(STREAMS):
        for _ in range(2):
            direct.post(f"/go/{name}-{number}")


def finish(client: Http2Client, streams: list[Stream]) -> None:
    for stream in streams:
        assert client.wait(stream).body == b"piece 0\npiece 1\n"


def test_what_was_begun_before_the_last_goaway_is_finished(start: Start, direct: httpx.Client) -> None:
    proxy = start()
    with Http2Client(proxy) as client:
        long = begin_streams(client, "drained")
        os.kill(proxy.pid, signal.SIGTERM)
        short: list[Stream] = []
        while len(client.goaways) < 2:  # asked for without a pause meanwhile, as if nothing had been said
            if sum(not stream.over for stream in short[-10:]) < 5:
                short.append(client.request(f"/hello?{len(short)}"))
            client.read()
        assert client.goaways[0][0] == ANY_STREAM
        assert {code for _, code in client.goaways} == {0}
        late = client.request("/hello?late")
        assert late.number > client.last_stream >= long[-1].number
        let_go(direct, "drained")
        finish(client, long)
        client.read_to_the_end()
    kept = [stream for stream in short if stream.number <= client.last_stream]
    assert len(kept) > 1
    assert {(stream.status, bytes(stream.body), stream.ended) for stream in kept} == {(200, b"hello", True)}
    assert not late.status
    assert proxy.wait() == 0
    assert proxy.count("drain.cut") == 0
    lines = proxy.request_lines()
    assert {line["status"] for line in lines} == {200}
    assert len(lines) == len(long) + len(kept)


def test_an_idle_connection_is_closed_with_a_word(start: Start) -> None:
    proxy = start()
    with Http2Client(proxy) as client:
        client.get("/hello")
        os.kill(proxy.pid, signal.SIGTERM)
        client.read_to_the_end()
    assert client.goaways[-1] == (1, 0)
    assert proxy.wait() == 0


def test_what_takes_longer_than_the_drain_is_cut(start: Start) -> None:
    proxy = start(drain="2s")
    with Http2Client(proxy) as client:
        streams = begin_streams(client, "cut")
        os.kill(proxy.pid, signal.SIGTERM)
        client.read_to_the_end()
    assert not any(stream.ended for stream in streams)
    assert proxy.wait() == 0
    assert proxy.wait_for("drain.cut")["connections"] == 1
    assert Counter(line["status"] for line in proxy.request_lines()) == {200: STREAMS}


def test_websockets_are_told_to_go_elsewhere(start: Start, direct: httpx.Client) -> None:
    proxy = start()
    with Http2Client(proxy) as client:
        echo, waiting = WebSocket(client, "/ws/echo"), WebSocket(client, "/ws/wait/drained")
        echo.receive()
        (held, *_) = begin_streams(client, "beside")
        os.kill(proxy.pid, signal.SIGTERM)
        for each in (echo, waiting):
            with pytest.raises(Closed) as caught:
                each.receive()
            assert caught.value.code == 1001
        assert direct.get("/closed/drained").json() == 1001
        for each in (echo, waiting):
            each.answer_close()
            assert client.wait(each.stream).ended
        let_go(direct, "beside")
        finish(client, [held])
        client.read_to_the_end()
    assert proxy.wait() == 0
    assert proxy.count("drain.cut") == 0


def test_a_killed_worker_takes_its_own_streams_only(start: Start, direct: httpx.Client) -> None:
    proxy = start(workers=2)
    victim, survivor = proxy.workers()
    with contextlib.ExitStack() as stack:
        clients = {}
        for worker in (victim, survivor):
            with proxy.alone(worker):
                clients[worker] = stack.enter_context(Http2Client(proxy))
        lost = begin_streams(clients[victim], "lost")
        kept = begin_streams(clients[survivor], "kept")
        os.kill(victim, signal.SIGKILL)
        clients[victim].read_to_the_end()
        proxy.wait_for("worker.replaced")
        let_go(direct, "kept")
        finish(clients[survivor], kept)
        assert clients[survivor].get("/hello").status == 200
        assert clients[survivor].goaways == []
    assert not any(stream.ended for stream in lost)


def test_new_certificates_leave_streams_alone(
    start: Start, direct: httpx.Client, authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    proxy = start()
    with Http2Client(proxy) as client, visiting(proxy, "localhost", trust) as visits:
        streams = begin_streams(client, "renewed")
        socket = WebSocket(client, "/ws/echo")
        socket.receive()
        old = serial_of(client.socket)
        write_pair(proxy.folder, authority, "localhost")
        until(lambda: visits.serials[-1] != old, "the new certificate is served")
        socket.send("still here")
        assert socket.receive() == "still here"
        let_go(direct, "renewed")
        finish(client, streams)
        assert client.get("/hello").status == 200
        assert client.goaways == []
        assert serial_of(client.socket) == old


@needs_curl
def test_curl_goes_on_elsewhere_when_workers_leave(start: Start, tmp_path: Path) -> None:
    """It asks for thousands of things at once on few connections: none is lost, though every worker is replaced."""
    proxy = start(workers=2)
    got = tmp_path / "got"
    got.mkdir()
    counting = ("-w", "%{http_code} %{http_version} %{exitcode}\n", "-Z", "--parallel-max", "30")
    common = ["curl", *Curl(proxy, "2").common, *counting, "-o", f"{got}/#1"]
    command = [*common, f"https://localhost:{proxy.port}/hello?[1-2400]"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        for number, worker in enumerate(proxy.workers(), 1):
            until(lambda least=500 * number: sum(1 for _ in got.iterdir()) > least, "it is under way")  # type: ignore[misc]
            os.kill(worker, signal.SIGTERM)
            proxy.wait_for("worker.died", child=worker, status="exit status 0")
        said, _ = running.communicate(timeout=PATIENCE)
    assert Counter(said.splitlines()) == {"200 2 0": 2400}
