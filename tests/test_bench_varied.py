"""The row http1-varied of scripts/bench does what it says: no head repeats on either side, all else stays the same."""

import http.client
import os
import shutil
import subprocess
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import pytest

from scripts.benchmark import client
from scripts.benchmark.arena import SMALL_BODY, Arena
from scripts.benchmark.load import HEADER_OPTIONS, parse_wrk
from scripts.benchmark.peers import CONFIGS, PEERS


class Recorder(ThreadingHTTPServer):
    """Answers every request and keeps the head it came with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RecordingHandler)
        self.heads: list[tuple[str, dict[str, str]]] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


class RecordingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Recorder)
        self.server.heads.append((self.path, dict(self.headers.items())))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del code, size


def recorded_heads(environ: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    with Recorder() as server:
        url = f"http://{client.NAME}:{server.server_port}/varied"
        command = ["wrk", "-t1", "-c1", "-d1s", "-s", str(CONFIGS / "wrk.lua"), *HEADER_OPTIONS, url]
        outcome = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ})
        assert not parse_wrk(outcome.stdout).problem
        return server.heads[1:]  # wrk's first is a probe for the address


@pytest.mark.system
def test_varied_requests_differ_in_four_places_and_no_more() -> None:
    heads = recorded_heads({"BENCH_VARIED": "1"})
    assert len(heads) > 10
    assert len({path for path, _ in heads}) == len(heads)
    assert {path.partition("=")[0] for path, _ in heads} == {"/varied?cursor"}
    for name in ("Cookie", "Referer", "X-Trace"):
        values = {fields.pop(name) for _, fields in heads}
        assert len(values) == len(heads)
        assert len({len(value) for value in values}) == 1
    fixed = {name: value for name, value in client.HEADERS.items() if name not in ("Cookie", "Referer")}
    assert all({**fixed, "Host": fields["Host"]} == fields for _, fields in heads)


@pytest.mark.system
def test_unvaried_requests_are_all_the_same() -> None:
    (first, *others) = recorded_heads({})
    assert all(head == first for head in others)


@pytest.mark.system
def test_the_application_varies_its_head_but_not_its_size() -> None:
    nginx = PEERS["nginx"].find()
    if nginx is None:
        pytest.skip("nginx is not installed")
    arena = Arena()
    try:
        port = arena.start_backend(nginx)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            first, second = (backend_answer(connection) for _ in range(2))
    finally:
        arena.close()
    assert first["body"] == second["body"] == SMALL_BODY
    for name in ("ETag", "X-Trace", "Set-Cookie"):
        assert first[name] != second[name]
        assert len(first[name]) == len(second[name])


def backend_answer(connection: http.client.HTTPConnection) -> dict[str, str]:
    connection.request("GET", "/varied?cursor=1")
    answer = connection.getresponse()
    return {**dict(answer.getheaders()), "body": answer.read().decode()}
