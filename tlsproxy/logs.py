"""Process logging: one event per line on stderr, as JSON or for a terminal.

The message of a record is the name of an event ("worker.started"); everything else travels in `extra`. Knows formats,
not events. Rules: a record is one line and one write, so that lines of several processes never mix; nothing in a value
breaks out of its line or reaches the terminal as a control sequence; logging never raises into the program.
The access log is not written here: it is data, and goes its own way.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from tlsproxy.settings.models import Log

# What every record has; all else came in `extra` and belongs to the event.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {
    logging.DEBUG: "2",
    logging.INFO: "32",
    logging.WARNING: "33",
    logging.ERROR: "31",
    logging.CRITICAL: "31;1",
}


def configure(log: Log, *, stream: TextIO | None = None) -> None:
    """Send the log of this process to stderr (or `stream`). May be called again; the last call holds."""
    target = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(log, target))
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, "tlsproxy", False)]:
        root.removeHandler(old)
    handler.tlsproxy = True  # type: ignore[attr-defined] # marks ours: handlers of others (pytest's) stay
    root.addHandler(handler)
    # Libraries are heard from warnings on: their debug lines may hold what a client sent.
    root.setLevel(logging.WARNING)
    logging.getLogger("tlsproxy").setLevel(log.level.upper())
    logging.raiseExceptions = False  # a full disk behind stderr must not print tracebacks into it


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, level, event, pid, the fields of the event, and the error if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
        }
        # The line's own names win: an event can't forge its time or level.
        line = {**_fields(record), **_error(record), **line}
        order = ("ts", "level", "event")
        return json.dumps({key: line[key] for key in (*order, *(k for k in line if k not in order))}, default=str)


class ConsoleFormatter(logging.Formatter):
    """`12:30:05 INFO  worker.started pid=71 slot=0`, with colours in a terminal."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        level = self._paint(f"{record.levelname:<7}", _COLOURS.get(record.levelno, "0"))
        fields = {**_fields(record), **_error(record)}
        trace = fields.pop("traceback", "")
        pairs = [f"{self._paint(f'{key}=', '2')}{_plain(value)}" for key, value in fields.items()]
        first = " ".join([self._paint(clock, "2"), level, _plain(record.getMessage()), *pairs])
        return "\n".join([first, *(f"    {_harmless(row)}" for row in trace.splitlines())])

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text


def _formatter(log: Log, stream: TextIO) -> logging.Formatter:
    in_terminal = stream.isatty()
    if log.format == "console" or (log.format == "auto" and in_terminal):
        return ConsoleFormatter(colours=in_terminal)
    return JsonFormatter()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN}


def _error(record: logging.LogRecord) -> dict[str, str]:
    """An unexpected exception is for whoever runs the proxy, so it comes with its traceback, as one field."""
    if not record.exc_info or record.exc_info[1] is None:
        return {}
    error = record.exc_info[1]
    lines = traceback.format_exception(error)
    return {"error": f"{type(error).__name__}: {error}", "traceback": "".join(lines)}


def _plain(value: Any) -> str:
    """Show text bare if it is one harmless word, in JSON quotes if not."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    is_bare = not isinstance(value, str) or (text and not set(text) & set(' "='))
    return _harmless(text if is_bare else json.dumps(text, ensure_ascii=False))


def _harmless(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
