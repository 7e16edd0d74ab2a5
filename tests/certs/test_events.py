"""Events reach the log always, a program and a URL as often as they are worth it, and hold nobody up."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tlsproxy import logs
from tlsproxy.certs import events
from tlsproxy.certs.events import EventKind, Events
from tlsproxy.certs.throttle import PER_MINUTE, Throttle

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME = "acme/api.example.com"


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes what is posted and answers with the server's status."""

    def do_POST(self) -> None:
        self.server.taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Be silent."""


class Server(http.server.HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.taken: list[dict[str, Any]] = []
        self.status = 204
        self.url = f"http://127.0.0.1:{self.server_port}/T0/xoxo-secret"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def deliver(emitting: Any, **hooks: Any) -> None:
    """Run `emitting(events)` on a loop and wait until everything is delivered."""

    async def run() -> None:
        subject = Events(now=lambda: NOW, **hooks)
        emitting(subject)
        await subject.close(timeout=20)

    asyncio.run(run())


def script(folder: Path, text: str) -> list[str]:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path), "an argument", "$HOME"]


# --- the log


def test_the_log_tells_every_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tlsproxy")
    until = NOW + timedelta(days=90)
    subject = Events()
    subject.emit("obtained", NAME, not_after=until, names=("api.example.com",), issuer="R13", days=90)
    subject.emit(EventKind.FAILING, NAME, error="no way")
    subject.emit("failing", NAME, error="no way")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "certificate.obtained"),
        ("WARNING", "certificate.failing"),
        ("WARNING", "certificate.failing"),
    ]
    line = json.loads(logs.JsonFormatter().format(caplog.records[0]))
    assert {key: line[key] for key in ("certificate", "not_after", "names", "issuer", "days")} == {
        "certificate": NAME,
        "not_after": "2026-05-30T12:00:00Z",
        "names": ["api.example.com"],
        "issuer": "R13",
        "days": 90,
    }


def test_what_expires_is_logged_once_a_day(caplog: pytest.LogCaptureFixture) -> None:
    clock = [NOW]
    subject = Events(now=lambda: clock[0])
    for _ in range(3 * 24):
        subject.emit("expiring", NAME)
        clock[0] += timedelta(hours=1)
    assert len(caplog.records) == 3


def test_a_field_with_a_name_of_the_log_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tlsproxy")
    Events().emit("revoked", NAME, name="x", message="y", args="z")
    assert json.loads(logs.JsonFormatter().format(caplog.records[0]))["message_"] == "y"


def test_no_key_goes_out(caplog: pytest.LogCaptureFixture, server: Server) -> None:
    caplog.set_level(logging.INFO, "tlsproxy")
    pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE"
    deliver(lambda subject: subject.emit("obtained", NAME, chain=pem, more=[{"key": pem}]), webhook=server.url)
    told = json.dumps(server.taken) + "".join(logs.JsonFormatter().format(record) for record in caplog.records)
    assert "MHcCAQEE" not in told
    assert server.taken[0]["chain"] == "(removed: holds a private key)"


# --- a program


@pytest.mark.system
def test_a_program_gets_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLSPROXY_STORE__ENCRYPTION_KEYS", "secret")
    monkeypatch.setenv("OTHER", "kept")
    command = script(tmp_path, f'cat > {tmp_path}/stdin; echo "$@" > {tmp_path}/arguments; env > {tmp_path}/env')
    deliver(lambda subject: subject.emit("renewed", NAME, days=90, event="forged", ts="forged"), command=command)
    assert json.loads((tmp_path / "stdin").read_text()) == {
        "event": "renewed",
        "certificate": NAME,
        "ts": "2026-03-01T12:00:00Z",
        "days": 90,
    }
    assert (tmp_path / "arguments").read_text() == "an argument $HOME\n"
    environment = (tmp_path / "env").read_text()
    assert {"TLSPROXY_EVENT=renewed", f"TLSPROXY_CERTIFICATE={NAME}", "OTHER=kept"} <= set(environment.splitlines())
    assert "ENCRYPTION" not in environment


@pytest.mark.system
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo no mail >&2; exit 3", "hook ended with 3: no mail"),
        ("exec 0<&-; exit 1", "hook ended with 1: no word on stderr"),
        ("sleep 60 & sleep 60", "hook was stopped after 0.2 s"),
    ],
)
def test_a_program_that_fails(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "COMMAND_TIMEOUT", 0.2 if "sleep" in text else 20.0)
    deliver(lambda subject: subject.emit("renewed", NAME), command=script(tmp_path, text))
    assert [vars(record)["reason"] for record in caplog.records] == [reason]


def test_a_program_that_is_none(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    deliver(lambda subject: subject.emit("renewed", NAME), command=[str(tmp_path / "gone")])
    assert vars(caplog.records[0])["reason"] == "gone can't be started: No such file or directory"


@pytest.mark.system
def test_what_a_program_leaves_behind_does_not_hold_us_up(tmp_path: Path) -> None:
    command = script(tmp_path, f"cat > /dev/null; sleep 30 & echo $! > {tmp_path}/pid")
    began = time.monotonic()
    deliver(lambda subject: subject.emit("renewed", NAME), command=command)
    assert time.monotonic() - began < 10
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


# --- a URL


def test_a_url_gets_the_event(server: Server) -> None:
    deliver(lambda subject: subject.emit("expiring", NAME, not_after=NOW), webhook=server.url)
    assert server.taken == [
        {"event": "expiring", "certificate": NAME, "ts": "2026-03-01T12:00:00Z", "not_after": "2026-03-01T12:00:00Z"}
    ]


def test_an_url_that_fails_is_told_once_a_minute_and_without_its_token(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tlsproxy.certs.events")
    server.status = 302
    deliver(lambda subject: [subject.emit("renewed", f"acme/{n}") for n in range(5)], webhook=server.url)
    complaints = [record for record in caplog.records if record.getMessage() == "events.hook_failed"]
    assert [(vars(each)["hook"], vars(each)["reason"]) for each in complaints] == [
        ("events.webhook", "the URL has answered with status 302")
    ]
    assert len(server.taken) == 5
    caplog.clear()
    deliver(lambda subject: subject.emit("renewed", NAME), webhook="http://127.0.0.1:1/T0/xoxo-secret")
    told = "".join(logs.JsonFormatter().format(record) for record in caplog.records)
    assert "Connection refused" in told
    assert "xoxo" not in told


def test_nobody_waits_for_a_url_that_hangs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(events, "WEBHOOK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        deliver(lambda subject: subject.emit("renewed", NAME), webhook=url)
    assert vars(caplog.records[0])["reason"] == "no answer within 0.2 s"


@pytest.mark.system
def test_emitting_returns_at_once(tmp_path: Path) -> None:
    async def run() -> float:
        subject = Events(command=script(tmp_path, "sleep 30"))
        began = time.monotonic()
        subject.emit("renewed", NAME)
        took = time.monotonic() - began
        await subject.close(timeout=0.1)
        return took

    began = time.monotonic()
    assert asyncio.run(run()) < 0.1
    assert time.monotonic() - began < 10


# --- how often


def test_a_lasting_alarm_is_repeated_now_and_then() -> None:
    throttle = Throttle()
    for kind, pause in [("failing", timedelta(hours=1)), ("expiring", timedelta(days=1))]:
        throttle.count(kind, "a", NOW)
        assert not throttle.is_due(kind, "a", NOW + pause - timedelta(seconds=1))
        assert throttle.is_due(kind, "a", NOW + pause)
        assert throttle.is_due(kind, "b", NOW)
        assert throttle.is_due(kind, "a", NOW - timedelta(days=400)), "a clock that was set back"


def test_good_news_end_an_alarm() -> None:
    throttle = Throttle()
    throttle.count("failing", "a", NOW)
    throttle.count("failing", "b", NOW)
    throttle.count("renewed", "a", NOW)
    assert throttle.is_due("failing", "a", NOW)
    assert not throttle.is_due("failing", "b", NOW)
    assert throttle.is_due("renewed", "a", NOW)


def test_a_minute_has_room_for_sixty() -> None:
    throttle = Throttle()
    for second in range(PER_MINUTE):
        assert throttle.has_room(NOW)
        throttle.count("renewed", str(second), NOW + timedelta(seconds=second))
    assert not throttle.has_room(NOW + timedelta(seconds=59))
    assert throttle.has_room(NOW + timedelta(seconds=60))


def test_what_is_dropped_is_counted_and_said(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    clock = [NOW]

    async def run() -> None:
        subject = Events(webhook=server.url, now=lambda: clock[0])
        for number in range(PER_MINUTE + 7):
            subject.emit("renewed", f"acme/{number}")
        clock[0] += timedelta(minutes=2)
        subject.emit("renewed", "acme/later")
        await subject.close(timeout=20)

    asyncio.run(run())
    assert len(server.taken) == PER_MINUTE + 1
    assert sum(event.get("dropped", 0) for event in server.taken) == 7
    assert [vars(record)["reason"] for record in caplog.records] == ["too many at once, some were not told"]
