"""What `admin top` looks like: a screen that fits the terminal, or one line for a pipe, or one JSON object.

Knows views (rates) and rich; asks nobody. Rules: nothing wraps: the first column of a table gives way, and where even
that is too much, the last columns do; tables share the height, and say how much they leave out; names come from
strangers, so nothing in them reaches the terminal as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tlsproxy.cli.output import Cell, harmless
from tlsproxy.cli.rates import Traffic, View

_NARROWEST = 12  # characters of a first column
_GAP = 2
_HEAD = 5  # lines above the tables
_STATES = {"up": "green", "recovering": "yellow", "draining": "yellow", "ejected": "red", "down": "red"}
_CERTIFICATES = {"valid": "green", "pending": "yellow", "failed": "red", "expired": "red"}
_SOON = 7.0  # days
_SLOW_TICK = 500  # milliseconds
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Section:
    """A table to be: the first column gives way, the others are as wide as what is in them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def screen(view: View, history: Sequence[float], width: int, height: int, *, notice: str = "") -> Group:
    """Return all there is to show in so many characters and lines. `history` is requests per second, oldest first."""
    sections = [section for section in _sections(view) if section.rows]
    while sections and _least(sections) > height:
        sections.pop()
    rooms = share([len(section.rows) for section in sections], height - _HEAD - 2 * len(sections))
    parts: list[Any] = [_line(cells, width) for cells in _head(view, history, width)]
    parts.append(_line([Cell(notice, "bold red")] if notice else [Cell("q: quit", "dim")], width))
    for section, room in zip(sections, rooms, strict=True):
        parts += ["", _table(section, room, width)]
    return Group(*parts)


def _least(sections: Sequence[Section]) -> int:
    """Lines for all of them, when each has as few as is of any use."""
    return _HEAD + sum(2 + min(2, len(section.rows)) for section in sections)


def share(wanted: Sequence[int], room: int) -> list[int]:
    """Divide lines: nobody gets more than wanted, what one leaves is the others'; those with less wish are whole."""
    given = [0] * len(wanted)
    while room > 0 and (open_ := [place for place, most in enumerate(wanted) if given[place] < most]):
        for place in open_[:room]:
            given[place] += 1
        room -= len(open_[:room])
    return given


def line(view: View) -> str:
    """Return one line for a pipe: the same words at the same places each time."""
    total, sample = view.total, view.sample
    up = sum(row["state"] in ("up", "recovering") for row in sample["backends"])
    when = datetime.fromtimestamp(sample["time"], UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    connections = sum(sample["connections"].values())
    return (
        harmless(
            f"{when} requests/s={total.rate:.1f} p50={_time(total.p50, '-')} p99={_time(total.p99, '-')} "
            f"5xx={_part(total.failed, '-')} connections={connections} workers={len(sample['workers'])} "
            f"backends_up={up}/{len(sample['backends'])} "
            f"generation={sample['generation']} draining={sample['draining']} "
            f"certificates_valid={sample['certificates'].get('valid', 0)}/{sum(sample['certificates'].values())}"
        )
        .replace(" ms", "ms")
        .replace(" s ", "s ")
        .replace(" %", "%")
    )


def as_json(view: View) -> dict[str, Any]:
    """Return one sample with its rates; seconds and parts of 1."""
    sample = view.sample
    kept = ("generation", "draining", "connections", "backends", "certificates", "expiring")
    workers = [{**each.row, "requests_per_second": each.rate, "cpu": each.cpu} for each in view.workers]
    return {
        "time": datetime.fromtimestamp(sample["time"], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "seconds": round(view.seconds, 3),
        **_traffic(view.total),
        "sites": [{"site": name, **_traffic(traffic)} for name, traffic in view.sites],
        "workers": workers,
        **{name: sample[name] for name in kept},
    }


def _traffic(traffic: Traffic) -> dict[str, Any]:
    statuses = {name: round(rate, 3) for name, rate in traffic.statuses.items()}
    return {
        "requests_per_second": round(traffic.rate, 3),
        "p50": traffic.p50,
        "p99": traffic.p99,
        "by_status": statuses,
    }


# --- the screen -------------------------------------------------------------------------------------------------------


def _head(view: View, history: Sequence[float], width: int) -> list[list[Cell]]:
    sample, total = view.sample, view.total
    draining = f" ({sample['draining']} draining)" if sample["draining"] else ""
    age = sample["time"] - datetime.fromisoformat(sample["started"]).timestamp()
    statuses = [Cell(f"  {name} {rate:.1f}/s", _status_style(name, rate)) for name, rate in total.statuses.items()]
    states = ", ".join(f"{count} {state}" for state, count in sample["connections"].items() if count)
    return [
        [
            Cell(f"tlsproxy {sample['version']}", "bold"),
            Cell(f"  pid {sample['pid']}  generation {sample['generation']}{draining}  up {_span(age)}"),
        ],
        [
            Cell(f"{_number(total.rate)} requests/s", "bold"),
            Cell(f"  p50 {_time(total.p50)}  p99 {_time(total.p99)}"),
            *statuses,
        ],
        [Cell(f"{sum(sample['connections'].values())} connections"), Cell(f"  {states}", "dim")],
        [Cell(bars(history[-width:]), "cyan")],
    ]


def bars(history: Sequence[float]) -> str:
    """Return a bar for each value, the highest as high as a line."""
    highest = max(history, default=0.0) or 1.0
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in history)


def _sections(view: View) -> list[Section]:
    sample = view.sample
    sites = [
        [Cell(name), Cell(_number(each.rate)), Cell(_time(each.p50)), Cell(_time(each.p99)), _failed(each)]
        for name, each in view.sites
    ]
    trouble_first = sorted(sample["backends"], key=lambda row: (row["state"] == "up", row["url"]))
    backends = [
        [
            Cell(row["url"]),
            Cell(row["state"], _STATES.get(row["state"], "")),
            Cell(str(row["active"])),
            Cell(_number(view.backends[row["url"]])),
            Cell(str(row["failures"])),
        ]
        for row in trouble_first
    ]
    workers = [
        [
            Cell(f"worker {each.row['pid']}", "" if each.row["connections"] is not None else "red"),
            Cell(_part(each.cpu)),
            Cell(f"{each.row['memory'] / 2**20:.0f} MiB"),
            Cell(_text(each.row["connections"])),
            Cell(_number(each.rate)),
            Cell(_text(each.row["lag_ms"], " ms"), "red" if (each.row["lag_ms"] or 0) > _SLOW_TICK else ""),
        ]
        for each in view.workers
    ]
    return [
        Section(("SITE", "REQ/S", "P50", "P99", "5XX"), sites),
        Section(("BACKEND", "STATE", "ACTIVE", "REQ/S", "FAILURES"), backends),
        Section(("PROCESS", "CPU", "MEMORY", "CONN", "REQ/S", "LAG"), workers),
        Section(("CERTIFICATE", "STATUS", "LEFT"), [_certificate(view, row) for row in sample["expiring"]]),
    ]


def _certificate(view: View, row: Mapping[str, Any]) -> list[Cell]:
    left, status = view.days_left(row), str(row["status"])
    style = "red" if left is not None and left < _SOON else ""
    shown = "" if left is None else _span(left * 86400) if left > 0 else "over"
    return [Cell(row["name"]), Cell(status, _CERTIFICATES.get(status, "")), Cell(shown, style)]


def _table(section: Section, room: int, width: int) -> Table:
    """As many columns as have room beside a first one that can be read."""
    cut = len(section.rows) - room
    rows = section.rows[: room - 1] if cut > 0 else section.rows
    widths = [max(len(harmless(row[n].text)) for row in [[*map(Cell, section.columns)], *rows])
              for n in range(len(section.columns))]  # fmt: skip
    widths[0] = max(widths[0], _NARROWEST)
    count = len(widths)
    while count > 2 and _NARROWEST + sum(widths[1:count]) + _GAP * (count - 1) > width:
        count -= 1
    first = min(widths[0], max(_NARROWEST, width - sum(widths[1:count]) - _GAP * (count - 1)))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_edge=False)
    for number, column in enumerate(section.columns[:count]):
        is_text = number == 0 or column in ("STATE", "STATUS")
        table.add_column(
            column,
            justify="left" if is_text else "right",
            width=first if number == 0 else widths[number],
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(harmless(cell.text), style=cell.style) for cell in row[:count]))
    if cut > 0:
        table.add_row(Text(f"… {cut + 1} more", style="dim"))
    return table


def _line(cells: Sequence[Cell], width: int) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for cell in cells:
        text.append(harmless(cell.text), style=cell.style)
    text.truncate(width, overflow="ellipsis")
    return text


# --- words ------------------------------------------------------------------------------------------------------------


def _failed(traffic: Traffic) -> Cell:
    return Cell(_part(traffic.failed), "red" if traffic.failed else "")


def _status_style(name: str, rate: float) -> str:
    return {"5xx": "red", "4xx": "yellow", "2xx": "green"}.get(name, "") if rate else "dim"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _part(value: float | None, otherwise: str = "") -> str:
    return otherwise if value is None else f"{value * 100:.1f} %"


def _text(value: object, unit: str = "") -> str:
    return "silent" if value is None else f"{value}{unit}"


def _time(seconds: float | None, otherwise: str = "–") -> str:
    if seconds is None:
        return otherwise
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
