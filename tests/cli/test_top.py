"""`admin top` and `admin status --check`: from samples to what is shown, in terminals of all sizes and in a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.answering import answering
from tlsproxy import cli
from tlsproxy.cli import topview
from tlsproxy.cli.rates import View, compare, quantile
from tlsproxy.runtime.adminhttp import Answer
from tlsproxy.runtime.privileges import acting_as, find_account

Output = pytest.CaptureFixture[str]
SOCKET = Path("admin.sock")
BOUNDS = [0.001, 0.01, 0.1]
EVIL = "evil\x1b[2J.test"


def sample(clock: float = 100.0, requests: int = 0, **more: Any) -> dict[str, Any]:
    """A proxy whose requests all took from 1 to 10 ms; one in ten failed."""
    counts = {"requests": requests, "statuses": {"2xx": requests - requests // 10, "5xx": requests // 10}}
    buckets = [0, requests, 0, 0]
    return {
        "time": 1_800_000_000.0 + clock,
        "clock": clock,
        "version": "1.0",
        "pid": 7,
        "generation": 2,
        "started": "2027-01-15T07:00:00Z",
        "draining": 0,
        "sites": 2,
        "workers": [
            {"pid": 8, "connections": 3, "requests": requests, "lag_ms": 2, "memory": 50 * 2**20, "cpu": clock / 4},
            {"pid": 9, "connections": None, "requests": None, "lag_ms": None, "memory": 2**20, "cpu": 0.0},
        ],
        "connections": {"handshake": 0, "active": 1, "idle": 2, "closing": 0},
        **counts,
        "buckets": buckets,
        "bounds": BOUNDS,
        "traffic": [{"site": EVIL, **counts, "buckets": buckets}],
        "backends": [
            {"url": "http://127.0.0.1:8000", "state": "up", "active": 1, "requests": requests, "failures": 0},
            {"url": "http://127.0.0.1:8001", "state": "down", "active": 0, "requests": 0, "failures": 4},
        ],
        "certificates": {"valid": 1, "failed": 1},
        "expiring": [
            {"name": "acme/b.test", "status": "failed", "not_after": None},
            {"name": "acme/a.test", "status": "valid", "not_after": "2027-01-17T08:00:00Z"},
        ],
        **more,
    }


def view(requests: int = 200) -> View:
    found = compare(sample(100.0, 1000), sample(102.0, 1000 + requests))
    assert found is not None
    return found


# --- rates


def test_two_samples_make_rates() -> None:
    found = view()
    assert (found.seconds, found.total.rate) == (2.0, 100.0)
    assert found.total.statuses == {"2xx": 90.0, "5xx": 10.0}
    assert found.total.failed == pytest.approx(0.1)
    assert found.total.p50 == pytest.approx(0.0055)
    assert found.sites[0][1] == found.total
    assert [(each.rate, each.cpu) for each in found.workers] == [(100.0, 0.25), (None, 0.0)]
    assert found.backends == {"http://127.0.0.1:8000": 100.0, "http://127.0.0.1:8001": 0.0}


def test_without_a_request_there_is_no_latency() -> None:
    total = view(0).total
    assert (total.rate, total.p50, total.p99, total.failed) == (0.0, None, None, None)


@pytest.mark.parametrize(
    "after",
    [
        sample(102.0, 5, started="2027-01-15T08:00:00Z"),  # another run
        sample(102.0, 999),  # a counter that went back
        sample(100.0, 1000),
    ],
)
def test_samples_that_have_nothing_to_do_with_each_other(after: dict[str, Any]) -> None:
    assert compare(sample(100.0, 1000), after) is None


@pytest.mark.parametrize(
    ("part", "buckets", "seconds"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [10, 0, 0, 0], 0.0005),
        (0.5, [5, 5, 0, 0], 0.001),
        (0.99, [0, 100, 0, 0], 0.00991),
        (0.99, [1, 0, 0, 99], 0.1),  # no end: its beginning
    ],
)
def test_quantiles(part: float, buckets: list[int], seconds: float | None) -> None:
    assert quantile(part, buckets, BOUNDS) == (None if seconds is None else pytest.approx(seconds))


# --- the screen


def drawn(width: int, height: int, shown: View | None = None, notice: str = "") -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(topview.screen(shown or view(), [1.0, 2.0, 4.0], width, height, notice=notice))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text.splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [5, 10, 24, 60])
def test_it_fits_every_terminal(width: int, height: int) -> None:
    lines = drawn(width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "\x1b[2J" not in "".join(lines)
    assert lines[0].startswith("tlsproxy 1.0")


def test_what_it_shows() -> None:
    text = "\n".join(drawn(100, 40))
    assert "100 requests/s  p50 5.5 ms  p99 9.9 ms  2xx 90.0/s  5xx 10.0/s" in text
    assert "3 connections  1 active, 2 idle" in text
    assert "▃▅█" in text
    assert "evil\\x1b[2J.test" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["worker", "8", "25.0", "%", "50", "MiB", "3", "100", "2", "ms"] in lines
    assert ["worker", "9", "0.0", "%", "1", "MiB", "silent", "silent"] in lines
    assert ["http://127.0.0.1:8001", "down", "0", "0.0", "4"] in lines
    assert ["acme/b.test", "failed"] in lines
    assert text.index(":8001") < text.index(":8000")  # what is in trouble comes first


def test_what_has_no_room_is_counted() -> None:
    many = [{"site": f"s{n}.test", "requests": n, "statuses": {}, "buckets": [0, 0, 0, 0]} for n in range(50)]
    found = compare(sample(1.0), sample(2.0, traffic=many))
    lines = drawn(80, 24, found)
    assert len(lines) <= 24
    shown = sum(line.startswith("s") and ".test" in line for line in lines)
    assert f"… {50 - shown} more" in "\n".join(lines)


def test_trouble_is_shown_instead_of_the_hint() -> None:
    lines = drawn(80, 24, notice="no proxy is running")
    assert lines[4].strip() == "no proxy is running"


@pytest.mark.parametrize(
    ("wanted", "room", "given"),
    [([3, 3], 10, [3, 3]), ([9, 2], 6, [4, 2]), ([5, 5], 3, [2, 1]), ([5], 0, [0]), ([], 5, []), ([5], -3, [0])],
)
def test_sharing_of_lines(wanted: list[int], room: int, given: list[int]) -> None:
    assert topview.share(wanted, room) == given


# --- the command


@pytest.fixture
def samples() -> dict[str, Answer]:
    """Every answer is a sample of the same moment, so a second one would show nothing: the clock goes on by itself."""

    class Moving(dict[str, Any]):
        def items(self) -> Any:  # what json.dumps reads
            now = time.monotonic()
            return {**sample(now, int(now * 1000))}.items()

    return {"GET /top": Answer(200, Moving({"x": 1}))}


def test_a_pipe_gets_plain_lines(samples: dict[str, Answer], capsys: Output) -> None:
    with answering(SOCKET, samples):
        assert cli.main(["admin", "top", "--count", "2", "--interval", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        fields = dict(field.split("=") for field in line.split()[1:])
        assert list(fields)[:4] == ["requests/s", "p50", "p99", "5xx"]
        assert float(fields["requests/s"]) == pytest.approx(1000, rel=0.2)
        assert (fields["p50"], fields["5xx"][-1]) == ("5.5ms", "%")
        assert (fields["backends_up"], fields["certificates_valid"]) == ("1/2", "1/2")


def test_json_is_an_object_per_line(samples: dict[str, Answer], capsys: Output) -> None:
    with answering(SOCKET, samples):
        assert cli.main(["admin", "top", "--count", "1", "--interval", "0.2", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["requests_per_second"] == pytest.approx(1000, rel=0.2)
    assert found["p50"] == pytest.approx(0.0055)
    assert found["sites"][0]["site"] == EVIL
    assert found["connections"]["idle"] == 2


def test_nobody_is_there(capsys: Output) -> None:
    assert cli.main(["admin", "top"]) == 3
    assert "no proxy is running" in capsys.readouterr().err


def test_the_least_interval(capsys: Output) -> None:
    assert cli.main(["admin", "top", "--interval", "0"]) == 2
    assert "at least 0.2 seconds" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.parametrize("end", ["q", "signal"])
def test_a_terminal_is_as_it_was_afterwards(samples: dict[str, Answer], end: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with answering(SOCKET, samples):
        command = [sys.executable, "-m", "tlsproxy", "admin", "top", "--interval", "0.2"]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        said = _read_until(ours, b"requests/s")
        if end == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGINT)
        said += _read_until(ours, b"\x1b[?1049l")
        assert process.wait(20) == 0
    assert b"\x1b[?1049h" in said  # it had a screen of its own
    assert b"Traceback" not in said
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    said, deadline = b"", time.monotonic() + 20
    while wanted not in said:
        left = deadline - time.monotonic()
        assert left > 0, said
        if select.select([descriptor], [], [], left)[0]:
            said += os.read(descriptor, 65536)
    return said


# --- status --check


READY = {
    "serving": True,
    "ready": True,
    "not_ready": [],
    "workers": [{"pid": 1, "connections": 4}, {"pid": 2, "connections": None}],
    "certificates": {"valid": 2, "pending": 0, "failed": 1},
}


def check(capsys: Output, status: dict[str, Any] | None, *options: str) -> tuple[int, str]:
    answer = Answer(200, status) if status else Answer(503, {"error": "the proxy is starting"})
    with answering(SOCKET, {"GET /status": answer}):
        return cli.main(["admin", "status", "--check", *options]), capsys.readouterr().out


def test_check_is_a_line_and_an_exit_code(capsys: Output) -> None:
    assert check(capsys, READY) == (0, "ready: 1 of 2 workers answer; certificates: 2 valid, 1 failed\n")
    code, said = check(capsys, READY, "--json")
    assert (code, json.loads(said)) == (0, {"serving": True, "ready": True, "not_ready": []})


def test_check_of_one_that_serves_nobody(capsys: Output) -> None:
    down = {**READY, "serving": False, "ready": False, "not_ready": ["no worker is ready"]}
    assert check(capsys, down) == (1, "not serving: no worker is ready\n")
    assert check(capsys, down, "--json")[0] == 1
    assert check(capsys, None) == (1, "not serving: the proxy is starting\n")


def test_who_waits_for_the_first_certificate_is_not_to_be_ended(capsys: Output) -> None:
    waiting = {**READY, "ready": False, "not_ready": ["none of 1 certificates is there yet"]}
    assert check(capsys, waiting) == (0, "serving, not ready: none of 1 certificates is there yet\n")


def test_check_of_nothing_is_1_as_docker_wants_it(capsys: Output) -> None:
    assert cli.main(["admin", "status", "--check"]) == 1
    assert capsys.readouterr().out.startswith("not serving: no proxy is running")


def test_who_may_not_ask_does_not_know(folder: Path, capsys: Output) -> None:
    nobody = find_account("nobody") if os.geteuid() == 0 else None
    if nobody is None:
        pytest.skip("only root can be somebody else")
    for path in (folder, *folder.parents):
        path.chmod(path.stat().st_mode | 0o001)  # the folders of pytest are closed to others
    check(capsys, READY, "--json")  # the program may lie where only root can read: imported here
    with answering(SOCKET, {"GET /status": Answer(200, READY)}), acting_as(nobody):
        assert cli.main(["admin", "status", "--check"]) == 1
        assert capsys.readouterr().out.startswith(f"not known: {SOCKET.absolute()}: this user may not talk")
        assert cli.main(["admin", "status", "--check", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["serving"], said["ready"], list(said)) == (False, False, ["serving", "ready", "not_ready"])


@pytest.mark.parametrize(("socket", "why"), [('"off"', "cannot be asked"), ("1", "admin.socket")])
def test_who_is_told_of_no_socket_does_not_know(socket: str, why: str, capsys: Output) -> None:
    text = Path("tlsproxy.toml").read_text()
    Path("tlsproxy.toml").write_text(text.replace('socket = "admin.sock"', f"socket = {socket}"))
    assert cli.main(["admin", "status", "--check"]) == 1
    said = capsys.readouterr().out
    assert (said.startswith("not known: "), why in said) == (True, True)
