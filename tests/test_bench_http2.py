"""The HTTP/2 rows of scripts/bench: what is read from h2load, what the client for varied heads sends and refuses."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.benchmark import client, client_h2
from scripts.benchmark.arena import LENGTHS, Arena, Contest
from scripts.benchmark.load import merge_varied, parse_h2load
from scripts.benchmark.peers import PEERS
from scripts.benchmark.profiling import LOADS
from scripts.benchmark.rows import ROWS, UPLOAD, Budget

SUMMARY = """\
TLS Protocol: TLSv1.3
Application protocol: {protocol}

finished in {took}, 22116.50 req/s, 6.08MB/s
requests: {done} total, {done} started, {done} done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {fine} 2xx, {moved} 3xx, 0 4xx, {broken} 5xx
traffic: 12.15MB (12741554) total, 2.28MB (2388582) headers (space savings 49.06%), 9.11MB ({bytes}) data
                     min         max         mean         sd        +/- sd
time for request:     6.56ms     58.23ms     21.83ms      8.07ms    74.32%
"""
RIGHT = {"protocol": "h2", "took": "2.01s", "done": 4, "succeeded": 4, "failed": 0, "fine": 4, "moved": 0, "broken": 0}
LOG = "".join(f"1700000000000000\t200\t{taken}\n" for taken in (3000, 1000, 4000, 2000))


def summary(**changes: object) -> str:
    return SUMMARY.format(**{**RIGHT, "bytes": 864, **changes})


# --- h2load


def test_h2load_reports_rate_bytes_and_latency() -> None:
    load = parse_h2load(summary(), LOG)
    assert (load.requests, load.seconds, load.bytes, load.p50, load.p99) == (4, 2.01, 864, 3.0, 4.0)
    assert load.problem == ""


@pytest.mark.parametrize(("took", "seconds"), [("531.25ms", 0.53125), ("900us", 0.0009), ("1.50m", 90.0)])
def test_h2load_tells_times_in_several_units(took: str, seconds: float) -> None:
    assert parse_h2load(summary(took=took), LOG).seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "changes",
    [
        {"fine": 3, "broken": 1},
        {"fine": 3, "moved": 1},
        {"succeeded": 3, "failed": 1},
        {"fine": 3},
        {"done": 5, "succeeded": 5, "fine": 5},
    ],
    ids=["5xx", "3xx", "failed", "without a status", "more than the log says"],
)
def test_anything_but_complete_2xx_is_a_problem(changes: dict[str, object]) -> None:
    problem = parse_h2load(summary(**changes), LOG).problem
    assert "requests:" in problem
    assert "status codes:" in problem


def test_a_status_of_an_answer_that_was_cut_off_is_none() -> None:
    assert parse_h2load(summary(fine=6), LOG).problem == ""


def test_another_protocol_is_a_problem() -> None:
    assert parse_h2load(summary(protocol="http/1.1"), LOG).problem == "ALPN did not choose h2"


def test_no_answer_at_all_is_a_problem() -> None:
    nothing = summary(done=0, succeeded=0, fine=0, bytes=0)
    assert parse_h2load(nothing, "").problem == "no request was completed"


def test_an_h2load_without_a_result_is_quoted() -> None:
    with pytest.raises(ValueError, match="Could not resolve"):
        parse_h2load("starting benchmark...\nCould not resolve bench.test\n", "")


# --- the client for heads that vary


def test_http2_requests_carry_the_fields_of_http1() -> None:
    fields = dict(client_h2.fixed_fields("/small"))
    assert fields[b":path"] == b"/small"
    assert fields[b":authority"] == client.NAME.encode()
    assert {name.decode(): value.decode() for name, value in fields.items() if name[:1] != b":"} == {
        name.lower(): value for name, value in client.HEADERS.items()
    }


def test_varied_http2_requests_differ_in_four_places_and_no_more() -> None:
    make = client_h2.varied_fields("/varied")
    heads = [dict(make()) for _ in range(50)]
    assert all(list(head)[:3] == [b":method", b":scheme", b":authority"] for head in heads)
    assert {head[b":path"].partition(b"=")[0] for head in heads} == {b"/varied?cursor"}
    for name in (b":path", b"cookie", b"referer", b"x-trace"):
        values = {head.pop(name) for head in heads}
        assert len(values) == len(heads)
        assert len({len(value) for value in values}) == 1
    fixed = dict(client_h2.fixed_fields("/varied"))
    assert all(head == {name: fixed[name] for name in head} for head in heads)
    assert set(fixed) - set(heads[0]) == {b":path", b"cookie", b"referer"}


def test_what_the_varied_client_reports_becomes_a_load() -> None:
    load = merge_varied({"microseconds": [3000, 1000, 2000], "seconds": 1.5, "problem": ""}, 216)
    assert (load.requests, load.rate, load.p50, load.bytes, load.problem) == (3, 2.0, 2.0, 648, "")
    assert merge_varied({"microseconds": [1], "seconds": 1.0, "problem": "status 502"}, 216).problem == "status 502"
    assert merge_varied({"microseconds": [], "seconds": 1.0, "problem": ""}, 216).problem == "no request was completed"


# --- against nginx


@pytest.fixture(scope="module")
def contest() -> Iterator[Contest]:
    nginx = PEERS["nginx"].find()
    if nginx is None or shutil.which("h2load") is None:
        pytest.skip("nginx or h2load is not installed")
    arena = Arena()
    try:
        arena.start_backend(nginx)
        with arena.running(PEERS["nginx"]) as running:
            yield running
    finally:
        arena.close()


@pytest.mark.system
@pytest.mark.parametrize(("path", "upload"), [("/small", b""), ("/large", b""), ("/upload", UPLOAD)])
def test_a_number_of_requests_is_answered_to_the_last_byte(contest: Contest, path: str, upload: bytes) -> None:
    load = contest.load.multiplex(path, connections=2, streams=5, requests=20, upload=upload)
    assert (load.problem, load.requests, load.bytes) == ("", 20, 20 * LENGTHS[path])


@pytest.mark.system
def test_the_application_refuses_uploads_of_another_size(contest: Contest) -> None:
    load = contest.load.multiplex("/upload", connections=1, streams=1, requests=4, upload=UPLOAD[:1000])
    assert "0 2xx, 0 3xx, 4 4xx" in load.problem


@pytest.mark.system
def test_a_wrong_path_is_a_problem(contest: Contest) -> None:
    load = contest.load.multiplex("/nothing", connections=1, streams=1, requests=4)
    assert "0 2xx, 0 3xx, 4 4xx" in load.problem


@pytest.mark.system
def test_varied_requests_are_answered(contest: Contest) -> None:
    load = contest.load.vary("/varied", length=LENGTHS["/varied"], connections=2, streams=3, seconds=0.1)
    assert load.problem == ""
    assert load.requests >= 6


@pytest.mark.system
@pytest.mark.parametrize(
    ("path", "length", "complaint"),
    [("/varied", 217, "1 bytes are missing"), ("/nothing", 216, "status 404")],
)
def test_a_varied_answer_that_is_not_right_ends_the_run(
    contest: Contest, path: str, length: int, complaint: str
) -> None:
    load = contest.load.vary(path, length=length, connections=1, streams=1, seconds=0.1)
    assert load.problem.startswith(complaint)


@pytest.mark.system
def test_http2_connections_are_held(contest: Contest) -> None:
    with contest.load.hold("/small", length=LENGTHS["/small"], count=5, http2=True):
        pass
    with (
        pytest.raises(ValueError, match="connection 5 of 5: 1 bytes are missing"),
        contest.load.hold("/small", length=LENGTHS["/small"] + 1, count=5, http2=True),
    ):
        pass


@pytest.mark.system
def test_a_server_without_http2_is_refused(contest: Contest) -> None:
    context = client.client_context()
    context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(client.AnswerError, match=r"ALPN chose http/1\.1, not h2"):
        client_h2.Session(context, contest.place.port, 216)


# --- rows


def test_the_rows_of_http2_have_the_budgets_they_should() -> None:
    rows = {name: row.budget for name, row in ROWS.items() if "http2" in name}
    assert rows == {
        "http2-small": Budget(nginx=1.5, caddy=0.3),
        "http2-varied": Budget(nginx=1.5, caddy=0.3),
        "http2-64k": Budget(nginx=1.25),
        "http2-upload": Budget(nginx=1.25),
        "http2-100x50": Budget(nginx=1.5),
        "rss-http2": Budget(nginx=1.3),
    }
    assert set(rows) - set(LOADS) == {"rss-http2"}


def test_uploads_are_as_long_as_the_application_expects() -> None:
    config = (Path(client.__file__).parent / "configs" / "backend.conf").read_text()
    found = re.search(r'"~(\^6\S+)" yes;', config)
    assert found
    assert len(UPLOAD) == 64 << 10
    assert re.match(found[1], str(len(UPLOAD) + 400))
    assert not re.match(found[1], str(len(UPLOAD) - 1000))
