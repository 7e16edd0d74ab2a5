"""The access log: what a line holds, what it never holds, and that no trouble with it holds a request."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fakes.backend import OK
from tests.fakes.codec import request_reader
from tests.fakes.peer import PATIENCE
from tests.fakes.stage import Json, Stage
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.access import AccessLog, LogWriter, NoLog
from tlsproxy.proxy.exchange import Exchange
from tlsproxy.proxy.stream import ConnectionInfo

GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
ALWAYS = (
    "ts", "client", "method", "host", "path", "http", "status", "bytes_in", "bytes_out", "duration_ms", "backend",
    "backend_ms", "reused", "retries", "tls", "cipher", "sni", "alpn", "resumed", "request_id", "user_agent", "referer",
    "site", "route",
)  # fmt: skip


def line_of(stage: Stage, request: bytes, **sections: Any) -> Json:
    """The line of one request that is answered."""
    backend = stage.backend()
    stage.serve(backend, **sections)
    client = stage.connect()
    client.send(request)
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    client.message()
    [line] = stage.log()
    return line


class TestLine:
    def test_has_every_field_of_the_interface(self, stage: Stage) -> None:
        fields = b"User-Agent: curl/8\r\nReferer: https://b.test/page\r\nContent-Length: 3\r\n\r\nabc"
        line = line_of(stage, b"POST /p/a%2Fth?q=1 HTTP/1.1\r\nHost: A.test\r\n" + fields)
        assert set(line) == {*ALWAYS, "query"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
        assert line["client"] == "127.0.0.1"
        assert (line["method"], line["host"], line["path"], line["query"]) == ("POST", "a.test", "/p/a%2Fth", "q=1")
        assert (line["http"], line["status"], line["bytes_in"], line["bytes_out"]) == ("1.1", 200, 3, 2)
        assert 0 < line["backend_ms"] <= line["duration_ms"] < 5000
        assert (line["reused"], line["retries"]) == (False, 0)
        assert (line["tls"], line["sni"], line["resumed"]) == ("TLSv1.3", "a.test", False)
        assert line["cipher"].startswith("TLS_")
        assert re.fullmatch("[0-9a-f]{24}", line["request_id"])
        assert (line["user_agent"], line["referer"]) == ("curl/8", "https://b.test/page")
        assert (line["site"], line["route"]) == ("a.test", "/")

    def test_a_request_over_http_2_differs_in_two_fields(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect_http2()
        stream = client.request("/x?q=1", [(b"user-agent", b"curl/8")])
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.answer(stream)
        [line] = stage.log()
        assert set(line) == {*ALWAYS, "query"}
        assert (line["http"], line["alpn"]) == ("2", "h2")
        assert (line["method"], line["host"], line["path"], line["query"]) == ("GET", "a.test", "/x", "q=1")
        assert (line["status"], line["bytes_out"], line["user_agent"]) == (200, 2, "curl/8")

    def test_a_refused_request_says_why_and_has_what_is_known(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        client.message()
        [line] = stage.log()
        assert set(line) == {*ALWAYS, "error"}
        assert (line["status"], line["error"]) == (400, "A request needs exactly one Host field.")
        assert (line["backend"], line["backend_ms"], line["site"], line["route"]) == (None, None, None, None)

    def test_a_plain_request_has_no_tls(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect_plain()
        client.send(GET)
        client.message()
        [line] = stage.log()
        assert set(line) == set(ALWAYS)
        assert (line["tls"], line["cipher"], line["sni"], line["resumed"]) == (None, None, None, False)
        assert (line["status"], line["site"]) == (308, "a.test")

    def test_hostile_bytes_cannot_break_out(self, stage: Stage) -> None:
        """One line, ASCII, valid JSON, whatever a client puts in."""
        hostile = b'"},{"status":200,"x":"\\\\ \xff\xe2\x80\xa8 </script> %0a'
        request = b'GET /"\\\'<b>?q="\\ HTTP/1.1\r\nHost: a.test\r\n'
        line = line_of(stage, request + b"User-Agent: " + hostile + b"\r\nReferer: " + hostile + b"\r\n\r\n")
        assert (line["path"], line["query"]) == ("/\"\\'<b>", 'q="\\')
        assert line["user_agent"] == line["referer"] == hostile.decode("latin-1")
        assert stage.log_path.read_bytes().isascii()

    def test_endless_values_are_cut(self, stage: Stage) -> None:
        line = line_of(
            stage,
            b"GET /%b?%b HTTP/1.1\r\nHost: a.test\r\nUser-Agent: %b\r\nReferer: %b\r\n\r\n"
            % (b"p" * 3900, b"q" * 3900, b"u" * 9000, b"r" * 9000),
        )
        assert (line["path"], line["query"]) == ("/" + "p" * 1023, "q" * 1024)
        assert (line["user_agent"], line["referer"]) == ("u" * 512, "r" * 512)

    def test_every_line_fits_into_one_write_to_a_pipe(self, stage: Stage) -> None:
        """Workers share stdout; a longer line could be torn by another's. Texts that need escapes are cut shorter."""
        request = b"GET /%b?%b HTTP/1.1\r\nHost: a.test\r\nUser-Agent: %b\r\nReferer: %b\r\n\r\n"
        line = line_of(stage, request % (b'"' * 2000, b"q" * 2000, b"\xff" * 2000, b"\xfe" * 2000))
        [raw] = stage.log_path.read_bytes().splitlines(keepends=True)
        assert 2000 < len(raw) <= 4096
        assert set(line) == {*ALWAYS, "query"}
        for name, char in {"query": "q", "user_agent": "\xff", "referer": "\xfe"}.items():
            assert re.fullmatch(f"{char}{{50,}}", line[name])
        assert re.fullmatch('/"{100,}', line["path"])

    def test_a_shorter_line_hides_what_a_long_one_does(self, stage: Stage) -> None:
        fields = b"User-Agent: %b\r\nReferer: https://u:c2VjcmV0@b.test/?sig=c2VjcmV0&%b\r\n\r\n"
        request = b"GET /?token=c2VjcmV0 HTTP/1.1\r\nHost: a.test\r\n" + fields % (b"\xff" * 512, b"\xff" * 512)
        line = line_of(stage, request)
        assert line["query"] == "token=REDACTED"
        assert line["referer"].startswith("https://b.test/?sig=REDACTED&\xff")
        assert b"c2VjcmV0" not in stage.log_path.read_bytes()

    def test_a_refused_request_fits_too(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect()
        client.send(b"GET /%b HTTP/1.1\r\nHost: %b\r\nB\xff: \r\n\r\n" % (b"\xff" * 2000, b"\xff" * 2000))
        client.message()
        [line] = stage.log()
        assert line["status"] == 400
        assert len(stage.log_path.read_bytes()) <= 4096


class TestSecrets:
    @pytest.mark.parametrize(
        ("query", "logged"),
        [
            (b"a=1&token=abc&b=2", "a=1&token=REDACTED&b=2"),
            (b"TOKEN=abc", "TOKEN=REDACTED"),
            (b"token=a=b=c", "token=REDACTED"),
            (b"to%6Ben=abc", "to%6Ben=REDACTED"),
            (b"access_token=abc&token", "access_token=REDACTED&token"),
            (b"tokens=abc&mytoken=1", "tokens=abc&mytoken=1"),
            (b"x=token", "x=token"),
            (b"a&&=&sig=1", "a&&=&sig=REDACTED"),
        ],
    )
    def test_named_values_of_a_query_are_replaced(self, stage: Stage, query: bytes, logged: str) -> None:
        request = b"GET /?" + query + b" HTTP/1.1\r\nHost: a.test\r\nReferer: https://a.test/?" + query + b"\r\n\r\n"
        line = line_of(stage, request)
        assert (line["query"], line["referer"]) == (logged, "https://a.test/?" + logged)

    def test_the_names_can_be_chosen(self, stage: Stage) -> None:
        request = b"GET /?token=1&Mine=2 HTTP/1.1\r\nHost: a.test\r\n\r\n"
        assert line_of(stage, request, log={"redact_query": ["mine"]})["query"] == "token=1&Mine=REDACTED"

    def test_credentials_and_bodies_are_nowhere(self, stage: Stage) -> None:
        fields = (
            b"Authorization: Basic c2VjcmV0\r\nCookie: s=c2VjcmV0\r\nX-Api-Key: c2VjcmV0\r\nContent-Length: 8\r\n\r\n"
        )
        line = line_of(stage, b"POST / HTTP/1.1\r\nHost: a.test\r\n" + fields + b"c2VjcmV0")
        assert "c2VjcmV0" not in json.dumps(line)

    def test_nor_are_the_values_of_a_request_that_was_not_understood(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"header_size": 512})
        client = stage.connect()
        client.send(
            b"GET /?token=c2VjcmV0 HTTP/1.1\r\nHost: a.test\r\nAuthorization: " + b"c2VjcmV0" * 99 + b"\r\n\r\n"
        )
        assert b"c2VjcmV0" not in client.message().body
        assert "c2VjcmV0" not in json.dumps(stage.log())


class TestConsole:
    def test_a_line_for_a_person(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, log={"format": "console"})
        client = stage.connect()
        client.send(b"GET /x%1b[31m?token=abc HTTP/1.1\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.message()
        stage.begin_drain(0).result(PATIENCE)
        text = stage.log_path.read_text()
        pattern = r"\d\d:\d\d:\d\d \x1b\[32m200\x1b\[0m GET     a\.test/x%1b\[31m  \d+\.\d ms  127\.0\.0\.1 -> http://127.0.0.1:\d+\n"
        assert re.fullmatch(pattern, text)

    def test_a_client_cannot_steer_the_terminal(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, log={"format": "console"})
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nX\x9b31m: \x9b\r\nUser-Agent: \x9b31m\r\n\r\n")
        client.message()
        stage.begin_drain(0).result(PATIENCE)
        text = stage.log_path.read_text()
        assert re.sub(r"\x1b\[(33|0)m", "", text).removesuffix("\n").isprintable()
        assert " -> -" in text

    def test_a_line_ends_somewhere(self, stage: Stage) -> None:
        stage.serve(stage.backend(), log={"format": "console"})
        client = stage.connect_plain()
        client.send(b"GET /%b HTTP/1.1\r\nHost: a.test\r\n\r\n" % (b"x" * 8000))
        client.message()
        stage.begin_drain(0).result(PATIENCE)
        assert 1000 < len(stage.log_path.read_bytes()) < 1500


class Collected(NoLog):
    """A sink that keeps its batches."""

    def __init__(self) -> None:
        self.batches: list[str] = []

    def put(self, batch: str) -> None:
        self.batches.append(batch)


class TestBatches:
    def record(self, log: AccessLog, times: int) -> None:
        reader = request_reader()
        info = ConnectionInfo("198.51.100.7", 1, 443, "https")
        for _ in range(times):
            reader.receive(GET)
            head = reader.next_head()
            assert head is not None
            log.record(Exchange(cast(Any, None), cast(Any, None), head, info))

    def test_lines_gather_until_the_tick(self) -> None:
        sink = Collected()
        log = AccessLog(sink)
        self.record(log, 3)
        assert sink.batches == []
        log.flush()
        log.flush()
        assert [batch.count("\n") for batch in sink.batches] == [3]

    def test_or_until_there_are_enough(self) -> None:
        sink = Collected()
        log = AccessLog(sink)
        self.record(log, 2000)
        log.flush()
        assert 1 < len(sink.batches) < 100
        assert sum(batch.count("\n") for batch in sink.batches) == 2000
        assert all(batch.endswith("\n") for batch in sink.batches)


@contextmanager
def writer(path: Path) -> Iterator[LogWriter]:
    log = LogWriter(str(path))
    try:
        yield log
    finally:
        log.close()


def drained(reader: int) -> bool:
    """Take what is there; True at the end of a line."""
    try:
        return os.read(reader, 1 << 20).endswith(b"\n")
    except BlockingIOError:
        return False


def wait_for(condition: object) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.001)


class TestWriter:
    def test_appends(self, tmp_path: Path) -> None:
        path = tmp_path / "access.log"
        path.write_text("before\n")
        with writer(path) as log:
            log.put("one\n")
            log.put("two\n")
        assert path.read_text() == "before\none\ntwo\n"

    def test_one_that_cannot_be_opened_comes_with_advice(self, tmp_path: Path) -> None:
        path = tmp_path / "missing" / "access.log"
        with pytest.raises(TlsproxyError, match=r"^log\.access: cannot open .*: No such file.* Make its directory"):
            LogWriter(str(path))

    def test_a_new_file_is_not_for_everybody(self, tmp_path: Path) -> None:
        path = tmp_path / "access.log"
        with writer(path):
            assert path.stat().st_mode & 0o007 == 0

    def test_opens_its_file_anew_after_a_rotation(self, tmp_path: Path) -> None:
        path = tmp_path / "access.log"
        with writer(path) as log:
            log.put("old\n")
            wait_for(lambda: path.read_text() == "old\n")
            path.rename(tmp_path / "access.log.1")
            log.reopen()
            log.put("new\n")
        assert (path.read_text(), (tmp_path / "access.log.1").read_text()) == ("new\n", "old\n")

    def test_goes_on_with_the_old_file_if_the_new_one_cannot_be_opened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = tmp_path / "logs"
        folder.mkdir()
        with writer(folder / "access.log") as log:
            folder.rename(tmp_path / "moved")
            log.reopen()
            log.put("line\n")
        assert (tmp_path / "moved" / "access.log").read_text() == "line\n"
        assert [record.message for record in caplog.records] == ["access_log.reopen_failed"]

    def test_a_full_disk_costs_lines_and_is_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with writer(Path("/dev/full")) as log:
            for _ in range(3):
                log.put("line\n")
            wait_for(lambda: log.dropped == 3)
        assert [vars(record)["why"] for record in caplog.records] == [os.strerror(errno.ENOSPC)]

    def test_a_reader_that_is_gone_costs_lines_and_not_the_worker(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        with writer(tmp_path / "pipe") as log:
            os.close(reader)
            log.put("line\n")
            wait_for(lambda: log.dropped == 1)
        assert [vars(record)["why"] for record in caplog.records] == [os.strerror(errno.EPIPE)]

    def test_a_reader_that_sleeps_never_blocks_who_writes(self, tmp_path: Path) -> None:
        """What is kept for it is bounded; the rest is dropped and counted. What it gets is whole lines."""
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        batch = ("x" * 99 + "\n") * 300
        begun = time.monotonic()
        with writer(tmp_path / "pipe") as log:
            for _ in range(1000):
                log.put(batch)
            assert log.dropped > 500
            assert time.monotonic() - begun < 1
            got = b""
            whole = (1000 - log.dropped) * len(batch)
            while len(got) < whole:
                try:
                    got += os.read(reader, 1 << 20)
                except BlockingIOError:
                    time.sleep(0.001)
        os.close(reader)
        assert got == batch.encode() * (1000 - log.dropped)

    def test_a_nap_of_the_reader_costs_a_quiet_proxy_nothing(self, tmp_path: Path) -> None:
        """Little is written at each tick: what counts is how much waits, not in how many pieces."""
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        with writer(tmp_path / "pipe") as log:
            log.put(("x" * 99 + "\n") * 1000)  # more than the pipe holds
            for _ in range(1000):
                log.put("line\n")
            assert log.dropped == 0
            got = b""
            while got.count(b"\n") < 2000:
                try:
                    got += os.read(reader, 1 << 20)
                except BlockingIOError:
                    time.sleep(0.001)
            for _ in range(100):  # what was written counts no longer
                log.put("x" * 99_999 + "\n")
                wait_for(lambda: drained(reader))
            assert log.dropped == 0
        os.close(reader)


class TestTrouble:
    def test_requests_go_on_with_a_full_disk(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, log={"access": "/dev/full"})
        client = stage.connect()
        client.send(GET)
        upstream = backend.accept()
        for _ in range(3):
            upstream.message()
            upstream.send(OK)
            assert client.message().body == b"ok"
            client.send(GET)
        stage.call(stage.front.reopen_logs)
        stage.wait(lambda: stage.front.stats()["log_batches_dropped"] > 0)

    def test_it_can_be_off(self, stage: Stage) -> None:
        stage.serve(stage.backend(), log={"access": "off"})
        client = stage.connect_plain()
        client.send(GET)
        assert client.message().status == 308
        assert stage.front.stats()["log_batches_dropped"] == 0
