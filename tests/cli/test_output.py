"""Tables, steps and questions, in a terminal and in a pipe."""

from __future__ import annotations

import io
import json

import pytest
import typer

from tlsproxy import cli
from tlsproxy.cli import output
from tlsproxy.cli.output import Cell
from tlsproxy.errors import ConfigError, Problem, TlsproxyError

Output = pytest.CaptureFixture[str]


class Screen(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Be a terminal from here on. No fixture: pytest gives every phase of a test another stdout."""
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


def test_a_pipe_gets_tabs(capsys: Output) -> None:
    output.say_table(["NAME", "STATUS"], [[Cell("a.test"), Cell("valid", "green")], [Cell("b.test"), Cell("")]])
    assert capsys.readouterr().out == "NAME\tSTATUS\na.test\tvalid\nb.test\t\n"


def test_a_terminal_gets_columns_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    output.say_table(["NAME", "STATUS"], [[Cell("a.test"), Cell("valid", "green")]])
    assert "\x1b[32mvalid" in screen.getvalue()
    assert "\t" not in screen.getvalue()


def test_names_stay_whole_where_room_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    monkeypatch.setenv("COLUMNS", "60")
    name, words = "acme/" + "a" * 30 + ".test", "Pebble Intermediate CA 04b871 " * 3
    output.say_table(["NAME", "ISSUER", "NEXT"], [[Cell(name), Cell(words), Cell("2026-03-01 04:05")]])
    assert name in screen.getvalue()
    assert "2026-03-01 04:05" in screen.getvalue()


def test_what_a_stranger_wrote_is_no_control_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    nasty = "x\x1b[2J\r\nforged\tline\u202e"
    output.say_table(["NAME"], [[Cell(nasty)]])
    with output.steps() as shown:
        shown.step(nasty)
    said = screen.getvalue()
    assert "\x1b[2J" not in said
    assert "\u202e" not in said
    assert "forged" in said
    assert output.harmless(nasty) == "x\\x1b[2J\\r\\nforged\\tline\\u202e"


def test_json_reaches_a_terminal_in_ascii_and_a_pipe_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    nasty = {"said": "ü\x9b2J\u202e\x7f"}
    output.say_json(nasty)
    piped = capsys.readouterr().out
    assert "ü\x9b" in piped
    screen = make_screen(monkeypatch)
    output.say_json(nasty)
    shown = screen.getvalue()
    assert all(char.isprintable() for line in shown.splitlines() for char in line)
    assert shown.isascii()
    assert json.loads(shown) == json.loads(piped) == nasty


def test_errors_are_no_control_sequences(capsys: Output) -> None:
    problems = [Problem("a.toml:1", "x", "wrong \x1b[2J"), Problem("a.toml:2", "y", "\u202ewrong\r")]
    for error, said in [
        (ConfigError(problems), "a.toml:1: x: wrong \\x1b[2J\na.toml:2: y: \\u202ewrong\\r\n"),
        (TlsproxyError("the CA said \x9b\nand\tmore"), "tlsproxy: the CA said \\x9b\nand\\tmore\n"),
        (RuntimeError("x\x1b"), "tlsproxy: unexpected RuntimeError: x\\x1b. This is a bug; --debug shows where.\n"),
    ]:
        cli._report(error, debug=False)
        assert capsys.readouterr().err == said


def test_rich_markup_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    output.say_table(["NAME"], [[Cell("[red]x[/red]")]])
    with output.steps() as shown:
        shown.step("[bold]y")
    assert "[red]x[/red]" in screen.getvalue()
    assert "[bold]y" in screen.getvalue()


def test_fields_stand_below_each_other(capsys: Output) -> None:
    output.say_fields([("a", "1"), ("long", "2\n3"), ("none", "")])
    assert capsys.readouterr().out == "a     1\nlong  2\n      3\nnone\n"


def test_steps_are_lines_in_a_pipe(capsys: Output) -> None:
    with output.steps() as shown:
        shown.step("one")
        shown.step("two")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_steps_are_ticked_off_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    with output.steps() as shown:
        shown.step("one")
        shown.step("two")
    assert screen.getvalue().count("✓") == 2


@pytest.mark.parametrize(("error", "mark"), [(RuntimeError, "✗"), (KeyboardInterrupt, "…")])
def test_the_last_step_is_marked_by_its_end(
    error: type[BaseException], mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = make_screen(monkeypatch)

    def end() -> None:
        with output.steps() as shown:
            shown.step("one")
            shown.step("two")
            raise error

    with pytest.raises(error):
        end()
    assert [screen.getvalue().count(each) for each in ("✓", mark)] == [1, 1]


def test_nobody_to_ask_is_no_yes(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(typer.Exit) as caught:
        output.confirm("Really?")
    assert caught.value.exit_code == 2
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "goes_on"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_is_asked(typed: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr("sys.stdin", Screen(typed))
    if goes_on:
        output.confirm("Really?")
    else:
        with pytest.raises(typer.Exit) as caught:
            output.confirm("Really?")
        assert caught.value.exit_code == 1
    assert capsys.readouterr().err.startswith("Really?")
