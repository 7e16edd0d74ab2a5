"""What the commands for backends and sites ask, and what they make of the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.answering import answering
from tlsproxy import cli
from tlsproxy.runtime.adminhttp import Answer

Output = pytest.CaptureFixture[str]
SOCKET = Path("admin.sock")
URL, NEW = "http://127.0.0.1:8000", "http://127.0.0.1:8001"
ROW: dict[str, Any] = {
    "url": URL, "routes": ["a.test /", "b.test /"], "state": "up", "why": "", "workers": {"up": 2},
    "active": 3, "idle": 4, "requests": 50, "failures": 0, "since": "2026-03-01T12:00:00Z",
}  # fmt: skip
SITE = {
    "site": "a.test", "hosts": ["a.test"], "paused_for": 0.0,
    "routes": [
        {"path": "/", "backends": [URL], "swapped": False},
        {"path": "/api", "backends": [NEW], "swapped": True},
    ],
}  # fmt: skip


def test_a_list_for_programs_and_for_people(capsys: Output) -> None:
    down = {**ROW, "url": NEW, "state": "down", "workers": {"down": 1, "up": 1}, "why": "503\x1b[2J", "since": None}
    with answering(SOCKET, {"GET /backends": Answer(200, [ROW, down])}):
        assert cli.main(["admin", "backends", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [ROW, down]
        assert cli.main(["admin", "backends", "list"]) == 0
    title, up, other = capsys.readouterr().out.splitlines()
    assert title.startswith("BACKEND\tSTATE\tSINCE")
    assert up.split("\t")[:2] == [URL, "up"]
    assert up.split("\t")[3:] == ["3", "4", "50", "0", "a.test /, b.test /", ""]
    assert (other.split("\t")[1], other.split("\t")[-1]) == ("down (1/2)", "503\\x1b[2J")


@pytest.mark.parametrize(("verb", "said"), [("drain", "gets no new requests"), ("resume", "gets requests again")])
def test_one_is_named_as_it_is(verb: str, said: str, capsys: Output) -> None:
    answer = Answer(200, {"url": URL, "state": "x", "warnings": ["nobody is left"]})
    with answering(SOCKET, {f"POST /backends/{URL}/{verb}": answer}) as asked:
        assert cli.main(["admin", "backends", verb, URL]) == 0
    assert [request.path for request in asked] == [("backends", URL, verb)]
    found = capsys.readouterr()
    assert (found.out, found.err) == (f"{URL}: {said}\n", "warning: nobody is left\n")


def test_a_swap_shows_its_steps(capsys: Output) -> None:
    result = {"route": "a.test /api", "backends": [NEW, URL], "before": [], "warnings": ["2 requests go on"]}
    step: dict[str, Any] = {"step": "check", "host": "a.test /api", "text": "GET /up"}
    lines = [step, {"status": 200, "result": result}]
    with answering(SOCKET, {"POST /backends/swap": lines}) as asked:
        command = ["admin", "backends", "swap", "--site", "a.test", "--path", "/api", "--to", NEW, "--to", URL]
        assert cli.main([*command, "--timeout", "5s", "--drain", "1m"]) == 0
    wanted = {"site": "a.test", "path": "/api", "to": f"{NEW},{URL}", "timeout": "5s", "drain": "1m"}
    assert asked[0].options == wanted
    found = capsys.readouterr()
    assert found.out == f"check: a.test /api: GET /up\na.test /api: {NEW}, {URL}\n"
    assert found.err == "warning: 2 requests go on\n"


@pytest.mark.parametrize("to", [(NEW, URL), (f"{NEW},{URL}",), (f" {NEW}, {URL} ",)])
def test_several_are_written_with_commas_or_one_by_one(to: tuple[str, ...]) -> None:
    result: dict[str, Any] = {"route": "a.test /", "backends": [NEW, URL], "before": [], "warnings": []}
    with answering(SOCKET, {"POST /backends/swap": [{"status": 200, "result": result}]}) as asked:
        command = ["admin", "backends", "swap", "--site", "a.test"]
        assert cli.main([*command, *(word for each in to for word in ("--to", each))]) == 0
    assert asked[0].options["to"] == f"{NEW},{URL}"


@pytest.mark.parametrize("to", ["", ",", f"{NEW},", f"{NEW},,{URL}"])
def test_a_gap_between_them_is_refused_before_anybody_is_asked(to: str, capsys: Output) -> None:
    with answering(SOCKET, {}) as asked:
        assert cli.main(["admin", "backends", "swap", "--site", "a.test", "--to", to]) == 2
    assert asked == []
    assert "lacks a URL; write --to URL,URL or --to URL --to URL" in " ".join(capsys.readouterr().err.split())


def test_a_swap_that_failed_is_an_exit_code_and_a_reason(capsys: Output) -> None:
    step: dict[str, Any] = {"step": "check", "host": "a", "text": "b"}
    lines = [step, {"status": 502, "error": "Nothing was changed."}]
    with answering(SOCKET, {"POST /backends/swap": lines}):
        assert cli.main(["admin", "backends", "swap", "--site", "a.test", "--to", NEW]) == 1
    assert "Nothing was changed." in capsys.readouterr().err


def test_sites_with_what_is_not_as_configured(capsys: Output) -> None:
    with answering(SOCKET, {"GET /sites": Answer(200, [SITE, {**SITE, "paused_for": 12.3}])}):
        assert cli.main(["admin", "sites", "list"]) == 0
    states = [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]
    assert states == ["STATE", "as configured", "swapped", "paused 12 s", "paused 12 s, swapped"]


@pytest.mark.parametrize(
    ("was_paused", "said"), [(True, "no longer paused, its requests go on"), (False, "was not paused")]
)
def test_a_pause_and_its_end(was_paused: bool, said: str, capsys: Output) -> None:
    paused, resumed = ({"site": "a.test", "paused_for": time, "warnings": []} for time in (20.0, 0.0))
    resumed["was_paused"] = was_paused
    answers = {"POST /sites/b.test/pause": Answer(200, paused), "POST /sites/b.test/resume": Answer(200, resumed)}
    with answering(SOCKET, answers) as asked:
        assert cli.main(["admin", "sites", "pause", "b.test", "--for", "20s"]) == 0
        assert cli.main(["admin", "sites", "resume", "b.test"]) == 0
    assert [request.options for request in asked] == [{"for": "20s"}, {}]
    assert capsys.readouterr().out == f"a.test: paused for 20 s\na.test: {said}\n"


def test_without_a_proxy_there_is_nothing_to_ask(capsys: Output) -> None:
    for command in (["backends", "list"], ["backends", "drain", URL], ["sites", "list"], ["sites", "pause", "a"]):
        assert cli.main(["admin", *command]) == 3
        assert "no proxy is running" in capsys.readouterr().err


def test_a_word_that_has_no_meaning_is_a_mistake_of_the_one_who_asks(capsys: Output) -> None:
    """Scripts tell it from a proxy that could not: exit code 2, not 1."""
    refused = {"POST /sites/a.test/pause": Answer(400, {"error": '"3x" is not a duration'})}
    with answering(SOCKET, refused):
        assert cli.main(["admin", "sites", "pause", "a.test", "--for", "3x"]) == 2
    assert '"3x" is not a duration' in capsys.readouterr().err
    with answering(SOCKET, {"POST /sites/a.test/pause": Answer(503, {"error": "not now"})}):
        assert cli.main(["admin", "sites", "pause", "a.test"]) == 1
