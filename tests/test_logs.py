"""One event, one line, whatever is in it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from tlsproxy import logs
from tlsproxy.settings import Log

logger = logging.getLogger("tlsproxy.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("tlsproxy")
    before = (root.handlers[:], root.level, ours.level, logging.raiseExceptions)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.raiseExceptions = before[3]


def configured(stream: io.StringIO, **section: str) -> io.StringIO:
    logs.configure(Log.model_validate(section), stream=stream)
    return stream


def test_json_lines() -> None:
    out = configured(io.StringIO(), format="json")
    logger.info("worker.started", extra={"slot": 1, "why": 'a"\n\x1b[2J', "ts": "forged"})
    line = json.loads(out.getvalue())
    assert out.getvalue().count("\n") == 1
    assert list(line)[:3] == ["ts", "level", "event"]
    assert (line["level"], line["event"], line["slot"], line["why"]) == ("info", "worker.started", 1, 'a"\n\x1b[2J')
    assert line["ts"].endswith("Z")
    assert "\x1b" not in out.getvalue()


def test_an_error_comes_with_its_traceback_in_one_line() -> None:
    out = configured(io.StringIO(), format="json")
    try:
        int("odd")
    except ValueError:
        logger.exception("exchange.failed")
    line = json.loads(out.getvalue())
    assert line["error"].startswith("ValueError: invalid literal")
    assert "test_logs.py" in line["traceback"]


def test_auto_is_json_when_piped_and_console_in_a_terminal() -> None:
    piped, terminal = configured(io.StringIO()), Terminal()
    logger.info("a.b")
    configured(terminal)
    logger.info("a.b", extra={"n": 1})
    assert json.loads(piped.getvalue())["event"] == "a.b"
    assert "a.b" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_console_without_a_terminal_has_no_colours() -> None:
    out = configured(io.StringIO(), format="console")
    logger.warning("a.b", extra={"text": "two words", "word": "one", "list": [1], "evil": "\x1b[2J\nINFO forged"})
    line = out.getvalue()
    assert line[8:].startswith(' WARNING a.b text="two words" word=one list=[1] evil="\\u001b[2J\\nINFO forged"')
    assert line.count("\n") == 1


def test_values_that_hide_in_lists_stay_in_their_line_too() -> None:
    out = configured(io.StringIO(), format="console")
    logger.warning("a.b", extra={"list": ["\x7f\x9b2J\u2028"]})
    assert out.getvalue().rstrip("\n").isprintable()


def test_levels() -> None:
    out = configured(io.StringIO(), format="json", level="warning")
    logger.info("quiet")
    logger.warning("loud")
    logging.getLogger("somebody.else").info("quiet")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["loud"]


def test_configuring_again_replaces() -> None:
    first, second = configured(io.StringIO()), configured(io.StringIO())
    logger.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
