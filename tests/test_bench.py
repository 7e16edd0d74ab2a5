"""The pure parts of scripts/bench: what it reads from generators and /proc, what it writes for peers, how it judges."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from scripts.benchmark import cli, client, measure, processes, profiling, report
from scripts.benchmark.arena import LENGTHS, SMALL_BODY, MeasurementError, divide_cores, free_port, write_certificate
from scripts.benchmark.load import merge_connects, parse_result, parse_wrk, percentile
from scripts.benchmark.peers import PEERS, Place, render
from scripts.benchmark.rows import ROWS, Budget, Row, Sample

WRK = {
    "microseconds": 2_000_000,
    "requests": 80_000,
    "bytes": 80_000 * 400,
    "connect": 0,
    "read": 0,
    "write": 0,
    "timeout": 0,
    "status": 0,
    "p50": 1200,
    "p99": 5300,
}


def wrk_output(**changes: int) -> str:
    return f"Running 2s test @ https://bench.test\n  80000 requests\nRESULT {json.dumps(WRK | changes)}\n"


# --- generators


def test_wrk_reports_rate_and_latency() -> None:
    load = parse_wrk(wrk_output())
    assert (load.requests, load.rate, load.p50, load.p99, load.problem) == (80_000, 40_000.0, 1.2, 5.3, "")


@pytest.mark.parametrize("kind", ["connect", "read", "write", "timeout", "status"])
def test_any_error_of_wrk_is_a_problem(kind: str) -> None:
    assert parse_wrk(wrk_output(**{kind: 3})).problem == f"3 {kind} errors"


def test_no_request_at_all_is_a_problem() -> None:
    assert parse_wrk(wrk_output(requests=0)).problem == "no request was completed"


def test_a_generator_without_a_result_is_quoted() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse_result("unable to connect to bench.test:1 Connection refused\n")


def test_connecting_clients_are_added_up() -> None:
    results = [
        {"microseconds": [3000, 1000], "resumed": 1, "errors": 0, "problem": ""},
        {"microseconds": [2000], "resumed": 0, "errors": 0, "problem": ""},
    ]
    load = merge_connects(results, 2.0)
    assert (load.requests, load.rate, load.resumed, load.p50, load.problem) == (3, 1.5, 1, 2.0, "")


def test_a_failed_connection_is_a_problem() -> None:
    results = [{"microseconds": [1000], "resumed": 0, "errors": 2, "problem": "reset"}]
    assert merge_connects(results, 1.0).problem == "2 connections failed: reset"


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 6), (99, 10), (100, 10)])
def test_percentiles_are_nearest_rank(percent: float, value: float) -> None:
    assert percentile(list(range(1, 11)), percent) == value


def test_requests_carry_nine_fields() -> None:
    head = client.request_bytes("/small", close=False).decode()
    assert len(head.strip().split("\r\n")[1:]) == 9
    assert "Connection: close" in client.request_bytes("/small", close=True).decode()


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 216", "502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2160", "no Content-Length 216"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "no Content-Length 216"),
    ],
)
def test_a_wrong_answer_is_refused(head: bytes, complaint: str) -> None:
    with pytest.raises(client.AnswerError, match=complaint):
        client.check_head(head, 216)


def test_a_right_answer_passes() -> None:
    client.check_head(b"HTTP/1.1 200 OK\r\ncontent-length: 216", 216)


def test_the_small_answer_is_json_of_216_bytes() -> None:
    assert json.loads(SMALL_BODY)["id"]
    assert LENGTHS["/small"] == 216


# --- /proc


def stat_line(pid: int, parent: int, *, utime: int = 0, cutime: int = 0, name: str = "worker") -> str:
    fields = ["S", parent, *[0] * 9, utime, 0, cutime, 0, *[0] * 4, 77, 0, 5, *[0] * 28]
    return f"{pid} ({name}) {' '.join(map(str, fields))}"


def test_a_stat_line_is_read_behind_the_last_parenthesis() -> None:
    stat = measure.parse_stat(stat_line(10, 1, utime=200, cutime=100, name="a) S 7 (b"))
    assert (stat.pid, stat.parent, stat.started) == (10, 1, 77)
    assert (stat.own_cpu, stat.waited_cpu) == (200 * measure.TICK, 100 * measure.TICK)
    assert stat.rss == 5 * measure.PAGE


def test_the_tree_is_everything_below_the_root() -> None:
    lines = [stat_line(2, 1), stat_line(3, 2), stat_line(4, 3), stat_line(5, 1)]
    stats = {stat.pid: stat for stat in map(measure.parse_stat, lines)}
    assert [stat.pid for stat in measure.descendants(2, stats)] == [2, 3, 4]
    assert measure.descendants(99, stats) == []


def test_this_process_uses_cpu_and_memory() -> None:
    assert measure.cpu_seconds(os.getpid()) > 0
    assert measure.rss_bytes(os.getpid()) > 1 << 20
    assert os.getpid() in measure.cpu_by_thread(os.getpid())
    assert measure.core_seconds(os.sched_getaffinity(0)) > 0


@pytest.mark.system
def test_stopping_ends_the_whole_tree(tmp_path: Path) -> None:
    script = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN);"
        " print(1, flush=True); signal.pause()'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); signal.pause()\n"
    )
    started = processes.Processes()
    cores = frozenset(os.sched_getaffinity(0))
    try:
        parent = started.open([sys.executable, "-c", script], cores=cores, environ={})
        assert parent.stdout
        child = int(parent.stdout.readline())
    finally:
        started.close()
    assert parent.returncode == -signal.SIGTERM
    deadline = time.monotonic() + 5
    while measure.tree(child) and _state(child) != "Z" and time.monotonic() < deadline:
        pass
    assert not measure.tree(child) or _state(child) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return "Z"


# --- cores


def test_two_cores_are_divided_and_shared_by_two_workers() -> None:
    cores = divide_cores([0, 1])
    assert [sorted(group) for group in (cores.proxy, cores.load, cores.pair)] == [[0], [1], [0, 1]]
    assert cores.shared


def test_four_cores_leave_the_load_its_own() -> None:
    cores = divide_cores([0, 1, 2, 3])
    assert [sorted(group) for group in (cores.pair, cores.pair_load)] == [[0, 1], [2, 3]]
    assert not cores.shared


def test_one_core_is_not_enough() -> None:
    with pytest.raises(MeasurementError, match="two cores"):
        divide_cores([0])


# --- configurations


@pytest.fixture
def place(tmp_path: Path) -> Place:
    chain, key = write_certificate(tmp_path)
    return Place(tmp_path, port=8443, backend_port=8000, chain=chain, key=key, workers=2)


@pytest.mark.parametrize("name", PEERS)
def test_every_mark_of_a_configuration_is_filled(name: str, place: Place) -> None:
    for config in PEERS[name].configs:
        text = render(config, place)
        assert not re.search(r"@\w+@", text)
    PEERS[name].prepare(place)
    assert {path.name for path in place.folder.iterdir()} >= set(PEERS[name].configs)


def test_a_mark_nobody_fills_is_an_error(place: Place) -> None:
    with pytest.raises(KeyError):
        render("backend.conf", place)  # wants `small` and `files` as well


def test_our_configuration_is_what_the_row_says(place: Place) -> None:
    config = tomllib.loads(render("tlsproxy.toml", place))
    assert config["server"]["workers"] == 2
    assert config["listen"] == {"https": ["127.0.0.1:8443"], "http": [], "http2": True}
    assert config["log"]["access"] == str(place.log)
    assert config["sites"][0]["backends"] == ["http://127.0.0.1:8000"]


def test_our_configuration_is_accepted(place: Place) -> None:
    PEERS["tlsproxy"].prepare(place)
    command = [sys.executable, "-m", "tlsproxy", "check", "--config", str(place.folder / "tlsproxy.toml")]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_traefik_gets_two_yaml_files(place: Place) -> None:
    static = yaml.safe_load(render("traefik.yml", place))
    site = yaml.safe_load(render("traefik-site.yml", place))
    assert static["accessLog"]["format"] == "json"
    assert site["http"]["services"]["application"]["loadBalancer"]["servers"] == [{"url": "http://127.0.0.1:8000"}]


@pytest.mark.system
@pytest.mark.parametrize(("name", "flags"), [("nginx", ["-t"]), ("haproxy", ["-c"])])
def test_a_peer_accepts_its_configuration(name: str, flags: list[str], place: Place) -> None:
    peer = PEERS[name]
    program = peer.find()
    if program is None:
        pytest.skip(f"{name} is not installed ({peer.missing})")
    place = dataclasses.replace(place, port=free_port())  # nginx -t binds it
    peer.prepare(place)
    outcome = subprocess.run([*peer.command(program, place), *flags], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


# --- report


def runs(**figures: list[float | None]) -> list[report.Run]:
    return [
        report.Run(
            "row", peer, number, None if figure is None else Sample(figure, {"rps": 1.0}), "" if figure else "no"
        )
        for peer, values in figures.items()
        for number, figure in enumerate(values, 1)
    ]


def row(budget: Budget) -> Row:
    return Row("row", "A row", "µs", budget, lambda effort, peer: Sample(0, {}), note="How.")


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was slow for all: the ratio of medians would be 3, the paired one is 2.
    assert report.paired_ratio(runs(nginx=[1, 10, 1.1], tlsproxy=[2, 20, 3.3]), "tlsproxy", "nginx") == 2


def test_a_round_without_the_other_gives_no_ratio() -> None:
    assert report.paired_ratio(runs(nginx=[None, 2], tlsproxy=[1, 3]), "tlsproxy", "nginx") == 1.5
    assert report.paired_ratio(runs(tlsproxy=[1, 3]), "tlsproxy", "nginx") is None


def test_standings_are_medians_of_the_valid_runs() -> None:
    (standing,) = report.standings(runs(tlsproxy=[1, None, 3, 5]))
    assert (standing.valid, standing.figure) == (3, 3)
    assert standing.spread == pytest.approx(2 / 3)


def test_a_peer_without_a_valid_run_has_no_standing() -> None:
    assert report.standings(runs(tlsproxy=[None])) == []


@pytest.mark.parametrize(
    ("budget", "must", "inside"),
    [
        (Budget(nginx=1.8, caddy=0.45), "≤ 1.8 × nginx, ≤ 0.45 × Caddy", True),
        (Budget(nginx=1.4), "≤ 1.4 × nginx", False),
        (Budget(at_least={"": 30}), "≥ 30", True),
        (Budget(nginx=1.8, at_least={"resumed": 0.95}), "≤ 1.8 × nginx, ≥ 0.95 resumed", None),
        (Budget(), "", None),
    ],
)
def test_the_verdict_compares_with_the_budget(budget: Budget, must: str, inside: bool | None) -> None:
    found = {standing.peer: standing for standing in report.standings(runs(nginx=[20], caddy=[100], tlsproxy=[30]))}
    assert report.judge(found["tlsproxy"], budget) == report.Verdict(must, inside)


def test_markdown_has_a_line_for_each_peer_and_the_reasons_of_invalid_runs() -> None:
    text = report.markdown(report.sheet(row(Budget(nginx=1.8)), runs(nginx=[20.0, None], tlsproxy=[30.0, 31.0])))
    assert "| tlsproxy | 30.5 | 2% | 1.50 | – | 1 | ≤ 1.8 × nginx | yes |" in text
    assert "* invalid: nginx, round 2: no" in text


def test_json_holds_runs_standings_and_verdict() -> None:
    found = report.as_json({"cpu": "x"}, [row(Budget(nginx=1.8))], runs(nginx=[20.0], tlsproxy=[30.0]))
    (written,) = json.loads(json.dumps(found))["rows"]
    assert [standing["peer"] for standing in written["standings"]] == ["nginx", "tlsproxy"]
    assert written["verdict"] == {"must": "≤ 1.8 × nginx", "inside": True}
    assert len(written["runs"]) == 2


# --- profile and command line


def test_a_profile_counts_the_main_thread_alone() -> None:
    stacks = "thread (1): MainThread;run (a.py:1);parse (b.py:7) 3\nthread (1): MainThread;run (a.py:2) 1\n"
    lines = profiling.summarise(stacks + "thread (2): log;wait (c.py:3) 96\n").splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["75.0%", "75.0%", "parse", "(b.py)"],
        ["25.0%", "100.0%", "run", "(a.py)"],
    ]


def test_rows_and_peers_can_be_chosen() -> None:
    options = cli.parse(["http1-small", "bulk", "--peers", "nginx,tlsproxy", "--rounds", "1"])
    assert (options.rows, options.peers) == (["http1-small", "bulk"], ["nginx", "tlsproxy"])


@pytest.mark.parametrize("wrong", [["http9"], ["--peers", "apache"], ["--rounds", "0"], ["--profile", "rss"]])
def test_wrong_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.parse(wrong)
    assert refused.value.code == 2
    assert "error" in capsys.readouterr().err


def test_every_row_has_a_budget() -> None:
    assert all(row.budget != Budget() for row in ROWS.values())


def test_heads_that_repeat_and_heads_that_do_not_have_the_same_budget() -> None:
    assert list(ROWS)[:2] == ["http1-small", "http1-varied"]
    assert ROWS["http1-varied"].budget == ROWS["http1-small"].budget == Budget(nginx=1.8, caddy=0.45)
    assert LENGTHS["/varied"] == LENGTHS["/small"]


def test_every_row_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE) == list(ROWS)
